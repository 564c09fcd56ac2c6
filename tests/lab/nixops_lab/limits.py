"""Limits of the kernel that all labs of a computer share, raised where many machines would meet them.

systemd and its helpers hold inotify instances, all as root: counted together, over all machines (inotify(7),
`max_user_instances`). A systemd that gets none any more ends, and its machine with it.
"""

from pathlib import Path

from nixops_lab.report import say

SYSCTLS = Path("/proc/sys")
INOTIFY_INSTANCES = "fs.inotify.max_user_instances"
INOTIFY_PER_MACHINE = 7  # measured over fifty machines: 6, while nothing boots
MACHINES = 500


def raise_limits(folder: Path = SYSCTLS) -> None:
    """For this computer, until its next boot, and said. A higher limit stays. `folder` is where /proc/sys is."""
    place = folder / INOTIFY_INSTANCES.replace(".", "/")
    before, wanted = int(place.read_text()), INOTIFY_PER_MACHINE * MACHINES
    if before >= wanted:
        return
    try:
        place.write_text(str(wanted))
    except OSError as error:
        say(
            f"{INOTIFY_INSTANCES} is {before} and cannot be raised here ({error.strerror}): about "
            f"{before // INOTIFY_PER_MACHINE} machines can run. Where this computer's limits are set, run "
            f"`sysctl {INOTIFY_INSTANCES}={wanted}`"
        )
        return
    say(
        f"{INOTIFY_INSTANCES} raised from {before} to {wanted} for this computer: {before} is enough for about "
        f"{before // INOTIFY_PER_MACHINE} machines"
    )
