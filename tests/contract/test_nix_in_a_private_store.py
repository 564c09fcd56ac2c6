"""The Nix port on this machine's Nix (2.8 in Debian 12), in a store of its own: as the pod's user and as root.

The tests themselves are the files of `in_private_store/`. Here each appears by its name.
"""

from __future__ import annotations

import pytest

from contract import nix_suites

pytestmark = pytest.mark.skipif(nix_suites.missing() is not None, reason=str(nix_suites.missing()))


SUITES = {nix_suites.THE_POD_S_USER: nix_suites.ALL, 0: ("attacks", "builds", "limits", "purity")}
"""User → what is tried as that: as root, what root might be able to."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("uid", "behaviour"),
    [
        pytest.param(uid, behaviour, id=f"{'root' if uid == 0 else 'the pod s user'}-{behaviour}")
        for uid, suites in SUITES.items()
        for behaviour in nix_suites.behaviours(suites)
    ],
)
def test_behaviour(uid: int, behaviour: str) -> None:
    nix_suites.judge(nix_suites.outcomes(uid, "Namespaces", suites=SUITES[uid]), behaviour)
