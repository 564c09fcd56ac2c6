"""The two kinds as the reconciler takes them: observe, plan, apply and status of each, bound to the world."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nixops_operator.api.machine_of_deployment import ChildMachine, machines_of
from nixops_operator.api.parse import parse_deployment, parse_machine
from nixops_operator.deployment import apply as deployment_apply
from nixops_operator.deployment import observe as deployment_observe
from nixops_operator.deployment import observed as deployment_observed
from nixops_operator.deployment import plan as deployment_plan
from nixops_operator.deployment import status as deployment_status
from nixops_operator.deployment.steps import Step as DeploymentStep
from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.machine import apply as machine_apply
from nixops_operator.machine import observe as machine_observe
from nixops_operator.machine import observed as machine_observed
from nixops_operator.machine import plan as machine_plan
from nixops_operator.machine import status as machine_status
from nixops_operator.machine.steps import Step as MachineStep
from nixops_operator.reconcile import Controller
from nixops_operator.world import World

_ABANDONABLE = (
    "evaluate",
    "build",
    "copy",
)  # steps on hosts are never cut: the host would be left to its dead man's timer


@dataclass(frozen=True)
class MachineController:
    world: World

    def desired(self, body: Body) -> machine_observed.Desired:
        return machine_observed.desired_machine(body, parse_machine(body))

    async def observe(self, desired: machine_observed.Desired) -> machine_observed.Observed:
        return await machine_observe.observe(desired, self.world)

    def plan(
        self, desired: machine_observed.Desired, observed: machine_observed.Observed, now: datetime
    ) -> machine_plan.Plan:
        return machine_plan.plan(desired, observed, now, self.world.policy.progress_deadline)

    async def apply(self, step: MachineStep, desired: machine_observed.Desired, body: Body) -> Body:
        return await machine_apply.apply(step, desired, body, self.world)

    def status(
        self,
        desired: machine_observed.Desired,
        observed: machine_observed.Observed,
        plan: machine_plan.Plan,
        now: datetime,
    ) -> dict[str, Any]:
        return machine_status.status(desired, observed, plan, now)

    def settle(self, desired: machine_observed.Desired, plan: machine_plan.Plan) -> None:
        self.world.jobs.release(desired.key, plan.wants, _ABANDONABLE)

    async def forget(self, key: Key) -> None:
        self.world.jobs.release(key, frozenset(), _ABANDONABLE)
        self.world.hosts.forget(key)
        await self.world.clouds.drop(key)


@dataclass(frozen=True)
class DeploymentController:
    world: World

    def desired(self, body: Body) -> deployment_observed.Desired:
        children: tuple[ChildMachine, ...] = ()
        invalid = None
        spec = parse_deployment(body)
        try:
            children = machines_of(body)
        except InvalidSpec as error:
            invalid = error
        return deployment_observed.desired_deployment(body, spec, children, invalid)

    async def observe(self, desired: deployment_observed.Desired) -> deployment_observed.Observed:
        return await deployment_observe.observe(desired, self.world)

    def plan(
        self, desired: deployment_observed.Desired, observed: deployment_observed.Observed, now: datetime
    ) -> deployment_plan.Plan:
        return deployment_plan.plan(desired, observed, now)

    async def apply(self, step: DeploymentStep, desired: deployment_observed.Desired, body: Body) -> Body:
        return await deployment_apply.apply(step, desired, body, self.world)

    def status(
        self,
        desired: deployment_observed.Desired,
        observed: deployment_observed.Observed,
        plan: deployment_plan.Plan,
        now: datetime,
    ) -> dict[str, Any]:
        return deployment_status.status(desired, observed, plan, now)

    def settle(self, desired: deployment_observed.Desired, plan: deployment_plan.Plan) -> None:
        """A deployment asks for no jobs."""

    async def forget(self, key: Key) -> None:
        await self.world.clouds.drop(key)


def controllers(world: World) -> dict[Kind, Controller]:
    return {Kind.MACHINE: MachineController(world), Kind.DEPLOYMENT: DeploymentController(world)}
