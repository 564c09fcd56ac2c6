"""What a lab that died left behind: processes and cgroups of machines, their disks, and the volumes' loop devices."""

import asyncio
import os
import shutil
from pathlib import Path

from nixops_lab.machines import cgroups, volumes
from nixops_lab.paths import LabPaths

VOLUMES = "volumes"


def clean(lab_dir: str | os.PathLike[str]) -> None:
    """Everything of the machines of the lab in `lab_dir`. Safe to repeat; needs no running lab.

    Mounts and wires lie in namespaces of the machines and go with the processes; rules go with the lab's namespace.
    """
    clear(Path(lab_dir), LabPaths.of(lab_dir).namespace)


def clear(lab_dir: Path, group: str) -> None:
    """The same for a lab whose cgroup has a name of its own."""

    async def end_all() -> None:
        for name in cgroups.groups(group):
            await cgroups.MachineCgroups(group, name).end()

    asyncio.run(end_all())
    cgroups.remove_group(group)
    if (lab_dir / "machines").exists():
        shutil.rmtree(lab_dir / "machines")
    volumes.clear(lab_dir / VOLUMES)
