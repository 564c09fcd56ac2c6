"""What machines of one deployment know of each other, and who is told when it changes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nixops_operator.facts.kube import Key, Kind
from nixops_operator.facts.nix import Facts, Peer, SystemInput
from nixops_operator.shared_facts import (
    GROUPS,
    KEY_PAIRS,
    NODES,
    DeploymentFacts,
    MachineFacts,
    Reader,
    SharedFacts,
    address_path,
)
from unit.builders import INPUT

SHOP = Key(Kind.DEPLOYMENT, "default", "shop")
UUID = "11111111-0000-4000-8000-000000000000"
OTHER_UUID = "22222222-0000-4000-8000-000000000000"
PRIVATE = address_path("db", "privateIPv4")


def key_of(machine: str, namespace: str = "default") -> Key:
    return Key(Kind.MACHINE, namespace, f"shop-{machine}")


def reader(machine: str = "web", uuid: str = UUID) -> Reader:
    return Reader(key_of(machine), machine, uuid, SHOP)


def input_of(machine: str) -> SystemInput:
    return replace(INPUT, name=machine)


def machine_facts(
    machine: str, address: str | None = None, revision: str = "evaluate:1", uuid: str = UUID
) -> MachineFacts:
    values = {} if address is None else {address_path(machine, "privateIPv4"): json.dumps(address)}
    waits = {address_path(machine, "privateIPv4"): f"{machine} has no instance yet"}
    return MachineFacts(machine, uuid, values, input_of(machine), revision, waits)


def shop(*machines: str, uuid: str = UUID) -> DeploymentFacts:
    values = {NODES: json.dumps(sorted(machines)), KEY_PAIRS: "{}", GROUPS: "{}"}
    return DeploymentFacts(uuid, {name: key_of(name) for name in machines}, values)


@pytest.fixture
def facts() -> SharedFacts:
    """A deployment of two machines, of which one has an address."""
    known = SharedFacts()
    known.tell_deployment(SHOP, shop("db", "web"))
    known.tell_machine(key_of("db"), machine_facts("db", "10.0.0.5"))
    known.tell_machine(key_of("web"), machine_facts("web"))
    return known


# --- what is known --------------------------------------------------------------------------------------------------


def test_a_machine_knows_the_others_of_its_deployment(facts: SharedFacts):
    known = facts.known_to(reader())
    assert known.values == {NODES: '["db", "web"]', KEY_PAIRS: "{}", GROUPS: "{}", PRIVATE: '"10.0.0.5"'}
    assert known.configurations == {"db": (input_of("db"), "evaluate:1")}  # its own it has anyway


def test_a_machine_that_was_not_looked_at_yet_is_a_name(facts: SharedFacts):
    facts.tell_deployment(SHOP, shop("cache", "db", "web"))
    path = address_path("cache", "privateIPv4")
    assert facts.told(reader(), [path]) == {path: None}
    assert facts.awaited(reader(), path) == ("cache was not looked at yet", True)


def test_before_the_deployment_was_looked_at_nothing_of_the_others_is_known():
    facts = SharedFacts()
    facts.tell_machine(key_of("db"), machine_facts("db", "10.0.0.5"))
    assert facts.known_to(reader()).values == {}
    assert facts.awaited(reader(), NODES) == ("the deployment was not looked at yet", True)


def test_what_is_not_known_says_what_it_waits_for(facts: SharedFacts):
    assert facts.awaited(reader("db"), address_path("web", "privateIPv4")) == ("web has no instance yet", False)


def test_a_machine_without_a_deployment_has_only_itself(facts: SharedFacts):
    own = Key(Kind.MACHINE, "default", "lone.example.org")
    alone = Reader(own, "lone.example.org", OTHER_UUID, None, {"lone.example.org": own})
    path = address_path("lone.example.org", "publicIPv4")
    facts.tell_machine(own, MachineFacts("lone.example.org", OTHER_UUID, {path: '"198.51.100.7"'}, INPUT, "r"))
    assert facts.known_to(alone).values == {
        NODES: '["lone.example.org"]',
        KEY_PAIRS: "{}",
        GROUPS: "{}",
        path: '"198.51.100.7"',
    }
    assert facts.told(alone, [path, PRIVATE]) == {path: '"198.51.100.7"', PRIVATE: None}


@pytest.mark.parametrize(
    "stranger",
    [
        pytest.param(reader(uuid=OTHER_UUID), id="another deployment, of that name before or after"),
        pytest.param(
            Reader(key_of("web", "b"), "web", UUID, Key(Kind.DEPLOYMENT, "b", "shop")),
            id="the same in another namespace",
        ),
        pytest.param(Reader(key_of("web"), "web", UUID, None, {"web": key_of("web")}), id="one that says so itself"),
    ],
)
def test_strangers_are_told_nothing(facts: SharedFacts, stranger: Reader):
    assert PRIVATE not in facts.known_to(stranger).values
    assert facts.known_to(stranger).configurations == {}
    assert facts.told(stranger, [PRIVATE, "nodes.db"]) == {PRIVATE: None, "nodes.db": None}


def test_a_deployment_made_anew_is_not_the_former_one(facts: SharedFacts):
    """Nobody has looked at it yet; its name and its machines' names are the former one's."""
    assert facts.told(reader(uuid=OTHER_UUID), [NODES]) == {NODES: None}


def test_an_object_of_somebody_else_where_a_machine_is_to_be_is_not_that_machine(facts: SharedFacts):
    facts.tell_machine(key_of("db"), machine_facts("db", "203.0.113.1", uuid=OTHER_UUID))
    assert facts.told(reader(), [PRIVATE, "nodes.db"]) == {PRIVATE: None, "nodes.db": None}
    assert PRIVATE not in facts.known_to(reader()).values


def test_an_impostor_is_no_machine_of_the_deployment(facts: SharedFacts):
    """It has the deployment for its owner, and another object has its name."""
    facts.tell_machine(Key(Kind.MACHINE, "default", "evil"), machine_facts("db", "203.0.113.1"))
    assert facts.told(reader(), [PRIVATE]) == {PRIVATE: '"10.0.0.5"'}


def test_what_cannot_be_said_now_stays_as_it_was(facts: SharedFacts):
    facts.tell_machine(key_of("db"), replace(machine_facts("db", "10.0.0.5"), configuration=None, revision=""))
    assert facts.known_to(reader()).configurations == {"db": (input_of("db"), "evaluate:1")}


@pytest.mark.parametrize("path", [NODES, "nodes.db", "nodes.web", PRIVATE, "nodes.nobody", "resources.x", "nodes."])
def test_an_evaluation_is_told_what_the_facts_are(facts: SharedFacts, path: str):
    """Else what it was told would never be what is so, and it would be repeated for ever."""
    known = facts.known_to(reader())
    alone: dict[str, Peer] = {name: Peer(None, why) for name, (_, why) in known.configurations.items()}  # type: ignore[arg-type]
    assert Facts(known.values, alone).told([path]) == facts.told(reader(), [path])


# --- who is told of changes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "is_woken"),
    [
        pytest.param(PRIVATE, True, id="what has changed"),
        pytest.param("nodes.db", False, id="something else of that machine"),
        pytest.param(NODES, False, id="something else"),
    ],
)
def test_a_changed_address_wakes_those_who_have_read_it(facts: SharedFacts, path: str, is_woken: bool):
    facts.told(reader(), [path])
    woken = facts.tell_machine(key_of("db"), machine_facts("db", "10.0.0.9"))
    assert woken == ({key_of("web")} if is_woken else frozenset())


def test_what_becomes_known_wakes_those_who_have_asked_for_it(facts: SharedFacts):
    path = address_path("web", "privateIPv4")
    facts.told(reader("db"), [path])
    assert facts.tell_machine(key_of("web"), machine_facts("web", "10.0.0.6")) == {key_of("db")}


def test_another_configuration_wakes_those_who_have_read_it(facts: SharedFacts):
    facts.told(reader(), ["nodes.db"])
    assert facts.tell_machine(key_of("db"), machine_facts("db", "10.0.0.5", "evaluate:2")) == {key_of("web")}


def test_another_machine_wakes_those_who_have_read_which_there_are(facts: SharedFacts):
    facts.told(reader(), [NODES])
    assert facts.tell_deployment(SHOP, shop("cache", "db", "web")) == {key_of("web")}


def test_nobody_is_woken_for_what_is_as_it_was(facts: SharedFacts):
    facts.told(reader(), [NODES, PRIVATE, "nodes.db"])
    assert not facts.tell_machine(key_of("db"), machine_facts("db", "10.0.0.5"))
    assert not facts.tell_deployment(SHOP, shop("db", "web"))


def test_whoever_reads_something_else_now_is_not_woken_any_more(facts: SharedFacts):
    facts.told(reader(), [PRIVATE])
    facts.told(reader(), [])
    assert not facts.tell_machine(key_of("db"), machine_facts("db", "10.0.0.9"))


def test_a_machine_that_is_gone_is_not_known_any_more(facts: SharedFacts):
    facts.told(reader(), [PRIVATE])
    assert facts.forget(key_of("db")) == {key_of("web")}
    assert facts.told(reader(), [PRIVATE]) == {PRIVATE: None}


def test_nothing_is_kept_for_a_reader_that_is_gone(facts: SharedFacts):
    facts.told(reader(), [PRIVATE])
    facts.forget(key_of("web"))
    assert not facts.tell_machine(key_of("db"), machine_facts("db", "10.0.0.9"))
