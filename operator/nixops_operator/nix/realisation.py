"""A build on a machine, from what its Nix says of it: how far it is, what it needs, and why it failed.

The text comes from the machine, in parts of any size; it is judged as a tenant's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nixops_operator.nix.build_errors import MESSAGE_LIMIT, BuildStory
from nixops_operator.nix.internal_json import event, text_of
from nixops_operator.nix.texts import cut

_LINE_LIMIT = 1024**2  # characters of one line; a longer one says nothing here
_MIB, _GIB = 1024**2, 1024**3

# Nix, src/libutil/logging.hh: types of activities, and of results.
_COPY_PATH, _FILE_TRANSFER, _COPY_PATHS, _BUILD = 100, 101, 103, 105

# Nix, src/libmain/shared.cc, `printMissing`.
_TO_BUILD = re.compile(r"(?:these (?P<count>\d{1,9}) derivations|this derivation) will be built")
_TO_FETCH = re.compile(
    r"(?:these (?P<count>\d{1,9}) paths|this path) will be fetched "
    r"\((?P<download>\d{1,9}\.\d{1,2}) (?P<download_unit>[KMGT]?iB) download, "
    r"(?P<unpacked>\d{1,9}\.\d{1,2}) (?P<unpacked_unit>[KMGT]?iB) unpacked\)"
)
_UNITS = {"iB": 1, "KiB": 1024, "MiB": _MIB, "GiB": _GIB, "TiB": 1024**4}
# Small files that say what a cache has.
_ABOUT_CACHE = re.compile(r"\.narinfo'?$|/nix-cache-info'?$")

# Nix goes on without a cache that does not answer when it begins, and says so once more after its last try
# (src/libstore/store-api.cc, `getDefaultSubstituters`).
_LOST_CACHE = re.compile(r"unable to download '(?P<cache>[^']{1,300})/nix-cache-info': (?P<why>[^\n;]{1,200})$")
_UNSIGNED = re.compile(r"(?:ignoring substitute for|not signed by any of the keys|lacks a (?:valid )?signature)")
# What another time may not be so: caches, networks, disks, locks. All of it is Nix' or curl's own wording.
_PASSING = re.compile(
    r"unable to download|[Cc]ould(?:n't| not) (?:connect|resolve)|[Tt]imed out|[Tt]imeout was reached|curl: \(|"
    r"[Cc]onnection (?:refused|reset|timed)|[Ff]ailed to connect|some substitutes for|"
    r"some references of path .{1,300} could not be realised|there is no substituter that can build it|"
    r"does not exist in binary cache|is missing from the binary cache|lacks a (?:valid )?signature|"
    r"not signed by any of the keys|hash mismatch importing path|unexpected end-of-file|end of file|truncated|"
    r"decompress|decoding|input compressed|bad archive|No space left on device|cannot connect to (?:socket|daemon)|"
    r"daemon disconnected|interrupted by the user|database is (?:busy|locked)"
)


MOST_BUILT_IN_PLACE = 100
"""Derivations that are built although a cache is lost and nothing can be fetched from another. A change of settings has
some dozens; more means whole packages, and on a small machine hours of compiling that waiting would spare. A guess."""


@dataclass(frozen=True)
class Failure:
    """`is_passing`: trying again by itself may help, because a cache, a network or a disk was the cause."""

    message: str
    is_passing: bool


class Realisation:
    """Follows one build on a machine."""

    def __init__(self) -> None:
        self._rest = ""
        self._story = BuildStory("the machine")
        self._counted: dict[int, int] = {}  # activity → its type
        self._fetched = self._to_fetch = 0
        # Nix' own count of builds takes in what is fetched in their place: only those that began are builds.
        self._built = self._begun = self._to_build = 0
        self._bytes = {_FILE_TRANSFER: _Bytes(), _COPY_PATH: _Bytes()}
        self._download = 0
        self._unpacked = 0
        self._unsigned = 0
        self._lost: dict[str, str] = {}  # binary cache → why

    def read(self, part: str) -> None:
        """The next part of the log."""
        for line in self._lines(part):
            if (found := event(line)) is not None:
                self._follow(found)

    @property
    def bytes_to_unpack(self) -> int:
        """What is still to be written to the machine's store of what is fetched; 0 while it is not known."""
        return max(0, self._unpacked - self._bytes[_COPY_PATH].total)

    @property
    def text(self) -> str:
        """How far it is, for people: `34 of 120 fetched (57 of 340 MiB), 2 of 5 built`; empty before anything is
        known."""
        parts = []
        if self._to_fetch:
            bytes_, download = self._bytes[_FILE_TRANSFER].total, self._download
            size = f" ({_size(min(bytes_, download), download)})" if download else ""
            parts.append(f"{self._fetched} of {self._to_fetch} fetched{size}")
        if to_build := max(self._to_build, self._begun):
            parts.append(f"{self._built} of {to_build} built")
        return ", ".join(parts)

    @property
    def should_wait(self) -> str | None:
        """Why the build should better be tried when a cache is back; None as a rule."""
        if not self._lost or self._to_fetch or self._to_build <= MOST_BUILT_IN_PLACE:
            return None
        cache, why = next(iter(self._lost.items()))
        words = f"the binary cache {cache} does not answer the machine: {why}"
        return cut(f"{words}; {self._to_build} derivations would be built in its place", MESSAGE_LIMIT)

    def failure(self) -> Failure:
        """Why it ended badly; the message is empty if nothing was said."""
        message = self._story.failure()
        # What a cache did not give may have been built in its place, and failed for that.
        is_without = self._unsigned > 0 or bool(self._lost)
        is_passing = bool(message) and (is_without or _PASSING.search(message) is not None)
        if self._lost and message and "nix-cache-info" not in message:
            message = f"the binary cache {next(iter(self._lost))} did not answer, and without it: {message}"
        if self._unsigned and message:
            paths = "1 path" if self._unsigned == 1 else f"{self._unsigned} paths"
            message = f"no signature that the machine trusts for {paths} of a binary cache, and without: {message}"
        return Failure(cut(message, MESSAGE_LIMIT), is_passing)

    def _lines(self, part: str) -> Iterator[str]:
        *lines, self._rest = (self._rest + part).split("\n")
        if len(self._rest) > _LINE_LIMIT:
            self._rest = ""
        yield from lines

    def _follow(self, found: dict[str, Any]) -> None:
        self._story.follow(found)
        match found:
            case {"action": "start", "id": int(activity), "type": int(kind)} if kind in self._bytes:
                if not (kind == _FILE_TRANSFER and _ABOUT_CACHE.search(str(found.get("text", ""))[-300:])):
                    self._counted[activity] = kind
            case {"action": "start", "id": int(activity), "type": 103 | 105 as kind}:
                self._counted[activity] = kind
                self._begun += kind == _BUILD
            case {"action": "stop", "id": int(activity)}:
                ended = self._counted.pop(activity, None)
                self._built += ended == _BUILD
                if ended in self._bytes:
                    self._bytes[ended].end(activity)
            case {"action": "result", "type": 105, "id": int(activity), "fields": [int(done), int(expected), *_]}:
                self._progress(activity, done, expected)
            case {"action": "msg"}:
                self._hear(text_of(found))

    def _progress(self, activity: int, done: int, expected: int) -> None:
        kind = self._counted.get(activity)
        if kind in self._bytes:
            self._bytes[kind].move(activity, done)
        elif kind == _COPY_PATHS:
            self._fetched = max(done, 0)
            # Before it was announced, Nix counts what it merely tries to find.
            self._to_fetch = max(expected, self._to_fetch) if self._to_fetch else 0

    def _hear(self, text: str) -> None:
        if found := _TO_FETCH.search(text):
            self._to_fetch = max(self._to_fetch, int(found["count"] or 1))
            self._download = int(float(found["download"]) * _UNITS[found["download_unit"]])
            self._unpacked = int(float(found["unpacked"]) * _UNITS[found["unpacked_unit"]])
        elif found := _TO_BUILD.search(text):
            self._to_build = max(self._to_build, int(found["count"] or 1))
        elif found := _LOST_CACHE.search(text):
            self._lost[found["cache"]] = found["why"]
        elif _UNSIGNED.search(text):
            self._unsigned += 1


class _Bytes:
    """Of activities of one kind, which each tell how many bytes they moved so far."""

    def __init__(self) -> None:
        self._ended = 0
        self._under_way: dict[int, int] = {}

    def move(self, activity: int, done: int) -> None:
        self._under_way[activity] = max(done, 0)

    def end(self, activity: int) -> None:
        self._ended += self._under_way.pop(activity, 0)

    @property
    def total(self) -> int:
        return self._ended + sum(self._under_way.values())


def _size(done: int, total: int) -> str:
    if total >= _GIB:
        return f"{done / _GIB:.1f} of {total / _GIB:.1f} GiB"
    return f"{done / _MIB:.0f} of {total / _MIB:.0f} MiB" if total >= 10 * _MIB else _small(done, total)


def _small(done: int, total: int) -> str:
    return f"{done / _MIB:.1f} of {total / _MIB:.1f} MiB"


def gib(count: int) -> str:
    """Bytes for people, as `1.2 GiB`."""
    return f"{count / _GIB:.1f} GiB"
