"""What is there: EC2, the host, the configuration, and the jobs that this machine has asked for. Looks only, and waits
for the API server alone; what cannot be looked at becomes an error of that part, never an empty one."""

from __future__ import annotations

from nixops_operator import in_use, job_names
from nixops_operator.machine import keys, observe_cloud, observe_host, observe_system
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observed import Observed, ObservedLeaving
from nixops_operator.world import World


async def observe(desired: Desired, world: World) -> Observed:
    """One look at everything that concerns this machine."""
    if desired.requests.new is not None:
        world.reads.look_anew(desired.key.namespace)
    ec2 = desired.spec.target.ec2
    cloud = await observe_cloud.observe(desired, ec2, world) if ec2 is not None else None
    host = await observe_host.observe(desired, cloud, world)
    system = await observe_system.observe(desired, cloud, host, world)
    secret = await in_use.observe(desired, desired.spec.aws, world)
    found_keys = await keys.observe(desired, world)
    return Observed(cloud, host, system, world.jobs.states(desired.key), secret, found_keys)


async def observe_leaving(leaving: Leaving, world: World) -> ObservedLeaving:
    """What is left of one in deletion. Where nothing was ever made in EC2, the way out needs no credentials."""
    if leaving.account_id is not None:
        return ObservedLeaving(await observe_cloud.observe_leaving(leaving, world))
    facts = world.hosts.last_facts(leaving.key)
    names_us = facts is not None and observe_host.owner_of(leaving, world).is_same(facts.owner)
    return ObservedLeaving(None, names_us, world.jobs.states(leaving.key).get(job_names.disown(leaving.uid)))
