"""One held connection to one machine: each call is one command of the agent on a channel of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncssh

from nixops_operator.adapters.ssh.agent import NOISE_BYTES, NOT_ROOT, Agent, Call, frame
from nixops_operator.adapters.ssh.daemon_socket import DaemonWords, daemon_socket
from nixops_operator.adapters.ssh.facts import (
    MalformedAnswer,
    StoreRoom,
    first_useful_line,
    for_people,
    last_useful_line,
    parse_build_look,
    parse_build_state,
    parse_dry_run,
    parse_facts,
    parse_host_key,
    parse_probe,
    parse_store_room,
    parse_yes_or_no,
)
from nixops_operator.adapters.ssh.failures import boot_entry_failed, copy_failed, no_shell, not_root, tool_failed
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OperatorError, OutcomeUnknown, Retry
from nixops_operator.facts.health import ExecProbe, HttpProbe, Probe, TcpProbe, UnitsProbe
from nixops_operator.facts.host import (
    ActivationRequest,
    BuildLook,
    BuildRequest,
    BuildState,
    DryRun,
    HostFacts,
    HostOwner,
    HostTarget,
    MachineKey,
    build_id,
)

ANSWER_BYTES = 1 << 20  # per stream
LOG_BYTES = 16 << 10
ANSWER_SECONDS = 30
CLOSE_SECONDS = 5
USERS_SHOWN = 200  # characters of what uses a disk
COMMIT_SECONDS = 300  # building a boot menu on a slow disk takes minutes
DRY_SECONDS = 120
ROOT_SECONDS = 120  # Nix waits for its own garbage collector
ROOM_SECONDS = 10  # a failure is told without it, too
KEYS_SECONDS = 120  # the largest of them, over 1 Mbit/s

_REASONS = {
    **dict.fromkeys(("facts", "log", "own", "disown", "probe", "store-room"), Reason.PROGRESSING_WITH_RETRY),
    **dict.fromkeys(("stage-host-key", "install-host-key"), Reason.PROGRESSING_WITH_RETRY),
    **dict.fromkeys(("build", "build-look", "build-stop"), Reason.BUILDING),
    **dict.fromkeys(("commit", "adopt", "restart", "remove-generations"), Reason.BOOT_ENTRY_FAILED),
    "keys": Reason.DELIVERY_FAILED,
}
"""Of a failed command; all others are about an activation."""

REFUSED = 20  # exit of the agent: nothing was changed
LOST = "the connection was cut"
TOO_LONG = "the answer was longer than 1 MiB"

_ID = re.compile(r"[0-9a-z]{8}-[0-9]{1,9}")
_TRUSTED_PUBLIC_KEY = re.compile(r"[A-Za-z0-9._-]{1,128}:[A-Za-z0-9+/]{43}=")


@dataclass(frozen=True)
class _Answer:
    exit_status: int
    stdout: str
    stderr: str


class AsyncsshHost:
    """`ports.host.Host` over one asyncssh connection."""

    def __init__(self, connection: asyncssh.SSHClientConnection, target: HostTarget, agent: Agent) -> None:
        self._connection = connection
        self._target = target
        self._agent = agent
        self._placing = asyncio.Lock()
        self._is_agent_placed = False

    @property
    def target(self) -> HostTarget:
        """See `ports.host.Host`."""
        return self._target

    @property
    def is_open(self) -> bool:
        """See `ports.host.Host`."""
        return not self._connection.is_closed()

    async def facts(self) -> HostFacts:
        """See `ports.host.Host`."""
        answer = await self._look("facts")
        try:
            return parse_facts(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed("facts", error) from error

    async def changes(self) -> AsyncIterator[None]:
        """See `ports.host.Host`."""
        call = self._agent.stream("watch")
        begin, before = call.begin.encode(), b""
        try:
            await self._place_agent()
            process = await self._connection.create_process(call.line, encoding=None, stderr=asyncssh.DEVNULL)
        except (asyncssh.Error, OSError, OperatorError, TimeoutError, _Cut):
            return  # `facts` says what is wrong
        try:
            while begin not in before and len(before) <= NOISE_BYTES:
                before += await _some_of(process)
            if before.partition(begin)[2]:
                yield
            while True:
                await _some_of(process)
                yield
        except (asyncssh.Error, OSError, EOFError):
            return
        finally:
            process.close()

    @asynccontextmanager
    async def nix_daemon(self, trusted_public_key: str) -> AsyncIterator[Path]:
        """See `ports.host.Host`."""
        if _TRUSTED_PUBLIC_KEY.fullmatch(trusted_public_key) is None:
            raise ValueError("not a public key of the form <name>:<base64>")
        await self._place_agent_before_change()
        said = DaemonWords()
        try:
            async with daemon_socket(
                self._connection, lambda: self._agent.stream("daemon"), frame(trusted_public_key), said
            ) as path:
                yield path
        except Retry as error:
            raise copy_failed(self._where, error, said.last_line, await self._store_room()) from error

    async def _store_room(self) -> StoreRoom | None:
        """None where the host does not say it."""
        try:
            return parse_store_room((await self._look("store-room", limit=ROOM_SECONDS)).stdout)
        except (OperatorError, MalformedAnswer):
            return None

    async def own(self, owner: HostOwner, instead_of: HostOwner | None = None) -> bool:
        """See `ports.host.Host`."""
        replaced = (instead_of.cluster, instead_of.uid) if instead_of is not None else ("", "")
        stdin = frame(owner.cluster, owner.uid, owner.name, *replaced)
        return self._yes_or_no("own", await self._change("own", stdin=stdin))

    async def disown(self, owner: HostOwner) -> bool:
        """See `ports.host.Host`."""
        stdin = frame(owner.cluster, owner.uid, owner.name)
        return self._yes_or_no("disown", await self._change("disown", stdin=stdin))

    async def stage_host_key(self) -> str:
        """See `ports.host.Host`."""
        answer = await self._change("stage-host-key")
        try:
            return parse_host_key(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed("stage-host-key", error) from error

    async def install_host_key(self, public: str) -> bool:
        """See `ports.host.Host`."""
        answer = await self._change("install-host-key", stdin=frame(public))
        return self._yes_or_no("install-host-key", answer)

    async def root_next(self, toplevel: str) -> bool:
        """See `ports.host.Host`."""
        answer = await self._change("root-next", stdin=frame(toplevel), limit=ROOT_SECONDS)
        return self._yes_or_no("root-next", answer)

    async def build(self, request: BuildRequest) -> BuildState | None:
        """See `ports.host.Host`."""
        limits = (str(round(limit.total_seconds())) for limit in (request.timeout, request.silent))
        stdin = frame(request.drv_path, request.toplevel, *limits)
        answer = await self._change("build", request.id, stdin=stdin, limit=ROOT_SECONDS)
        try:
            return parse_build_state(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed("build", error) from error

    async def build_look(self, drv_path: str, offset: int) -> BuildLook | None:
        """See `ports.host.Host`."""
        answer = await self._look("build-look", build_id(drv_path), stdin=frame(str(offset)))
        try:
            return parse_build_look(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed("build-look", error) from error

    async def stop_build(self) -> None:
        """See `ports.host.Host`."""
        await self._change("build-stop", limit=ROOT_SECONDS)

    async def deliver_keys(self, keys: Sequence[MachineKey], gone: Sequence[str]) -> None:
        """See `ports.host.Host`."""
        asked = [f"put {_words_of(key)}\n" for key in keys] + [f"drop {path}\n" for path in gone]
        stdin = frame("".join(asked), *(key.content for key in keys))
        await self._change("keys", stdin=stdin, limit=KEYS_SECONDS)

    async def disk_users(self, volume_id: str, device: str) -> str:
        """See `ports.host.Host`."""
        answer = await self._look("disk-users", stdin=frame(volume_id, device))
        return " ".join(for_people(answer.stdout).split())[:USERS_SHOWN]

    async def grow_root(self) -> None:
        """See `ports.host.Host`."""
        await self._change("grow-root", limit=COMMIT_SECONDS)

    async def grow_volume(self, volume_id: str, device: str) -> None:
        """See `ports.host.Host`."""
        answer = await self._change("grow-volume", stdin=frame(volume_id, device), limit=COMMIT_SECONDS)
        if "unmounted" in answer.stdout.split():
            message = f"the file system on {volume_id} is not mounted; it is grown when it is"
            raise Retry(Reason.PENDING, message)

    async def claim(self, request: ActivationRequest) -> bool:
        """See `ports.host.Host`."""
        stdin = frame(
            request.toplevel,
            request.previous,
            str(round(request.timeout.total_seconds())),
            str(round(request.confirm_timeout.total_seconds())),
            request.mode,
            "yes" if request.returns else "no",
        )
        return self._yes_or_no("claim", await self._change("claim", request.id, stdin=stdin))

    async def activate(self, request: ActivationRequest) -> None:
        """See `ports.host.Host`."""
        await self._change("activate", request.id)

    async def hold(self, activation_id: str, budget: timedelta) -> bool:
        """See `ports.host.Host`."""
        stdin = frame(str(round(budget.total_seconds())))
        return self._yes_or_no("hold", await self._change("hold", _checked(activation_id), stdin=stdin))

    async def probe(self, probe: Probe, limit: timedelta) -> str:
        """See `ports.host.Host`."""
        seconds = round(limit.total_seconds())
        answer = await self._look("probe", stdin=frame(str(seconds), *_words(probe)), limit=seconds + ANSWER_SECONDS)
        try:
            return parse_probe(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed("probe", error) from error

    async def confirm(self, activation_id: str) -> bool:
        """See `ports.host.Host`."""
        return self._yes_or_no("confirm", await self._change("confirm", _checked(activation_id)))

    async def commit(self, activation_id: str) -> None:
        """See `ports.host.Host`."""
        await self._change("commit", _checked(activation_id), limit=COMMIT_SECONDS)

    async def adopt(self, toplevel: str) -> None:
        """See `ports.host.Host`."""
        await self._change("adopt", stdin=frame(toplevel), limit=COMMIT_SECONDS)

    async def remove_generations(self, numbers: Sequence[int]) -> None:
        """See `ports.host.Host`."""
        stdin = frame(" ".join(map(str, numbers)))
        await self._change("remove-generations", stdin=stdin, limit=COMMIT_SECONDS)

    async def restart(self, activation_id: str) -> None:
        """See `ports.host.Host`."""
        await self._change("restart", _checked(activation_id), limit=COMMIT_SECONDS)

    async def rollback(self, activation_id: str) -> None:
        """See `ports.host.Host`."""
        await self._change("rollback", _checked(activation_id))

    async def dry_activate(self, toplevel: str) -> DryRun:
        """See `ports.host.Host`."""
        answer = await self._look("dry-activate", stdin=frame(toplevel), limit=DRY_SECONDS)
        try:
            return parse_dry_run(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed("dry-activate", error) from error

    async def activation_log(self, activation_id: str) -> str:
        """See `ports.host.Host`."""
        answer = await self._look("log", _checked(activation_id))
        return for_people(answer.stdout)[-LOG_BYTES:]

    async def close(self) -> None:
        """See `ports.host.Host`."""
        self._connection.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._connection.wait_closed()
        except TimeoutError:
            self._connection.abort()

    async def _look(self, *words: str, stdin: bytes = b"", limit: int = ANSWER_SECONDS) -> _Answer:
        """A command that changes nothing."""
        try:
            await self._place_agent()
            answer = await self._run(self._agent.call(*words), stdin, limit)
        except TimeoutError as error:
            raise Retry(Reason.CONNECT_TIMEOUT, f"{self._where} did not answer `{words[0]}` in time") from error
        except _Cut as error:
            raise Retry(Reason.CONNECT_TIMEOUT, f"{self._where}: {error}") from error
        if answer.exit_status != 0:
            raise self._failed(words[0], answer)
        return answer

    async def _change(self, *words: str, stdin: bytes = b"", limit: int = ANSWER_SECONDS) -> _Answer:
        """A command that changes the host. All may be repeated, so an unknown outcome is as good as a failure."""
        await self._place_agent_before_change()
        try:
            answer = await self._run(self._agent.call(*words), stdin, limit)
        except TimeoutError as error:
            raise OutcomeUnknown(
                Reason.CONNECT_TIMEOUT, f"{self._where} did not answer `{words[0]}` in time"
            ) from error
        except _Cut as error:
            message = f"{self._where}: during `{words[0]}` {error}"
            raise OutcomeUnknown(Reason.CONNECT_TIMEOUT, message) from error
        if answer.exit_status != 0:
            raise self._failed(words[0], answer)
        return answer

    async def _place_agent_before_change(self) -> None:
        try:
            await self._place_agent()
        except TimeoutError as error:
            raise Retry(Reason.CONNECT_TIMEOUT, f"{self._where} did not take the agent in time") from error
        except _Cut as error:
            raise Retry(Reason.CONNECT_TIMEOUT, f"{self._where}: {error}") from error

    async def _place_agent(self) -> None:
        async with self._placing:
            if self._is_agent_placed:
                return
            answer = await self._run(self._agent.placing(), self._agent.script, ANSWER_SECONDS)
            if answer.exit_status == NOT_ROOT:
                raise not_root(self._where, self._target.user, last_useful_line(answer.stderr))
            if answer.exit_status != 0:
                message = tool_failed(self._where, "storing the agent", answer.stderr, answer.exit_status)
                raise Retry(Reason.PROGRESSING_WITH_RETRY, message)
            self._is_agent_placed = True

    async def _run(self, call: Call, stdin: bytes, limit: int) -> _Answer:
        """Raises TimeoutError, _Cut, and Blocked (`AuthenticationFailed`) if the account's shell does not run it."""
        heard = _Heard(call)
        try:
            async with asyncio.timeout(limit):
                try:
                    process = await self._connection.create_process(call.line, encoding=None)
                except (asyncssh.Error, OSError) as error:
                    raise _Cut(LOST) from error
                try:
                    exit_status = await _converse(process, stdin, heard)
                finally:
                    process.close()
        except _Noise as error:
            raise no_shell(self._where, self._target.user, None, heard.stdout, heard.stderr) from error
        except TimeoutError as error:
            line = "" if heard.has_begun else first_useful_line(heard.stdout)
            if line:
                raise _Cut(f"the account's shell prints `{line}`, and runs nothing in {limit} s") from error
            raise
        inside = call.answer(heard.stdout)
        if inside is not None:
            return _Answer(exit_status, inside, call.complaints(heard.stderr))
        if heard.has_begun:
            raise _Cut(LOST)
        raise no_shell(self._where, self._target.user, exit_status, heard.stdout, heard.stderr)

    def _failed(self, word: str, answer: _Answer) -> Retry:
        reason = _REASONS.get(word, Reason.ACTIVATION_FAILED)
        if reason is Reason.BOOT_ENTRY_FAILED and answer.exit_status != REFUSED:
            return boot_entry_failed(self._where, answer.stderr)
        reason = Reason.ACTIVATION_FAILED if reason is Reason.BOOT_ENTRY_FAILED else reason
        return Retry(reason, tool_failed(self._where, word, answer.stderr, answer.exit_status))

    def _malformed(self, word: str, error: MalformedAnswer) -> Retry:
        message = f"{self._where} gave an answer to `{word}` that cannot be read: {error}"
        return Retry(Reason.PROGRESSING_WITH_RETRY, message)

    def _yes_or_no(self, word: str, answer: _Answer) -> bool:
        try:
            return parse_yes_or_no(answer.stdout)
        except MalformedAnswer as error:
            raise self._malformed(word, error) from error

    @property
    def _where(self) -> str:
        return self._target.address


