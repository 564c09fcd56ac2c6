"""The user documentation's page about EC2 fields, read off the rows of machine/attributes.py and deployment/fields.py:
`python -m nixops_operator.reference [--check] [FOLDER]`, as api/crd.py does for the definitions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping

from nixops_operator import generated
from nixops_operator.deployment.fields import KEY_PAIRS, RULES, SECURITY_GROUPS, Field
from nixops_operator.machine.attributes import ATTRIBUTES, NEVER_CHANGES, OF_OTHER_CHECKS, Attribute, Change

PAGE = "docs/reference/ec2-fields.md"

_TOLD = {
    Change.ONLINE: "`UpToDate=False` with `{reason}` until it is done",
    Change.NEXT_LAUNCH: "a note in `UpToDate`, which stays True",
    Change.STOPPED_ONLY: "`Reconciling` with `Stopping`; without that permission `Stalled` with `ChangeForbidden`",
    Change.LAUNCH_ONLY: "`Reconciling` with `Provisioning`; without that permission `Stalled` with `ChangeForbidden`",
    Change.FIXED: "refused at once; through a NixDeployment `Stalled` with `InvalidSpec` until the old value is back",
}

_BY_HAND = {
    Change.ONLINE: "put back on the running instance",
    Change.NEXT_LAUNCH: "left, with a note in `UpToDate`",
    Change.STOPPED_ONLY: "put back in the same way, and under the same permission",
    Change.LAUNCH_ONLY: "put back in the same way, and under the same permission",
    Change.FIXED: NEVER_CHANGES,
}

_BEFORE = """\
<!-- Generated from operator/nixops_operator/machine/attributes.py and deployment/fields.py by `make generate`; do not
edit. -->
# What a change does to what lives in EC2

## `target.ec2` of a machine

| Field | Changed in the spec | Changed in EC2 by hand | Told as |
|---|---|---|---|
"""

_OF_DEPLOYMENT = """
## `keyPairs[]` of a NixDeployment

| Field | Changed in the spec | Changed in EC2 by hand | Told as |
|---|---|---|---|
{key_pairs}
## `securityGroups[]` of a NixDeployment

| Field | Changed in the spec | Changed in EC2 by hand | Told as |
|---|---|---|---|
{groups}
All groups of a deployment exist before the first rule is added, so rules may name each other's groups. What EC2 refuses
of a rule is told, and keeps no other rule away.
"""

_AFTER = """
An instance that is stopped and started again keeps its volumes and its private address; its public address changes.
Where EC2 refuses the new value, or has no room for it in some eight minutes, the instance is started as it was, and
`Stalled` says so. One that is stopped anyhow gets the new value before it is started, with or without permission.

`driftPolicy: Report` leaves what was changed in EC2 by hand, and tells it. An edit of the spec is carried out under
either policy, and puts back what was left so far.

A sweep shows each within `ec2.sweepPeriod`, but for
{hidden}:
these are asked for one by one, where the spec declares them, after an own change and once an hour.

{resetting}
go back to what EC2 does when they leave the spec, as tags do; what others have set there is left alone where the spec
says nothing.

An instance that is replaced serves until the other one answers and has its system; then it is terminated, with all
that is on its root volume, and the other one is activated. Where EC2 refuses the other one, or it does not answer
within ten minutes, the former one stays, `Stalled` says so, and it is tried again every ten minutes
([more](../how-to/replacement.md)). What counts at the next launch replaces nothing. To have an instance with such
values now, terminate it under `disruption.replace: WhenLost`, or delete its NixMachine (a NixDeployment makes it anew).
"""


def files() -> dict[str, str]:
    """Path below the checkout → content."""
    hidden = _listed(row for row in ATTRIBUTES if row.hidden is not None)
    resetting = _listed(row for row in ATTRIBUTES if row.resets_to is not None)
    after = _AFTER.format(hidden=hidden, resetting=resetting)
    groups = dict(SECURITY_GROUPS) | {f"ingress[].{field}`, `egress[].{field}": row for field, row in RULES.items()}
    of_deployment = _OF_DEPLOYMENT.format(key_pairs=_lines(KEY_PAIRS), groups=_lines(groups))
    return {PAGE: "".join((_BEFORE, *_machine_lines(), after, of_deployment))}


def _listed(rows: Iterable[Attribute]) -> str:
    *most, last = (f"`{row.field}`" for row in rows)
    return f"{', '.join(most)} and {last}"


def _machine_lines() -> Iterator[str]:
    for row in ATTRIBUTES:
        usual = _TOLD[row.change].format(reason=row.drift) if row.is_told else "not told: EC2 does not show it"
        yield _line(row.field, row.change.value, row.by_hand or _BY_HAND[row.change], row.told or usual)
    for field, (edited, by_hand, told) in OF_OTHER_CHECKS.items():
        yield _line(field, edited, by_hand, told)


def _lines(fields: Mapping[str, Field]) -> str:
    return "".join(_line(name, row.edited, row.by_hand, row.told) for name, row in fields.items())


def _line(field: str, edited: str, by_hand: str, told: str) -> str:
    return f"| `{field}` | {edited} | {by_hand} | {told} |\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if --check finds that the page differs, else 0."""
    return generated.main(files(), "nixops_operator.reference", "the reference of EC2 fields", arguments)


if __name__ == "__main__":
    sys.exit(main())
