"""The system calls that a program in the Landlock box may make, as a filter for the kernel.

Landlock guards what is opened. It lets a program signal, trace and limit other processes of its user, make sockets,
change mode, owner and times of files by their names, and before Linux 5.19 or 6.2 a few things more (landlock(7),
"Current limitations"). So what is not named here is refused: what later kernels bring, too.

Three answers are given instead of the call:

    EPERM   to what is refused.
    ENOSYS  to calls that the C library tries first and then does without, because a filter cannot see into them: what
            they ask for lies in memory. So to all that are younger than this list.
    done    to what changes mode, owner or times of a file by its name, although nothing is done. Nix makes its store
            tidy in this way; what it stores does not depend on it.

A call of another architecture of the same processor (32-bit, x32), whose numbers mean something else, ends the process.

Sources: numbers from Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; layout of the
filter from seccomp(2) and include/uapi/linux/{filter,seccomp,audit}.h.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

assert sys.byteorder == "little"  # noqa: S101 - so are both architectures; halves of arguments are found by it


@dataclass(frozen=True)
class Architecture:
    """`column`: of the table of numbers."""

    audit: int
    column: int


ARCHITECTURES = {"x86_64": Architecture(0xC000003E, 0), "aarch64": Architecture(0xC00000B7, 1)}
"""By the name that uname(2) gives."""

_NEWEST = 462  # of both tables; Linux 6.10
_X32 = 0x40000000

# Harmless whatever they are told: they act on what the process has or may open, or ask for what says nothing of others.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # Memory.
    "brk": (12, 214),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "memfd_create": (319, 279),
    "mincore": (27, 232),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "msync": (26, 227),
    "munmap": (11, 215),
    # Files that are open.
    "close": (3, 57),
    "close_range": (436, 436),
    "copy_file_range": (326, 285),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fadvise64": (221, 223),
    "fallocate": (285, 47),
    "fchmod": (91, 52),
    "fdatasync": (75, 83),
    "fgetxattr": (193, 10),
    "flistxattr": (196, 13),
    "flock": (73, 32),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
    "read": (0, 63),
    "readahead": (187, 213),
    "readv": (19, 65),
    "sendfile": (40, 71),
    "splice": (275, 76),
    "tee": (276, 77),
    "write": (1, 64),
    "writev": (20, 66),
    # Files by their names, as far as Landlock guards them, or the name is all that is learnt.
    "access": (21, None),
    "chdir": (80, 49),
    "creat": (85, None),
    "execve": (59, 221),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fchdir": (81, 50),
    "getcwd": (79, 17),
    "getxattr": (191, 8),
    "lgetxattr": (192, 9),
    "link": (86, None),
    "linkat": (265, 37),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "lstat": (6, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "newfstatat": (262, 79),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "rmdir": (84, None),
    "stat": (4, None),
    "statfs": (137, 43),
    "statx": (332, 291),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "umask": (95, 166),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    # Waiting.
    "alarm": (37, None),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "eventfd": (284, None),
    "eventfd2": (290, 19),
    "futex": (202, 98),
    "getitimer": (36, 102),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pselect6": (270, 72),
    "sched_yield": (24, 124),
    "select": (23, None),
    "setitimer": (38, 103),
    "time": (201, None),
    "timer_create": (222, 107),
    "timer_delete": (226, 111),
    "timer_getoverrun": (225, 109),
    "timer_gettime": (224, 108),
    "timer_settime": (223, 110),
    "timerfd_create": (283, 85),
    "timerfd_gettime": (287, 87),
    "timerfd_settime": (286, 86),
    "wait4": (61, 260),
    "waitid": (247, 95),
    # The process itself. Of the calls that narrow what it may do, setpriv(1) needs the last five.
    "arch_prctl": (158, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "getcpu": (309, 168),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getgroups": (115, 158),
    "getpgid": (121, 155),
    "getpgrp": (111, None),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getpriority": (140, 141),
    "getrandom": (318, 278),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getrlimit": (97, 163),
    "get_robust_list": (274, 100),
    "getrusage": (98, 165),
    "getsid": (124, 156),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "setrlimit": (160, 164),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "sigaltstack": (131, 132),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "uname": (63, 160),
    "capget": (125, 90),
    "capset": (126, 91),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "seccomp": (317, 277),
}
_PRETENDED: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "lchown": (94, None),
    "futimesat": (261, None),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
}
_ABSENT: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435), "openat2": (437, 437)}
_NEW_PROCESS: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}

_CLONE = (56, 220)
_CLONE_THREAD = 0x00010000
# CLONE_PTRACE, CLONE_PARENT, and all CLONE_NEW… (clone(2)).
_CLONE_REFUSED = 0x2000 | 0x8000 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_OPENS: dict[tuple[int | None, int | None], int] = {
    (2, None): 1,
    (257, 56): 2,
}  # open, openat: which argument has flags
_O_TRUNC, _O_ACCMODE = 0o1000, 0o3

_PRCTL = (157, 167)
_PR_SET_PDEATHSIG = 1
# PR_GET_DUMPABLE, PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_SET_SECCOMP,
# PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS,
# PR_CAP_AMBIENT, PR_SET_VMA (prctl(2)): what setpriv(1), libcap-ng and the C library use.
_PRCTL_ALLOWED = (3, 7, 8, 15, 16, 21, 22, 23, 24, 27, 28, 38, 39, 47, 0x53564D41)

_FCNTL = (72, 25)
# F_DUPFD to F_SETLKW, F_OFD_…LK…, F_DUPFD_CLOEXEC, F_…PIPE_SZ, F_…_SEALS (fcntl(2)). Not F_SETOWN and its kin, nor
# leases and watches: by these the kernel sends signals to whom one names.
_FCNTL_ALLOWED = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)

_IOCTL = (16, 29)
# TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX (ioctl_tty(2), ioctl(2)).
_IOCTL_ALLOWED = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

_PRLIMIT64 = (302, 261)

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def _load(offset: int) -> _Instruction:
    return (0x20, 0, 0, offset)


def _argument(number: int, *, high: bool = False) -> _Instruction:
    return _load(16 + 8 * number + 4 * high)


def _masked(mask: int) -> _Instruction:
    return (0x54, 0, 0, mask)


def _unless_equal(value: int, skipped: int) -> _Instruction:
    return (0x15, 0, skipped, value)


def _unless_above(value: int, skipped: int) -> _Instruction:
    return (0x25, 0, skipped, value)


def _unless_any_bit(mask: int, skipped: int) -> _Instruction:
    return (0x45, 0, skipped, mask)


def _answer(value: int) -> _Instruction:
    return (0x06, 0, 0, value)


_ALLOW = _answer(0x7FFF0000)
_KILL = _answer(0x80000000)
_PRETEND = _answer(0x00050000)


def _error(number: int) -> _Instruction:
    return _answer(0x00050000 | number)


_REFUSE = _error(errno.EPERM)
_TELL_ABSENT = _error(errno.ENOSYS)


def seccomp_filter(machine: str, *, may_fork: bool) -> bytes:
    """The filter for setpriv(1). `machine`: a key of ARCHITECTURES. `may_fork`: whether a program may start others; one
    that may not cannot get rid of the signal either that ends it with its parent. Threads it may have."""
    column = ARCHITECTURES[machine].column
    program: list[_Instruction] = [
        *(_load(4), _unless_equal(ARCHITECTURES[machine].audit, 1), (0x05, 0, 0, 1), _KILL),
        _load(0),
        *((_unless_any_bit(_X32, 1), _KILL) if machine == "x86_64" else ()),
        *(_unless_above(_NEWEST, 1), _TELL_ABSENT),
    ]

    def judged(numbers: tuple[int | None, int | None], *judgement: _Instruction) -> None:
        if (number := numbers[column]) is not None:
            program.extend((_unless_equal(number, len(judgement)), *judgement))

    for numbers, flags in _OPENS.items():
        # Landlock before Linux 6.2 knows no truncating; with reading alone, this would be one that it does not see.
        judged(numbers, _argument(flags), _masked(_O_TRUNC | _O_ACCMODE), _unless_equal(_O_TRUNC, 1), _REFUSE, _ALLOW)
    judged(_FCNTL, *_one_of(1, _FCNTL_ALLOWED, _REFUSE))
    judged(_IOCTL, *_one_of(1, _IOCTL_ALLOWED, _error(errno.ENOTTY)))
    judged(_PRCTL, *_one_of(0, (*_PRCTL_ALLOWED, *((_PR_SET_PDEATHSIG,) if may_fork else ())), _REFUSE))
    judged(
        _CLONE,
        _argument(0),
        *(_unless_any_bit(_CLONE_REFUSED, 1), _REFUSE),
        *(() if may_fork else (_unless_any_bit(_CLONE_THREAD, 1), _ALLOW, _REFUSE)),
        _ALLOW,
    )
    # Its own limits alone: 0 is the process itself.
    judged(
        _PRLIMIT64,
        *(_argument(0), _unless_equal(0, 3), _argument(0, high=True), _unless_equal(0, 1), _ALLOW, _REFUSE),
    )
    for table, answer in _tables(may_fork):
        for numbers in table:
            judged(numbers, answer)
    program.append(_REFUSE)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _tables(may_fork: bool) -> Iterable[tuple[Iterable[tuple[int | None, int | None]], _Instruction]]:
    yield _ALLOWED.values(), _ALLOW
    yield _PRETENDED.values(), _PRETEND
    yield _ABSENT.values(), _TELL_ABSENT
    if may_fork:
        yield _NEW_PROCESS.values(), _ALLOW


def _one_of(argument: int, values: Sequence[int], otherwise: _Instruction) -> list[_Instruction]:
    """Allow if the argument's lower half, all that the kernel looks at, is one of these."""
    return [
        _argument(argument),
        *(instruction for value in values for instruction in (_unless_equal(value, 1), _ALLOW)),
        otherwise,
    ]
