"""Names are functions of their owner: the same again after a crash, another for another owner."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixops_operator import names
from nixops_operator.api.group import API_VERSION

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


def owned(**reference: object) -> dict[str, object]:
    """Metadata of a machine `shop-web` that calls itself `web` and names an owner, the deployment `shop` by default."""
    owner = {"apiVersion": API_VERSION, "kind": "NixDeployment", "name": "shop", "uid": "u", "controller": True}
    return {
        "namespace": "default",
        "name": "shop-web",
        "labels": {"nixops.dev/machine": "web"},
        "ownerReferences": [owner | reference],
    }


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        pytest.param({"name": "box"}, "box", id="on its own"),
        pytest.param({"name": "box", "labels": {"nixops.dev/machine": "web"}}, "box", id="a label alone says nothing"),
        pytest.param(owned(), "web", id="in a deployment"),
        pytest.param(owned(controller=False), "shop-web", id="owned, not controlled"),
        pytest.param(owned(kind="NixMachine"), "shop-web", id="of another kind of ours"),
        pytest.param(owned(apiVersion="example.org/v1"), "shop-web", id="of another group's NixDeployment"),
        pytest.param(owned(apiVersion="v1", kind="ConfigMap"), "shop-web", id="of something else"),
    ],
)
def test_what_a_machine_calls_itself(metadata: dict[str, object], name: str) -> None:
    assert names.machine_name({"metadata": metadata}) == name


# Names of two owners


def h(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:6]


@pytest.mark.parametrize(
    ("deployment", "machine", "name"),
    [
        pytest.param("shop", "web", "shop-web", id="a word"),
        pytest.param("shop", "web-0", "shop-web-0", id="a replica"),
        pytest.param("my-shop", "web-0", "my-shop-web-0", id="a deployment of several words"),
        pytest.param(
            "shop", "web-front", f"shop-web-front-{h('shop/web-front')}", id="two words: the deployment may be shop-web"
        ),
        pytest.param("shop-web", "front", "shop-web-front", id="the other reading of the same words"),
        pytest.param(
            "shop-web", "0", f"shop-web-0-{h('shop-web/0')}", id="a number alone, which would be a replica of shop"
        ),
        pytest.param("shop", "web-0-1", f"shop-web-0-1-{h('shop/web-0-1')}", id="two numbers"),
        pytest.param("shop", "facade", f"shop-facade-{h('shop/facade')}", id="a word that looks like a hash"),
    ],
)
def test_a_machine_s_object_is_named_after_deployment_and_machine(deployment: str, machine: str, name: str) -> None:
    assert names.machine_object_name(deployment, machine) == name


@pytest.mark.parametrize(
    ("deployment", "entry", "name"),
    [
        pytest.param("shop", "my-key-pair", "shop-my-key-pair-ssh", id="a deployment of one word"),
        pytest.param("my-shop", "door", f"my-shop-door-{h('my-shop/door')}-ssh", id="of two words"),
        pytest.param("my", "shop-door", "my-shop-door-ssh", id="the other reading of the same words"),
        pytest.param(
            "shop", "key-abcdef", f"shop-key-abcdef-{h('shop/key-abcdef')}-ssh", id="an entry that looks hashed"
        ),
    ],
)
def test_the_secret_of_a_generated_key_is_named_after_deployment_and_entry(
    deployment: str, entry: str, name: str
) -> None:
    assert names.key_pair_secret(deployment, entry) == name


WORDS = st.lists(
    st.sampled_from(["a", "b", "ab", "0", "1", "00", "a0", "0a", "facade", "123456"]), min_size=1, max_size=4
)
LABELS = WORDS.map("-".join)


@pytest.mark.parametrize("name_of", [names.machine_object_name, names.key_pair_secret])
@given(owner=st.tuples(LABELS, LABELS))
def test_no_two_splits_of_the_same_words_have_one_name(
    name_of: Callable[[str, str], str], owner: tuple[str, str]
) -> None:
    """Also where one owner's second part holds the hash of the other's name."""
    words = [*"-".join(owner).split("-"), *name_of(*owner).removesuffix("-ssh").split("-")[-1:]]
    splits = [("-".join(words[:cut]), "-".join(words[cut:])) for cut in range(1, len(words))]

    assert len({name_of(*split) for split in [owner, *splits]}) == len({owner, *splits})


def test_no_machine_s_secret_is_a_key_pair_s() -> None:
    machine = names.machine_object_name("shop", "web")
    secrets = {names.host_keys_secret(machine), names.launch_secret(machine, 1), names.launch_secret(machine, 11)}

    assert len(secrets) == 3
    assert not any(secret.endswith("-ssh") for secret in secrets)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        pytest.param(lambda long: names.machine_object_name(long, "web"), 253, id="a machine"),
        pytest.param(lambda long: names.key_pair_secret(long, "door"), 253, id="the Secret of a generated key"),
        pytest.param(names.host_keys_secret, 253, id="the Secret of host keys"),
        pytest.param(lambda long: names.launch_secret(long, 7), 253, id="the Secret of a launch"),
        pytest.param(names.label_value, 63, id="a label"),
        pytest.param(lambda long: names.owner_tags("c", "n", long * 2, "u")["nixops.dev:name"], 256, id="a tag"),
        pytest.param(lambda long: names.owner_tags("c", long, long, "u")["Name"], 256, id="the display name"),
    ],
)
def test_what_would_be_too_long_is_cut_and_still_says_whose_it_is(name: Callable[[str], str], limit: int) -> None:
    one, other = name("x" * 252 + "a"), name("x" * 252 + "b")

    assert one != other
    assert len(one) <= limit
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9/]*[a-z0-9])?", one)


def test_a_name_that_is_cut_at_a_dash_stays_valid() -> None:
    assert re.fullmatch(r"[a-z0-9]+-[0-9a-f]{6}", names.label_value("x" * 50 + "-" * 12 + "yy"))


# What tags say, which others may have written


@pytest.mark.parametrize(
    ("text", "attempt"),
    [
        ("1", 1),
        ("12", 12),
        ("two", 0),
        ("", 0),
        ("-5", 0),
        ("0", 0),
        ("1" + "0" * 30, 0),
        ("1.5", 0),
        ("٣", 0),
        (" 1", 0),
    ],
)
def test_an_attempt_is_what_we_write_or_none(text: str, attempt: int) -> None:
    assert names.attempt_of({"nixops.dev:attempt": text}) == attempt
    assert names.attempt_of({}) == 0


@pytest.mark.parametrize(
    ("text", "is_retained"),
    [("true", True), ("True", True), ("TRUE", True), ("false", False), ("", False), ("yes", False)],
)
def test_a_thing_is_retained_by_one_word(text: str, is_retained: bool) -> None:
    assert names.is_retained({"nixops.dev:retained": text}) is is_retained
    assert not names.is_retained({})


@pytest.mark.parametrize(
    ("tags", "is_ours"),
    [
        pytest.param({"nixops.dev:cluster": "c", "nixops.dev:uid": "u"}, True, id="both"),
        pytest.param({"nixops.dev:cluster": "c2", "nixops.dev:uid": "u"}, False, id="another cluster"),
        pytest.param({"nixops.dev:cluster": "c", "nixops.dev:uid": "u2"}, False, id="another object"),
        pytest.param({"nixops.dev:uid": "u"}, False, id="no cluster"),
        pytest.param({}, False, id="none"),
    ],
)
def test_a_thing_is_ours_by_cluster_and_uid(tags: dict[str, str], is_ours: bool) -> None:
    assert names.is_ours(tags, "c", "u") is is_ours
