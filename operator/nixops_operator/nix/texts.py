"""Texts that tenants write, before anything else meets them.

An error message, a line of a builder and a name in a trace are as long and as strange as a tenant likes. A pattern that
is harmless on a line of prose takes minutes on 100 kB of blanks, on the event loop of everybody. So the only way from
such a text to a message leads through `plain`, which keeps a few kB of it.
"""

from __future__ import annotations

import re

from nixops_operator.redaction import without_secrets

HEAD, TAIL = 4096, 4096
"""Characters kept of a longer text: what is wrong stands at the beginning, advice and cause at the end."""

# Each alternative starts with an escape and takes none: whatever the text, no character is looked at more than a few
# times.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """`text` without terminal escapes, control characters and secrets; line feeds and tabs stay. At most HEAD + TAIL
    characters and a sign between them."""
    return without_secrets(_CONTROLS.sub("", _ESCAPES.sub("", bounded(text))))


def bounded(text: str) -> str:
    """`text`, or its first HEAD and last TAIL characters."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]} … {text[-TAIL:]}"


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning in `limit` characters, the last of them an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
