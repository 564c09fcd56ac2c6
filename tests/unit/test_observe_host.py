"""The connection to a machine, seen from its passes: made with the right keys, and kept through whatever EC2 does not
say at the moment."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes.host import FakeHosts, FakeMachine
from fakes.kube import FakeKube, Secret
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, NotYet, OperatorError, Retry
from nixops_operator.facts.cloud import KeyPair
from nixops_operator.facts.host import HostOwner
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.machine import observe_host
from nixops_operator.machine.host_keys import Pins
from nixops_operator.machine.observed import ObservedCloud, ObservedHost
from nixops_operator.reads import Reads
from nixops_operator.ssh_keys import PrivateKey, generate_ed25519
from unit.builders import ADDRESS, cloud, ec2_machine, instance, launch
from unit.fake_time import run

WEB = Key(Kind.MACHINE, "default", "web")
EARLIER, LATER = generate_ed25519(), generate_ed25519()


class Bench:
    """A machine that is connected to."""

    def __init__(self) -> None:
        self.hosts = FakeHosts()
        self.machine = self.hosts.add(FakeMachine(ADDRESS))
        self.informers = HostInformers(self.hosts, timedelta(seconds=5), lambda key: None)
        self.informers.watch(WEB, self.machine.target())

    async def seen(self, error: OperatorError) -> ObservedHost:
        """What a pass sees of the host when EC2 answers so; the connection is up before."""
        await asyncio.sleep(1)
        found = await observe_host.observe(
            ec2_machine(), ObservedCloud(error=error), cast("Any", SimpleNamespace(hosts=self.informers))
        )
        await asyncio.sleep(1)
        return found


@pytest.mark.parametrize(
    "error",
    [NotYet("EC2 is being looked at"), Retry(Reason.THROTTLED, "EC2 throttles")],
    ids=["while EC2 is looked at anew", "while EC2 does not answer"],
)
def test_a_connection_is_not_cut_because_ec2_says_nothing_now(error: OperatorError):
    async def go() -> tuple[Bench, ObservedHost]:
        bench = Bench()
        found = await bench.seen(error)
        assert [connection.is_open for connection in bench.machine.connections] == [True]
        await bench.informers.close()
        return bench, found

    bench, found = run(go())
    assert len(bench.hosts.effects.of("host.connect")) == 1
    assert (found.address, found.error) == (ADDRESS, None)
    assert found.facts is not None
    assert found.host_keys == bench.machine.target().host_keys


def test_a_connection_ends_with_the_right_to_look_for_the_machine():
    async def go() -> Bench:
        bench = Bench()
        assert (await bench.seen(Blocked(Reason.AUTH_FAILURE, "refused"))).facts is None
        return bench

    assert not [one for one in run(go()).machine.connections if one.is_open]


@pytest.mark.parametrize(
    ("named_now", "offered"),
    [
        pytest.param(EARLIER, (EARLIER,), id="the key of the launch"),
        pytest.param(LATER, (LATER, EARLIER), id="another key, and after it the key of the launch"),
        pytest.param(None, (EARLIER,), id="its Secret is gone: the key of the launch"),
    ],
)
def test_a_machine_is_reached_with_the_key_that_it_was_launched_with(
    named_now: PrivateKey | None, offered: tuple[PrivateKey, ...]
):
    """A key pair was renamed, or its Secret replaced, and the operator was locked out of every machine that ran."""

    async def go() -> Any:
        hosts, kube = FakeHosts(), FakeKube()
        hosts.add(FakeMachine(ADDRESS))
        if named_now is not None:
            kube.secrets["default", "client"] = Secret({names.SSH_PRIVATE_KEY: named_now.text.encode()})
        world = SimpleNamespace(
            hosts=HostInformers(hosts, timedelta(seconds=5), lambda key: None),
            reads=Reads(kube, timedelta(seconds=30)),
            policy=SimpleNamespace(hosts=HostPolicy()),
        )
        shown = cloud(instance("i-1"), pins=Pins("i-1", ("ssh-ed25519 AAAA",), client_key=EARLIER.text))
        await observe_host.observe(ec2_machine(launch(instance="i-1")), shown, cast("Any", world))
        await asyncio.sleep(1)
        await world.hosts.close()
        return hosts.effects.of("host.connect")[0].arguments["target"]

    assert run(go()).client_keys == tuple(key.text for key in offered)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        pytest.param(LATER.public, "EC2's key pair alice, which holds another key than", id="another key"),
        pytest.param(EARLIER.public, None, id="this very key: something else is wrong"),
        pytest.param("", None, id="EC2 does not tell which"),
        pytest.param(None, None, id="no key pair of a person"),
    ],
)
def test_a_refused_key_is_compared_with_the_key_pair_of_the_instance(held: str | None, words: str | None):
    """The instance was launched, its login refused, and nothing said why."""

    async def go() -> ObservedHost:
        hosts, kube = FakeHosts(), FakeKube()
        machine = hosts.add(FakeMachine(ADDRESS))
        machine.client_keys = {LATER.text}
        kube.secrets["default", "client"] = Secret({names.SSH_PRIVATE_KEY: EARLIER.text.encode()})
        world = SimpleNamespace(
            hosts=HostInformers(hosts, timedelta(seconds=5), lambda key: None),
            reads=Reads(kube, timedelta(seconds=30)),
            policy=SimpleNamespace(hosts=HostPolicy()),
        )
        pair = KeyPair("key-1", "alice", held, {}) if held is not None else None
        pins = Pins("i-1", tuple(machine.host_keys))
        shown = cloud(instance("i-1", key_name="alice"), pins=pins, users_key_pair=pair)
        desired = ec2_machine(launch(instance="i-1"))
        await observe_host.observe(desired, shown, cast("Any", world))
        await asyncio.sleep(1)
        found = await observe_host.observe(desired, shown, cast("Any", world))
        await world.hosts.close()
        return found

    error = run(go()).error
    assert error is not None
    assert error.reason is Reason.AUTHENTICATION_FAILED
    assert (words or "refused the client key") in error.message
    assert ("alice" in error.message) is (words is not None)


def test_a_client_key_that_cannot_be_read_is_read_anew():
    async def go() -> PrivateKey:
        kube = FakeKube()
        kube.secrets["default", "client"] = Secret({names.SSH_PRIVATE_KEY: b"no key"})
        world = cast("Any", SimpleNamespace(reads=Reads(kube, timedelta(seconds=30))))
        reference = ec2_machine().spec.client_key
        with pytest.raises(Blocked, match="holds no private key"):
            await observe_host.client_key("default", reference, world)
        kube.secrets["default", "client"] = Secret({names.SSH_PRIVATE_KEY: LATER.text.encode()})
        return await observe_host.client_key("default", reference, world)

    assert run(go()) == LATER


@pytest.mark.parametrize(
    ("owner", "watched", "gone"),
    [
        pytest.param(HostOwner("here", "uid-1", "default/web"), (), False, id="it exists"),
        pytest.param(HostOwner("here", "uid-0", "default/web"), (), True, id="another one has its name"),
        pytest.param(HostOwner("here", "uid-1", "elsewhere/web"), (), True, id="deleted with its namespace"),
        pytest.param(HostOwner("here", "uid-0", "default/web"), ("default",), True, id="of a watched namespace"),
        pytest.param(HostOwner("here", "uid-1", "elsewhere/web"), ("default",), False, id="of one nobody watches"),
        pytest.param(HostOwner("there", "uid-0", "default/web"), (), False, id="of another cluster"),
        pytest.param(HostOwner("", "", ""), (), False, id="its file cannot be read"),
        pytest.param(None, (), False, id="nobody's"),
    ],
)
def test_a_host_whose_machine_was_deleted_is_nobody_s(owner: HostOwner | None, watched: tuple[str, ...], gone: bool):
    """A machine was deleted in another namespace before the host was reached: it was refused to everybody for ever."""
    known = {WEB: {"metadata": {"uid": "uid-1"}}}
    world = SimpleNamespace(cluster_id="here", policy=SimpleNamespace(namespaces=watched), cache=known)

    assert observe_host.has_gone(owner, cast("Any", world)) is gone
