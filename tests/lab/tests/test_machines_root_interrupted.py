"""An interrupted attempt at the machines' root file system leaves nothing mounted and nothing running, and the next one
starts over without touching what is not its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nixops_lab.debian import ALONE, remove_interrupted

pytestmark = pytest.mark.lab

MOUNTS_AND_STAYS = r"""
mount -t tmpfs tmpfs "$1"
sleep infinity &
echo mounted
wait
"""


def test_what_a_killed_build_mounted_and_started_ends_with_it(tmp_path: Path) -> None:
    place = tmp_path / "dev"
    place.mkdir()
    building = subprocess.Popen(
        [*ALONE, "sh", "-c", MOUNTS_AND_STAYS, "build", str(place)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert building.stdout is not None
    assert building.stdout.readline() == b"mounted\n"
    assert not os.path.ismount(place)

    building.send_signal(signal.SIGKILL)

    # The pipe ends when nobody is left to write to it: the shell and its child are gone.
    assert building.stdout.read() == b""
    building.wait()
    building.stdout.close()


def test_the_rest_of_an_interrupted_build_goes(tmp_path: Path) -> None:
    partial = tmp_path / "machine-debian.partial"
    (partial / "usr/bin").mkdir(parents=True)

    remove_interrupted(partial)
    remove_interrupted(partial)

    assert not partial.exists()


def test_what_is_mounted_in_it_is_left_alone_and_named(tmp_path: Path) -> None:
    """In a mount namespace of its own, so that nothing stays mounted whatever happens."""
    script = """
import subprocess, sys
from pathlib import Path
from nixops_lab.debian import remove_interrupted
from nixops_lab.report import LabError
partial = Path(sys.argv[1])
(partial / "dev").mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(partial / "dev")], check=True)
(partial / "dev/shared").touch()
try:
    remove_interrupted(partial)
except LabError as error:
    print(error)
assert (partial / "dev/shared").exists()
"""
    partial = tmp_path / "machine-debian.partial"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "--", sys.executable, "-c", script, str(partial)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{partial} is left of an interrupted start" in done.stdout
    assert "unmount what is mounted in it" in done.stdout
