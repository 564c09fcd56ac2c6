"""The image, built or found.

Its root file system serves many states of the operator's code, which is bound over what is installed there; the archive
that a node runs holds the code as it is. So there are two digests: of what the root depends on, and of everything.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nixops_lab import debian, tools_root
from nixops_lab.image import base, reach
from nixops_lab.paths import CHECKOUT, cache_folder
from nixops_lab.report import say

MAKE = Path(__file__).parent / "make.sh"
REPOSITORY = "localhost/nixops-operator"
KEPT_ARCHIVES = 4  # 0.3 GB each; an edit of the operator makes another one
STORAGE_BYTES = 8 << 30  # of buildah's layers; beyond it all go, which costs one build from the beginning
INTERPRETER = Path("opt/nixops-operator/bin/python")


@dataclass(frozen=True)
class Image:
    """`archive` is an OCI archive that holds the image as `name`."""

    name: str
    archive: Path


def build() -> Image:
    """The image of the checkout as it is. With nothing cached two to three minutes, after an edit of the operator some
    seconds. Raises LabError with the remedy. Needs root; several callers may build at once."""
    cache = cache_folder()
    tag = debian.digest(_of_root(), *map(_content, _files(("README.md", "LICENSE", "operator"))))
    place = cache / f"image-{tag}"
    name = f"{REPOSITORY}:{tag}"
    with debian.locked(cache / "image.lock"):
        if place.exists():
            os.utime(place)
        else:
            say("building the operator's image")
            debian.in_one_step(place, lambda partial: _make(partial, name, "want-archive"))
            _forget_old(cache)
    return Image(name, place / "image.tar")


def build_root() -> Path:
    """The root file system of an image like the checkout's; what is in `operator/` may be another state. As `build`."""
    cache = cache_folder()
    key = _of_root()
    place = cache / f"image-root-{key}"
    with debian.locked(cache / "image.lock"):
        if not place.exists():
            say("building the root file system of the operator's image")
            debian.in_one_step(place, lambda partial: _make(partial, f"{REPOSITORY}:root-{key}", "want-root"))
    return place / "root"


def _of_root() -> str:
    # Up to the tables of tools that no build reads, as in set-up.
    project = (CHECKOUT / "pyproject.toml").read_text().split("\n[tool.pytest", 1)[0]
    others = map(_content, _files(("Dockerfile", ".dockerignore", "requirements/runtime.txt")))
    return debian.digest(base.recipe(), MAKE.read_text(), project, *others)


def _make(partial: Path, name: str, wanted: str) -> None:
    cache = cache_folder()
    tools = tools_root.build()
    base_root = cache / f"image-base-{base.recipe()}"
    if not base_root.exists():
        say("making the base image of Debian's packages")
        debian.in_one_step(base_root, base.make)
    partial.mkdir()
    (partial / wanted).touch()
    mounts = reach.lay_out(partial, base_root)
    places = [tools, cache / "image-storage", base_root, partial, CHECKOUT]
    argv = ["bash", str(MAKE), *map(str, places), name, *(f"{folder.name}:{place}" for folder, place in mounts)]
    debian.talk([*debian.ALONE, *argv])
    for folder, _ in mounts:
        shutil.rmtree(folder)


def _forget_old(cache: Path) -> None:
    archives = sorted((path for path in cache.glob("image-*/image.tar")), key=lambda path: path.parent.stat().st_mtime)
    for old in archives[:-KEPT_ARCHIVES]:
        shutil.rmtree(old.parent)
    storage = cache / "image-storage"
    if sum(path.lstat().st_blocks * 512 for path in storage.rglob("*")) > STORAGE_BYTES:
        debian.remove_interrupted(storage)


def _files(names: Iterable[str]) -> list[Path]:
    """Files at or below these names of the checkout, without what Python caches beside them."""
    found: list[Path] = []
    for name in names:
        path = CHECKOUT / name
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [each for each in inside if each.is_file() and "__pycache__" not in each.parts]
    return sorted(found)


def _content(path: Path) -> str:
    return f"{path.relative_to(CHECKOUT)}\0{path.stat().st_mode & 0o111:o}\0{debian.file_digest(path)}"
