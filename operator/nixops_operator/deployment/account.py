"""The AWS account that a deployment is in: credentials that work, of the account in which things were made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed, ObservedNetwork
from nixops_operator.errors import Blocked, InvalidSpec, OperatorError
from nixops_operator.facts.kube import Body
from nixops_operator.informers.cloud import CloudView
from nixops_operator.planning import Finding, found_error
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World


@dataclass(frozen=True)
class RecordAccount(Step):
    """Write down the account before anything is made in it: without this, deletion needs no credentials."""

    account_id: str


async def look(given: Desired | Leaving, world: World) -> CloudView:
    """EC2 as the deployment's identity and region show it. Raises as World.cloud."""
    if given.aws is None:
        raise InvalidSpec("spec.aws", "cannot be read; write it as the example in the documentation shows")
    return await world.cloud(given.key, frozenset({given.uid}), given.aws, is_leaving=isinstance(given, Leaving))


def problem(given: Desired | Leaving, network: ObservedNetwork) -> OperatorError | None:
    """Why nothing can be said of EC2, or done there."""
    if network.error is not None:
        return network.error
    if given.account_id is None or given.account_id == network.account_id:
        return None
    message = (
        f"the credentials are of account {network.account_id}, this deployment is in account {given.account_id}; "
        "nothing is touched: bring back the credentials of that account"
    )
    return Blocked(Reason.ACCESS_DENIED, message)


def usable(desired: Desired, observed: Observed) -> ObservedNetwork | None:
    """EC2, where it is known and its account is written down; what needs it has nothing to say otherwise."""
    network = observed.network
    if network is None or desired.account_id is None or problem(desired, network) is not None:
        return None
    return network


def credentials_usable(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """What keeps EC2 from being looked at. Machines are none of its business: each has an identity of its own."""
    error = problem(desired, observed.network) if observed.network is not None else None
    return found_error(error, ConditionType.CREDENTIALS_READY) if error is not None else None


def account_recorded(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The account is written down before anything is made in it."""
    network = observed.network
    if network is None or network.error is not None or desired.account_id is not None:
        return None
    step = RecordAccount(network.account_id)
    kind = ConditionType.INFRASTRUCTURE_READY
    return Finding(Outcome.WORKING, Reason.PROVISIONING, "looking up the account", kind, (step,))


async def record(step: RecordAccount, body: Body, world: World) -> Body:
    return await world.kube.write_intent(body, {"accountId": step.account_id})
