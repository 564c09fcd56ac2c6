"""An answer of many pages is read to its end, and an empty page is not the end."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import botocore.session
import pytest
from botocore.stub import Stubber

from nixops_operator.adapters.aws import cloud
from nixops_operator.adapters.aws.calls import Calls, page_size
from nixops_operator.adapters.aws.clients import Clients
from nixops_operator.adapters.aws.cloud import Boto3Cloud
from nixops_operator.adapters.aws.quota import Quota
from nixops_operator.errors import InvalidSpec

REGION = "us-west-2"


class OneReader:
    """Clients with one boto3 client, which a stub answers for."""

    region = REGION

    def __init__(self) -> None:
        self.client = botocore.session.Session().create_client(
            "ec2", region_name=REGION, aws_access_key_id="AKID", aws_secret_access_key="secret"
        )

    def reader(self) -> Any:
        return self.client


def architecture(pages: list[dict[str, Any]]) -> str:
    """What DescribeInstanceTypes with these pages says of t3.small."""
    clients = OneReader()
    stub = Stubber(clients.client)
    asked = {"Filters": [{"Name": "instance-type", "Values": ["t3.small"]}], "MaxResults": 100}
    for number, page in enumerate(pages):
        token = {"NextToken": str(number)} if number else {}
        more = {"NextToken": str(number + 1)} if number + 1 < len(pages) else {}
        stub.add_response("describe_instance_types", page | more, asked | token)
    with ThreadPoolExecutor(1) as pool, stub:
        quota = Quota(time.monotonic)
        calls = Calls(pool, REGION, (), lambda: quota)
        found = asyncio.run(Boto3Cloud(cast(Clients, clients), calls, str).architecture("t3.small"))
        stub.assert_no_pending_responses()
        return found


SMALL = {"InstanceTypes": [{"InstanceType": "t3.small", "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]}}]}
NOTHING: dict[str, Any] = {"InstanceTypes": []}


@pytest.mark.parametrize(
    "pages", [pytest.param([SMALL], id="one page"), pytest.param([NOTHING, NOTHING, SMALL], id="empty pages before it")]
)
def test_a_type_is_found_on_any_page(pages: list[dict[str, Any]]) -> None:
    assert architecture(pages) == "x86_64"


def test_a_type_on_no_page_is_none() -> None:
    with pytest.raises(InvalidSpec):
        architecture([NOTHING, NOTHING])


ADAPTER = Path(cloud.__file__)
_MOST = re.compile(r"up to a limit of (\d+)|between 5 and (\d+)")


@pytest.mark.parametrize("method", sorted(set(re.findall(r'"(describe_[a-z_]+)"', ADAPTER.read_text()))))
def test_no_more_is_asked_for_at_once_than_the_api_reference_allows(method: str) -> None:
    client = OneReader().client
    operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
    documented = operation.input_shape.members["MaxResults"]
    in_words = [int(first or second) for first, second in _MOST.findall(documented.documentation)]

    assert page_size(method) <= min([documented.metadata.get("max", 1000), *in_words])
