"""The filter of system calls of the Landlock box, run as the kernel runs it, for both architectures."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from nixops_operator.adapters.nix.boxes.seccomp import ARCHITECTURES, seccomp_filter

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
ERROR = 0x00050000


def verdict(machine: str, number: int, *arguments: int, may_fork: bool = False, audit: int | None = None) -> int:
    """What the kernel is told to do with a call: classic BPF over struct seccomp_data (seccomp(2))."""
    program = seccomp_filter(machine, may_fork=may_fork)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    architecture = ARCHITECTURES[machine].audit if audit is None else audit
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += yes if accumulator == operand else no
            case 0x25:
                at += yes if accumulator > operand else no
            case 0x45:
                at += yes if accumulator & operand else no
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


# name → number on x86_64, number on aarch64 (Linux, syscall_64.tbl and asm-generic/unistd.h)
REFUSED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "chroot": (161, 51),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "truncate": (76, 45),
    "setxattr": (188, 5),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "inotify_add_watch": (254, 27),
    "sched_setaffinity": (203, 122),
    "setpriority": (141, 140),
}
ALLOWED_CALLS = {"read": (0, 63), "mmap": (9, 222), "execve": (59, 221), "futex": (202, 98), "wait4": (61, 260)}
MACHINES = pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])


@MACHINES
@pytest.mark.parametrize("call", REFUSED)
@pytest.mark.parametrize("may_fork", [True, False], ids=["outer", "inner"])
def test_what_touches_others_is_refused(machine: str, column: int, call: str, may_fork: bool) -> None:
    assert verdict(machine, REFUSED[call][column], may_fork=may_fork) == ERROR | errno.EPERM


@MACHINES
@pytest.mark.parametrize("call", ALLOWED_CALLS)
def test_the_control_is_allowed(machine: str, column: int, call: str) -> None:
    assert verdict(machine, ALLOWED_CALLS[call][column]) == ALLOWED


@MACHINES
def test_nix_starts_threads_and_no_processes(machine: str, column: int) -> None:
    clone, thread = (56, 220)[column], 0x3D0F00
    assert verdict(machine, clone, thread) == ALLOWED
    assert verdict(machine, clone, 17) == ERROR | errno.EPERM
    assert verdict(machine, clone, 17, may_fork=True) == ALLOWED
    assert verdict(machine, clone, 0x10000000 | 17, may_fork=True) == ERROR | errno.EPERM
    assert verdict(machine, 435) == ERROR | errno.ENOSYS  # clone3, whose flags lie in memory


@MACHINES
def test_nothing_in_the_inner_box_outlives_its_parent(machine: str, column: int) -> None:
    prctl = (157, 167)[column]
    assert verdict(machine, prctl, 1, 0) == ERROR | errno.EPERM
    assert verdict(machine, prctl, 1, 9, may_fork=True) == ALLOWED
    assert verdict(machine, prctl, 15) == ALLOWED


@MACHINES
def test_the_kernel_signals_nobody_for_it(machine: str, column: int) -> None:
    fcntl = (72, 25)[column]
    for command in (8, 10, 15, 1024, 1026):  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
        assert verdict(machine, fcntl, 0, command) == ERROR | errno.EPERM
    assert verdict(machine, fcntl, 0, 2) == ALLOWED


@MACHINES
def test_it_sees_and_sets_its_own_limits_alone(machine: str, column: int) -> None:
    prlimit = (302, 261)[column]
    assert verdict(machine, prlimit, 0) == ALLOWED
    assert verdict(machine, prlimit, 1) == ERROR | errno.EPERM
    assert verdict(machine, prlimit, 1 << 32) == ERROR | errno.EPERM


@MACHINES
def test_what_it_only_reads_it_cannot_truncate(machine: str, column: int) -> None:
    openat = (257, 56)[column]
    assert verdict(machine, openat, 0, 0, 0o1000) == ERROR | errno.EPERM
    assert verdict(machine, openat, 0, 0, 0o1001) == ALLOWED  # for writing: Landlock's to judge
    assert verdict(machine, openat, 0, 0, 0) == ALLOWED
    assert verdict(machine, 437) == ERROR | errno.ENOSYS  # openat2, whose flags lie in memory


@MACHINES
def test_mode_owner_and_times_by_name_stay_as_they_are(machine: str, column: int) -> None:
    for numbers in ((268, 53), (452, 452), (260, 54), (280, 88)):
        assert verdict(machine, numbers[column]) == ERROR


@MACHINES
def test_calls_of_later_kernels_are_not_there(machine: str, column: int) -> None:
    assert verdict(machine, 463) == ERROR | errno.ENOSYS


# The kernel's own tables: of x86_64, and that of asm-generic, which aarch64 has.
TABLES = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def numbers(machine: str) -> dict[str, int]:
    """Name → number of each call, as the kernel's headers define them. In the generic table, calls that exist in two
    sizes have the name of their 64-bit form from a second definition."""
    defined = re.findall(r"^#define (__NR\w+)\s+(\w+)", TABLES[machine].read_text(), re.MULTILINE)
    known = {name: int(value) for name, value in defined if value.isdigit()}
    known |= {name: known[value] for name, value in defined if value in known}
    return {name.removeprefix("__NR_"): number for name, number in known.items() if name.startswith("__NR_")}


@pytest.mark.skipif(not all(map(Path.exists, TABLES.values())), reason="linux-libc-dev of x86_64 is not installed")
@pytest.mark.parametrize("may_fork", [True, False], ids=["outer", "inner"])
def test_a_call_is_judged_by_what_it_is_and_not_by_its_number(may_fork: bool) -> None:
    """There is no aarch64 here to try it on: each call has the same verdict on both, and none is allowed that the
    kernel does not have."""
    x86, arm = numbers("x86_64"), numbers("aarch64")
    common = x86.keys() & arm.keys()
    assert len(common) > 300
    both = {
        name: (verdict("x86_64", x86[name], may_fork=may_fork), verdict("aarch64", arm[name], may_fork=may_fork))
        for name in common
    }
    assert {name: found for name, found in both.items() if found[0] != found[1]} == {}
    allowed = {
        number for number in range(max(arm.values())) if verdict("aarch64", number, may_fork=may_fork) == ALLOWED
    }
    assert allowed <= {arm[name] for name in common}
    assert len(allowed) > 100


@pytest.mark.parametrize("may_fork", [True, False])
def test_calls_of_another_architecture_end_the_program(may_fork: bool) -> None:
    i386, arm = 0x40000003, 0x40000028
    assert verdict("x86_64", 20, may_fork=may_fork, audit=i386) == KILLED
    assert verdict("aarch64", 20, may_fork=may_fork, audit=arm) == KILLED
    assert verdict("x86_64", 0x40000000 | 39, may_fork=may_fork) == KILLED
