"""The Nix port on the Nix of the operator's image (2.34), in the image's root file system and as its user.

The tests themselves are the files of `in_private_store/`. Here each appears by its name.
"""

from __future__ import annotations

import pytest

from contract import nix_suites
from nixops_lab import image

pytestmark = pytest.mark.skipif(nix_suites.missing() is not None, reason=str(nix_suites.missing()))


@pytest.mark.timeout(900)  # the image may have to be built first
@pytest.mark.parametrize("box", ["Namespaces"])
@pytest.mark.parametrize("behaviour", nix_suites.behaviours())
def test_behaviour(behaviour: str, box: str) -> None:
    nix_suites.judge(nix_suites.outcomes(nix_suites.THE_POD_S_USER, box, image.build_root()), behaviour)
