"""The lines that Nix writes with `--log-format internal-json`: `@nix {…}` (Nix, src/libutil/logging.cc)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from nixops_operator.nix.texts import HEAD, TAIL, plain

_PREFIX = "@nix "
_LONGEST_ESCAPE = 6  # bytes, as \u001b
_STRING_HEAD, _STRING_TAIL = HEAD * _LONGEST_ESCAPE, TAIL * _LONGEST_ESCAPE  # bytes; they hold what `plain` keeps

_INSIDE = re.compile(rb'(?s:[^"\\]*(?:\\.[^"\\]*)*)')
_WHOLE_CHARACTERS = re.compile(rb"(?s:[^\\]*(?:\\(?:u.{4}|[^u])[^\\]*)*)")

_GAP = b" \xe2\x80\xa6 "  # an ellipsis


class ShortStrings:
    """Passes a line on in pieces, and of each JSON string in it only the first and the last 24 KiB.

    A message stands in its line twice, the first time with its whole trace, which newer versions put in front; behind
    both comes the trace once more, innermost frame first. Wherever such a line is cut off, what is wrong may be
    missing. Of a line with short strings it stands at the beginning.
    """

    def __init__(self) -> None:
        self._is_inside = False
        self._string = bytearray()  # what is not passed on yet
        self._is_cut = False
        self._backslash = b""

    def feed(self, part: bytes) -> bytes:
        """What is known to be kept after this part."""
        kept = bytearray()
        text, at = self._backslash + part, 0
        self._backslash = b""
        while at < len(text):
            if not self._is_inside:
                quote = text.find(b'"', at)
                end = len(text) if quote < 0 else quote + 1
                kept += text[at:end]
                self._is_inside = quote >= 0
                at = end
                continue
            end = _end_of(_INSIDE, text, at)
            self._string += text[at:end]
            kept += self._surplus()
            if end == len(text):
                break
            if text[end:] == b"\\":
                self._backslash = b"\\"  # what it escapes comes with the next part
                break
            kept += self._end_of_string() + b'"'
            at = end + 1
        return bytes(kept)

    def end(self) -> bytes:
        """What is left at the end of a line. What is fed next belongs to another one."""
        backslash = self._backslash
        return self._end_of_string() + backslash

    def _surplus(self) -> bytes:
        """The head of a string that has become too long, once; of more than a tail, the beginning is dropped."""
        head = b""
        if not self._is_cut and len(self._string) > _STRING_HEAD + _STRING_TAIL:
            end = _end_of(_WHOLE_CHARACTERS, self._string, 0, _STRING_HEAD)
            head = bytes(self._string[:end]) + _GAP
            del self._string[:end]
            self._is_cut = True
        if self._is_cut and len(self._string) > 2 * _STRING_TAIL:
            self._drop_all_but_the_tail()
        return head

    def _drop_all_but_the_tail(self) -> None:
        surplus = max(0, len(self._string) - _STRING_TAIL)
        del self._string[: _end_of(_WHOLE_CHARACTERS, self._string, 0, surplus)]

    def _end_of_string(self) -> bytes:
        if self._is_cut:
            self._drop_all_but_the_tail()
        rest = bytes(self._string)
        self._string.clear()
        self._is_inside, self._is_cut, self._backslash = False, False, b""
        return rest


def _end_of(pattern: re.Pattern[bytes], text: bytes | bytearray, at: int, limit: int | None = None) -> int:
    found = pattern.match(text, at, len(text) if limit is None else limit)
    return at if found is None else found.end()


def event(line: str) -> dict[str, Any] | None:
    """The event of a line, whose strings are short; None for any other text, such as a builder's own output. A message
    that breaks off in its trace, because its line was too long to be kept, lacks the outer frames."""
    if not line.startswith(_PREFIX):
        return None
    text = line[len(_PREFIX) :]
    for candidate in (text, f"{text.rpartition('},{')[0]}}}]}}"):
        try:
            parsed = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        return parsed if isinstance(parsed, dict) else None
    return None


def errors(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The error messages, in their order."""
    return (found for line in lines if (found := event(line)) is not None and is_error(found))


def is_error(event: dict[str, Any]) -> bool:
    """Whether it tells of an error. What an evaluation traces has the same level in some versions, but no raw text, and
    no "error:" in front."""
    match event:
        case {"action": "msg", "level": 0, "raw_msg": str()}:
            return True
        case {"action": "msg", "level": 0, "msg": str(said)}:
            return plain(said).startswith("error:")
    return False


def text_of(message: dict[str, Any]) -> str:
    """What a message says, `plain`, without its trace where Nix tells them apart."""
    raw = message.get("raw_msg")
    return plain(str(raw)) if raw else plain(str(message.get("msg") or "")).removeprefix("error:").strip()
