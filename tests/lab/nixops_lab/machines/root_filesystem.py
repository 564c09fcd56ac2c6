"""The disk that all machines share, in two layers that are built once and kept in the cache of this user.

    machine-debian-<hash>        a small Debian, from this machine's own mirrors: a minute, for new PACKAGES only
    machine-root-<hash>/layer    the lab's settings and the base systems of the miniature nixpkgs over it: seconds
    machine-root-<hash>/debian   link to the Debian below

`python -m nixops_lab.machines.root_filesystem NIXPKGS` builds both, with progress on stderr, and prints the path.

The Debian is this machine's own release, or another one for another version of Nix: bookworm has 2.8, trixie 2.26,
forky 2.34.
"""

import shutil
import sys
from pathlib import Path

from nixops_lab import debian
from nixops_lab.paths import cache_folder
from nixops_lab.report import say

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "nix-bin", "apache2", "curl", "iproute2", "iputils-ping"),
    *("nftables", "inotify-tools", "procps", "util-linux", "ca-certificates"),
    *("e2fsprogs", "xfsprogs", "grub-common"),
)
# `VERSION_ID` of the images that the lab offers; each has base systems of its own.
RELEASES = ("25.05", "25.11")
# Release → the one that its Nix is put on. The systemd of forky starts under control groups of version 2 alone, which
# not every computer has.
LENDING_NIX = {"forky": "trixie"}
HERE = Path(__file__).parent


def build(nixpkgs: Path, suite: str | None = None) -> Path:
    """The root file system for `Machines`, with base systems of the nixpkgs tree in folder `nixpkgs`, on the Debian
    release `suite`, else on this machine's own.

    Takes seconds if little has changed. Raises LabError with the remedy. Needs root.
    Several callers may build at once: the later ones wait; different releases are built side by side.
    """
    lower = debian_root(suite)
    cache = cache_folder()
    recipe = [
        lower.name,
        *RELEASES,
        (HERE / "make_layer.sh").read_text(),
        debian.tree_digest(HERE / "settings"),
        debian.tree_digest(nixpkgs),
    ]
    with debian.locked(_lock(suite)):
        root = cache / f"machine-root-{debian.digest(*recipe)}"
        if not root.exists():
            say(f"building the base systems of machines ({', '.join(RELEASES)})")
            debian.in_one_step(root, lambda partial: _make_root(partial, lower, nixpkgs))
    return root


def debian_root(suite: str | None = None) -> Path:
    """The Debian alone: its root file system, which is to be left as it is. As `build`."""
    own = debian.own_suite()
    wanted = suite or own
    base = LENDING_NIX.get(wanted, wanted)
    packages = [f"{name}/{wanted}" if name == "nix-bin" and base != wanted else name for name in PACKAGES]
    with debian.locked(_lock(suite)):
        lower = cache_folder() / f"machine-debian-{debian.digest(base, *packages, *debian.DPKG_OPTIONS)}"
        if not lower.exists():
            say(
                f"making a Debian root file system for machines ({wanted}, {len(PACKAGES)} packages and what they need)"
            )
            others = [f"deb {debian.own_mirrors()['']} {each} main\n" for each in dict.fromkeys((base, wanted))]
            sources = "" if wanted == own else "".join(others)
            debian.in_one_step(lower, lambda partial: debian.make(partial, base, packages, "essential", sources))
    return lower


def _lock(suite: str | None) -> Path:
    return cache_folder() / f"machine{f'-{suite}' if suite else ''}.lock"


def _make_root(partial: Path, lower: Path, nixpkgs: Path) -> None:
    for name in ("layer", "work", "mnt"):
        (partial / name).mkdir(parents=True, mode=0o755)
    (partial / "debian").symlink_to(Path("..") / lower.name)
    unshare = ["unshare", "--mount", "--net", "--propagation=private", "--"]
    places = [partial, lower, HERE / "settings", nixpkgs]
    debian.talk([*unshare, str(HERE / "make_layer.sh"), *map(str, places), *RELEASES])
    for name in ("work", "mnt"):
        shutil.rmtree(partial / name)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).resolve()))
