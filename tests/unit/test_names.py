"""Names are functions of their owner: the same again after a crash, another for another owner."""

from __future__ import annotations

import hashlib

import pytest

from nixops_operator import names

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1v"


def test_a_client_token_fits_ec2() -> None:
    token = names.client_token("cluster", "uid", 1)

    # RunInstances takes up to 64 ASCII characters (EC2 API Reference).
    assert len(token) == 51
    assert token.startswith("n1-")
    assert token.isascii()


@pytest.mark.parametrize("other", [("c2", "uid", 1), ("cluster", "uid2", 1), ("cluster", "uid", 2)])
def test_a_client_token_belongs_to_one_launch(other: tuple[str, str, int]) -> None:
    assert names.client_token(*other) != names.client_token("cluster", "uid", 1)
    assert names.client_token("cluster", "uid", 1) == names.client_token("cluster", "uid", 1)


def test_a_security_group_name_holds_owner_entry_and_what_cannot_change() -> None:
    owner = hashlib.sha256(b"cluster/uid").hexdigest()[:12]
    fixed = hashlib.sha256(b"vpc-1/the site").hexdigest()[:6]

    assert names.security_group_name("cluster", "uid", "web", "vpc-1", "the site") == f"nixops-{owner}-web-{fixed}"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("c2", "uid", "web", "vpc-1", "site"), id="another cluster"),
        pytest.param(("c", "uid2", "web", "vpc-1", "site"), id="another deployment"),
        pytest.param(("c", "uid", "db", "vpc-1", "site"), id="another entry"),
        pytest.param(("c", "uid", "web", "vpc-2", "site"), id="another VPC"),
        pytest.param(("c", "uid", "web", "vpc-1", "sites"), id="another description"),
    ],
)
def test_another_group_has_another_name(other: tuple[str, str, str, str, str]) -> None:
    assert names.security_group_name(*other) != names.security_group_name("c", "uid", "web", "vpc-1", "site")


def test_a_key_pair_name_follows_the_key_not_its_comment() -> None:
    name = names.key_pair_name("c", "uid", "door", KEY)

    assert names.key_pair_name("c", "uid", "door", KEY + " root@box") == name
    assert names.key_pair_name("c", "uid", "door", KEY[:-4] + "AAAA") != name


def test_a_machine_is_found_by_cluster_and_uid() -> None:
    assert names.instance_tags("c", "shop", "web", "uid", 2, {"team": "x"}) == {
        "nixops.dev:cluster": "c",
        "nixops.dev:uid": "uid",
        "nixops.dev:namespace": "shop",
        "nixops.dev:name": "web",
        "nixops.dev:attempt": "2",
        "Name": "shop/web",
        "team": "x",
    }


def test_a_user_may_override_the_display_name_and_no_other_tag() -> None:
    tags = names.instance_tags("c", "shop", "web", "uid", 2, {"Name": "front", "nixops.dev:uid": "stolen"})

    assert (tags["Name"], tags["nixops.dev:uid"]) == ("front", "uid")


def test_a_list_entry_is_tagged_with_its_name() -> None:
    tags = names.key_pair_tags("c", "prod", "shop", "uid", "door", KEY)

    assert tags["nixops.dev:entry"] == "door"
    assert tags["nixops.dev:name"] == "shop/door"
    assert tags["nixops.dev:key-sha256"] == names.key_digest(KEY)
    assert len(tags["nixops.dev:key-sha256"]) == 64


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        pytest.param({"name": "box"}, "box", id="on its own"),
        pytest.param({"name": "box", "labels": {"nixops.dev/machine": "web"}}, "box", id="a label alone says nothing"),
        pytest.param(
            {
                "name": "shop-web",
                "labels": {"nixops.dev/machine": "web"},
                "ownerReferences": [{"kind": "NixDeployment", "controller": True}],
            },
            "web",
            id="in a deployment",
        ),
    ],
)
def test_what_a_machine_calls_itself(metadata: dict[str, object], name: str) -> None:
    assert names.machine_name({"metadata": metadata}) == name
