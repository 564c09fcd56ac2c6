"""The lines that Nix writes with `--log-format internal-json`: `@nix {…}` (Nix, src/libutil/logging.cc)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from nixops_operator.nix.texts import HEAD, plain

_PREFIX = "@nix "
_LONGEST_ESCAPE = 12  # a surrogate pair, as \ud83d\ude00

ERROR_LEVEL = 0


def event(line: str) -> dict[str, Any] | None:
    """The event of a line; None for any other text, such as a builder's own output. A message that breaks off, because
    its line was too long to be kept, still says how it begins."""
    if not line.startswith(_PREFIX):
        return None
    try:
        parsed = json.loads(line[len(_PREFIX) :])
    except (ValueError, RecursionError):
        return _beginning(line[len(_PREFIX) :])
    return parsed if isinstance(parsed, dict) else None


def _beginning(text: str) -> dict[str, Any] | None:
    """The fields that stand before `msg`, and the first HEAD characters of that; keys are sorted."""
    before, key, said = text.partition(',"msg":"')
    if not key or len(said) < HEAD:
        return None
    for end in range(HEAD, HEAD - _LONGEST_ESCAPE, -1):  # not in the middle of an escape
        try:
            parsed = json.loads(f'{before}{key}{said[:end]} …"}}')
        except ValueError:
            continue
        return parsed if isinstance(parsed, dict) else None
    return None


def errors(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The error messages, in their order."""
    for line in lines:
        found = event(line)
        if found is not None and found.get("action") == "msg" and found.get("level") == ERROR_LEVEL:
            yield found


def text_of(message: dict[str, Any]) -> str:
    """What a message says, `plain`, without its trace where Nix tells them apart."""
    raw = message.get("raw_msg")
    return plain(str(raw)) if raw else plain(str(message.get("msg") or "")).removeprefix("error:").strip()
