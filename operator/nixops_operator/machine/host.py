"""The machine behind the instance or the given address: reachable, and what the spec takes it for. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from nixops_operator import job_names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.jobs import Failed
from nixops_operator.machine import steps
from nixops_operator.machine.observed import running_instance
from nixops_operator.planning import SOON, Finding, found_error
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed

BOOT = timedelta(minutes=2)
"""From EC2's launch time to sshd: NixOS' images take 20 to 60 s for most instance types."""
_SILENCE = (Reason.CONNECT_TIMEOUT, Reason.CONNECTION_REFUSED)
_SYSTEMS = {"x86_64": "x86_64-linux", "aarch64": "aarch64-linux"}
"""uname -m → NixOS' word."""


def reachable(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """An SSH session with the pinned host key."""
    cloud, host, kind = observed.cloud, observed.host, ConditionType.REACHABLE
    if host.error is not None and _is_booting(desired, observed, now):
        message = f"waiting for {host.address} to answer SSH: the instance was started just now"
        return Finding(Outcome.WORKING, Reason.WAITING_FOR_SSH, message, kind, look_again=SOON)
    if host.error is not None:
        found = found_error(host.error, kind)
        if host.error.reason is Reason.CONNECT_TIMEOUT and cloud is not None and cloud.admits_ssh is False:
            text = "no rule of the instance's security groups admits SSH; add one for its port"
            return replace(found, message=f"{found.message}; {text}")
        return found
    if host.address is None:
        kind = ConditionType.INFRASTRUCTURE_READY
        message = "the instance has no address yet"
        return Finding(Outcome.WORKING, Reason.WAITING_FOR_INSTANCE, message, kind, look_again=SOON)
    if host.facts is None:
        message = f"connecting to {host.address}"
        return Finding(Outcome.WORKING, Reason.WAITING_FOR_SSH, message, kind, is_first_look=True)
    if not host.facts.is_nixos:
        message = (
            f"{host.address} is no NixOS machine (it has no /etc/NIXOS, and its /etc/os-release does not say nixos); "
            "install NixOS there, or name another address"
        )
        return Finding(Outcome.STALLED, Reason.INVALID_SPEC, message, kind)
    return None


def _is_booting(desired: Desired, observed: Observed, now: datetime) -> bool:
    """Whether nobody can expect sshd to answer yet."""
    instance = running_instance(observed.cloud, desired.instance_id)
    is_silent = observed.host.error is not None and observed.host.error.reason in _SILENCE
    return is_silent and instance is not None and now - instance.launch_time < BOOT


def owned(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """A given host is this machine's, and says so."""
    facts, ours, kind = observed.host.facts, observed.host.ours, ConditionType.REACHABLE
    if facts is None or ours is None or ours.is_same(facts.owner):
        return None
    if facts.owner is not None and not observed.host.owner_has_gone:
        message = (
            f"{observed.host.address} belongs to NixMachine {facts.owner.name or 'somebody'}, as /var/lib/nixops/owner "
            "there says; delete that one, name another host, or remove the file if nobody manages the host any more"
        )
        return Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message, kind)
    job = job_names.own(desired.uid)
    working = Finding(Outcome.WORKING, Reason.PROVISIONING, f"writing on {observed.host.address} whose it is", kind)
    match observed.jobs.get(job):
        case None:
            return replace(working, steps=(steps.OwnHost(job, ours, facts.owner),))
        case Failed(error, is_due):
            return replace(found_error(error, kind), steps=(steps.OwnHost(job, ours, facts.owner),) if is_due else ())
        case _:
            return working


def of_declared_system(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """A given host of another architecture than the configuration is for: told before anything is built for it."""
    host, declared = observed.host, desired.spec.configuration.system
    found = _SYSTEMS.get(host.facts.machine) if host.facts is not None else None
    if desired.spec.target.host is None or found is None:
        return None
    wanted = declared.value if declared is not None else "x86_64-linux"
    if wanted == found:
        return None
    message = (
        f"spec.configuration.system: {host.address} is {found}, the configuration is for {wanted}; name the former"
    )
    return Finding(Outcome.STALLED, Reason.INVALID_SPEC, message, ConditionType.CONFIGURATION_BUILT)
