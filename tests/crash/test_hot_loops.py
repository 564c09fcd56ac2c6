"""What EC2 does not show yet is asked for again, but not at full speed."""

from __future__ import annotations

from collections import Counter

from crash.bench import MINUTE_LAG
from crash.changes import CHANGES
from crash.workloads import play_interrupted

MOST = 30
"""Calls of one effect with which a creation and an edit can do, at lags of a minute."""


def test_a_look_that_is_waited_for_does_not_end_the_backoff():
    met: Counter[str] = Counter()

    def interrupt(worlds, effect, times):
        met[effect] += 1
        if (effect, times) == ("kube.write_intent", 24):
            CHANGES["description"].do(worlds)

    play_interrupted("create", interrupt, MINUTE_LAG)
    calls = {effect: times for effect, times in met.items() if effect.startswith("ec2.") and times > MOST}
    assert calls == {}
