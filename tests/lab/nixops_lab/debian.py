"""Debian root file systems made by mmdebstrap from this machine's own apt sources, and how such things are made once.

What is built is kept in the cache of this user (paths.cache_folder), under a name that holds a digest of all that went
into it; it appears there whole or not at all.
"""

import fcntl
import hashlib
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nixops_lab.report import LabError, say

# No manuals and translations on the disk; no fsync while it is made.
DPKG_OPTIONS = (
    "force-unsafe-io",
    *(f"path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc", "info")),
)
# What apt needs to reach its sources from here: proxies, certificates, tolerance for an old mirror.
APT_REACH = re.compile(r'^(Acquire::(?:https?::.*|Check-.*|Retries) ".+");$', re.MULTILINE)
# Killed, mmdebstrap leaves its /dev, /proc and /sys mounted in the folder, and its children alive. In namespaces of its
# own both end with it.
ALONE = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
ADD_PACKAGE = Path(__file__).parent / "add_package.sh"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def make(folder: Path, suite: str, packages: Sequence[str], variant: str, sources: str = "") -> None:
    """A root file system of Debian's `suite` in `folder`, with progress. `packages`: of
    another release as `nix-bin/forky`. `variant` is mmdebstrap's; `sources`: lines of sources.list(5), else this
    machine's own. Raises LabError."""
    lines = sources or own_sources()
    options = [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    options += [f"--aptopt={setting}" for setting in reach()]
    of_others = [name for name in packages if "/" in name]
    if of_others:
        options.append(f'--aptopt=APT::Default-Release "{suite}"')
        options += [f'--customize-hook={shlex.quote(str(ADD_PACKAGE))} "$1" {name}' for name in of_others]
    own = [name for name in packages if "/" not in name]
    included = [f"--include={','.join(own)}"] if own else []
    argv = ["mmdebstrap", "--mode=root", f"--variant={variant}", *included, *options]
    talk([*ALONE, *argv, suite, str(folder), "-"], lines)


def own_sources() -> str:
    """This machine's own one-line sources of Debian. Raises LabError without any."""
    template = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    sources = debian_sources(output("apt-get", "indextargets", "Identifier: Packages", "--format", template))
    if not sources:
        raise LabError("apt knows no Debian sources here: run `apt-get update`, and look into /etc/apt/sources.list*")
    return sources


def debian_sources(index_targets: str) -> str:
    """One-line apt sources, only Debian's own, from lines `ORIGIN|REPO_URI|RELEASE|COMPONENT|SIGNED_BY`."""
    lines = []
    for target in index_targets.splitlines():
        origin, uri, release, component, signed_by = target.split("|")
        if origin == "Debian":
            option = "" if signed_by.startswith("$(") else f"[signed-by={signed_by}] "
            lines.append(f"deb {option}{uri} {release} {component}")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def mirrors(sources: str, suite: str) -> dict[str, str]:
    """Where one-line `sources` get the release `suite` from: `""` → the release itself, `-updates` and `-security` →
    those of it that there are."""
    found: dict[str, str] = {}
    for line in sources.splitlines():
        _, uri, release, *_ = re.sub(r"\[.*?\]", "", line).split()
        if release == suite or release.startswith(f"{suite}-"):
            found.setdefault(release.removeprefix(suite), uri)
    return found


def own_mirrors() -> dict[str, str]:
    """`mirrors` of this machine: other releases are to be had there, too. Raises LabError without any."""
    found = mirrors(own_sources(), own_suite())
    if "" not in found:
        raise LabError(f"apt has no source of Debian {own_suite()} here: look into /etc/apt/sources.list*")
    return found


def own_suite() -> str:
    """This machine's release, as `bookworm`. Raises LabError."""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    if found is None:
        raise LabError(
            "/etc/os-release names no Debian release (VERSION_CODENAME): the lab's machines are Debian like this one"
        )
    return found[1]


def reach() -> list[str]:
    """Settings of apt, without the semicolon, by which this machine reaches its sources."""
    return [str(setting) for setting in APT_REACH.findall(output("apt-config", "dump"))]


def in_one_step(place: Path, fill: Callable[[Path], None]) -> None:
    """`place` appears when `fill` has filled the folder that it is given."""
    partial = place.with_name(f"{place.name}.partial")
    remove_interrupted(partial)
    fill(partial)
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


def talk(argv: Sequence[str], stdin: str = "") -> str:
    """Run with its messages (`I: …`) as progress; the last line that it printed. Raises LabError with the last ones."""
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
    return said[-1].strip() if said else ""


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def tree_digest(folder: Path) -> str:
    """Of names, modes and contents. What Python caches beside its sources is no content."""
    seen = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts):
        mode = path.lstat().st_mode
        seen.update(f"{path.relative_to(folder)}\0{stat.S_IFMT(mode):o}{mode & 0o100:o}\0".encode())
        if path.is_symlink():
            seen.update(os.fsencode(path.readlink()))
        elif path.is_file():
            seen.update(hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time; the kernel gives the lock back whatever becomes of its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
