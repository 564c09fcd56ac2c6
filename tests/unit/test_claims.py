"""Of several machines that name what exists in EC2, the one that wrote it down first has it."""

from __future__ import annotations

from typing import Any

import pytest

from nixops_operator.cache import Cache
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.machine.claims import holder

WEB = Key(Kind.MACHINE, "default", "web")
IDS = ("eipalloc-1", "vol-1")


def claimed(ec2_id: str, name: str, called_at: str, namespace: str = "default", version: int = 1) -> dict[str, Any]:
    record = {"calledAt": called_at, "allocationId" if ec2_id.startswith("eip") else "volumeId": ec2_id}
    status = {"elasticIp": record} if "allocationId" in record else {"volumes": [{"name": "data"} | record]}
    metadata = {"namespace": namespace, "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "NixMachine", "metadata": metadata, "status": status}


FIRST, SECOND = "2026-11-22T12:00:00Z", "2026-11-22T12:00:01Z"


@pytest.mark.parametrize("ec2_id", IDS)
@pytest.mark.parametrize(
    ("ours", "theirs", "whose"),
    [
        pytest.param(None, None, "", id="nobody's"),
        pytest.param(FIRST, None, "", id="ours"),
        pytest.param(None, FIRST, "NixMachine/default/db", id="theirs"),
        pytest.param(FIRST, SECOND, "", id="ours first"),
        pytest.param(SECOND, FIRST, "NixMachine/default/db", id="theirs first"),
        pytest.param(FIRST, FIRST, "NixMachine/default/db", id="in the same second: by uid"),
    ],
)
def test_who_came_first(ec2_id, ours, theirs, whose):
    cache = Cache()
    for name, called_at in (("web", ours), ("db", theirs)):
        if called_at is not None:
            cache.put(Key(Kind.MACHINE, "default", name), claimed(ec2_id, name, called_at))

    assert holder(ec2_id, WEB, "uid-web", cache.claimants(ec2_id)) == whose


def test_who_is_of_another_namespace_is_not_named():
    found = [claimed("vol-1", "db", FIRST, namespace="theirs")]
    assert holder("vol-1", WEB, "uid-web", found) == "a NixMachine of another namespace"


@pytest.mark.parametrize("ec2_id", IDS)
def test_a_claim_ends_with_its_record_and_with_its_object(ec2_id):
    cache = Cache()
    cache.put(WEB, claimed(ec2_id, "web", FIRST))
    assert len(list(cache.claimants(ec2_id))) == 1
    cache.put(WEB, claimed(ec2_id[:-1] + "2", "web", FIRST, version=2))
    assert list(cache.claimants(ec2_id)) == []
    cache.drop(WEB, 3)
    assert list(cache.claimants(ec2_id[:-1] + "2")) == []
