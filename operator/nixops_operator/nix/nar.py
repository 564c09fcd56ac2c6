"""Writing a tree as a NAR, Nix' archive without times and owners: Nix manual, "Nix Archive (NAR) format"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Tree = dict[str, "bytes | Tree"]


def nar_of(files: Mapping[str, bytes]) -> bytes:
    """The NAR of a folder with these files (relative path → content), none executable.

    Raises ValueError if one path is both a file and a folder of another.
    """
    return b"".join(nar_parts(files))


def nar_parts(files: Mapping[str, bytes]) -> list[bytes]:
    """As `nar_of`, in parts that share the files' contents: it takes no more memory than they do."""
    root: Tree = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        folder = root
        for part in folders:
            match folder.setdefault(part, {}):
                case dict() as inner:
                    folder = inner
                case _:
                    raise ValueError(f"{path}: {part} is a file")
        if name in folder:
            raise ValueError(f"{path} is there twice, or is a folder too")
        folder[name] = content
    return [padded(b"nix-archive-1"), *_node(root)]


def padded(content: bytes) -> bytes:
    """A byte string as NARs and Nix' wire protocols write it: length (64 bit, little endian), bytes, zeros up to a
    multiple of 8."""
    return len(content).to_bytes(8, "little") + content + bytes(-len(content) % 8)


def _node(node: bytes | Tree) -> Iterator[bytes]:
    if isinstance(node, bytes):
        yield from map(padded, (b"(", b"type", b"regular", b"contents"))
        yield from (len(node).to_bytes(8, "little"), node, bytes(-len(node) % 8), padded(b")"))
        return
    yield from map(padded, (b"(", b"type", b"directory"))
    # Sorted by bytes: the order is part of the hash.
    for name in sorted(node, key=str.encode):
        yield from map(padded, (b"entry", b"(", b"name", name.encode(), b"node"))
        yield from _node(node[name])
        yield padded(b")")
    yield padded(b")")
