"""A launch request is frozen as text, and read back for every call, perhaps by another release."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nixops_operator.facts.cloud import LaunchRequest, MetadataOptions, RootVolume, VolumeSettings

REQUEST = LaunchRequest(
    image_id="ami-1",
    instance_type="t3.small",
    subnet_id="subnet-1",
    user_data="SSH_HOST_ED25519_KEY=hush",
    key_name="web",
    security_group_ids=("sg-2", "sg-1"),
    tags={"b": "2", "a": "1"},
    monitoring=True,
    metadata=MetadataOptions(hop_limit=2, tags="enabled"),
    public_ip=False,
    ebs_optimized=True,
    tenancy="dedicated",
    placement_group="near",
    instance_profile="web",
    termination_protection=True,
    stop_protection=False,
    shutdown_behavior="terminate",
    credits="standard",
    root_volume=RootVolume("/dev/xvda", VolumeSettings(40, "gp3", 4000, 250, encrypted=True)),
)


@pytest.mark.parametrize(
    "request_",
    [REQUEST, LaunchRequest("ami-1", "t3.small", "subnet-1", "hush")],
    ids=["everything", "only what must be"],
)
def test_what_was_frozen_is_read_back(request_: LaunchRequest) -> None:
    assert LaunchRequest.from_json(request_.as_json()) == request_


def test_equal_requests_are_one_text() -> None:
    assert replace(REQUEST, tags={"a": "1", "b": "2"}).as_json() == REQUEST.as_json()


def test_the_text_of_another_release_is_read() -> None:
    fields = json.loads(REQUEST.as_json())

    fields["metadata"]["protocol"] = "ipv6"
    fields["root_volume"]["settings"]["kms_key_id"] = "alias/own"
    assert LaunchRequest.from_json(json.dumps({**fields, "hibernation": True})) == REQUEST
    first_release = ("image_id", "instance_type", "subnet_id", "user_data", "key_name", "security_group_ids", "tags")
    assert LaunchRequest.from_json(json.dumps({name: fields[name] for name in first_release})) == LaunchRequest(
        **{name: getattr(REQUEST, name) for name in first_release}
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(REQUEST.as_json()[:-1], id="cut short"),
        pytest.param("[]", id="a list"),
        pytest.param('{"image_id": "hush"}', id="without the rest"),
        pytest.param(REQUEST.as_json().replace('{"a"', '5, "x": {"a"'), id="tags are a number"),
    ],
)
def test_what_is_no_request_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="not a frozen launch request") as refused:
        LaunchRequest.from_json(text)

    assert "hush" not in str(refused.value)
    assert refused.value.__suppress_context__
