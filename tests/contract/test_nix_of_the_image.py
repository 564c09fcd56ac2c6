"""The Nix port on the Nix of the operator's image (2.34), in the image's root file system and as its user.

The tests themselves are the files of `in_private_store/`. Here each appears by its name.
"""

from __future__ import annotations

import pytest

from contract import nix_suites
from nixops_lab import image

pytestmark = pytest.mark.skipif(nix_suites.missing() is not None, reason=str(nix_suites.missing()))

LONG = pytest.mark.long(instead="contract/test_nix_in_a_private_store.py")
RUNS = (("Landlock", nix_suites.ALL, ()), ("Namespaces", nix_suites.OF_THE_BOX, LONG))
"""In which box, what is tried: everything in the one that pods have by default."""


@pytest.mark.timeout(900)  # the image may have to be built first
@pytest.mark.parametrize(
    ("box", "suites", "behaviour"),
    [
        pytest.param(box, suites, behaviour, id=f"{box}-{behaviour}", marks=marks)
        for box, suites, marks in RUNS
        for behaviour in nix_suites.behaviours(suites)
    ],
)
def test_behaviour(box: str, suites: tuple[str, ...], behaviour: str) -> None:
    root = image.build_root()
    nix_suites.judge(nix_suites.outcomes(nix_suites.THE_POD_S_USER, box, root, suites), behaviour)
