"""What all sandboxes of bubblewrap(1) have in common. None has a network, the caller's environment, its processes or
its files."""

from __future__ import annotations

HOME_SIZE = 16 * 1024**2
"""Bytes of the home and of /dev/shm, each."""

# A view of the sandbox' own processes only. The kernel lets Nix' sandbox inside mount one more /proc only where the one
# above it is shown whole, and for root bubblewrap covers parts of its own (bubblewrap.c, cover_proc_dirs): there
# unshare(1) makes it. Either way all processes end with the first one.
PROCESSES = ("bwrap", "--unshare-pid", "--proc", "/proc")
ROOT_PROCESSES = (
    *("unshare", "--pid", "--mount-proc", "--propagation", "private", "--fork", "--kill-child", "--"),
    *("bwrap", "--bind", "/proc", "/proc"),
)
SHUT_OFF = (
    *("--unshare-user", "--unshare-ipc", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--new-session", "--uid", "65532", "--gid", "65532"),
    *("--clearenv", "--setenv", "HOME", "/homeless", "--setenv", "USER", "nobody"),
    *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "NIX_CONF_DIR", "/conf", "--setenv", "NIX_REMOTE", "local"),
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--dev", "/dev", "--size", str(HOME_SIZE), "--tmpfs", "/dev/shm"),  # noqa: S108 - the sandbox' own
    *("--dir", "/run", "--size", str(HOME_SIZE), "--tmpfs", "/homeless", "--chdir", "/homeless"),
)
# What is mounted, is: the folders around it are memory, and have no size of their own.
SHUT = ("--remount-ro", "/dev", "--remount-ro", "/")
