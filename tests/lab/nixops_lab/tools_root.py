"""A Debian root file system with what builds images and what makes a node: nothing of it is installed on this machine.

Of Debian's next release: Debian 12 has containerd 1.6, which speaks no CRI that today's kubelet knows, and a buildah
that mounts nothing from another stage. Built once, a minute; read-only from then on, everybody lays an own layer over.
"""

from pathlib import Path

from nixops_lab import debian
from nixops_lab.paths import cache_folder
from nixops_lab.report import say

SUITE = "forky"
PACKAGES = (
    *("buildah", "ca-certificates", "containerd", "containernetworking-plugins", "iproute2", "iptables", "kmod"),
    *("mount", "netavark", "procps", "runc", "util-linux"),
)


def build() -> Path:
    """Its folder. Raises LabError with the remedy. Needs root; several callers may build at once."""
    cache = cache_folder()
    with debian.locked(cache / "tools.lock"):
        folder = cache / f"tools-debian-{debian.digest(SUITE, *PACKAGES, *debian.DPKG_OPTIONS)}"
        if not folder.exists():
            say(f"making a Debian root file system with buildah and containerd ({SUITE})")
            mirror = debian.own_mirrors()[""]
            sources = f"deb {mirror} {SUITE} main\n"
            debian.in_one_step(folder, lambda partial: debian.make(partial, SUITE, PACKAGES, "minbase", sources))
    return folder
