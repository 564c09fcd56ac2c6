"""The agent's `grow-root` and `grow-volume` on a disk of its own: a loop device, with a partition or without."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from nixops_operator.adapters.ssh.agent import frame, load_agent

MIB = 1 << 20
SMALL, LARGE = 320 * MIB, 640 * MIB  # mkfs.xfs makes none below 300; the image is sparse
TOOLS = {"ext4": "resize2fs", "xfs": "xfs_growfs", "btrfs": "btrfs"}
CAP_SYS_RESOURCE = 24  # without it ext4 is not resized (linux, fs/ext4/ioctl.c)
# What the agent needs of the machine that it runs on; the rest of the root is the disk's own.
SHARED = ("/usr", "/proc", "/sys", "/dev")
LINKS = ("bin", "sbin", "lib", "lib64")

pytestmark = [
    pytest.mark.skipif(shutil.which("sfdisk") is None, reason="sfdisk is missing: apt-get install fdisk"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="there are no loop devices"),
]


def run(*words: str, stdin: str = "") -> str:
    """Raises where it fails, with what it said."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


class Mounts:
    """A mount namespace of the test's own. A namespace that something else makes meanwhile would keep a copy of a mount
    in ours, and with it the device busy, long after it has been unmounted here."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(("unshare", "--mount", "sh", "-c", "echo; exec cat"), stdin=PIPE, stdout=PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # the namespace is there
        self._namespace = f"/proc/{self._holder.pid}/ns/mnt"
        self.top = Path(f"/proc/{self._holder.pid}/root")  # its files, as seen from outside and from inside

    def run(self, *words: str, stdin: str = "") -> str:
        return run("nsenter", f"--mount={self._namespace}", *words, stdin=stdin)

    def close(self) -> None:
        self._holder.communicate()


def furnish(root: Path, mounts: Mounts) -> None:
    """With all that the agent needs."""
    for shared in SHARED:
        (root / shared[1:]).mkdir()
        mounts.run("mount", "--rbind", "--make-rslave", shared, str(root / shared[1:]))
    for link in LINKS:
        (root / link).symlink_to(f"usr/{link}")
    (root / "var/lib/nixops").mkdir(parents=True)
    (root / "agent").write_bytes(load_agent().script)


class Disk:
    """One that can be made larger while it is in use, as EC2's can."""

    def __init__(self, folder: Path, file_system: str, *, with_partition: bool) -> None:
        (folder / "root").mkdir()
        self.mounts = Mounts()
        self.image, self.root = folder / "disk.img", self.mounts.top / folder.relative_to("/") / "root"
        with self.image.open("wb") as image:
            image.truncate(SMALL)
        if with_partition:
            run("sfdisk", "--quiet", str(self.image), stdin="label: gpt\nstart=2048\n")
        self.device = run("losetup", "--find", "--show", str(self.image)).strip()
        if with_partition:
            run("partx", "--add", self.device)  # not every kernel reads GPT by itself
        self.file_system_device = f"{self.device}p1" if with_partition else self.device
        run(f"mkfs.{file_system}", "-q", self.file_system_device)
        self.mounts.run("mount", self.file_system_device, str(self.root))
        furnish(self.root, self.mounts)
        (self.root / "kept").write_text("before")

    def enlarge(self) -> None:
        with self.image.open("r+b") as image:
            image.truncate(LARGE)
        run("losetup", "--set-capacity", self.device)

    def grow_root(self) -> None:
        self.mounts.run("chroot", str(self.root), "/bin/sh", "/agent", "grow-root")

    def grow_volume(self) -> None:
        grow_volume(self.device, self.root, self.mounts)

    @property
    def size(self) -> int:
        """Of the file system, in bytes."""
        return int(run("stat", "--file-system", "--format=%b", str(self.root))) * int(
            run("stat", "--file-system", "--format=%S", str(self.root))
        )

    def close(self) -> None:
        self.mounts.run("umount", "--recursive", str(self.root))
        self.mounts.close()
        if self.file_system_device != self.device:
            run("partx", "--delete", self.device)
        run("losetup", "--detach", self.device)


def grow_volume(device: str, root: Path, mounts: Mounts) -> str:
    """Of the machine in `root`, which has that device under the name of a volume; what the agent says."""
    by_id = root / "dev/disk/by-id"
    by_id.mkdir(parents=True, exist_ok=True)
    mounts.run("mount", "-t", "tmpfs", "tmpfs", str(by_id))  # another machine may have volumes, too
    (by_id / "nvme-Amazon_Elastic_Block_Store_vol0123").symlink_to(device)
    agent = ("chroot", str(root), "/bin/sh", "/agent", "grow-volume")
    return mounts.run(*agent, stdin=frame("vol-0123", "/dev/sdf").decode())


def _may_resize_ext4() -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1)


GROWN = [pytest.param(Disk.grow_root, id="as root"), pytest.param(Disk.grow_volume, id="as a volume")]


@pytest.fixture(params=[(name, part) for name in TOOLS for part in (True, False)], ids=str)
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    file_system, with_partition = request.param
    if shutil.which(TOOLS[file_system]) is None or shutil.which(f"mkfs.{file_system}") is None:
        pytest.skip(f"the tools of {file_system} are missing")
    if file_system == "ext4" and not _may_resize_ext4():
        pytest.skip("root may not resize ext4 here: it has no CAP_SYS_RESOURCE")
    made = Disk(tmp_path, file_system, with_partition=with_partition)
    yield made
    made.close()


@pytest.mark.parametrize("grow", GROWN)
def test_a_file_system_grows_into_its_disk_while_it_is_in_use(disk: Disk, grow: Callable[[Disk], None]) -> None:
    assert disk.size <= SMALL
    disk.enlarge()

    grow(disk)

    assert disk.size > LARGE * 0.8
    assert (disk.root / "kept").read_text() == "before"


@pytest.mark.parametrize("grow", GROWN)
def test_a_second_time_changes_nothing(disk: Disk, grow: Callable[[Disk], None]) -> None:
    disk.enlarge()
    grow(disk)
    size, table = disk.size, run("sfdisk", "--dump", disk.device) if disk.file_system_device != disk.device else ""

    grow(disk)

    assert disk.size == size
    assert not table or run("sfdisk", "--dump", disk.device) == table


def test_a_disk_that_has_not_grown_is_left_as_it_is(disk: Disk) -> None:
    size = disk.size

    disk.grow_root()

    assert disk.size == size


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[tuple[str, Path, Mounts]]:
    """A device with a file system, and the root of a machine that has it."""
    (tmp_path / "root").mkdir()
    mounts = Mounts()
    image, root = tmp_path / "disk.img", mounts.top / tmp_path.relative_to("/") / "root"
    with image.open("wb") as content:
        content.truncate(SMALL)
    run("mkfs.ext4", "-q", str(image))
    device = run("losetup", "--find", "--show", str(image)).strip()
    mounts.run("mount", "-t", "tmpfs", "tmpfs", str(root))
    furnish(root, mounts)
    yield device, root, mounts
    mounts.run("umount", "--recursive", str(root))
    mounts.close()
    run("losetup", "--detach", device)


def test_a_volume_whose_file_system_is_not_mounted_grows_later(unmounted: tuple[str, Path, Mounts]) -> None:
    assert grow_volume(*unmounted) == "unmounted\n"


def test_a_volume_without_a_file_system_needs_nothing(unmounted: tuple[str, Path, Mounts]) -> None:
    device, root, mounts = unmounted
    run("wipefs", "--all", "--quiet", device)

    assert grow_volume(device, root, mounts) == ""
