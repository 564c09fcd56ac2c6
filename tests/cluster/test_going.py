"""Ways in which people let go of what they declared: nothing is left in EC2 that should go, nothing goes that should
stay, and nobody waits for ever."""

from __future__ import annotations

import pytest

from cluster import specs
from cluster.place import Place, is_ready
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "site", "site-web"
LAG = 15
"""Seconds for which EC2 hides what is new; real lags are longer, and differ in nothing else."""


def apply(place: Place) -> None:
    place.aws_secret()
    place.apply(specs.on_ec2(specs.page("Going")))


@pytest.mark.parametrize("is_running", [True, False], ids=["while its machine runs", "just after the apply"])
def test_a_namespace_can_be_deleted(place: Place, is_running: bool) -> None:
    apply(place)
    if is_running:
        place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    else:
        eventually(lambda: place.calls("RunInstances"), "the launch is sent")
    place.lab.kubectl("delete", "namespace", place.namespace, "--timeout=90s")
    assert place.left_in_ec2() == []
    assert len(place.instances()) == 1
    place.lab.kubectl("create", "namespace", place.namespace)  # for the fixture to clear


@pytest.mark.parametrize("sent", ["CreateSecurityGroup", "RunInstances"])
def test_nothing_is_left_of_what_ec2_does_not_show_yet(place: Place, sent: str) -> None:
    place.lab.set(**{"visibility.ids": LAG, "visibility.tags": LAG})
    apply(place)
    eventually(lambda: place.calls(sent), f"{sent} is sent")
    place.kubectl("delete", "nixdeployment", DEPLOYMENT, "--timeout=90s")
    place.lab.reset()
    assert place.objects() == []
    assert place.left_in_ec2() == []


def test_an_orphaned_machine_lives_on_by_itself(place: Place) -> None:
    apply(place)
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    before = place.left_in_ec2()
    place.kubectl("delete", "nixdeployment", DEPLOYMENT, "--cascade=orphan", "--timeout=60s")

    (instance,) = place.live_instances()
    place.ec2.stop_instances(InstanceIds=[instance["InstanceId"]])
    eventually(lambda: not is_ready(place.get("nixmachine", MACHINE)), "its stop is noticed")
    place.wait_ready(f"nixmachine/{MACHINE}")
    assert place.left_in_ec2() == before

    place.kubectl("delete", "nixmachine", MACHINE, "--timeout=60s")
    assert place.live_instances() == []
    # What it shared stays, and says so.
    for thing in (*place.groups(), *place.key_pairs()):
        assert {"Key": "nixops.dev:retained", "Value": "true"} in thing["Tags"]
    place.take_away()
