"""The process is cut down at every effect of every workload; a new one finds its way to the same end.

The points come from a reference run, so that the matrix grows with the effects. This is a part of it; `make crash` runs
the whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from crash.bench import HOWS
from crash.forks import failures
from crash.plans import chosen, cuts
from crash.workloads import WORKLOADS
from nixops_operator.effects import effects_of
from nixops_operator.ports.cloud import Cloud, Clouds
from nixops_operator.ports.host import Host, Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix

KNOWN = Path(__file__).with_name("effects.txt")
COUNT = {
    "create": 14,
    "reconfigure": 8,
    "replace": 8,
    "declare": 12,
    "settle": 10,
    "leave": 8,
    "crowd": 10,
    "disks": 12,
    "grow": 4,
    "rotate": 8,
    "reboot": 8,
    "resize": 8,
    "substitute": 12,
    "delete": 8,
    "retain": 6,
}
"""Plans of each way to die; the same ones in every run."""


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_cut_at_any_effect_changes_nothing_in_the_end(workload, how):
    wrong = failures(chosen(cuts(workload, how), COUNT[workload]))
    assert not wrong, "\n".join(wrong)


def test_effects_are_the_listed_ones():
    """A rename is a reviewed change: metrics, logs and this matrix know effects by their names."""
    assert KNOWN.read_text().split() == sorted(effects_of(Kube, Clouds, Cloud, Hosts, Host, Nix))
