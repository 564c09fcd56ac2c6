"""Rules of a security group, field by field, and key pairs: changed in the spec, and by hand in EC2. How long each took
is printed. No machine is needed for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest

from cluster import specs
from cluster.place import Place
from cluster.polling import eventually

pytestmark = pytest.mark.long(instead="cluster/test_healing.py")

DEPLOYMENT = "network"
GROUPS = "/spec/securityGroups"
ANYWHERE, INSIDE = "0.0.0.0/0", "10.0.0.0/8"

# One rule for each field of a rule, before and after that field was edited.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "protocol": (
        {"protocol": "tcp", "fromPort": 1001, "toPort": 1001, "cidrs": [INSIDE]},
        {"protocol": "udp", "fromPort": 1001, "toPort": 1001, "cidrs": [INSIDE]},
    ),
    "fromPort": (
        {"fromPort": 1002, "toPort": 1009, "cidrs": [INSIDE]},
        {"fromPort": 1003, "toPort": 1009, "cidrs": [INSIDE]},
    ),
    "toPort": (
        {"fromPort": 1010, "toPort": 1011, "cidrs": [INSIDE]},
        {"fromPort": 1010, "toPort": 1012, "cidrs": [INSIDE]},
    ),
    "icmpType": (
        {"protocol": "icmp", "icmpType": 8, "cidrs": [INSIDE]},
        {"protocol": "icmp", "icmpType": 3, "cidrs": [INSIDE]},
    ),
    "icmpCode": (
        {"protocol": "icmp", "icmpType": 5, "icmpCode": 0, "cidrs": [INSIDE]},
        {"protocol": "icmp", "icmpType": 5, "icmpCode": 1, "cidrs": [INSIDE]},
    ),
    "cidrs": (
        {"fromPort": 1020, "toPort": 1020, "cidrs": [INSIDE]},
        {"fromPort": 1020, "toPort": 1020, "cidrs": [ANYWHERE]},
    ),
    "ipv6Cidrs": (
        {"fromPort": 1030, "toPort": 1030, "ipv6Cidrs": ["2001:db8::/32"]},
        {"fromPort": 1030, "toPort": 1030, "ipv6Cidrs": ["::/0"]},
    ),
    "groups": (
        {"fromPort": 1040, "toPort": 1040, "groups": ["peer"]},
        {"fromPort": 1040, "toPort": 1040, "groups": ["peer", "third"]},
    ),
    "self": (
        {"fromPort": 1050, "toPort": 1050, "self": True},
        {"fromPort": 1050, "toPort": 1050, "self": False, "cidrs": [INSIDE]},
    ),
    "description": (
        {"fromPort": 1060, "toPort": 1060, "cidrs": [INSIDE], "description": "before"},
        {"fromPort": 1060, "toPort": 1060, "cidrs": [INSIDE], "description": "after"},
    ),
}
BEFORE, AFTER = ([rules[place] for rules in FIELDS.values()] for place in (0, 1))


def private_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()


@pytest.fixture(scope="module")
def network(shared_place: Place) -> Place:
    """Three groups and two key pairs, of which one is the user's own."""
    shared_place.aws_secret()
    shared_place.secret("own", {"ssh-privatekey": private_key()}, "kubernetes.io/ssh-auth")
    spec = {
        "aws": specs.aws(),
        "keyPairs": [{"name": "made"}, {"name": "own", "privateKeySecretRef": {"name": "own"}}],
        "securityGroups": [
            {"name": "web", "description": "Web", "ingress": BEFORE, "egress": BEFORE},
            {"name": "peer", "description": "Peer"},
            {"name": "third", "description": "Third"},
        ],
    }
    metadata = {"name": DEPLOYMENT}
    shared_place.apply(
        {"apiVersion": "nixops.dev/v1alpha1", "kind": "NixDeployment", "metadata": metadata, "spec": spec}
    )
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def web(network: Place) -> str:
    """Id of the group."""
    (found,) = [each for each in network.groups() if each["Description"] == "Web"]
    return str(found["GroupId"])


def rules(network: Place) -> set[tuple[Any, ...]]:
    """Without their ids."""
    of_group = [{"Name": "group-id", "Values": [web(network)]}]
    found = network.ec2.describe_security_group_rules(Filters=of_group)["SecurityGroupRules"]
    return {
        (
            each["IsEgress"],
            each["IpProtocol"],
            each["FromPort"],
            each["ToPort"],
            each.get("CidrIpv4") or each.get("CidrIpv6") or each["ReferencedGroupInfo"]["GroupId"],
            each.get("Description", ""),
        )
        for each in found
    }


def expected(network: Place, declared: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """What EC2 shows of these rules, in both directions."""
    ids = {each["Description"].lower(): each["GroupId"] for each in network.groups()}
    found = set()
    for rule in declared:
        is_icmp = rule.get("protocol") == "icmp"
        ports = (rule.get("icmpType", -1), rule.get("icmpCode", -1)) if is_icmp else (rule["fromPort"], rule["toPort"])
        named = [ids[name] for name in rule.get("groups", [])] + ([ids["web"]] if rule.get("self") else [])
        for peer in (*rule.get("cidrs", []), *rule.get("ipv6Cidrs", []), *named):
            for is_egress in (False, True):
                found.add((is_egress, rule.get("protocol", "tcp"), *ports, peer, rule.get("description", "")))
    return found


def await_rules(network: Place, declared: list[dict[str, Any]], what: str) -> None:
    wanted = expected(network, declared)

    def differing() -> set[tuple[Any, ...]]:
        return rules(network) ^ wanted

    eventually(lambda: not differing(), what, last=differing)
    network.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})