class _Cut(Exception):
    """The connection ended, or the answer outgrew its limit; the text says which."""


class _TooLong(OSError):
    """The answer outgrew its limit."""


class _Noise(Exception):
    """The account's shell talks on and on, and not about the call."""


class _Heard:
    """What came of one call so far."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._stdout = bytearray()
        self._stderr = bytearray()

    @property
    def stdout(self) -> str:
        return self._stdout.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace")

    @property
    def has_begun(self) -> bool:
        return self._call.begin.encode() in self._stdout

    async def read_stdout(self, reader: asyncssh.SSHReader[bytes]) -> None:
        has_begun = False
        async for chunk in _chunks(reader):
            self._stdout += chunk
            has_begun = has_begun or self.has_begun
            if not has_begun and len(self._stdout) > NOISE_BYTES:
                raise _Noise
            if len(self._stdout) > ANSWER_BYTES:
                raise _TooLong

    async def read_stderr(self, reader: asyncssh.SSHReader[bytes]) -> None:
        async for chunk in _chunks(reader):
            self._stderr += chunk
            if len(self._stderr) > ANSWER_BYTES:
                raise _TooLong


async def _chunks(reader: asyncssh.SSHReader[bytes]) -> AsyncIterator[bytes]:
    while chunk := await reader.read(1 << 16):
        yield chunk


async def _converse(process: asyncssh.SSHClientProcess[bytes], stdin: bytes, heard: _Heard) -> int:
    """The exit status. Raises _Cut, _Noise."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(heard.read_stdout(process.stdout))
            group.create_task(heard.read_stderr(process.stderr))
            group.create_task(_write(process, stdin))
        await process.wait_closed()
    except (asyncssh.Error, OSError) as error:
        raise _Cut(LOST) from error
    # Not `except*`: before Python 3.11.4 what is raised in it comes out in a group (CPython issue 103590).
    except ExceptionGroup as errors:
        _, others = errors.split((asyncssh.Error, OSError, _Noise))
        if others is not None:
            raise
        if errors.subgroup(_Noise):
            raise _Noise from errors
        raise _Cut(TOO_LONG if errors.subgroup(_TooLong) else LOST) from errors
    if process.exit_status is None or process.exit_status < 0:
        raise _Cut(LOST)
    return process.exit_status


