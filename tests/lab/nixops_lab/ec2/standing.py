"""What meets a caller's requests for as long as a knob says so: no rights, no room, no answer.

    knob               the request that fits
    silent.<caller>    is taken and never answered
    reset.<caller>     has its connection reset, unanswered and without effect
    deny.<caller>      is refused for want of rights, as by an IAM policy that leaves the operation out
    throttle.<caller>  is refused for its number

A caller may have an IAM policy, too, that no knob changes: operations of EC2 that it does not name are refused.

`<caller>` is an access key or its name in the call log. Rights come before everything that an operation does, its
client token as well: IAM User Guide, "Policy evaluation logic", decides each request on its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nixops_lab.ec2.errors import Ec2Error
from nixops_lab.ec2.filters import matches
from nixops_lab.ec2.knobs import Knobs

# STS API Reference, "GetCallerIdentity": allowed even to those whom a policy denies it.
ALWAYS_ALLOWED = "GetCallerIdentity"


@dataclass(frozen=True)
class Caller:
    """Who asks: access key, name in the call log, service that is asked."""

    access_key: str
    name: str
    service: str


def unanswered(knobs: Knobs, caller: Caller, operation: str) -> str | None:
    """`silent` or `reset`, if one of them meets the request."""
    for word, wanted in (("silent", knobs.silent), ("reset", knobs.reset)):
        if _fits(wanted, caller, operation):
            return word
    return None


def admit(
    knobs: Knobs, caller: Caller, operation: str, parameters: Mapping[str, Any], policy: Collection[str] | None = None
) -> None:
    """Raises `UnauthorizedOperation`, `RequestLimitExceeded`, or what STS calls them. `policy`: the operations of EC2
    that the caller's IAM policy allows; None: all.

    Tags on what is created need the right to tag: EC2 User Guide, "Grant permission to tag Amazon EC2 resources during
    creation".
    """
    if _fits(knobs.throttle, caller, operation):
        if caller.service == "ec2":
            raise Ec2Error("RequestLimitExceeded", "Request limit exceeded.", 503)
        raise Ec2Error("Throttling", "Rate exceeded", 400)
    needed = [operation, *(["CreateTags"] if parameters.get("TagSpecifications") else [])]
    for name in needed:
        is_left_out = policy is not None and caller.service == "ec2" and name not in policy
        if name != ALWAYS_ALLOWED and (is_left_out or _fits(knobs.deny, caller, name)):
            who = f"User: arn:aws:iam::123456789012:user/{caller.name}"
            what = f"is not authorized to perform: {caller.service}:{name} because no identity-based policy allows it"
            if caller.service == "ec2":
                message = f"You are not authorized to perform this operation. {who} {what}"
                raise Ec2Error("UnauthorizedOperation", message, 403)
            raise Ec2Error("AccessDenied", f"{who} {what}", 403)


def _fits(wanted: Mapping[str, tuple[str, ...]], caller: Caller, operation: str) -> bool:
    patterns = [*wanted.get(caller.access_key, ()), *wanted.get(caller.name, ())]
    return any(matches(operation, pattern) for pattern in patterns)
