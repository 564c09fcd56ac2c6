"""The lines that Nix writes with `--log-format internal-json`: `@nix {…}` (Nix, src/libutil/logging.cc)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_PREFIX = "@nix "
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

ERROR_LEVEL = 0


def event(line: str) -> dict[str, Any] | None:
    """The event of a line; None for any other text, such as a builder's own output."""
    if not line.startswith(_PREFIX):
        return None
    try:
        parsed = json.loads(line[len(_PREFIX) :])
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def errors(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The error messages, in their order."""
    for line in lines:
        found = event(line)
        if found is not None and found.get("action") == "msg" and found.get("level") == ERROR_LEVEL:
            yield found


def text_of(message: dict[str, Any]) -> str:
    """What a message says, without its trace where Nix tells them apart."""
    raw = message.get("raw_msg")
    return plain(str(raw)) if raw else plain(str(message.get("msg") or "")).removeprefix("error:").strip()


def plain(text: str) -> str:
    """`text` without terminal escapes and control characters; line feeds and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))
