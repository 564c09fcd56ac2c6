"""The EC2 adapter where EC2 refuses, is slow, or is not there: what only the real one can show."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from botocore.loaders import Loader

from contract.cloud_worlds import KNOWN, REGION
from nixops_lab.ec2.testing import RunningLayer
from nixops_operator.adapters.aws import Boto3Clouds, calls
from nixops_operator.adapters.aws.clients import model_loader
from nixops_operator.adapters.aws.cloud import Boto3Cloud
from nixops_operator.adapters.aws.clouds import IDLE_LIFE
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.errors import Blocked, OutcomeUnknown, Retry
from nixops_operator.facts.cloud import LaunchRequest
from nixops_operator.names import CLUSTER_TAG, UID_TAG

TAGS = {CLUSTER_TAG: "cluster", UID_TAG: "uid"}


@pytest.fixture(scope="module")
def models() -> Loader:
    """AWS' service models, read once."""
    return model_loader()


@pytest.fixture
def clouds(layer: RunningLayer, models: Loader) -> Iterator[Boto3Clouds]:
    with ThreadPoolExecutor(4) as pool:
        made = Boto3Clouds(layer.url, pool, loader=models)
        yield made
        made.close()


@pytest.fixture
def cloud(clouds: Boto3Clouds) -> Boto3Cloud:
    return clouds.cloud(KNOWN, REGION)


def attempts(layer: RunningLayer, operation: str) -> int:
    return sum(entry["operation"] == operation for entry in layer.log())


async def request(cloud: Boto3Cloud, **changes: Any) -> LaunchRequest:
    image = await cloud.find_image("427812963091", "nixos/25.11*-x86_64-linux", "x86_64")
    subnet = await cloud.default_subnet()
    assert image is not None
    return replace(LaunchRequest(image.id, "t3.small", subnet.id, "", None, (), TAGS), **changes)


async def test_a_look_is_repeated_three_times(layer: RunningLayer, cloud: Boto3Cloud) -> None:
    layer.fault("error", "DescribeInstances", code="Unavailable", status=503, times=2)

    assert await cloud.sweep_instances("cluster") == {}
    assert attempts(layer, "DescribeInstances") == 3

    layer.fault("error", "DescribeInstances", code="Unavailable", status=503, times=3)
    with pytest.raises(Retry) as refused:
        await cloud.sweep_instances("cluster")
    assert refused.value.reason is Reason.PROGRESSING_WITH_RETRY
    assert not isinstance(refused.value, OutcomeUnknown)
    assert attempts(layer, "DescribeInstances") == 6


async def test_a_launch_is_sent_once(layer: RunningLayer, cloud: Boto3Cloud) -> None:
    """EC2 answers missing capacity with HTTP 500, which botocore would repeat by itself."""
    layer.fault("error", "RunInstances", code="InsufficientInstanceCapacity", status=500, times=9)

    with pytest.raises(Retry) as refused:
        await cloud.run_instances(await request(cloud), "n1-one")

    assert refused.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert refused.value.is_refusal
    assert refused.value.after is not None
    assert not isinstance(refused.value, OutcomeUnknown)
    assert attempts(layer, "RunInstances") == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_internal_error_of_ec2_leaves_a_launch_open(layer: RunningLayer, cloud: Boto3Cloud, when: str) -> None:
    layer.fault("error", "RunInstances", code="InternalError", status=500, when=when)
    frozen = await request(cloud)

    with pytest.raises(OutcomeUnknown) as unknown:
        await cloud.run_instances(frozen, "n1-one")
    assert not unknown.value.is_refusal
    instance_id = await cloud.run_instances(frozen, "n1-one")

    assert list(await cloud.sweep_instances("cluster")) == [instance_id]


