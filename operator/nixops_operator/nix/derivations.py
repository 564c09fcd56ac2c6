"""Reading derivations that come out of an evaluation, and what is refused of them.

A `.drv` is a text file like any other: a module can write one with `builtins.toFile`. Nix registers it with the
references that were stated, and checks that its outputs are named rightly; when it builds, it shows the builder what
the *text* names as inputs. So a text that names more than it refers to would reach what its evaluation was never given.
Only inputs are shown to a builder: a store path in an argument or a variable is a mere string, and harmless.

The form is that which Nix itself writes (Nix, src/libstore/derivations.cc: `Derivation::unparse`), byte by byte:
sorted, each name once, one way to escape. What reads differently from how it would be written again is refused, so that
Nix cannot read anything else in it than is read here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from nixops_operator.nix.store_paths import is_store_path, name_of

TEXT_LIMIT = 16 * 1024**2
"""Bytes of one derivation. Large ones carry a file's text in a variable, and have some hundred kB."""

# What Nix runs in place of a program (src/libstore/build/local-derivation-goal.cc, `runChild`): inside the sandbox.
_BUILTINS = frozenset({b"builtin:fetchurl", b"builtin:buildenv", b"builtin:unpack-channel"})
# Variables that ask for less of a sandbox, in either way of passing them.
_OPENING = ("__noChroot", "__impureHostDeps", "__sandboxProfile", "__darwinAllowLocalNetworking")

_T = TypeVar("_T")


class NotADerivationError(ValueError):
    """The text is not what Nix writes for a derivation."""


@dataclass(frozen=True)
class Output:
    """Where an output goes; of a fixed one the algorithm (`r:sha256`) and the digest, else both empty."""

    path: str
    algorithm: str
    digest: str


@dataclass(frozen=True)
class Derivation:
    """What decides what a build sees. `environment` holds the variables' bytes."""

    outputs: Mapping[str, Output]
    inputs: Mapping[str, tuple[str, ...]]  # .drv → which of its outputs
    sources: frozenset[str]
    system: bytes
    builder: bytes
    arguments: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]


def derivation_of(text: bytes) -> Derivation:
    """The derivation that Nix reads in this text. Raises NotADerivationError for anything that Nix would not have
    written. Time and memory are proportional to the text's length, which is at most TEXT_LIMIT."""
    if len(text) > TEXT_LIMIT:
        raise NotADerivationError(f"more than {TEXT_LIMIT // 1024**2} MiB")
    reader = _Reader(text)
    reader.expect(b"Derive(")
    outputs = dict(reader.sorted_items(reader.output, _first))
    reader.expect(b",")
    inputs = dict(reader.sorted_items(reader.input, _first))
    reader.expect(b",")
    sources = frozenset(reader.sorted_items(reader.store_path, _itself))
    reader.expect(b",")
    system = reader.string()
    reader.expect(b",")
    builder = reader.string()
    reader.expect(b",")
    arguments = tuple(reader.items(reader.string))
    reader.expect(b",")
    environment = dict(reader.sorted_items(reader.pair, _first))
    reader.expect(b")")
    reader.end()
    return Derivation(outputs, inputs, sources, system, builder, arguments, environment)


def objection(path: str, derivation: Derivation, references: frozenset[str], given: Container[str]) -> str | None:
    """Why the derivation at this store path must not be built, in words for people; None if nothing speaks against it.

    `references`: what its path was computed with. `given`: what its evaluation was given, or brought forth before it.
    """
    named = derivation.sources | derivation.inputs.keys()
    if extra := min(named - references, default=None):
        return (
            f"it is built from {name_of(extra)}, which is not among its references "
            "(was it written by hand with builtins.toFile?)"
        )
    if extra := min(references - named, default=None):
        return f"it refers to {name_of(extra)}, which is not among its inputs"
    if foreign := min((each for each in named if each not in given), default=None):
        return f"it is built from {name_of(foreign)}, which this evaluation was not given"
    if path.endswith(".drv.drv"):
        return "its output would be taken for a derivation"
    return _form(derivation) or _sandbox(derivation)


