"""A container image of a few files, as an OCI archive (image-spec: image-layout.md, manifest.md, config.md)."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


def write(archive: Path, name: str, files: Mapping[str, Path], run: Mapping[str, object]) -> None:
    """`name` as `localhost/what:tag`; `files`: place in the image → file or folder here; `run`: how it is run, in the
    words of the image's config."""
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer = blob(_LAYER, _layer(files))
    machine = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    config = {**machine, "config": run, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob(_CONFIG, _json(config)),
        "layers": [layer],
    }
    named = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    entry = {**blob(_MANIFEST, _json(manifest)), "platform": machine, "annotations": named}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]}
    with tarfile.open(archive, "w") as out:
        for path, content in {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": _json(index),
            **blobs,
        }.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def _layer(files: Mapping[str, Path]) -> bytes:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        for place, path in sorted(files.items()):
            layer.add(path, place, filter=plain)
    return content.getvalue()


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