async def test_the_launch_carries_our_token(layer: RunningLayer, cloud: Boto3Cloud) -> None:
    await cloud.run_instances(await request(cloud), "n1-ours")

    (entry,) = [entry for entry in layer.log() if entry["operation"] == "RunInstances"]
    assert entry["parameters"]["ClientToken"] == "n1-ours"
    assert (entry["parameters"]["MinCount"], entry["parameters"]["MaxCount"]) == (1, 1)


async def test_throttling_is_told_as_such(layer: RunningLayer, cloud: Boto3Cloud) -> None:
    layer.fault("error", "CreateSecurityGroup", code="RequestLimitExceeded", status=503)

    with pytest.raises(Retry) as refused:
        await cloud.create_security_group("web", "the site", "vpc-1", TAGS)

    assert refused.value.reason is Reason.THROTTLED
    assert not isinstance(refused.value, OutcomeUnknown)


async def test_a_sweep_reads_every_page_or_fails(
    layer: RunningLayer, cloud: Boto3Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PAGE_SIZE", 5)
    ids = {await cloud.run_instances(await request(cloud), f"n1-{number}") for number in range(12)}
    before = attempts(layer, "DescribeInstances")

    assert set(await cloud.sweep_instances("cluster")) == ids
    assert attempts(layer, "DescribeInstances") == before + 3

    layer.fault("error", "DescribeInstances", nth=2, code="Unavailable", status=503, times=3)
    with pytest.raises(Retry):
        await cloud.sweep_instances("cluster")


async def test_nobody_listens(models: Loader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        clouds = Boto3Clouds(f"http://127.0.0.1:{port}", pool, loader=models)
        cloud = clouds.cloud(KNOWN, REGION)

        for call in (cloud.sweep_instances("cluster"), cloud.delete_key_pair("web")):
            with pytest.raises(Retry) as refused:
                await call
            # Nothing was sent, so nothing can have happened.
            assert type(refused.value) is Retry
            assert refused.value.is_refusal
        clouds.close()


async def test_a_wrong_secret_key_is_told_without_the_key(clouds: Boto3Clouds) -> None:
    cloud = clouds.cloud(AwsIdentity(KNOWN.access_key_id, "not-the-secret"), REGION)

    with pytest.raises(Blocked) as refused:
        await cloud.sweep_instances("cluster")

    assert refused.value.reason is Reason.AUTH_FAILURE
    assert "not-the-secret" not in refused.value.message
    assert KNOWN.access_key_id not in refused.value.message


async def test_malformed_parameters_are_not_repeated_in_the_error(cloud: Boto3Cloud) -> None:
    frozen = await request(cloud, key_name=["hush"], user_data="SSH_HOST_ED25519_KEY=hush")

    with pytest.raises(Blocked) as refused:
        await cloud.run_instances(frozen, "n1-one")

    assert refused.value.reason is Reason.INVALID_SPEC
    assert "KeyName" in refused.value.message
    error: BaseException | None = refused.value
    while error is not None:
        assert "hush" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def test_a_region_has_its_own_instances(clouds: Boto3Clouds, cloud: Boto3Cloud) -> None:
    await cloud.run_instances(await request(cloud), "n1-one")

    assert await clouds.cloud(KNOWN, "eu-central-1").sweep_instances("cluster") == {}


async def test_an_identity_that_nobody_uses_is_forgotten(layer: RunningLayer, models: Loader) -> None:
    seconds = 0.0
    with ThreadPoolExecutor(1) as pool:
        clouds = Boto3Clouds(layer.url, pool, loader=models, monotonic=lambda: seconds)
        used, unused = clouds.cloud(KNOWN, REGION), clouds.cloud(KNOWN, "eu-central-1")
        for _ in range(4):
            seconds += IDLE_LIFE.total_seconds() / 3
            await used.sweep_instances("cluster")

        assert clouds.cloud(KNOWN, REGION) is used
        assert clouds.cloud(KNOWN, "eu-central-1") is not unused
        # Whoever still holds it can go on.
        assert await unused.sweep_instances("cluster") == {}
        clouds.close()
