"""The Nix port on this machine's Nix (2.8 in Debian 12), in a store of its own: as the pod's user and as root.

The tests themselves are the files of `in_private_store/`. Here each appears by its name.
"""

from __future__ import annotations

import pytest

from contract import nix_suites

pytestmark = pytest.mark.skipif(nix_suites.missing() is not None, reason=str(nix_suites.missing()))


LONG = pytest.mark.long(instead="contract/test_nix_of_the_image.py")
OF_THE_BOX = ("attacks",)
"""On the image's Nix the other box is attacked."""
RUNS = (
    ("the pod s user", nix_suites.THE_POD_S_USER, OF_THE_BOX, ()),
    ("the pod s user", nix_suites.THE_POD_S_USER, nix_suites.without(OF_THE_BOX), LONG),
    ("root", 0, ("attacks", "builds", "limits", "purity"), LONG),
)
"""As whom, what is tried: as root, what root might be able to."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("uid", "suites", "behaviour"),
    [
        pytest.param(uid, suites, behaviour, id=f"{who}-{behaviour}", marks=marks)
        for who, uid, suites, marks in RUNS
        for behaviour in nix_suites.behaviours(suites)
    ],
)
def test_behaviour(uid: int, suites: tuple[str, ...], behaviour: str) -> None:
    nix_suites.judge(nix_suites.outcomes(uid, "Namespaces", suites=suites), behaviour)
