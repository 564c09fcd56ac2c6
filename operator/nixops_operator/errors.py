"""Errors, typed by what the caller does next. Adapters raise nothing else; their text never holds a secret.

OperatorError
   ├── Retry(reason, message, after)     look again; nothing to change: throttled, no capacity, connection cut
   │   ├── NotYet                        asked; whoever asked is woken when the answer comes
   │   ├── UnknownFact(path, told)       an evaluation needs what is not known yet
   │   ├── TurnKept                      nothing was sent yet; come again after exactly that time
   │   ├── Conflict                      somebody wrote the object meanwhile: end the pass, start from the newest object
   │   └── OutcomeUnknown                the call may have been carried out: repeat the very same call, or look first
   ├── Blocked(reason, message)          useless until spec, Secret or policy changes; a person is told
   │   ├── InvalidSpec(field, message)   as Blocked; names the field
   │   │   ├── NotOffered                another zone may have it
   │   │   └── NamesNothing              what the field names does not exist, or not yet: tried again soon
   │   ├── EvaluationFailed(message, told)  as Blocked; or until a fact has changed that the evaluation read
   │   └── MissingReference(references)  as Blocked; or wait, where the caller has made one of them a moment ago
   └── Lost(reason, message)             something we own is gone; the next plan says whether to make it anew

`reason` is the condition's reason, `message` the condition's message, both unchanged: what happened, to what, what to
do next; no request id, counter or clock in it (each would rewrite the status for ever).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Self

from nixops_operator.api.reasons import Reason


class OperatorError(Exception):
    """Base of all errors that ports raise. `str(error)` is the message."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.is_refusal = False
        """Whether it is certain that the call which raised this changed nothing: the other side refused it, or it was
        never sent. False where the outcome is unknown, and wherever nobody has said so. About this one call: an earlier
        call of the same token may have been carried out all the same."""

    def as_refusal(self) -> Self:
        """This error, with `is_refusal` set."""
        self.is_refusal = True
        return self

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.args == other.args and self.reason == getattr(other, "reason", None)

    def __hash__(self) -> int:
        return hash((type(self), self.reason, self.message))


class Retry(OperatorError):
    """Nothing needs to change; looking again later is enough. `after` is the adapter's advice, None leaves it to the
    queue's backoff."""

    def __init__(self, reason: Reason, message: str, after: timedelta | None = None) -> None:
        super().__init__(reason, message)
        self.after = after


class UnknownFact(Retry):
    """An evaluation read a fact that is not known. `told`: all that it read (facts.nix.Told)."""

    def __init__(self, path: str, told: Mapping[str, str | None]) -> None:
        super().__init__(Reason.WAITING_FOR_FACTS, f"{path} is not known")
        self.path = path
        self.told = told


class Conflict(Retry):
    """The object changed between reading and writing (HTTP 409, or a failed JSON-patch test, HTTP 422)."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.PROGRESSING_WITH_RETRY, message)


class NotYet(Retry):
    """A peer is being looked at, and has not answered yet: nothing is wrong. The answer wakes whoever asked."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.PROGRESSING_WITH_RETRY, message)


class TurnKept(Retry):
    """Nothing was sent: calls queue for a limit of the other side, and this one's turn comes in `after`, not earlier
    and, if it is missed, much later."""


class OutcomeUnknown(Retry):
    """The request left, no usable reply came: time-out, reset, 5xx, unparsable reply. It may have been carried out."""


class Blocked(OperatorError):
    """Repeating is useless until what `message` names has changed: what, where, what next."""


class InvalidSpec(Blocked):
    """The spec cannot be carried out as written. `field` is its path, as `spec.target.ec2.instanceType`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(Reason.INVALID_SPEC, f"{field}: {message}")
        self.field = field


class NotOffered(InvalidSpec):
    """EC2 does not have what `field` says in this zone, however long one waits; in another it may."""


class NamesNothing(InvalidSpec):
    """What the field names does not exist; or it was made by others a moment ago, and AWS does not show it yet."""


class EvaluationFailed(Blocked):
    """A configuration has no system. `told`: the facts that it read before it failed (facts.nix.Told); with others it
    may have one."""

    def __init__(self, message: str, told: Mapping[str, str | None]) -> None:
        super().__init__(Reason.EVALUATION_FAILED, message)
        self.told = told


class MissingReference(Blocked):
    """Things that the spec names by id do not exist, or are not shown yet. `references`: their ids, sorted."""

    def __init__(self, references: Iterable[str], message: str) -> None:
        super().__init__(Reason.INVALID_SPEC, message)
        self.references = tuple(sorted(references))


class Lost(OperatorError):
    """Something that we own is gone for good, and this was proven."""


def at_field(error: OperatorError, field: str) -> OperatorError:
    """What AWS refused for the sake of a value of the spec, told with its field; any other error as it is."""
    if not field or type(error) is not Blocked or error.reason not in (Reason.INVALID_SPEC, Reason.QUOTA_EXCEEDED):
        return error
    if error.reason is Reason.INVALID_SPEC:
        named: OperatorError = InvalidSpec(field, error.message)
    else:
        named = Blocked(error.reason, f"{field}: {error.message}")
    return named.as_refusal() if error.is_refusal else named
