"""From a Status of the API server to what the caller does next. Pure.

Source: Kubernetes API Concepts, "Response status"; k8s.io/apimachinery `pkg/api/errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict, OperatorError, OutcomeUnknown, Retry


@dataclass(frozen=True)
class Refusal:
    """A reply other than 2xx. `reason` is the Status' own (`NotFound`, `Invalid`), empty where no Status came."""

    status: int
    reason: str
    message: str
    retry_after: timedelta | None
    names_object: bool  # whether the Status says which object was refused

    @classmethod
    def of(cls, status: int, body: bytes, headers: Mapping[str, str]) -> Refusal:
        answer = _json_object(body)
        details = answer.get("details")
        after = headers.get("Retry-After", "")
        return cls(
            status=status,
            reason=str(answer.get("reason", "")),
            message=str(answer.get("message", "")),
            retry_after=timedelta(seconds=int(after)) if after.isdigit() else None,
            names_object=isinstance(details, dict) and "kind" in details,
        )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}  # a proxy in between answered with a page of its own
    return answer if isinstance(answer, dict) else {}


def from_refusal(refusal: Refusal, what: str, *, is_write: bool, says_content: bool) -> OperatorError:
    """The error of a refused request `what` (`patch nixmachines default/web`). `says_content` is False where the
    server's words could repeat what was sent."""
    text = f"{what}: {refusal.message if says_content and refusal.message else refusal.reason or refusal.status}"
    match refusal.status:
        case 401:
            # The token is read again before the next request; it may have been the old one.
            return Retry(Reason.PROGRESSING_WITH_RETRY, f"{what}: the API server does not accept the operator's token")
        case 403 if "being terminated" in refusal.message:
            return Retry(Reason.PROGRESSING_WITH_RETRY, text)
        case 403:
            return Blocked(Reason.ACCESS_DENIED, text)
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
