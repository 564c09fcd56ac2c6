"""What a machine, and a deployment, is for the configurations of others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.deployment import own_facts as of_deployment
from nixops_operator.errors import Blocked, NotYet
from nixops_operator.facts.cloud import Address, InstanceState
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.machine import own_facts as of_machine
from nixops_operator.machine.addresses import ObservedAddresses
from nixops_operator.machine.observed import ObservedCloud, ObservedSystem
from nixops_operator.shared_facts import GROUPS, KEY_PAIRS, NODES
from unit import builders_deployment as shop
from unit.builders import EVALUATE, INPUT, UID, cloud, ec2_machine, host_machine, instance, launch, seen

PUBLIC, PRIVATE = (f"nodes.web.config.networking.{option}" for option in ("publicIPv4", "privateIPv4"))


def of_instance(seen_cloud: ObservedCloud, status: dict[str, Any] | None = None) -> Any:
    desired = ec2_machine({**launch(instance="i-1"), **(status or {})})
    return of_machine.facts_of(desired, seen(seen_cloud))


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen_cloud", "public", "private", "waits"),
    [
        pytest.param(cloud(instance()), "198.51.100.7", "172.31.0.4", None, id="a running instance"),
        pytest.param(cloud(instance(public_address=None)), "null", "172.31.0.4", None, id="without a public address"),
        pytest.param(
            cloud(instance(state=InstanceState.PENDING, public_address=None)),
            None,
            "172.31.0.4",
            "web has an instance that is pending",
            id="one that boots may get a public address",
        ),
        pytest.param(
            cloud(instance(state=InstanceState.STOPPED, public_address=None)),
            None,
            "172.31.0.4",
            "web has an instance that is stopped",
            id="a stopped one gets another when it is started",
        ),
        pytest.param(cloud(), None, None, "web has no instance yet", id="none"),
        pytest.param(cloud(instance("i-2")), None, None, "web has no instance yet", id="one that is not recorded"),
        pytest.param(
            cloud(instance(state=InstanceState.TERMINATED)),
            None,
            None,
            "web has no instance yet",
            id="one that is gone",
        ),
    ],
)
def test_addresses_of_an_instance(
    seen_cloud: ObservedCloud, public: str | None, private: str | None, waits: str | None
):
    facts = of_instance(seen_cloud)
    wanted = {PUBLIC: public, PRIVATE: private}
    assert facts.values == {
        path: "null" if found == "null" else json.dumps(found) for path, found in wanted.items() if found is not None
    }
    if waits is not None:
        assert facts.awaited[PUBLIC] == waits


OURS = Address("eipalloc-1", "203.0.113.5", {})
SOMEBODY_S = replace(OURS, association_id="eipassoc-1", instance_id="i-9")


@pytest.mark.parametrize(
    ("elastic", "seen_cloud", "public"),
    [
        pytest.param({"allocate": True}, {"ours": (OURS,)}, "203.0.113.5", id="allocated, and not associated yet"),
        pytest.param({"allocate": True}, {}, None, id="not allocated yet"),
        pytest.param({"id": "eipalloc-00000001"}, {"given": OURS}, "203.0.113.5", id="given"),
        pytest.param({"id": "eipalloc-00000001"}, {"given": SOMEBODY_S}, None, id="given, and another machine's"),
        pytest.param({"id": "eipalloc-00000001"}, {}, None, id="given, and not there"),
        pytest.param({"allocate": True}, {"error": NotYet("EC2 was asked")}, "198.51.100.7", id="not looked at yet"),
    ],
)
@pytest.mark.parametrize("state", [InstanceState.RUNNING, None])
def test_an_elastic_address_is_the_machine_s_before_its_instance_has_it(
    elastic: dict[str, Any], seen_cloud: dict[str, Any], public: str | None, state: InstanceState | None
):
    ec2 = {"instanceType": "t3.small", "elasticIp": elastic}
    desired = ec2_machine(launch(instance="i-1"), target={"ec2": ec2})
    instances = () if state is None else (instance(state=state),)
    looked = cloud(*instances, addresses=ObservedAddresses(**seen_cloud))
    facts = of_machine.facts_of(desired, seen(looked))
    if "error" in seen_cloud and state is None:
        public = None
    assert facts.values.get(PUBLIC) == (None if public is None else json.dumps(public))


def test_what_was_told_last_stands_while_nobody_can_look():
    blind = ObservedCloud(error=NotYet("EC2 was asked"))
    known = {"instance": {"id": "i-1", "state": "running"}, "addresses": {"private": "172.31.0.9"}}
    assert of_instance(blind, known).values == {PUBLIC: "null", PRIVATE: '"172.31.0.9"'}
    of_another = {**known, "instance": {"id": "i-0", "state": "running"}}
    assert of_instance(blind, of_another).values == {}


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        pytest.param("198.51.100.7", "198.51.100.7", False, id="public"),
        pytest.param("192.168.7.1", False, "192.168.7.1", id="private"),
        pytest.param("100.64.0.1", False, "100.64.0.1", id="of a carrier's or an overlay's network"),
        pytest.param("db.example.org", False, False, id="a name"),
        pytest.param("2001:db8::1", False, False, id="IPv6"),
    ],
)
def test_of_a_given_host_nothing_is_known_but_how_it_is_reached(address: str, public: Any, private: Any):
    facts = of_machine.facts_of(host_machine(target={"host": {"address": address}}), seen())
    assert facts.values == {PUBLIC: json.dumps(public), PRIVATE: json.dumps(private)}


# --- the configuration ----------------------------------------------------------------------------------------------


def test_a_configuration_is_known_once_its_sources_are():
    facts = of_machine.facts_of(host_machine(), seen())
    assert (facts.name, facts.uuid, facts.configuration, facts.revision) == ("web", UID, INPUT, EVALUATE)


def test_a_configuration_that_cannot_be_read_says_why():
    lost = ObservedSystem(error=Blocked(Reason.SOURCE_NOT_FOUND, "ConfigMap site does not exist; create it"))
    facts = of_machine.facts_of(host_machine(), seen(system=lost))
    assert facts.configuration is None
    assert facts.awaited["nodes.web"] == "web waits for ConfigMap site does not exist; create it"


# --- a deployment ---------------------------------------------------------------------------------------------------


def key(machine: str) -> Key:
    return Key(Kind.MACHINE, "default", f"shop-{machine}")


def test_machines_are_there_from_their_declaration_to_the_beginning_of_their_deletion():
    before = shop.deployment(machines=("web", "old", "going"))
    desired = shop.deployment(machines=("web", "db"))
    children = (shop.child(before, "web"), shop.child(before, "old"), shop.child(before, "going", deleting=True))
    facts = of_deployment.facts_of(desired, shop.sees(desired, children=children))
    assert facts.machines == {name: key(name) for name in ("web", "db", "old")}
    assert json.loads(facts.values[NODES]) == ["db", "old", "web"]


def test_groups_and_key_pairs_are_told_as_they_are_declared_and_as_ec2_shows_them():
    desired = shop.deployment()
    facts = of_deployment.facts_of(desired, shop.sees(desired, network=shop.network(groups=shop.GROUPS[:1])))
    assert json.loads(facts.values[KEY_PAIRS]) == {"main": {"region": "us-west-2"}}
    assert json.loads(facts.values[GROUPS])["http"] == {"region": "us-west-2", "description": "Web"}
    shown = {path: json.loads(value) for path, value in facts.values.items() if path.count(".") > 1}
    assert shown == {
        f"{KEY_PAIRS}.main.name": shop.KEY_NAME,
        f"{GROUPS}.http.groupId": "sg-http",
        f"{GROUPS}.http.name": shop.group_name(shop.HTTP),
        f"{GROUPS}.http.vpcId": "vpc-1",
    }
    assert facts.awaited[f"{GROUPS}.ssh.groupId"] == "EC2 does not show it yet"


def test_what_was_told_of_groups_stands_while_nobody_can_look():
    told = {"securityGroups": [{"name": "http", "groupId": "sg-1", "vpcId": "vpc-1"}]}
    desired = shop.deployment(told)
    blind = shop.network(error=NotYet("EC2 was asked"))
    facts = of_deployment.facts_of(desired, shop.sees(desired, network=blind))
    assert facts.values[f"{GROUPS}.http.groupId"] == '"sg-1"'


def test_no_fact_holds_a_private_key():
    desired = shop.deployment()
    facts = of_deployment.facts_of(desired, shop.sees(desired, network=shop.network()))
    assert "rivate" not in json.dumps([dict(facts.values), dict(facts.awaited)])
