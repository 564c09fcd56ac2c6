"""The lab's network: one namespace, nothing of which leaves this machine."""

import os
import subprocess
from pathlib import Path

from nixops_lab.processes import stat

NAMESPACES = Path("/run/netns")


def exists(namespace: str) -> bool:
    return (NAMESPACES / namespace).exists()


def create(namespace: str) -> None:
    """An empty namespace with a loopback, that routes between its machines."""
    _run("ip", "netns", "add", namespace)
    _run("ip", "-n", namespace, "link", "set", "lo", "up")
    # Only this namespace forwards; the caller's setting is another one (ip-netns(8), sysctl net.* is per namespace).
    _run("ip", "netns", "exec", namespace, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")


def delete(namespace: str) -> None:
    """Safe to repeat. The kernel keeps the namespace itself until its last process is gone."""
    if exists(namespace):
        _run("ip", "netns", "delete", namespace)


def entering(namespace: str) -> list[str]:
    """The words that, before a command's own, run it inside. The process keeps its pid."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--"]


def pids(namespace: str) -> list[int]:
    """Every process inside, ascending, except this one and those it was called from."""
    if not exists(namespace):
        return []
    inside = (NAMESPACES / namespace).stat().st_ino
    mine = ancestry(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        try:
            # stat() follows the link to the namespace itself: its inode number is its identity (namespaces(7)).
            if (entry / "ns" / "net").stat().st_ino == inside:
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def ancestry(pid: int) -> set[int]:
    """`pid` and all processes above it."""
    line: set[int] = set()
    while pid > 0 and pid not in line and (seen := stat(pid)) is not None:
        line.add(pid)
        pid = seen.parent
    return line


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
