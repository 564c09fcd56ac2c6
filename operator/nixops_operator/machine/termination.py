"""How an instance is terminated: what protects it, and the fresh look that it is ours. Why it is to go is its caller's
to prove (apply.py, replacement.py)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from nixops_operator import names
from nixops_operator.errors import Conflict
from nixops_operator.facts.cloud import InstanceAttribute

if TYPE_CHECKING:
    from nixops_operator.api.machine_spec import Ec2Target
    from nixops_operator.informers.cloud import CloudView
    from nixops_operator.machine.desired import Desired, Leaving
    from nixops_operator.world import World

PROTECTIONS = {
    "terminationProtection": InstanceAttribute.TERMINATION_PROTECTION,
    "stopProtection": InstanceAttribute.STOP_PROTECTION,
}
"""Field of spec.target.ec2 → what keeps EC2 from terminating an instance; stop protection does, too (EC2 User Guide,
"Enable stop protection for your EC2 instances")."""


def protecting(ec2: Ec2Target | None) -> str | None:
    """The field by which the spec keeps its instance from being terminated."""
    if ec2 is None:
        return None
    is_on = {"terminationProtection": ec2.termination_protection, "stopProtection": ec2.stop_protection}
    return next((field for field in PROTECTIONS if is_on[field]), None)


async def terminate(
    instance_id: str, machine: Desired | Leaving, lifted: Collection[str], view: CloudView, world: World
) -> None:
    """Terminate it, after a fresh look at its tags. `lifted`: fields of PROTECTIONS that are to be off; what others
    have set keeps the instance. Raises Conflict for one that is not ours."""
    shown = [one for one in await view.cloud.find_instances(instance_id=instance_id) if one.id == instance_id]
    tags = shown[0].tags if shown else {}
    if not names.is_ours(tags, world.cluster_id, machine.uid) or names.is_retained(tags):
        raise Conflict(f"{instance_id} does not carry the tags of {machine.key} any more; it is not terminated")
    try:
        for field, attribute in PROTECTIONS.items():
            if field in lifted:
                await view.cloud.set_attribute(instance_id, attribute, value=False)
        await view.cloud.terminate_instance(instance_id)
    finally:
        view.note_write(machine.uid)
