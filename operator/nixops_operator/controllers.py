"""The two kinds as the reconciler takes them: observe, plan, apply and status of each, bound to the world."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from nixops_operator import in_use
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.api.parse import parse_machine
from nixops_operator.deployment import apply as deployment_apply
from nixops_operator.deployment import desired as deployment_desired
from nixops_operator.deployment import observe as deployment_observe
from nixops_operator.deployment import own_facts as deployment_facts
from nixops_operator.deployment import plan as deployment_plan
from nixops_operator.deployment import status as deployment_status
from nixops_operator.deployment.observed import Observed as DeploymentObserved
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.job_names import BUILD, COPY, DRY_ACTIVATE, EVALUATE, REALISE
from nixops_operator.machine import apply as machine_apply
from nixops_operator.machine import observe as machine_observe
from nixops_operator.machine import own_facts as machine_facts
from nixops_operator.machine import plan as machine_plan
from nixops_operator.machine import status as machine_status
from nixops_operator.machine.desired import Desired, Leaving, read_machine
from nixops_operator.machine.observed import Observed, ObservedLeaving
from nixops_operator.noted_world import noted
from nixops_operator.parsed import ParsedSpecs
from nixops_operator.planning import Plan
from nixops_operator.reconcile import Controller
from nixops_operator.rest import Notes
from nixops_operator.step import Step
from nixops_operator.world import World

ABANDONABLE = (EVALUATE, BUILD, COPY, REALISE, DRY_ACTIVATE)
"""Kinds of jobs that are cut when nobody wants them. Steps on hosts never are: the host would be left to its dead man's
timer. A build on a machine goes on there; the plan ends one that is of no use (`StopBuild`)."""


PARSED_MACHINES = 256
"""Some 6 kB each: those whose passes follow each other. Another is parsed again for its pass, in 0.1 ms."""
PARSED_DEPLOYMENTS = 512
"""Each holds the parsed specs of up to 256 machines, and is parsed again in some 100 ms."""


@dataclass(frozen=True)
class MachineController:
    """A living machine and one in deletion are two things to look at, to plan for and to tell of."""

    world: World
    _parsed: ParsedSpecs[NixMachineSpec] = field(default_factory=lambda: ParsedSpecs(parse_machine, PARSED_MACHINES))

    def noting(self, notes: Notes) -> MachineController:
        return replace(self, world=noted(self.world, notes))

    def desired(self, body: Body) -> Desired | Leaving:
        has_owner = self.world.cache.owner_key(body) is not None
        return read_machine(body, has_owner=has_owner, spec_of=self._parsed.of)

    async def observe(self, desired: Desired | Leaving) -> Observed | ObservedLeaving:
        if isinstance(desired, Leaving):
            return await machine_observe.observe_leaving(desired, self.world)
        observed = await machine_observe.observe(desired, self.world)
        _wake(self.world, self.world.facts.tell_machine(desired.key, machine_facts.facts_of(desired, observed)))
        return observed

    def plan(self, desired: Desired | Leaving, observed: Any, now: datetime) -> Plan:
        if isinstance(desired, Leaving):
            return machine_plan.plan_way_out(desired, observed, now)
        return machine_plan.plan(desired, observed, now, self.world.policy.progress_deadline)

    async def apply(self, step: Step, desired: Desired | Leaving, body: Body) -> Body:
        return await machine_apply.apply(step, desired, body, self.world)

    def status(self, desired: Desired | Leaving, observed: Any, plan: Plan, now: datetime) -> dict[str, Any]:
        if isinstance(desired, Leaving):
            return machine_status.status_leaving(desired, observed, plan, now)
        return machine_status.status(desired, observed, plan, now)

    async def leave(self, desired: Desired | Leaving, body: Body) -> Body:
        assert isinstance(desired, Leaving)  # noqa: S101 - a living machine is never gone
        return await in_use.leave(desired, body, self.world)

    def settle(self, desired: Desired | Leaving, observed: Any) -> None:
        wanted = machine_plan.wanted_jobs(desired, observed) if isinstance(desired, Desired) else frozenset()
        if wanted is not None:
            self.world.jobs.release(desired.key, wanted, ABANDONABLE)

    async def forget(self, key: Key) -> None:
        self._parsed.forget(key)
        self.world.jobs.release(key, frozenset(), ABANDONABLE)
        self.world.hosts.forget(key)
        self.world.clouds.drop(key)
        _wake(self.world, self.world.facts.forget(key))


@dataclass(frozen=True)
class DeploymentController:
    world: World
    _parsed: ParsedSpecs[deployment_desired.Parsed] = field(
        default_factory=lambda: ParsedSpecs(deployment_desired.parse, PARSED_DEPLOYMENTS)
    )

    def noting(self, notes: Notes) -> DeploymentController:
        """A pass over a deployment asks EC2, or for all of its machines."""
        notes.give_up()
        return self

    def desired(self, body: Body) -> deployment_desired.Desired | deployment_desired.Leaving:
        return deployment_desired.read_deployment(body, self._parsed.of)

    async def observe(self, given: deployment_desired.Desired | deployment_desired.Leaving) -> DeploymentObserved:
        observed = await deployment_observe.observe(given, self.world)
        if isinstance(given, deployment_desired.Desired):
            _wake(self.world, self.world.facts.tell_deployment(given.key, deployment_facts.facts_of(given, observed)))
        return observed

    def plan(
        self,
        given: deployment_desired.Desired | deployment_desired.Leaving,
        observed: DeploymentObserved,
        now: datetime,
    ) -> Plan:
        return deployment_plan.plan(given, observed, now, self.world.policy.progress_deadline)

    async def apply(
        self, step: Step, given: deployment_desired.Desired | deployment_desired.Leaving, body: Body
    ) -> Body:
        return await deployment_apply.apply(step, given, body, self.world)

    def status(
        self,
        given: deployment_desired.Desired | deployment_desired.Leaving,
        observed: DeploymentObserved,
        plan: Plan,
        now: datetime,
    ) -> dict[str, Any]:
        return deployment_status.status(given, observed, plan, now)

    async def leave(self, given: deployment_desired.Desired | deployment_desired.Leaving, body: Body) -> Body:
        assert isinstance(given, deployment_desired.Leaving)  # noqa: S101 - a living deployment is never gone
        return await in_use.leave(given, body, self.world)

    def settle(self, given: Any, observed: Any) -> None:
        """A deployment asks for no jobs."""

    async def forget(self, key: Key) -> None:
        self._parsed.forget(key)
        self.world.clouds.drop(key)
        _wake(self.world, self.world.facts.forget(key))


def _wake(world: World, keys: Iterable[Key]) -> None:
    for key in keys:
        world.wake(key)


def controllers(world: World) -> dict[Kind, Controller]:
    return {Kind.MACHINE: MachineController(world), Kind.DEPLOYMENT: DeploymentController(world)}