async def _some_of(process: asyncssh.SSHClientProcess[bytes]) -> bytes:
    """What it has said since. Raises EOFError at its end."""
    if chunk := await process.stdout.read(1 << 12):
        return chunk
    raise EOFError


async def _write(process: asyncssh.SSHClientProcess[bytes], stdin: bytes) -> None:
    try:
        process.stdin.write(stdin)
        await process.stdin.drain()
        process.stdin.write_eof()
    except BrokenPipeError:
        return  # the command ended without reading all; its exit status tells why


def _words(probe: Probe) -> tuple[str, ...]:
    match probe:
        case HttpProbe(port, host, path, expect_status):
            return "http", str(port), host, path, str(expect_status)
        case TcpProbe(port):
            return "tcp", str(port)
        case UnitsProbe(units):
            return "units", str(len(units)), *units
        case ExecProbe(command):
            return "exec", str(len(command)), *command


def _words_of(key: MachineKey) -> str:
    """One line of the agent's; none of the words has a blank."""
    units = ",".join(key.restart_units) or "-"
    return f"{key.path} {key.mode:03o} {key.user} {key.group} {key.digest} {units}"


def _checked(activation_id: str) -> str:
    if _ID.fullmatch(activation_id) is None:
        raise ValueError(f"not an activation's id: {activation_id!r}")
    return activation_id
