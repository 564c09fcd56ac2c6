"""Child processes that never outlive the call that started them, and whose output is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from nixops_operator.nix.internal_json import ShortStrings

OUTPUT_LIMIT = 4 * 1024**2  # bytes of one line or answer that are kept; more is refused
_LINE_LIMIT = 256 * 1024  # bytes of one line of messages, its strings shortened; the rest of a longer line is dropped
_TAIL_LIMIT = 1024**2  # bytes of messages that are kept, the newest ones
_CHUNK = 65536
_SIGNAL_BASE = 128  # what shells add to a signal's number

KILLED_FROM_OUTSIDE = "was killed from outside: most likely the operator's pod or its node ran out of memory"
"""None of our own limits ends with SIGKILL."""


@contextlib.asynccontextmanager
async def child(
    argv: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in a group of its own, with pipes for its three streams. On leaving, however that comes about, the
    group is killed and the process reaped.

    `inherited`: file descriptors that it gets under the same numbers. Raises OSError if it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environment),
        pass_fds=tuple(inherited),
        start_new_session=True,
        limit=OUTPUT_LIMIT,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    # The leader is not reaped before wait() returns, so its number names this group and no other.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    reaped = asyncio.ensure_future(process.wait())
    while not reaped.done():
        # A second cancellation must not leave a zombie; the process is dead already, this takes moments.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(reaped)
    # Output that nobody has read keeps its pipes open, also of a process that is gone; a Process has no close().
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def signal_of(status: int) -> int | None:
    """The signal that ended a process, or one inside of it whose end a shell or bubblewrap passed on; None for an end
    of its own."""
    if status < 0:
        return -status
    return status - _SIGNAL_BASE if status > _SIGNAL_BASE else None


async def feed(stream: asyncio.StreamWriter | None, content: bytes) -> None:
    """Write all of `content` and close. A reader that ended early is no error: its exit status tells why."""
    if stream is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(content)
        await stream.drain()
    stream.close()


class Lines:
    """The newest lines of a stream of messages, as text; hands each complete line to `on_line` as it comes."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._on_line = on_line
        self._kept: deque[str] = deque()
        self._kept_size = 0
        self._open = bytearray()
        self._short = ShortStrings()

    @property
    def kept(self) -> list[str]:
        """Lines, oldest first, of together at most 1 MiB."""
        return list(self._kept)

    async def read(self, stream: asyncio.StreamReader | None) -> None:
        """Read to the end of the stream."""
        if stream is None:
            return
        while chunk := await stream.read(_CHUNK):
            *complete, rest = chunk.split(b"\n")
            for part in complete:
                self._extend(self._short.feed(part))
                self._close()
            self._extend(self._short.feed(rest))
        self._extend(self._short.end())
        if self._open:
            self._close()

    def _extend(self, part: bytes) -> None:
        self._open += part[: _LINE_LIMIT - len(self._open)]

    def _close(self) -> None:
        self._extend(self._short.end())
        line = self._open.decode(errors="replace")
        self._open.clear()
        self._kept.append(line)
        self._kept_size += len(line) + 1
        while self._kept_size > _TAIL_LIMIT:
            self._kept_size -= len(self._kept.popleft()) + 1
        if self._on_line is not None:
            self._on_line(line)
