"""A disk that fills up: the operator's store is collected in the middle of its work, and nobody's machine notices."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import specs
from cluster.conftest import PERIODS
from cluster.hosts import Host, host_of
from cluster.place import GIVEN_HOST, Place, condition, standing
from cluster.polling import eventually
from nixops_lab.testing import Lab

pytestmark = pytest.mark.long(instead="contract/test_nix_of_the_image.py")

MIB = 1024**2
BALLAST = 100 * MIB
ROOM = 250 * MIB
"""Left on the disk once the first system is there: for one more ballast, but not without a collection."""
SETTINGS: dict[str, Any] = {
    "nix.build.freeDisk": 16 * MIB,
    "nix.store.minFree": ROOM - BALLAST // 2,
    "nix.store.maxFree": ROOM + BALLAST // 2,
}
HOST, OTHER = "host", "on-trixie"
WAITS = "sleep 86399"


@pytest.fixture(scope="module")
def disk(running_operator: Lab) -> Iterator[Path]:
    """The operator's store on a disk of its own, empty at first."""
    operator, folder = running_operator.operator, running_operator.paths.operator / "nix"
    operator.stop()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,mode=0755", "store", folder], check=True)
    operator.start(settings={**PERIODS, **SETTINGS})
    yield folder
    operator.stop()
    subprocess.run(["umount", folder], check=True)
    operator.start(settings=PERIODS)


def leave(folder: Path, count: int) -> None:
    """Make the disk so small that no more is free."""
    size = shutil.disk_usage(folder).used + count
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def page(title: str, waits: str = "true") -> str:
    """A system that is built with a hundred megabytes of which nothing stays in it."""
    build = f"head -c {BALLAST} /dev/zero >$out; {waits} || true"
    return specs.page(
        title,
        f"""environment.etc.ballast.source = pkgs.runCommand "light" {{
          heavy = pkgs.runCommand "ballast" {{ title = "{title}"; }} "{build}";
        }} "wc -c <$heavy >$out";""",
    )


def ballasts(disk: Path) -> list[str]:
    return sorted(path.name for path in (disk / "store").glob("*-ballast"))


def process_that(waits: str) -> int | None:
    """Pid of the builder's program."""
    wanted = waits.encode().replace(b" ", b"\0") + b"\0"
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes() == wanted:
                return int(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def test_room_is_made_while_systems_are_built(shared_place: Place, disk: Path) -> None:
    place, lab = shared_place, shared_place.lab
    place.ssh_secret()
    other = host_of(lab, "trixie")
    here = Host(HOST, lab.env["LAB_HOST_ADDRESS"], "")

    def declare(host: Host, module: str) -> None:
        place.apply(host.declared(lab, module, "Operator"))

    declare(here, page("First"))
    place.wait_ready(f"nixmachine/{HOST}")
    first = place.system_of(GIVEN_HOST)
    leave(disk, ROOM)

    before = len(lab.operator.log())
    declare(here, page("Second", WAITS))
    builder = eventually(lambda: process_that(WAITS), "it is built")
    eventually(lambda: "short of room: collecting" in lab.operator.log()[before:], "it is seen that the disk fills up")
    declare(other, specs.page("Other"))
    message = "waiting until the operator's store has room again"
    eventually(
        lambda: message in condition(place.get("nixmachine", OTHER), "Ready").get("message", ""),
        "what is evaluated meanwhile waits to be built",
        last=lambda: standing(place.get("nixmachine", OTHER)),
    )
    assert len(ballasts(disk)) == 1, "nothing is taken from under a build"
    os.kill(builder, signal.SIGTERM)
    place.wait_ready(f"nixmachine/{HOST}", f"nixmachine/{OTHER}")

    assert ballasts(disk) == []
    assert shutil.disk_usage(disk).free >= ROOM + BALLAST // 2
    system = place.get("nixmachine", HOST)["status"]["system"]
    assert (system["previous"], system["current"]) == (first, place.system_of(GIVEN_HOST))
    assert [place.title(host.address) for host in (here, other)] == ["Second", "Other"]

    # The way back is whole: nothing of it has to be built again.
    declare(here, page("First"))
    place.wait_ready(f"nixmachine/{HOST}")
    assert place.system_of(GIVEN_HOST) == first
    assert ballasts(disk) == []
