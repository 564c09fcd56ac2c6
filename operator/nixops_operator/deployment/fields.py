"""What a change of a key pair, a security group or a rule means, field by field: for people, beside the checks that do
it (key_pairs.py, security_groups.py, rules.py). A field of these entries that stands nowhere here cannot exist (a test
compares).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nixops_operator.api.reasons import Reason

_DRIFT = f"`UpToDate=False` with `{Reason.SECURITY_GROUP_DRIFT}` until it is done"


@dataclass(frozen=True)
class Field:
    """`edited`: what an edit of the spec does. `by_hand`: what follows when somebody changes it in EC2."""

    edited: str
    by_hand: str
    told: str


_RULE = Field("the rule that it makes comes, then the one that it made goes", "put back", _DRIFT)
_RULES = Field(
    "rules come first, then rules go; what carries SSH goes last, and never before its successor is there",
    "what was taken out comes back, what was added goes",
    f"{_DRIFT}; rules that would shut SSH: `{Reason.CHANGE_FORBIDDEN}`",
)
_ANOTHER_GROUP = Field(
    "another group takes the place of this one, for its machines too, and this one goes",
    "nobody can: EC2 keeps it for the group's life",
    _DRIFT,
)

KEY_PAIRS: Mapping[str, Field] = {
    "name": Field(
        "another key pair with another key; machines keep the key that they were launched with",
        "one that was deleted is imported again",
        f"`InfrastructureReady` with `{Reason.INSTANCE_DRIFT}` until it is done",
    ),
    "privateKeySecretRef": Field(
        "another key is another key pair, for machines that are launched from then on",
        "nobody can: EC2 keeps a key pair's key",
        f"`InfrastructureReady` with `{Reason.INSTANCE_DRIFT}` until it is done",
    ),
}

SECURITY_GROUPS: Mapping[str, Field] = {
    "name": Field(
        "another group; the one of the old name goes when no machine is in it",
        "one that was deleted is made again, with its rules",
        _DRIFT,
    ),
    "description": _ANOTHER_GROUP,
    "vpcId": _ANOTHER_GROUP,
    "ingress": _RULES,
    "egress": _RULES,
}

RULES: Mapping[str, Field] = {
    **dict.fromkeys(
        (
            "protocol",
            "fromPort",
            "toPort",
            "icmpType",
            "icmpCode",
            "cidrs",
            "ipv6Cidrs",
            "prefixLists",
            "groups",
            "self",
        ),
        _RULE,
    ),
    "description": Field("changed beside the rule, which stays", "put back", _DRIFT),
}