def _form(derivation: Derivation) -> str | None:
    """Outputs by input or by a fixed hash. The others are experimental: Nix knows their paths after the build only."""
    if not derivation.outputs:
        return "it has no output"
    for name, output in derivation.outputs.items():
        if not is_store_path(output.path):
            return f"its output {name} has no fixed path"
        if bool(output.algorithm) != bool(output.digest):
            return f"its output {name} has half a hash"
        if output.digest and derivation.outputs.keys() != {"out"}:
            return "it has a fixed output beside others"
    return None


def _sandbox(derivation: Derivation) -> str | None:
    if derivation.builder.startswith(b"builtin:") and derivation.builder not in _BUILTINS:
        return f"its builder is {derivation.builder[:60].decode(errors='replace')}"
    structured: dict[str, Any] = {}
    if (text := derivation.environment.get(b"__json")) is not None:
        try:
            structured = json.loads(text)
        except (ValueError, RecursionError):
            return "its structured attributes are not JSON"
        if not isinstance(structured, dict):
            return "its structured attributes are no set"
    for name in _OPENING:
        if derivation.environment.get(name.encode()) or structured.get(name):
            return f"it asks for a hole in its sandbox ({name})"
    return None


def _first(pair: tuple[_T, Any]) -> _T:
    return pair[0]


def _itself(item: _T) -> _T:
    return item


class _Reader:
    """Walks over the text once."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def expect(self, token: bytes) -> None:
        if not self._text.startswith(token, self._at):
            raise NotADerivationError(f"no {token.decode()} at byte {self._at}")
        self._at += len(token)

    def end(self) -> None:
        if self._at != len(self._text):
            raise NotADerivationError(f"more after its end at byte {self._at}")

    def string(self) -> bytes:
        """A string's value. Nix escapes quotes, backslashes, line feeds, carriage returns and tabs, nothing else."""
        self.expect(b'"')
        text, at, parts = self._text, self._at, []
        quote = text.find(b'"', at)
        while quote >= 0:
            backslash = text.find(b"\\", at, quote)
            part = text[at : quote if backslash < 0 else backslash]
            if b"\n" in part or b"\r" in part or b"\t" in part:
                break
            parts.append(part)
            if backslash < 0:
                self._at = quote + 1
                return b"".join(parts)
            escaped = _ESCAPED.get(text[backslash + 1 : backslash + 2])
            if escaped is None:
                break
            parts.append(escaped)
            at = backslash + 2
            if quote < at:
                quote = text.find(b'"', at)
        raise NotADerivationError(f"a string that does not end, or is not as Nix writes it, at byte {self._at}")

    def text(self) -> str:
        value = self.string()
        if not value.isascii():
            raise NotADerivationError(f"a name that is not ASCII before byte {self._at}")
        return value.decode("ascii")

    def store_path(self) -> str:
        path = self.text()
        if not is_store_path(path):
            raise NotADerivationError(f"no store path before byte {self._at}")
        return path

    def output(self) -> tuple[str, Output]:
        self.expect(b"(")
        name = self.text()
        fields = []
        for _ in range(3):
            self.expect(b",")
            fields.append(self.text())
        self.expect(b")")
        return name, Output(*fields)

    def input(self) -> tuple[str, tuple[str, ...]]:
        self.expect(b"(")
        path = self.store_path()
        if not path.endswith(".drv"):
            raise NotADerivationError(f"an input that is no derivation before byte {self._at}")
        self.expect(b",")
        outputs = tuple(self.sorted_items(self.text, _itself))
        self.expect(b")")
        return path, outputs

    def pair(self) -> tuple[bytes, bytes]:
        self.expect(b"(")
        name = self.string()
        self.expect(b",")
        value = self.string()
        self.expect(b")")
        return name, value

    def items(self, item: Callable[[], _T]) -> list[_T]:
        self.expect(b"[")
        found: list[_T] = []
        if self._text.startswith(b"]", self._at):
            self._at += 1
            return found
        while True:
            found.append(item())
            if not self._text.startswith(b",", self._at):
                break
            self._at += 1
        self.expect(b"]")
        return found

    def sorted_items(self, item: Callable[[], _T], key: Callable[[Any], Any]) -> list[_T]:
        found = self.items(item)
        keys = [key(each) for each in found]
        if any(not before < after for before, after in itertools.pairwise(keys)):
            raise NotADerivationError(f"a list out of order before byte {self._at}")
        return found


_ESCAPED = {b'"': b'"', b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