def test_each_field_of_a_rule_follows_the_spec_and_is_put_back(
    network: Place, tell: Callable[[str, float], None]
) -> None:
    await_rules(network, BEFORE, "as declared")
    begun = time.monotonic()
    network.patch(
        "nixdeployment",
        DEPLOYMENT,
        {"op": "replace", "path": f"{GROUPS}/0/ingress", "value": AFTER},
        {"op": "replace", "path": f"{GROUPS}/0/egress", "value": AFTER},
    )
    await_rules(network, AFTER, "edited")
    tell("all fields of rules: in the spec", begun)

    begun = time.monotonic()
    group = web(network)
    of_group = [{"Name": "group-id", "Values": [group]}]
    every = network.ec2.describe_security_group_rules(Filters=of_group)["SecurityGroupRules"]
    described = [each for each in every if each.get("Description")]
    for each in described:
        request = {name: each[name] for name in ("IpProtocol", "FromPort", "ToPort", "CidrIpv4")}
        change = {"SecurityGroupRuleId": each["SecurityGroupRuleId"], "SecurityGroupRule": request}
        request["Description"] = "by hand"
        network.ec2.modify_security_group_rules(GroupId=group, SecurityGroupRules=[change])
    for is_egress, direction in ((False, "ingress"), (True, "egress")):
        ids = [each["SecurityGroupRuleId"] for each in every if each["IsEgress"] is is_egress and each not in described]
        getattr(network.ec2, f"revoke_security_group_{direction}")(GroupId=group, SecurityGroupRuleIds=ids)
        added = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "198.18.0.0/15"}]}
        getattr(network.ec2, f"authorize_security_group_{direction}")(GroupId=group, IpPermissions=[added])
    await_rules(network, AFTER, "put back")
    tell("by hand", begun)

    begun = time.monotonic()
    network.patch(
        "nixdeployment",
        DEPLOYMENT,
        {"op": "replace", "path": f"{GROUPS}/0/ingress", "value": []},
        {"op": "replace", "path": f"{GROUPS}/0/egress", "value": []},
    )
    await_rules(network, [], "taken out")
    tell("taken out", begun)


def test_groups_follow_their_names_and_places_and_come_back(network: Place, tell: Callable[[str, float], None]) -> None:
    def described() -> list[str]:
        return sorted(each["Description"] for each in network.groups())

    begun = time.monotonic()
    fourth = {"name": "fourth", "description": "Fourth"}
    network.patch("nixdeployment", DEPLOYMENT, {"op": "replace", "path": f"{GROUPS}/2", "value": fourth})
    eventually(lambda: described() == ["Fourth", "Peer", "Web"], "renamed", last=described)
    tell("another name in the spec", begun)

    begun = time.monotonic()
    vpc = network.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    network.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{GROUPS}/2/vpcId", "value": vpc})

    def places() -> list[str]:
        return [each["VpcId"] for each in network.groups() if each["Description"] == "Fourth"]

    eventually(lambda: places() == [vpc], "in the other VPC, and no more in the first one", last=places)
    tell("another VPC in the spec", begun)

    begun = time.monotonic()
    (group,) = [each["GroupId"] for each in network.groups() if each["Description"] == "Fourth"]
    network.ec2.delete_security_group(GroupId=group)
    eventually(lambda: described() == ["Fourth", "Peer", "Web"], "made again", last=described)
    network.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    tell("deleted by hand", begun)
    assert group not in {each["GroupId"] for each in network.groups()}
    network.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": f"{GROUPS}/2"})
    eventually(lambda: described() == ["Peer", "Web"], "gone", last=described)
    network.ec2.delete_vpc(VpcId=vpc)


def test_key_pairs_follow_their_names_and_keys_and_come_back(
    network: Place, tell: Callable[[str, float], None]
) -> None:
    def entries() -> dict[str, str]:
        """Entry → fingerprint."""
        found = [({tag["Key"]: tag["Value"] for tag in pair["Tags"]}, pair) for pair in network.key_pairs()]
        return {tags["nixops.dev:entry"]: pair["KeyFingerprint"] for tags, pair in found}

    before = entries()
    begun = time.monotonic()
    network.secret("own", {"ssh-privatekey": private_key()}, "kubernetes.io/ssh-auth")
    network.ask_to_look(f"nixdeployment/{DEPLOYMENT}")
    eventually(lambda: len(entries()) == 2 and entries()["own"] != before["own"], "another key", last=entries)
    tell("another key in the Secret", begun)

    begun = time.monotonic()
    network.patch("nixdeployment", DEPLOYMENT, {"op": "replace", "path": "/spec/keyPairs/0/name", "value": "second"})
    eventually(lambda: set(entries()) == {"second", "own"}, "another name", last=entries)
    tell("another name in the spec", begun)

    begun, now = time.monotonic(), entries()
    for pair in network.key_pairs():
        network.ec2.delete_key_pair(KeyName=pair["KeyName"])
    eventually(lambda: entries() == now, "imported again", last=entries)
    network.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    tell("deleted by hand", begun)
