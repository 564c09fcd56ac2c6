"""The disk that all machines share, in two layers that are built once and kept in the cache of this user.

    machine-debian-<hash>        a small Debian, from this machine's own apt sources: a minute, for new PACKAGES only
    machine-root-<hash>/layer    the lab's settings and the base systems of the miniature nixpkgs over it: seconds
    machine-root-<hash>/debian   link to the Debian below

`python -m nixops_lab.machines.root_filesystem NIXPKGS` builds both, with progress on stderr, and prints the path.
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nixops_lab.paths import cache_folder
from nixops_lab.report import LabError, say

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "nix-bin", "apache2", "curl", "iproute2", "iputils-ping"),
    *("nftables", "inotify-tools", "procps", "util-linux", "ca-certificates"),
)
# No manuals and translations on the disk; no fsync while it is made.
DPKG_OPTIONS = (
    "force-unsafe-io",
    *(f"path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc", "info")),
)
# `VERSION_ID` of the images that the lab offers; each has base systems of its own.
RELEASES = ("25.05", "25.11")
HERE = Path(__file__).parent
# What apt needs to reach its sources from here: proxies, certificates, tolerance for an old mirror.
APT_REACH = re.compile(r'^(Acquire::(?:https?::.*|Check-.*|Retries) ".+");$', re.MULTILINE)
# Killed, mmdebstrap leaves its /dev, /proc and /sys mounted in the folder, and its children alive. In namespaces of its
# own both end with it.
ALONE = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc", "--")


def build(nixpkgs: Path) -> Path:
    """The root file system for `Machines`, with base systems of the nixpkgs tree in folder `nixpkgs`.

    Takes seconds if little has changed. Raises LabError with the remedy. Needs root.
    Several callers may build at once: the later ones wait.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "machine.lock"):
        suite = _suite(Path("/etc/os-release").read_text())
        debian = cache / f"machine-debian-{_digest(suite, *PACKAGES, *DPKG_OPTIONS)}"
        if not debian.exists():
            say(f"making a Debian root file system for machines ({suite}, {len(PACKAGES)} packages and what they need)")
            _in_one_step(debian, lambda partial: _make_debian(partial, suite))
        recipe = [
            debian.name,
            *RELEASES,
            (HERE / "make_layer.sh").read_text(),
            _tree_digest(HERE / "settings"),
            _tree_digest(nixpkgs),
        ]
        root = cache / f"machine-root-{_digest(*recipe)}"
        if not root.exists():
            say(f"building the base systems of machines ({', '.join(RELEASES)})")
            _in_one_step(root, lambda partial: _make_root(partial, debian, nixpkgs))
    return root


def debian_sources(index_targets: str) -> str:
    """One-line apt sources, only Debian's own, from lines `ORIGIN|REPO_URI|RELEASE|COMPONENT|SIGNED_BY`."""
    lines = []
    for target in index_targets.splitlines():
        origin, uri, release, component, signed_by = target.split("|")
        if origin == "Debian":
            option = "" if signed_by.startswith("$(") else f"[signed-by={signed_by}] "
            lines.append(f"deb {option}{uri} {release} {component}")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def _make_debian(partial: Path, suite: str) -> None:
    template = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    sources = debian_sources(_output("apt-get", "indextargets", "Identifier: Packages", "--format", template))
    if not sources:
        raise LabError("apt knows no Debian sources here: run `apt-get update`, and look into /etc/apt/sources.list*")
    options = [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    options += [f"--aptopt={setting}" for setting in APT_REACH.findall(_output("apt-config", "dump"))]
    argv = ["mmdebstrap", "--mode=root", "--variant=essential", f"--include={','.join(PACKAGES)}", *options]
    _talk([*ALONE, *argv, suite, str(partial), "-"], sources)


def _make_root(partial: Path, debian: Path, nixpkgs: Path) -> None:
    for name in ("layer", "work", "mnt"):
        (partial / name).mkdir(parents=True, mode=0o755)
    (partial / "debian").symlink_to(Path("..") / debian.name)
    unshare = ["unshare", "--mount", "--net", "--propagation=private", "--"]
    places = [partial, debian, HERE / "settings", nixpkgs]
    _talk([*unshare, str(HERE / "make_layer.sh"), *map(str, places), *RELEASES])
    for name in ("work", "mnt"):
        shutil.rmtree(partial / name)


def _in_one_step(place: Path, make: Callable[[Path], None]) -> None:
    partial = place.with_name(f"{place.name}.partial")
    remove_interrupted(partial)
    make(partial)
    partial.rename(place)


def remove_interrupted(partial: Path) -> None:
    """What an interrupted attempt left, if anything, but nothing of what is mounted in it. Raises LabError with the
    remedy."""
    argv = ["rm", "-rf", "--one-file-system", "--", str(partial)]
    removed = subprocess.run(argv, capture_output=True, text=True, check=False)
    if removed.returncode != 0:
        raise LabError(
            f"{partial} is left of an interrupted start and cannot be removed; unmount what is mounted in it "
            f"(`findmnt --list | grep {partial.name}`), and start again:\n{removed.stderr[-1000:].strip()}"
        )


def _talk(argv: list[str], stdin: str = "") -> None:
    """Run with its messages as progress. Raises LabError with the last of them."""
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("I: "):
                say(f"  {line[3:].strip()}")
    if process.returncode != 0:
        raise LabError(f"{argv[0]} ended with {process.returncode}:\n{''.join(said[-30:])}")


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _suite(os_release: str) -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)$", os_release, re.MULTILINE)
    if found is None:
        raise LabError(
            "/etc/os-release names no Debian release (VERSION_CODENAME): the lab's machines are Debian like this one"
        )
    return found[1]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _tree_digest(folder: Path) -> str:
    """Of names, modes and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        digest.update(f"{path.relative_to(folder)}\0{stat.S_IFMT(mode):o}{mode & 0o100:o}\0".encode())
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).resolve()))
