"""Logs: JSON lines on stderr, one handler for ours, kopf's and botocore's, secrets filtered out of every one."""

from __future__ import annotations

import logging
import re
import sys
from types import TracebackType
from typing import Any

import structlog

_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|PuTTY-User-Key-File-.*?(?:Private-MAC: \w+|\Z)"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|(?i:secret[-_]?access[-_]?key|(?:session|security)[-_]?token)\W{1,4}[^\s\"',}]+"
    r"|(?i:bearer )[A-Za-z0-9._~+/=-]+"
    r"|:[A-Za-z0-9+/]{86}==",  # the secret half of a key of nix-store(1), `--generate-binary-cache-key`
    re.DOTALL,
)
_KEPT = ("key", "reason", "effect", "seconds", "result", "pass_id")
_LONGEST = 8_192
"""Characters of one text in a line. What foreign programs and tenants write has no bound, and is searched for secrets
on the event loop."""


def redacted(text: str) -> str:
    """The text, cut to 8 kB, without private keys, access key ids, tokens, and what stands behind the names of AWS
    secrets."""
    rest = len(text) - _LONGEST
    short = _SECRETS.sub("[redacted]", text[:_LONGEST])
    return f"{short} … ({rest} more)" if rest > 0 else short


def _redact(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {name: redacted(value) if isinstance(value, str) else value for name, value in event.items()}


def set_up(level: str) -> None:
    """All that the process says from here on, warnings and what ends it included. Called again for another level.

    botocore stays at WARNING: its DEBUG prints requests.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=_KEPT),
        structlog.contextvars.merge_contextvars,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _redact,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
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
