"""A launch that EC2 refuses because what it names is not there yet, or not any more, is soon asked for anew."""

from __future__ import annotations

from unittest import mock

import pytest

from crash.bench import Worlds
from crash.workloads import WORKLOADS, reference, replace
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked

MOST = 30.0  # seconds of the bench's own clock


@pytest.mark.parametrize("reason", [Reason.KEY_PAIR_NOT_READY, Reason.SECURITY_GROUP_NOT_READY])
def test_a_launch_that_came_too_early_is_soon_repeated(reason):
    def refused_once(worlds: Worlds) -> None:
        replace(worlds)
        worlds.cloud.effects.next_error["ec2.run_instances"] = Blocked(reason, "does not exist")

    with mock.patch.dict(WORKLOADS, {f"refused {reason}": refused_once}):
        refused = reference(f"refused {reason}")

    assert refused.trace.count("ec2.run_instances") == 2
    assert refused.after.worlds.judge.broken == []
    assert refused.after.now - reference("replace").after.now <= MOST
