"""What the machine must have before anything starts, each with its remedy; missing Debian packages are installed."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nixops_lab.paths import LabPaths, cache_folder
from nixops_lab.report import LabError, say

# Debian package → what the lab needs it for.
PACKAGES = {
    "btrfs-progs": "disks that grow",
    "bubblewrap": "the operator's root file system and its build sandbox",
    "ca-certificates": "package registries",
    "curl": "looking at served pages",
    "etcd-server": "the API server's store",
    "fdisk": "disks with partitions",
    "iproute2": "network namespaces",
    "jq": "reading logs",
    "linux-libc-dev": "the kernel's numbers of system calls, with which the operator's filter is compared",
    "mmdebstrap": "the machines' root file system",
    "nftables": "security groups",
    "nix-bin": "evaluation and builds",
    "openssh-client": "keys and logins",
    "procps": "sysctl",
    "redis-server": "Argo CD's cache",
    "socat": "network tests by hand",
    "systemd-container": "systemd-nspawn",
    "util-linux": "nsenter, setpriv, mount",
    "xfsprogs": "disks that grow",
}
GIB = 1024**3
FIRST_BUILD_BYTES = 8 * GIB  # Go's caches and programs about 5 GiB, root file system 1 GiB, machines and stores 1 GiB
LATER_BYTES = 1 * GIB
POLICY = Path("/usr/sbin/policy-rc.d")


def complaints(
    system: str, machine: str, uid: int, python: tuple[int, int], free: dict[Path, int], needed: int
) -> list[str]:
    """What is wrong, each with what to do; empty when all is well. `free`: folder → free bytes."""
    found = []
    if system != "Linux":
        found.append(f"The lab needs Linux, this is {system}: use a Debian 12 machine.")
    if machine not in {"x86_64", "aarch64", "arm64"}:
        found.append(f"The lab needs x86_64 or arm64, this is {machine}: use another machine.")
    if uid != 0:
        found.append("The lab needs root for namespaces and mounts: run it with sudo or as root.")
    if python < (3, 11):
        found.append(
            f"The lab needs Python 3.11 or newer, this is {python[0]}.{python[1]}: set LAB_PYTHON to a newer one."
        )
    for folder, space in free.items():
        if space < needed:
            found.append(
                f"{folder} has {space / GIB:.1f} GB free and needs {needed / GIB:.0f} GB: make room, "
                "or use another --dir or XDG_CACHE_HOME."
            )
    return found


def check(paths: LabPaths) -> None:
    """Raises LabError with every complaint at once."""
    built = any(cache_folder().glob("control-plane-*/helm"))
    found = complaints(
        system=platform.system(),
        machine=platform.machine(),
        uid=os.geteuid(),
        python=sys.version_info[:2],
        free={folder: shutil.disk_usage(_existing(folder)).free for folder in (paths.folder, cache_folder())},
        needed=LATER_BYTES if built else FIRST_BUILD_BYTES,
    )
    if found:
        raise LabError("This machine cannot hold the lab:\n" + "\n".join(f"  * {line}" for line in found))


def missing_packages(listing: str) -> list[str]:
    """`listing` is dpkg-query's answer, `PACKAGE STATUS` a line.

    The wanted packages that are not `installed`, sorted.
    """
    installed = {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}
    return sorted(set(PACKAGES) - installed)


def install_packages() -> None:
    """Installs what is missing, about a minute for all; nothing to do takes milliseconds."""
    if shutil.which("dpkg-query") is None:
        raise LabError(
            f"This is no Debian. Use Debian 12: the machines are made from its packages. Wanted: {', '.join(PACKAGES)}"
        )
    asked = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES]
    missing = missing_packages(subprocess.run(asked, capture_output=True, text=True, check=False).stdout)
    if not missing:
        return
    say(f"installing {len(missing)} Debian packages (about a minute): {' '.join(missing)}")
    with no_services_started():
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *missing)


def _apt(*arguments: str) -> None:
    argv = ["apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    began = time.monotonic()
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    say(f"apt-get {arguments[0]} done in {time.monotonic() - began:.0f} s")


@contextmanager
def no_services_started() -> Iterator[None]:
    """Debian's etcd-server starts an etcd when installed.

    The lab wants the program only. An administrator's own policy stays.
    """
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")  # 101: action forbidden by policy (invoke-rc.d(8))
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(candidate for candidate in (folder, *folder.parents) if candidate.exists())
