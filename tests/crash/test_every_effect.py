"""The process is cut down at every effect of every workload; a new one finds its way to the same end.

The points come from a reference run: the matrix grows with the effects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.bench import HOWS, Cut
from crash.workloads import WORKLOADS, play, reference
from nixops_operator.effects import effects_of
from nixops_operator.ports.cloud import Cloud, Clouds
from nixops_operator.ports.host import Host, Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix
from unit.fake_time import HotLoopError

KNOWN = Path(__file__).with_name("effects.txt")


SAMPLED = frozenset(
    {"kube.post_event", "kube.patch_status", "host.connect", "nix.add_source", "nix.evaluate", "nix.build"}
)
"""Effects that leave nothing behind which a later pass could stumble over, and come by the dozen: first and last."""


def cuts(workload: str, how: str) -> Iterator[Cut]:
    """Every call of every effect in the reference, cut in that way."""
    for effect, times in sorted(Counter(reference(workload).trace).items()):
        for number in sorted({1, times}) if effect in SAMPLED else range(1, times + 1):
            yield Cut(effect, number, how)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_cut_at_any_effect_changes_nothing_in_the_end(workload, how):
    end = reference(workload).end
    wrong = []
    for cut in cuts(workload, how):
        try:
            worlds, was_met = play(workload, cut)
            assert was_met, "the cut was not met"
            assert worlds.broken == []
            assert worlds.end_state() == end
        except (AssertionError, HotLoopError) as error:
            wrong.append(f"{cut}: {error!r}")
    assert not wrong, f"{len(wrong)} cuts:\n" + "\n".join(wrong)


def test_effects_are_the_listed_ones():
    """A rename is a reviewed change: metrics, logs and this matrix know effects by their names."""
    assert KNOWN.read_text().split() == sorted(effects_of(Kube, Clouds, Cloud, Hosts, Host, Nix))
