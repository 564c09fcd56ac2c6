"""What is to stay in EC2 is never terminated, and let go of untagged only where tagging stays refused."""

from __future__ import annotations

from unittest import mock

import pytest

from crash.bench import Worlds
from crash.workloads import SHOP, WORKLOADS, at_rest, reference, retain
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked

DENIED = Blocked(Reason.ACCESS_DENIED, "CreateTags: not allowed")
THINGS = 8  # two instances with their root volumes, two groups, a key pair, a data volume


def test_retain_that_came_just_before_the_deletion_counts():
    end = reference("retain").end

    assert not end["terminations asked for"]
    assert (end["objects"], end["retained"]) == ({}, THINGS)
    kept = set(end["secrets of nobody"]) - set(reference("delete").end["secrets of nobody"])
    assert kept == {names.key_pair_secret(SHOP.name, "main")}


@pytest.mark.parametrize(("workload", "retained"), [("tagging is refused once", THINGS), ("tagging stays refused", 0)])
def test_refused_tagging(workload, retained):
    def refused(worlds: Worlds) -> None:
        retain(worlds)
        worlds.judge.may_leave_untagged = retained == 0
        faults = worlds.cloud.effects
        (faults.standing_error if retained == 0 else faults.next_error)["ec2.create_tags"] = DENIED

    with mock.patch.dict(WORKLOADS, {workload: refused}):
        life = reference(workload)

    assert (life.end["objects"], life.end["retained"]) == ({}, retained)
    assert not life.end["terminations asked for"]
    told = [
        posted.event.message for posted in life.after.worlds.kube.events if "without tagging" in posted.event.message
    ]
    assert len(told) == (0 if retained else 3)  # each machine, and the deployment
    assert (life.after.now - at_rest().now >= 300) == (retained == 0)  # seconds of the bench's own clock
