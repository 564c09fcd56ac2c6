"""The host key of user data is replaced before anything else reaches the machine, and given up only when the machine
has shown the other one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from fakes.host import FakeHosts, FakeMachine
from fakes.kube import Secret as StoredSecret
from nixops_operator import job_names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.kube import Key, Kind, OwnerReference
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine import host_key_rotation, steps
from nixops_operator.machine.desired import Desired, read_machine
from nixops_operator.machine.host_key_rotation import ReplaceHostKey
from nixops_operator.machine.host_keys import Pins, pins_secret
from nixops_operator.verdict import Outcome
from unit.builders import ADDRESS, cloud, ec2_machine, host, instance, launch, planned, seen, trio_of
from unit.fake_time import run
from unit.test_in_use import Place

FIRST = "ssh-ed25519 AAAA"
KNOWN = Pins("i-1", (FIRST,), is_known=True)
JOB = job_names.host_key("i-1")
WEB = Key(Kind.MACHINE, "default", "web")


def machine(pins: Pins, **jobs: Any) -> tuple[Any, Any]:
    """One on which another system runs than is declared."""
    found = seen(cloud(instance("i-1"), pins=pins), host(current=None, profile=None), jobs=jobs.get("jobs", {}))
    return ec2_machine(launch(instance="i-1"), keys=[], **jobs.get("spec", {})), found


def of_host(found: Any) -> list[Any]:
    about_the_host = (ReplaceHostKey, steps.Copy, steps.RecordActivation)
    return [step for step in found.steps if isinstance(step, about_the_host)]


def test_nothing_else_is_brought_to_a_machine_whose_host_key_others_may_know():
    plan = planned(*machine(KNOWN))
    assert of_host(plan) == [ReplaceHostKey(JOB)]
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.WORKING, Reason.PROVISIONING)


def test_it_waits_for_the_exchange():
    assert of_host(planned(*machine(KNOWN, jobs={JOB: Running("")}))) == []


def test_a_machine_that_cannot_make_one_is_told_and_asked_again():
    failed = Failed(Retry(Reason.PROGRESSING_WITH_RETRY, "ssh-keygen: not found"), is_due=True)
    desired, observed = machine(KNOWN, jobs={JOB: failed})
    assert of_host(planned(desired, observed)) == [ReplaceHostKey(JOB)]
    assert planned(desired, observed).verdict.message == "ssh-keygen: not found"
    assert trio_of(desired, observed)["Ready"] == "False/ProgressingWithRetry"


def test_a_key_that_was_never_outside_stays():
    assert ReplaceHostKey(JOB) not in planned(*machine(replace(KNOWN, is_known=False))).steps


def test_the_machine_is_reached_meanwhile():
    assert trio_of(*machine(KNOWN))[ConditionType.REACHABLE] == "True/Succeeded"


# --- carried out ----------------------------------------------------------------------------------------------------


class Exchange:
    """A machine that shows its first host key, pinned."""

    def __init__(self) -> None:
        self.place = Place()
        body = self.place.add("web", leaving=False, **launch(instance="i-1"))
        desired = read_machine(body, has_owner=False)
        assert isinstance(desired, Desired)
        self.desired = desired
        self.hosts = FakeHosts()
        self.machine = self.hosts.add(FakeMachine(ADDRESS))
        self.first = self.machine.host_keys[0]
        self.informers = HostInformers(self.hosts, timedelta(seconds=5), lambda key: None)
        self.informers.watch(WEB, self.machine.target())
        self.world = replace(self.place.world, hosts=cast("Any", self.informers))
        owner = OwnerReference(Kind.MACHINE, "web", desired.uid)
        secret = StoredSecret(pins_secret("i-1", (self.first,), "client"), owner)
        self.place.kube.secrets["default", "web-host-keys"] = secret

    async def replace(self) -> None:
        try:
            await host_key_rotation._replace(self.desired, self.world)
        finally:
            await self.informers.close()

    @property
    def data(self) -> dict[str, bytes]:
        return self.place.kube.secrets["default", "web-host-keys"].data

    @property
    def pinned(self) -> list[str]:
        return list(json.loads(self.data["pinned"]))


def test_the_other_key_alone_is_pinned_in_the_end_and_the_client_key_is_kept():
    async def go() -> Exchange:
        exchange = Exchange()
        await exchange.replace()
        return exchange

    exchange = run(go())
    assert exchange.pinned == exchange.machine.host_keys != [exchange.first]
    assert (exchange.data["isKnown"], exchange.data["staged"], exchange.data["clientKey"]) == (b"", b"", b"client")


def test_both_stay_pinned_until_the_machine_shows_the_other_one(monkeypatch: pytest.MonkeyPatch):
    """An sshd that goes on with the key that it has read."""

    async def go() -> Exchange:
        exchange = Exchange()
        monkeypatch.setattr(FakeMachine, "install_host_key", lambda self, public: True)
        with pytest.raises(Retry, match="does not show its new host key"):
            await exchange.replace()
        return exchange

    exchange = run(go())
    assert exchange.machine.staged_host_key is not None
    assert set(exchange.pinned) == {exchange.first, exchange.machine.staged_host_key}
    assert exchange.data["isKnown"]


def test_what_was_installed_before_a_crash_is_only_looked_at():
    async def go() -> tuple[Exchange, str]:
        exchange = Exchange()
        new = exchange.machine.stage_host_key()
        exchange.machine.install_host_key(new)
        exchange.data.update(pinned=json.dumps([exchange.first, new]).encode(), staged=new.encode())
        await exchange.replace()
        return exchange, new

    exchange, new = run(go())
    assert exchange.pinned == exchange.machine.host_keys == [new]
    assert exchange.hosts.effects.of("host.stage_host_key") == []


def test_an_instance_that_took_the_place_of_this_one_is_not_touched():
    async def go() -> Exchange:
        exchange = Exchange()
        exchange.data["instanceId"] = b"i-2"
        await exchange.replace()
        return exchange

    assert run(go()).hosts.effects.of("host.stage_host_key") == []
