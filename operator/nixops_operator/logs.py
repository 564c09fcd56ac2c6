"""Logs: JSON lines on stderr, one handler for ours, kopf's and botocore's, secrets filtered out of every one."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog

_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(AKIA|ASIA)[A-Z0-9]{12,}\b"
    r"|(?i:aws_secret_access_key|secretAccessKey|sessionToken)\W{1,4}[^\s\"',}]+",
    re.DOTALL,
)
_KEPT = ("key", "reason", "effect", "seconds", "result", "pass_id")


def redacted(text: str) -> str:
    """The text without private keys, access key ids and what stands behind the names of AWS secrets."""
    return _SECRETS.sub("[redacted]", text)


def _redact(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {name: redacted(value) if isinstance(value, str) else value for name, value in event.items()}


def set_up(level: str) -> None:
    """All logging of the process from here on. botocore stays at WARNING: its DEBUG prints requests."""
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
