"""The user documentation's page about EC2 fields, read off the rows of attributes.py:
`python -m nixops_operator.machine.reference [--check] [FOLDER]`, as api/crd.py does for the definitions.
"""

from __future__ import annotations

import sys

from nixops_operator import generated
from nixops_operator.machine.attributes import ATTRIBUTES, Attribute, Change

PAGE = "docs/reference/ec2-fields.md"

_TOLD = {
    Change.ONLINE: "`UpToDate=False` with `{reason}` until it is done",
    Change.NEXT_LAUNCH: "a note in `UpToDate`, which stays True",
    Change.STOPPED_ONLY: "`Stalled` with `ChangeForbidden` until the old value is back",
    Change.FIXED: "refused at once; through a NixDeployment `Stalled` with `InvalidSpec` until the old value is back",
}

_BEFORE = """\
<!-- Generated from operator/nixops_operator/machine/attributes.py by `make generate`; do not edit. -->
# What an edit of `target.ec2` does to a live instance

| Field | A change | Told as |
|---|---|---|
"""

_AFTER = """
What was changed in EC2 by hand counts as a change, too: it is put back where that can be done on the running instance,
else told. `driftPolicy: Report` leaves it and tells it. An edit of the spec is carried out under either policy, and
puts back what was left so far.

No instance is ever replaced for the sake of an edit. To have one with other values, delete its NixMachine (a
NixDeployment makes it anew), or terminate the instance under `disruption.replace: WhenLost`.
"""


def files() -> dict[str, str]:
    """Path below the checkout → content."""
    return {PAGE: _BEFORE + "".join(map(_line, ATTRIBUTES)) + _AFTER}


def _line(row: Attribute) -> str:
    return f"| `{row.field}` | {row.change.value} | {_TOLD[row.change].format(reason=row.drift)} |\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if --check finds that the page differs, else 0."""
    return generated.main(files(), "nixops_operator.machine.reference", "the reference of EC2 fields", arguments)


if __name__ == "__main__":
    sys.exit(main())
