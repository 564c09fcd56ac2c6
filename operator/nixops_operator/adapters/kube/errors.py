"""From a Status of the API server to what the caller does next. Pure.

Source: Kubernetes API Concepts, "Response status"; k8s.io/apimachinery `pkg/api/errors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict, OperatorError, OutcomeUnknown, Retry

TEXT_LIMIT = 500
"""Characters of the API server's own words: it repeats a refused value, which may be a whole spec."""

_QUOTA = re.compile(r"exceeded quota: (?P<name>[^,]+), (?P<figures>.*)", re.DOTALL)
"""Admission plugin ResourceQuota: `exceeded quota: <name>, requested: …, used: …, limited: …`."""


@dataclass(frozen=True)
class Cause:
    """One of a Status' `details.causes`. `field` is a path as `spec.target`."""

    reason: str
    field: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """A reply other than 2xx. `reason` is the Status' own (`NotFound`, `Invalid`), empty where no Status came."""

    status: int
    reason: str
    message: str
    retry_after: timedelta | None
    names_object: bool  # whether the Status says which object was refused
    causes: tuple[Cause, ...] = ()

    @classmethod
    def of(cls, status: int, body: bytes, headers: Mapping[str, str]) -> Refusal:
        answer = _json_object(body)
        details = answer.get("details")
        details = details if isinstance(details, dict) else {}
        after = headers.get("Retry-After", "")
        return cls(
            status=status,
            reason=str(answer.get("reason", "")),
            message=str(answer.get("message", "")),
            retry_after=timedelta(seconds=int(after)) if after.isdigit() else None,
            names_object="kind" in details,
            causes=tuple(_causes(details)),
        )

    def cause(self, reason: str) -> Cause | None:
        """The first cause of that reason."""
        return next((cause for cause in self.causes if cause.reason == reason), None)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}  # a proxy in between answered with a page of its own
    return answer if isinstance(answer, dict) else {}


def _causes(details: Mapping[str, Any]) -> Iterator[Cause]:
    for cause in details.get("causes") or ():
        yield Cause(*(str(cause.get(name, "")) for name in ("reason", "field", "message")))


def from_refusal(refusal: Refusal, what: str, *, is_write: bool, says_content: bool) -> OperatorError:
    """The error of a refused request `what` (`patch nixmachines default/web`). `says_content` is False where the
    server's words could repeat what was sent."""
    text = f"{what}: {_words(refusal, says_content=says_content)}"
    match refusal.status:
        case 401:
            # The token is read again before the next request; it may have been the old one.
            return Retry(Reason.PROGRESSING_WITH_RETRY, f"{what}: the API server does not accept the operator's token")
        case 403:
            return _forbidden(refusal, what, text)
        case 409:
            return Conflict(text)
        case 404 if is_write:
            return Conflict(text)
        case 422 if not refusal.names_object:
            # A failed `test` of a JSON patch. A refused object is a 422, too, but its Status names the object.
            return Conflict(f"{what}: the object changed meanwhile")
        case 400 | 413 | 422:
            return Blocked(Reason.INVALID_SPEC, text)
        case 500 | 502 | 504 if is_write:
            return OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, text, refusal.retry_after)
        case _:
            return Retry(Reason.PROGRESSING_WITH_RETRY, text, refusal.retry_after)


def _words(refusal: Refusal, *, says_content: bool) -> str:
    """What the server says; of what it does not like in a Secret, the fields alone."""
    words = str(refusal.reason or refusal.status)
    if says_content and refusal.message:
        words = refusal.message
    elif fields := ", ".join(cause.field for cause in refusal.causes if cause.field):
        words = f"{words}: {fields}"
    return words if len(words) <= TEXT_LIMIT else words[: TEXT_LIMIT - 1] + "…"


def _forbidden(refusal: Refusal, what: str, text: str) -> OperatorError:
    """403 is the answer of RBAC, and of admission plugins that have other remedies."""
    terminating = refusal.cause("NamespaceTerminating")
    if terminating is not None:
        return Blocked(Reason.ACCESS_DENIED, f"{what}: {terminating.message}, so nothing can be created in it")
    quota = _QUOTA.search(refusal.message)
    if quota is not None:
        figures = quota["figures"][:TEXT_LIMIT]
        message = f"{what}: ResourceQuota {quota['name']} is used up ({figures}): raise it or delete what is not needed"
        return Blocked(Reason.QUOTA_EXCEEDED, message)
    if "status unknown for quota" in refusal.message:
        return Retry(Reason.PROGRESSING_WITH_RETRY, text)  # a quota that was made a moment ago
    return Blocked(Reason.ACCESS_DENIED, text)
