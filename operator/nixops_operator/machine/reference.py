"""The user documentation's page about EC2 fields, read off the rows of attributes.py:
`python -m nixops_operator.machine.reference [--check] [FOLDER]`, as api/crd.py does for the definitions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from nixops_operator import generated
from nixops_operator.machine.attributes import ATTRIBUTES, OF_OTHER_CHECKS, Attribute, Change

PAGE = "docs/reference/ec2-fields.md"

_TOLD = {
    Change.ONLINE: "`UpToDate=False` with `{reason}` until it is done",
    Change.NEXT_LAUNCH: "a note in `UpToDate`, which stays True",
    Change.STOPPED_ONLY: "`Reconciling` with `Stopping`; without that permission `Stalled` with `ChangeForbidden`",
    Change.LAUNCH_ONLY: "`Reconciling` with `Provisioning`; without that permission `Stalled` with `ChangeForbidden`",
    Change.FIXED: "refused at once; through a NixDeployment `Stalled` with `InvalidSpec` until the old value is back",
}

_BEFORE = """\
<!-- Generated from operator/nixops_operator/machine/attributes.py by `make generate`; do not edit. -->
# What an edit of `target.ec2` does to a live instance

| Field | A change | Told as |
|---|---|---|
"""

_AFTER = """
An instance that is stopped and started again keeps its volumes and its private address; its public address changes.
Where EC2 refuses the new value, or has no room for it in some eight minutes, the instance is started as it was, and
`Stalled` says so. One that is stopped anyhow gets the new value before it is started, with or without permission.

What was changed in EC2 by hand counts as a change, too: it is put back where that can be done on the running instance,
else told. `driftPolicy: Report` leaves it and tells it. An edit of the spec is carried out under either policy, and
puts back what was left so far.

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
    others = (f"| `{field}` | {meaning} | {told} |\n" for field, (meaning, told) in OF_OTHER_CHECKS.items())
    hidden = _listed(row for row in ATTRIBUTES if row.hidden is not None)
    resetting = _listed(row for row in ATTRIBUTES if row.resets_to is not None)
    after = _AFTER.format(hidden=hidden, resetting=resetting)
    return {PAGE: "".join((_BEFORE, *map(_line, ATTRIBUTES), *others, after))}


def _listed(rows: Iterable[Attribute]) -> str:
    *most, last = (f"`{row.field}`" for row in rows)
    return f"{', '.join(most)} and {last}"


def _line(row: Attribute) -> str:
    usual = _TOLD[row.change].format(reason=row.drift) if row.is_told else "not told: EC2 does not show it"
    told = row.told or usual
    return f"| `{row.field}` | {row.change.value} | {told} |\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if --check finds that the page differs, else 0."""
    return generated.main(files(), "nixops_operator.machine.reference", "the reference of EC2 fields", arguments)


if __name__ == "__main__":
    sys.exit(main())
