"""What machines need to know of this host: its cgroup hierarchies, its processes, its apt sources."""

from pathlib import Path

import pytest

from nixops_lab.debian import debian_sources
from nixops_lab.machines.cgroups import hierarchies, is_leader
from nixops_lab.machines.wires import wire_of


class TestHierarchies:
    def test_a_plain_host_has_one(self) -> None:
        mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
        assert hierarchies(mounts) == [Path("/sys/fs/cgroup")]

    def test_a_hybrid_host_has_many(self) -> None:
        mounts = (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
            "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n"
            "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        )
        assert [each.name for each in hierarchies(mounts)] == ["cpuset", "systemd", "unified"]


class TestLeader:
    def test_is_the_first_process_of_a_namespace_below_ours(self) -> None:
        assert is_leader("Name:\tsystemd\nNSpid:\t4711\t1\n")

    @pytest.mark.parametrize(
        "status",
        [
            pytest.param("Name:\tsystemd-nspawn\nNSpid:\t4711\t1\n", id="still nspawn on its way in"),
            pytest.param("Name:\tsshd\nNSpid:\t4712\t40\n", id="another process of the machine"),
            pytest.param("Name:\tsh\nNSpid:\t4713\t41\t1\n", id="first in a sandbox inside the machine"),
            pytest.param("Name:\tsystemd-nspawn\nNSpid:\t4710\n", id="a process of the host"),
        ],
    )
    def test_is_no_other(self, status: str) -> None:
        assert not is_leader(status)


class TestAptSources:
    def test_are_debians_own_once_each(self) -> None:
        targets = (
            "Debian|http://mirror.example/debian/|bookworm|main|/usr/share/keyrings/debian.gpg\n"
            "Debian|http://mirror.example/debian/|bookworm|main|/usr/share/keyrings/debian.gpg\n"
            "Node Source|https://deb.example/node/|nodistro|main|\n"
            "Debian|http://mirror.example/security/|bookworm-security|main|$(SIGNED_BY)\n"
        )
        assert debian_sources(targets) == (
            "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian/ bookworm main\n"
            "deb http://mirror.example/security/ bookworm-security main\n"
        )

    def test_are_empty_before_the_first_apt_get_update(self) -> None:
        assert debian_sources("") == ""


def test_an_interface_name_fits_and_differs_for_each_machine() -> None:
    names = {wire_of(f"i-{number:017x}") for number in range(1000)}
    assert len(names) == 1000
    assert max(len(name) for name in names) <= 15
