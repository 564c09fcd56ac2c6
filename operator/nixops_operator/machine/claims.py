"""What exists in EC2 and is named by a spec is one machine's: of several that name it, it is that of the one that wrote
it down first. Pure.

EC2 itself lets nobody take an address or a volume that is in use. But both are free for a moment when the instance of
their machine is replaced or lost, and then another one would have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nixops_operator.facts.kube import Body, Key, key_of

Claim = tuple[str, str]
"""When it was written down, as in a status (RFC 3339, UTC), and the uid of the object; the lesser one counts."""


def holder(ec2_id: str, machine: Key, uid: str, claimants: Iterable[Body]) -> str:
    """Whose it is, in words, if it is another machine's; empty: ours, or nobody's yet."""
    claims = {key_of(body): min(_claims(body, ec2_id)) for body in claimants if any(_claims(body, ec2_id))}
    own = next((claim for claim in claims.values() if claim[1] == uid), None)
    earlier = [(claim, key) for key, claim in claims.items() if claim[1] != uid and (own is None or claim < own)]
    if not earlier:
        return ""
    _, key = min(earlier)
    return str(key) if key.namespace == machine.namespace else "a NixMachine of another namespace"


def _claims(body: Body, ec2_id: str) -> Iterator[Claim]:
    status, uid = body.get("status") or {}, str(body["metadata"]["uid"])
    records: list[tuple[Any, str]] = [(one, "volumeId") for one in status.get("volumes") or ()]
    for record, field in (*records, (status.get("elasticIp"), "allocationId")):
        if isinstance(record, Mapping) and record.get(field) == ec2_id:
            yield str(record.get("calledAt") or ""), uid
