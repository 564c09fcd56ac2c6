"""The call log: one JSON line per HTTP request, written before its reply leaves. The evidence of tests.

time        UTC, ISO 8601           result      "ok", an error code, or null if the request was never looked at
seq         order of arrival        resources   ids in the parameters and, of a change, in the reply
caller      access key              token       ClientToken of the request
caller_name as the lab knows it     fault       what was injected, or null
region, service, operation          committed   whether the operation took effect
parameters  as boto3 names them     status      HTTP status, null if no reply was sent
attempt     botocore's count        ms          from the end of the request to the start of the reply
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ID = re.compile(r"(i|sg|sgr|key|eni|vol|ami|subnet|vpc)-[0-9a-f]{8}([0-9a-f]{9})?")


class CallLog:
    """Appends to a file and keeps all entries for `GET /ec2/log`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self.entries: list[dict[str, Any]] = []
        self._arrived = 0

    def next_seq(self) -> int:
        """The number of the request that has just come in; the first is 1."""
        self._arrived += 1
        return self._arrived

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry, at once."""
        self.entries.append(entry)
        self._file.write(json.dumps(entry, ensure_ascii=True, default=_as_text) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _as_text(value: object) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else repr(value)


def without_user_data(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """User data carries keys: only the sha256 of its bytes is kept."""
    shown = dict(parameters)
    if isinstance(encoded := shown.get("UserData"), str):
        try:
            content = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            content = encoded.encode()
        shown["UserData"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in shown.items()
    }


def resources_in(value: object) -> list[str]:
    """All resource ids anywhere in a nested value, in order, once each."""
    found: dict[str, None] = {}

    def walk(node: object) -> None:
        if isinstance(node, Mapping):
            for child in node.values():
                walk(child)
        elif isinstance(node, list | tuple):
            for child in node:
                walk(child)
        elif isinstance(node, str) and _ID.fullmatch(node):
            found[node] = None

    walk(value)
    return list(found)
