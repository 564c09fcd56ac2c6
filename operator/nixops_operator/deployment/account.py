"""EC2 as a deployment may use it."""

from __future__ import annotations

from datetime import datetime

from nixops_operator import account, in_use
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed, ObservedNetwork
from nixops_operator.errors import InvalidSpec, OperatorError
from nixops_operator.informers.cloud import CloudView
from nixops_operator.planning import Finding
from nixops_operator.world import World


async def look(given: Desired | Leaving, world: World) -> CloudView:
    """EC2 as the deployment's identity and region show it. Raises as World.cloud."""
    if given.aws is None:
        raise InvalidSpec("spec.aws", "cannot be read; write it as the example in the documentation shows")
    return await world.cloud(given.key, frozenset({given.uid}), given.aws, is_leaving=isinstance(given, Leaving))


def problem(given: Desired | Leaving, network: ObservedNetwork) -> OperatorError | None:
    """Why nothing can be said of EC2, or done there."""
    return account.problem(given, network.error, network.account_id)


def usable(desired: Desired, observed: Observed) -> ObservedNetwork | None:
    """EC2, where it is known and its account is written down; what needs it has nothing to say otherwise."""
    network = observed.network
    if network is None or desired.account_id is None or problem(desired, network) is not None:
        return None
    return network


def credentials_usable(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """What keeps EC2 from being looked at. Machines are none of its business: each has an identity of its own."""
    return account.unusable(problem(desired, observed.network)) if observed.network is not None else None


def account_recorded(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The account is written down before anything is made in it."""
    network = observed.network
    if network is None or network.error is not None:
        return None
    return account.to_record(desired, network.account_id)


def other_secrets_released(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """Those that the spec has ceased to name; not before what it names now opens the same account."""
    return in_use.others_released(desired, observed, now) if usable(desired, observed) is not None else None
