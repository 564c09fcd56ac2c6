"""Logs: JSON lines on stderr, one handler for ours, kopf's and botocore's, secrets filtered out of every one."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

from nixops_operator.redaction import without_secrets

_KEPT = ("key", "reason", "effect", "seconds", "result", "pass_id")
_LONGEST = 8_192
"""Characters of one text in a line. What foreign programs and tenants write has no bound, and is searched for secrets
on the event loop."""


def redacted(text: str) -> str:
    """The text, cut to 8 kB, without private keys, access key ids, tokens, and what stands behind the names of AWS
    secrets."""
    rest = len(text) - _LONGEST
    short = without_secrets(text[:_LONGEST])
    return f"{short} … ({rest} more)" if rest > 0 else short


_about: ContextVar[tuple[object, int] | None] = ContextVar("about", default=None)


def speak_of(key: object, pass_id: int) -> None:
    """What all lines of the running task are about from now on, and those of tasks that it starts."""
    _about.set((key, pass_id))


class _Lines(logging.Formatter):
    """A record as one JSON object. There are some for each object in each pass that does something, so it is made by
    hand, and what never comes from outside is not searched for secrets."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"event": redacted(record.getMessage())}
        if (about := _about.get()) is not None:
            line |= {"key": redacted(str(about[0])), "pass_id": about[1]}
        given = record.__dict__
        for name in _KEPT:
            if name in given:
                value = given[name]
                line[name] = redacted(value) if isinstance(value, str) else value
        line["level"] = record.levelname.lower()
        line["logger"] = record.name
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line["timestamp"] = moment.replace("+00:00", "Z")
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = redacted(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = redacted(record.stack_info)
        return json.dumps(line, default=_shown)


def _shown(value: object) -> str:
    return redacted(repr(value))


def set_up(level: str) -> None:
    """All that the process says from here on, warnings and what ends it included. Called again for another level.

    botocore stays at WARNING: its DEBUG prints requests.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for noisy in ("botocore", "boto3", "urllib3", "asyncssh", "kubernetes"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # kopf tells of every event it hands on; what matters of that is in our own lines.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own words for it would be lines of plain text, with whatever is in the error."""
    logging.getLogger("nixops_operator").critical("ending: %s", kind.__name__, exc_info=(kind, error, trace))
