"""Garbage of the operator's store may be collected at any time: nothing is missed, and nothing is done twice for it."""

from __future__ import annotations

from collections import Counter

import pytest

from crash.workloads import play_collected, reference


@pytest.mark.parametrize("workload", ["create", "reconfigure", "replace"])
def test_a_collection_at_any_time_takes_nothing_that_is_needed(workload: str) -> None:
    worlds, trace = play_collected(workload)
    wanted = reference(workload)

    assert worlds.end_state() == wanted.end
    nix = {effect: count for effect, count in Counter(trace).items() if effect.startswith("nix.")}
    assert nix.pop("nix.collect") > 10
    assert nix == {effect: count for effect, count in Counter(wanted.trace).items() if effect.startswith("nix.")}


def test_what_belonged_to_machines_that_are_gone_goes() -> None:
    worlds, _ = play_collected("delete")

    assert worlds.is_empty()
    assert (worlds.nix.built, worlds.nix.systems) == (set(), {})
