"""From what a failed evaluation says to one message for people, in the user's own file names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nixops_operator.nix.internal_json import errors, plain, text_of

MESSAGE_LIMIT = 400
_QUOTED = r"[`'‘“\"](?P<path>/nix/store/[^'’”\"]+)['’”\"]"
# How the module system names a file (nixpkgs, lib/modules.nix and lib/options.nix); it knows no lines.
_NAMED_FILE = re.compile(rf"(?:\bIn|definitions from|definition in|[Mm]odule argument .* in|declared in) {_QUOTED}")
_STORE_FILE = re.compile(r"/nix/store/[0-9a-z]{32}-[A-Za-z0-9+._?=-]+(?:/[^\s'’`\"”:,;)]*)?")
_SUGGESTION = re.compile(r"Did you mean [^\n]*\?")
_MISSING = re.compile(r"attribute '(?P<name>[^']+)' missing")
_OPTION = re.compile(r"while evaluating the option [`'‘](?P<option>[^'’]+)['’]")


@dataclass(frozen=True)
class Names:
    """What people call the files of an evaluation."""

    user_files: Mapping[str, str]  # store path of a file → the label of the module that it is
    source: str | None = None  # store path of the machine's source: its files go by their relative path
    inline: str | None = None  # store path of the folder that holds the modules given as text
    nixpkgs: str | None = None

    def of_user_file(self, path: str) -> str | None:
        """The user's name of a file of theirs; None for any other."""
        if path in self.user_files:
            return self.user_files[path]
        if self.source is not None and path.startswith(f"{self.source}/"):
            return path[len(self.source) + 1 :]
        return None

    def of_any(self, path: str) -> str:
        """A name for any store file: the user's, `nixpkgs/…`, or the path without its hash."""
        if (own := self.of_user_file(path)) is not None:
            return own
        if self.nixpkgs is not None and path.startswith(self.nixpkgs):
            return f"nixpkgs{path[len(self.nixpkgs) :]}"
        if self.inline is not None and path.startswith(f"{self.inline}/"):
            return path[len(self.inline) + 1 :]
        return path.removeprefix("/nix/store/")[33:]


def evaluation_message(lines: Iterable[str], names: Names) -> str:
    """`web.nix:3:5: syntax error, unexpected '='`; at most 400 characters, one line. Empty if no error was reported.

    `lines`: stderr of Nix with internal-json messages and traces.
    """
    found = list(errors(lines))
    if not found:
        return ""
    error = found[-1]
    raw = text_of(error)
    text = " ".join(_said(raw, error).split())
    place = _place(error, raw, names)
    text = _STORE_FILE.sub(lambda match: names.of_any(match[0]), text)
    message = f"{place}: {text}" if place else text
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"


def _said(raw: str, error: dict[str, Any]) -> str:
    """The part of the message that helps."""
    if "Failed assertions:" in raw:
        return _assertions(raw)
    if (missing := _MISSING.search(raw)) is not None and any(
        f"module argument `{missing['name']}'" in _text(frame) for frame in _frames(error)
    ):
        return f"there is no module argument `{missing['name']}'"
    if "infinite recursion" in raw:
        option = next((match["option"] for frame in _frames(error) if (match := _OPTION.search(_text(frame)))), None)
        return f"infinite recursion encountered while evaluating the option `{option}'" if option else raw
    first = re.split(r"\n\s*\n", raw.strip(), maxsplit=1)[0]
    # What follows repeats the user's value at length; the file is named in front.
    first = re.split(r"\s*Definition values?:", first, maxsplit=1)[0]
    first = re.sub(r":\n- ", ": ", first, count=1).replace("\n- ", "; ")
    suggestion = _SUGGESTION.search(plain(str(error.get("msg") or "")))
    if suggestion is not None and suggestion[0] not in first:
        return f"{first}{'' if first.endswith('.') else '.'} {suggestion[0]}"
    return first


def _assertions(raw: str) -> str:
    listed = raw.split("Failed assertions:", 1)[1].strip().split("\n\n", 1)[0]
    items = [" ".join(item.split()) for item in re.split(r"(?m)^\s*- ", listed) if item.strip()]
    return f"Failed assertions: {'; '.join(items)}"


def _place(error: dict[str, Any], raw: str, names: Names) -> str | None:
    """Where in the user's files: line and column if Nix knows them, else the file that the module system names."""
    for frame in (error, *_frames(error)):
        path, line = frame.get("file"), frame.get("line")
        if isinstance(path, str) and (own := names.of_user_file(path)) is not None:
            return f"{own}:{line}:{frame.get('column')}" if line else own
    if "conflicting definition" in raw:
        return None  # it names several files itself
    for text in (raw, *map(_text, _frames(error))):
        for match in _NAMED_FILE.finditer(text):
            if (own := names.of_user_file(match["path"])) is not None:
                return own
    return None


def _frames(error: dict[str, Any]) -> list[dict[str, Any]]:
    """The trace, innermost frame first."""
    trace = error.get("trace")
    return [frame for frame in trace if isinstance(frame, dict)] if isinstance(trace, list) else []


def _text(frame: dict[str, Any]) -> str:
    return plain(str(frame.get("raw_msg") or ""))
