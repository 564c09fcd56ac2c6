"""What a binary cache says of a path, and what a derivation asks of those who build it. Pure.

Formats: Nix, src/libstore/nar-info.cc; Nix manual, "Advanced attributes".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from nixops_operator.nix.derivations import Derivation
from nixops_operator.nix.store_paths import STORE, is_store_path

TEXT_LIMIT = 256 * 1024  # bytes of one .narinfo; a path of ten thousand references has more than anybody has seen
# With a query, as harmonia names its archives: nar/<hash of the archive>.nar?hash=<that of the path>.
_FILE = re.compile(r"[A-Za-z0-9+._=-]{1,200}(?:/[A-Za-z0-9+._=-]{1,200}){0,3}(?:\?[A-Za-z0-9+._=&%-]{1,200})?")
_MIRROR = "mirror://"
G = TypeVar("G")


class BadNarInfoError(ValueError):
    """The text is no .narinfo of the path that was asked for."""


@dataclass(frozen=True)
class NarInfo:
    """`url`: relative to the cache. `size`: bytes of the file, 0 where the cache does not say. Nothing of it is
    believed but where to fetch: Nix checks hash and signature."""

    path: str
    url: str
    size: int
    references: frozenset[str]
    text: bytes


def nar_info(path: str, text: bytes) -> NarInfo:
    """Raises BadNarInfoError."""
    try:
        lines = text.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise BadNarInfoError("it is not ASCII") from None
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    url, size = fields.get("URL", ""), fields.get("FileSize", "0")
    if fields.get("StorePath") != path:
        raise BadNarInfoError("it is about another path")
    if not _FILE.fullmatch(url) or ".." in url:
        raise BadNarInfoError("its URL is no file of the cache")
    if not re.fullmatch(r"[0-9]{1,15}", size):
        raise BadNarInfoError("its FileSize is no number")
    references = frozenset(f"{STORE}/{name}" for name in fields.get("References", "").split())
    if not all(map(is_store_path, references)):
        raise BadNarInfoError("its References are no store paths")
    return NarInfo(path, url, int(size), references - {path}, text)


def in_turns(found: Mapping[str, tuple[G, NarInfo]]) -> list[tuple[G, list[NarInfo]]]:
    """Who gives what, in as few turns as may be: each path after those of them that it refers to, whoever gives these.
    Raises BadNarInfoError if they refer to each other in a circle."""
    graph = {path: [each for each in info.references if each in found] for path, (_, info) in sorted(found.items())}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        raise BadNarInfoError("paths refer to each other in a circle") from error
    turns: list[tuple[G, list[NarInfo]]] = []
    ready: dict[G, list[str]] = {}
    while sorter.is_active():
        for path in sorter.get_ready():
            ready.setdefault(found[path][0], []).append(path)
        giver = turns[-1][0] if turns and turns[-1][0] in ready else next(iter(ready))
        if not turns or turns[-1][0] != giver:
            turns.append((giver, []))
        given = ready.pop(giver)
        turns[-1][1].extend(found[path][1] for path in given)
        sorter.done(*given)
    return turns


def may_be_substituted(derivation: Derivation) -> bool:
    """Whether Nix would ask a cache for its outputs."""
    if (value := derivation.environment.get(b"allowSubstitutes")) is not None:
        return value not in (b"", b"0")
    return _structured(derivation).get("allowSubstitutes") is not False


def urls_of(derivation: Derivation) -> tuple[str, ...]:
    """Where a derivation with a fixed output would fetch from, in its order; those of `mirror://` are left out, as they
    stand in a file of nixpkgs and not in the derivation."""
    environment, structured = derivation.environment, _structured(derivation)
    listed = [*environment.get(b"urls", b"").split(), *environment.get(b"url", b"").split()]
    texts = [each.decode("ascii", "replace") for each in listed]
    for name in ("urls", "url"):
        value = structured.get(name)
        texts += value if isinstance(value, list) else [value] if isinstance(value, str) else []
    return tuple(dict.fromkeys(text for text in texts if not text.startswith(_MIRROR)))


def _structured(derivation: Derivation) -> dict[str, object]:
    text = derivation.environment.get(b"__json")
    try:
        found = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def listed(paths: Iterable[str], limit: int = 3) -> str:
    """Some names, for people."""
    names = sorted(path.removeprefix(f"{STORE}/")[33:] for path in paths)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
