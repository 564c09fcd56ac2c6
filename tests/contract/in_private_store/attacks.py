"""What a program in the place of Nix tries, as Nix would that was broken into: each attack works outside of the box,
and is refused inside. `pytest -s` prints the table."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from contract.nix_bench import BOX, PYTHON, arguments_of, descendants, evaluator_in, listing, until
from nixops_operator.adapters.nix import boxes
from nixops_operator.adapters.nix.boxes.attacks import GROUPS
from nixops_operator.adapters.nix.boxes.box import BoxKind, EvaluationLimits
from nixops_operator.adapters.nix.boxes.folders import LockedFolder, remove_leftovers
from nixops_operator.errors import Blocked

PROGRAM = (files(boxes) / "attacks.py").read_text(encoding="utf-8")
# What namespaces do not refuse but make harmless has no meaning in that box.
ALL = list(GROUPS) if BOX is BoxKind.LANDLOCK else [group for group in GROUPS if group != "kernel"]
IPC_CREAT, IPC_RMID = 0o1000, 0


@pytest.fixture
def target(tmp_path: Path) -> Iterator[dict[str, object]]:
    """Everything that there is to attack, with somebody behind it."""
    secret = secrets.token_hex(16)
    file = tmp_path / "file"
    file.write_text(secret)
    (tmp_path / "empty").touch()
    libc = ctypes.CDLL(None, use_errno=True)
    key = int.from_bytes(secrets.token_bytes(3))
    with contextlib.ExitStack() as stack:
        segment = libc.shmget(key, 4096, IPC_CREAT | 0o600)
        stack.callback(libc.shmctl, segment, IPC_RMID, None)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (str(tmp_path / "socket"), f"\0{secret}"):
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(address)
            listening.listen()
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(20)
        threading.Thread(target=echo_once, args=(udp,), daemon=True).start()
        victim = stack.enter_context(subprocess.Popen(["sleep", "100"], env={"PATH": "/usr/bin", "SECRET": secret}))
        stack.callback(victim.kill)
        yield {
            "file": str(file),
            "folder": str(tmp_path),
            "secret": secret,
            "pid": victim.pid,
            "descriptor": 0,
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(tmp_path / "socket"),
            "abstract": secret,
            "shm": key,
        }


def echo_once(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        data, sender = server.recvfrom(16)
        server.sendto(data, sender)


async def outside(target: dict[str, object]) -> dict[str, str | None]:
    # A child of a shell, as Nix is in the box; the folder is writable to whoever runs this.
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", '"$@"; exit $?', "sh", PYTHON, "-ISBc", PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(target["folder"])},
    )
    said, _ = await process.communicate(json.dumps({**target, "groups": list(GROUPS)}).encode())
    found: dict[str, str | None] = json.loads(said)["got"]
    return found


# Refused here to everybody, by this machine's own settings: nothing is shown by their being refused in the box.
NOT_EVERYWHERE = {"make an io_uring", "make namespaces"}


async def test_every_attack_works_outside_of_the_box_and_none_inside(scratch: Path, target: dict[str, object]) -> None:
    evaluator = evaluator_in(scratch, EvaluationLimits())
    inside = json.loads(
        await evaluator.run((PYTHON, "-ISBc", PROGRAM), json.dumps({**target, "groups": ALL})),
    )["got"]
    control = await outside(target)
    for attack, got in control.items():
        seen = "-" if attack not in inside else ("refused" if inside[attack] is None else "GOT THROUGH")
        print(f"{BOX:<11} {attack:<58} outside: {'works' if got is not None else 'refused':<8} box: {seen}")
    assert {attack for attack, got in inside.items() if got is not None} == set()
    assert {attack for attack, got in control.items() if got is None} - NOT_EVERYWHERE == set()
    assert (Path(str(target["folder"])) / "file").read_text().rstrip() == target["secret"]


FOREIGN_CALLS = """
import ctypes, mmap, os, sys
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex(sys.argv[1]))
called = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("answered", called == os.getpid())
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("b814000000cd80c3", id="32-bit getpid (int 0x80)"),
        pytest.param("b8270000400f05c3", id="x32 getpid"),
    ],
)
async def test_calls_of_another_architecture_end_the_program(scratch: Path, code: str) -> None:
    if BOX is not BoxKind.LANDLOCK or os.uname().machine != "x86_64":
        return
    with pytest.raises(Blocked, match="ended with signal 31"):
        await evaluator_in(scratch, EvaluationLimits()).run((PYTHON, "-c", FOREIGN_CALLS, code))
    # The control: a call of its own architecture by the same way.
    own = await evaluator_in(scratch, EvaluationLimits()).run((PYTHON, "-c", FOREIGN_CALLS, "b8270000000f05c3"))
    assert own == "answered True\n"


OPERATOR = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from contract.nix_bench import evaluator_in
from nixops_operator.adapters.nix.boxes.box import EvaluationLimits
million = "(builtins.genList (x: x) 1000000)"
endless = f"builtins.foldl' (a: _: builtins.length {million} + a) 0 {million}"
asyncio.run(evaluator_in(Path(sys.argv[1]), EvaluationLimits()).value(endless))
"""


async def test_everything_ends_with_the_operator(scratch: Path) -> None:
    """Killed, with no time to tidy up."""
    operator = await asyncio.create_subprocess_exec(sys.executable, "-c", OPERATOR, str(scratch), env=dict(os.environ))
    await until(lambda: any(arguments_of(pid).startswith("nix-instantiate") for pid in descendants()))
    started = descendants() - {operator.pid}
    evaluating = [pid for pid in started if arguments_of(pid).startswith("nix-instantiate")]
    assert evaluating
    operator.kill()
    await operator.wait()
    await until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in started))
    left = Path("/nix/var/nixops/boxes")
    remove_leftovers(left)
    assert [path for path in listing(left) if "root" in path] == []


def test_what_a_crash_left_is_removed_and_nothing_that_is_in_use(tmp_path: Path) -> None:
    used = LockedFolder.new(tmp_path)
    left = tmp_path / "left"
    (left / "store").mkdir(parents=True)
    (left / "store/file").touch()
    (left / "store").chmod(0o555)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [used.path]
    used.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_a_folder_for_everybody_only_our_own_is_removed(tmp_path: Path) -> None:
    (tmp_path / "somebody-s").mkdir()
    used = LockedFolder.new(tmp_path, "nixops-operator-")
    left = LockedFolder.new(tmp_path, "nixops-operator-")
    os.close(left.descriptor)  # as the kernel does for a process that dies
    remove_leftovers(tmp_path, "nixops-operator-")
    assert set(tmp_path.iterdir()) == {tmp_path / "somebody-s", used.path}
    used.remove()
