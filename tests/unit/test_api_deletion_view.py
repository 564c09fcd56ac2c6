"""What deletion reads of a spec, whatever else stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nixops_operator.api.machine_spec import AssumeRole, AwsCredentials, AwsSettings, DeletionPolicy
from nixops_operator.api.parse import SPEC_LIMIT, deletion_view, parse_deployment, parse_machine

DATA = Path(__file__).parents[1] / "data"
DELETE, RETAIN = DeletionPolicy.DELETE, DeletionPolicy.RETAIN


def view(**spec: Any) -> tuple[DeletionPolicy | None, AwsSettings | None, str | None]:
    seen = deletion_view({"spec": spec})
    return seen.policy, seen.aws, seen.target


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        pytest.param({}, DELETE, id="absent: the default"),
        pytest.param({"deletionPolicy": "Delete"}, DELETE, id="Delete"),
        pytest.param({"deletionPolicy": "Retain"}, RETAIN, id="Retain"),
        pytest.param(
            {"deletionPolicy": "Retain", "activation": {"timeout": "0s"}}, RETAIN, id="beside an invalid field"
        ),
        pytest.param(
            {"deletionPolicy": "Retain", "machines": "x" * SPEC_LIMIT}, RETAIN, id="of a spec beyond the limit"
        ),
        pytest.param({"deletionPolicy": "retain"}, None, id="a word that nobody knows"),
        pytest.param({"deletionPolicy": None}, None, id="null"),
        pytest.param({"deletionPolicy": 1}, None, id="a number"),
        pytest.param({"deletionPolicy": ["Delete"]}, None, id="a list"),
        pytest.param({"deletionPolicy": {"Delete": True}}, None, id="a map"),
    ],
)
def test_the_policy_is_read_or_unknown(spec: dict[str, Any], policy: DeletionPolicy | None) -> None:
    assert view(**spec)[0] is policy


@pytest.mark.parametrize(
    ("target", "declares"),
    [
        ({"ec2": {}}, False),
        ({"ec2": {"elasticIp": {"allocate": True}}}, True),
        ({"ec2": {"elasticIp": "of a later release"}}, True),
        ({"ec2": 1}, False),
        (None, False),
    ],
)
def test_whether_an_address_is_declared_is_read(target: object, declares: bool) -> None:
    assert deletion_view({"spec": {"target": target}}).declares_address is declares


@pytest.mark.parametrize(
    ("target", "protections"),
    [
        pytest.param({"ec2": {"instanceType": "t3.small"}}, {}, id="nothing said"),
        pytest.param({"ec2": {"terminationProtection": True}}, {"terminationProtection": True}, id="on"),
        pytest.param({"ec2": {"stopProtection": False}}, {"stopProtection": False}, id="off"),
        pytest.param({"ec2": {"stopProtection": "no"}}, {"stopProtection": True}, id="a text: nobody can tell"),
        pytest.param({"ec2": ["t3.small"]}, {}, id="a list"),
        pytest.param("ec2", {}, id="a text"),
    ],
)
def test_a_protection_that_is_declared_is_read(target: object, protections: dict[str, bool]) -> None:
    assert deletion_view({"spec": {"target": target}}).protections == protections


STAGE = AwsCredentials.model_validate({"secretRef": {"name": "aws"}, "profile": "stage"})


@pytest.mark.parametrize(
    ("aws", "seen"),
    [
        pytest.param({}, AwsSettings(), id="nothing said: no region, own identity"),
        pytest.param({"region": "us-west-2"}, AwsSettings(region="us-west-2"), id="region"),
        pytest.param(
            {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}, "profile": "stage"}},
            AwsSettings(region="us-west-2", credentials=STAGE),
            id="region, Secret and profile",
        ),
        pytest.param({"credentials": {}}, AwsSettings(credentials=AwsCredentials()), id="empty credentials"),
        pytest.param({"region": "us-west-2", "endpoint": "x"}, AwsSettings(region="us-west-2"), id="a field of later"),
        pytest.param(None, None, id="null"),
        pytest.param([], None, id="a list"),
        pytest.param("us-west-2", None, id="a text"),
        pytest.param({"region": 7}, None, id="region a number"),
        pytest.param({"region": ""}, None, id="region empty"),
        pytest.param({"region": None}, None, id="region null"),
        pytest.param({"region": "us-west-2", "credentials": None}, None, id="credentials null: not the own identity"),
        pytest.param({"region": "us-west-2", "credentials": "aws"}, None, id="credentials a text"),
        pytest.param({"region": "us-west-2", "credentials": {"secretRef": "aws"}}, None, id="reference a text"),
        pytest.param({"region": "us-west-2", "credentials": {"secretRef": {}}}, None, id="reference without a name"),
        pytest.param({"region": "us-west-2", "credentials": {"secretRef": {"name": 1}}}, None, id="name a number"),
        pytest.param({"region": "us-west-2", "credentials": {"profile": []}}, None, id="profile a list"),
        pytest.param(
            {"credentials": {"assumeRole": {"roleArn": "arn", "externalId": "7"}}},
            AwsSettings.model_construct(
                region=None,
                credentials=AwsCredentials.model_construct(
                    secret_ref=None,
                    profile=None,
                    assume_role=AssumeRole.model_construct(role_arn="arn", external_id="7"),
                ),
            ),
            id="a role, whatever today's pattern says of it",
        ),
        pytest.param({"credentials": {"assumeRole": {}}}, None, id="a role without a name: not the keys themselves"),
        pytest.param({"credentials": {"assumeRole": "arn"}}, None, id="a role that is a text"),
    ],
)
def test_region_and_credentials_are_read_or_unknown(aws: object, seen: AwsSettings | None) -> None:
    assert view(aws=aws)[1] == seen


def test_a_region_that_todays_pattern_refuses_is_read() -> None:
    aws = view(aws={"region": "MOON-1"})[1]

    assert aws is not None
    assert aws.region == "MOON-1"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        pytest.param({"ec2": {}}, "ec2", id="EC2"),
        pytest.param({"host": {}}, "host", id="a given host"),
        pytest.param({"ec2": None}, "ec2", id="EC2, of which nothing can be read"),
        pytest.param({"ec2": {}, "host": {}}, None, id="both"),
        pytest.param({}, None, id="none"),
        pytest.param(None, None, id="null"),
        pytest.param(["ec2"], None, id="a list"),
        pytest.param("ec2", None, id="a text"),
    ],
)
def test_the_kind_of_target_is_read_or_unknown(target: object, kind: str | None) -> None:
    assert view(target=target)[2] == kind


@pytest.mark.parametrize("spec", [None, [], "x", 7, True], ids=repr)
def test_of_a_spec_that_is_no_map_nothing_is_known(spec: object) -> None:
    for body in ({"spec": spec}, {}):
        seen = deletion_view(body)
        assert (seen.policy, seen.aws, seen.target) == (None, None, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "deletionPolicy",
                    "aws",
                    "region",
                    "credentials",
                    "secretRef",
                    "name",
                    "profile",
                    "target",
                    "ec2",
                    "host",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(JSON)
def test_it_raises_nothing(spec: object) -> None:
    deletion_view({"spec": spec})


@pytest.mark.parametrize("path", sorted((DATA / "valid").glob("*.yaml")), ids=lambda path: path.stem)
def test_of_a_valid_spec_it_says_what_the_models_say(path: Path) -> None:
    body = yaml.safe_load(path.read_text())

    seen = deletion_view(body)

    spec = parse_machine(body) if body["kind"] == "NixMachine" else parse_deployment(body)
    assert (seen.policy, seen.aws) == (spec.deletion_policy, spec.aws)
