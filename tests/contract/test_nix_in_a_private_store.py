"""The Nix port on this machine's Nix (2.8 in Debian 12), in a store of its own: as the pod's user and as root.

The tests themselves are the files of `in_private_store/`. Here each appears by its name.
"""

from __future__ import annotations

import pytest

from contract import nix_suites

pytestmark = pytest.mark.skipif(nix_suites.missing() is not None, reason=str(nix_suites.missing()))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("uid", [nix_suites.THE_POD_S_USER, 0], ids=["the pod's user", "root"])
@pytest.mark.parametrize("behaviour", nix_suites.behaviours())
def test_behaviour(uid: int, behaviour: str) -> None:
    nix_suites.judge(nix_suites.outcomes(uid, "Namespaces"), behaviour)
