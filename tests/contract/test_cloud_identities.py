"""Who the EC2 adapter is to AWS: keys, the operator's own identity, and roles that either takes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from contract.cloud_worlds import KNOWN, REGION
from nixops_lab.ec2.testing import RunningLayer
from nixops_operator.adapters.aws import Boto3Clouds
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import OWN_IDENTITY, AssumedRole, AwsIdentity
from nixops_operator.errors import Blocked

ROLE = AssumedRole("arn:aws:iam::123456789012:role/nixops")
STRICT = AssumedRole("arn:aws:iam::123456789012:role/nixops-strict", "tenant-7")


@pytest.fixture
def clouds(layer: RunningLayer) -> Iterator[Boto3Clouds]:
    with ThreadPoolExecutor(4) as pool:
        made = Boto3Clouds(layer.url, pool)
        yield made
        made.close()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A process to which nothing gives an AWS identity."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture
def somebody(nobody: pytest.MonkeyPatch) -> None:
    """A process with an identity of its own."""
    nobody.setenv("AWS_ACCESS_KEY_ID", KNOWN.access_key_id)
    nobody.setenv("AWS_SECRET_ACCESS_KEY", KNOWN.secret_access_key)


def callers(layer: RunningLayer, operation: str) -> list[str]:
    return [entry["caller_name"] for entry in layer.log() if entry["operation"] == operation]


@pytest.mark.usefixtures("somebody")
@pytest.mark.parametrize("keys", [KNOWN, OWN_IDENTITY], ids=["keys of a Secret", "the operator's own"])
@pytest.mark.parametrize("role", [ROLE, STRICT], ids=["a role", "a role with an external id"])
async def test_everything_is_done_as_the_role(
    layer: RunningLayer, clouds: Boto3Clouds, keys: AwsIdentity, role: AssumedRole
) -> None:
    cloud = clouds.cloud(replace(keys, role=role), REGION)

    await cloud.sweep_instances("cluster")
    await cloud.create_security_group("web", "Web", await vpc(layer), {"nixops.dev:cluster": "cluster"})

    name = role.arn.rpartition("/")[2]
    assert callers(layer, "AssumeRole") == ["lab"], "once, for the reader's and the writer's client alike"
    assert callers(layer, "DescribeInstances") == callers(layer, "CreateSecurityGroup") == [f"role/{name}"]


async def vpc(layer: RunningLayer) -> str:
    return str(layer.client().describe_vpcs()["Vpcs"][0]["VpcId"])


async def test_credentials_of_a_role_are_renewed_before_they_end(layer: RunningLayer, clouds: Boto3Clouds) -> None:
    layer.turn(**{"session.seconds": 60})
    cloud = clouds.cloud(replace(KNOWN, role=ROLE), REGION)

    for _ in range(3):
        await cloud.sweep_instances("cluster")

    assert len(callers(layer, "AssumeRole")) >= 3
    assert set(callers(layer, "DescribeInstances")) == {"role/nixops"}


@pytest.mark.parametrize(
    "role",
    [
        pytest.param(AssumedRole("arn:aws:iam::123456789012:role/absent"), id="no such role"),
        pytest.param(replace(STRICT, external_id=None), id="without the external id"),
        pytest.param(replace(STRICT, external_id="tenant-8"), id="another's external id"),
    ],
)
async def test_a_role_that_may_not_be_taken_on_is_told(clouds: Boto3Clouds, role: AssumedRole) -> None:
    cloud = clouds.cloud(replace(KNOWN, role=role), REGION)

    with pytest.raises(Blocked) as refused:
        await cloud.create_tags(["i-0123456789abcdef0"], {"a": "b"})

    assert (refused.value.reason, refused.value.is_refusal) == (Reason.ACCESS_DENIED, True)
    assert refused.value.message.startswith("AssumeRole: AccessDenied: ")
    assert role.arn in refused.value.message


@pytest.mark.usefixtures("somebody")
async def test_the_operators_own_identity_is_what_its_process_has(layer: RunningLayer, clouds: Boto3Clouds) -> None:
    await clouds.cloud(OWN_IDENTITY, REGION).sweep_instances("cluster")

    assert callers(layer, "DescribeInstances") == ["lab"]


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("identity", [OWN_IDENTITY, replace(OWN_IDENTITY, role=ROLE)], ids=["itself", "as a role"])
async def test_an_operator_without_an_identity_says_how_it_gets_one(clouds: Boto3Clouds, identity: AwsIdentity) -> None:
    with pytest.raises(Blocked) as refused:
        await clouds.cloud(identity, REGION).create_tags(["i-0123456789abcdef0"], {"a": "b"})

    assert (refused.value.reason, refused.value.is_refusal) == (Reason.AUTH_FAILURE, True)
    assert "IRSA" in refused.value.message
