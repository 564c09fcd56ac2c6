"""The Nix port on the Nix of Debian 13 (2.26), as the pod's user.

The tests themselves are the files of `in_private_store/`. Here each appears by its name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from contract import nix_suites
from nixops_lab import debian
from nixops_lab.paths import cache_folder

SUITE = "trixie"
PACKAGES = ("bubblewrap", "ca-certificates", "mount", "nix-bin", "procps", "python3", "util-linux")
SUITES = ("builds", "evaluation", "facts", "trust")
"""Where its words and ways differ from those of the versions before and after it, on which everything is tried."""

pytestmark = [
    pytest.mark.long(instead="contract/test_nix_of_the_image.py"),
    pytest.mark.skipif(nix_suites.missing() is not None, reason=str(nix_suites.missing())),
]


@pytest.fixture(scope="module")
def root() -> Path:
    cache = cache_folder()
    with debian.locked(cache / "nix.lock"):
        folder = cache / f"nix-debian-{debian.digest(SUITE, *PACKAGES, *debian.DPKG_OPTIONS)}"
        if not folder.exists():
            sources = f"deb {debian.own_mirrors()['']} {SUITE} main\n"
            debian.in_one_step(folder, lambda partial: debian.make(partial, SUITE, PACKAGES, "essential", sources))
    return folder


@pytest.mark.timeout(900)  # its root file system may have to be made first
@pytest.mark.parametrize("behaviour", nix_suites.behaviours(SUITES))
def test_behaviour(root: Path, behaviour: str) -> None:
    nix_suites.judge(nix_suites.outcomes(nix_suites.THE_POD_S_USER, "Namespaces", root, SUITES), behaviour)
