"""What a hostile machine, or a file in the operator's home, tries against its SSH. Each attack works on a client that
is not told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from nixops_operator.adapters.ssh.hosts import AsyncsshHosts
from nixops_operator.errors import OperatorError
from nixops_operator.facts.host import HostTarget

CLIENT_KEY, HOST_KEY = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))


class Server(asyncssh.SSHServer):
    """Takes every key."""

    def __init__(self, logged_in: list[asyncssh.SSHServerConnection]) -> None:
        self._logged_in = logged_in

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def auth_completed(self) -> None:
        self._logged_in.append(self._connection)


@asynccontextmanager
async def server(**options: Any) -> AsyncIterator[tuple[HostTarget, list[asyncssh.SSHServerConnection]]]:
    """On loopback; the connections that have logged in. Each command writes its variables and ends."""
    logged_in: list[asyncssh.SSHServerConnection] = []

    def answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(str(dict(process.env)).encode())
        process.exit(0)

    listening = await asyncssh.create_server(
        lambda: Server(logged_in),
        "127.0.0.1",
        0,
        server_host_keys=[HOST_KEY],
        process_factory=answer,
        encoding=None,
        **options,
    )
    key = CLIENT_KEY.export_private_key("openssh").decode()
    pinned = " ".join(HOST_KEY.export_public_key("openssh").decode().split()[:2])
    try:
        yield HostTarget("127.0.0.1", listening.get_port(), "root", (key,), (pinned,)), logged_in
    finally:
        listening.close()
        for connection in logged_in:
            connection.abort()
            await connection.wait_closed()
        await listening.wait_closed()


def somebody(target: HostTarget, **options: Any) -> Awaitable[asyncssh.SSHClientConnection]:
    """Another client of that server, with asyncssh's defaults."""
    return asyncssh.connect(
        target.address, target.port, username="root", client_keys=[CLIENT_KEY], known_hosts=None, **options
    )


@asynccontextmanager
async def unix_listener(path: Path) -> AsyncIterator[asyncio.Event]:
    """Whether somebody has come."""
    has_come = asyncio.Event()

    def come(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        has_come.set()
        writer.close()

    async with await asyncio.start_unix_server(come, path):
        yield has_come


@pytest.mark.parametrize(
    "offer",
    [
        pytest.param({"encryption_algs": ["chacha20-poly1305@openssh.com"]}, id="ChaCha20, which Terrapin cuts"),
        pytest.param(
            {"encryption_algs": ["aes256-cbc"], "mac_algs": ["hmac-sha2-256-etm@openssh.com"]},
            id="CBC with a tag over the cipher, which Terrapin cuts",
        ),
    ],
)
async def test_a_machine_without_sound_ciphers_is_not_logged_in_to(offer: dict[str, list[str]]) -> None:
    async with server(**offer) as (target, logged_in):
        with pytest.raises(OperatorError):
            await AsyncsshHosts().connect(target)
        assert logged_in == []
        async with await somebody(target, **offer):
            assert len(logged_in) == 1


async def test_nothing_in_the_operator_s_home_decides_how_it_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / ".ssh/config"
    configuration.parent.mkdir()
    configuration.write_text("Host *\n  SetEnv PLANTED=here\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))

    async with unix_listener(tmp_path / "agent") as asked, server() as (target, logged_in):
        host = await AsyncsshHosts().connect(target)
        assert b"PLANTED" not in (await host._connection.run("env", encoding=None)).stdout
        await host.close()
        assert len(logged_in) == 1
        assert not asked.is_set()

        # The control: by default both are used.
        async with await somebody(target, agent_path=None) as client:
            assert b"PLANTED" in (await client.run("env", encoding=None)).stdout
        with pytest.raises((OSError, asyncssh.Error)):  # the agent says nothing
            await asyncssh.connect(target.address, target.port, username="root", known_hosts=None, config=None)
        assert asked.is_set()


Open = Callable[[asyncssh.SSHServerConnection], Awaitable[Any]]
OPENS: dict[str, Open] = {
    "a forwarded port": lambda of: of.create_connection(asyncssh.SSHTCPSession, "127.0.0.1", 22, "127.0.0.1", 1),
    "a forwarded socket": lambda of: of.create_unix_connection(asyncssh.SSHUNIXSession, "/run/x"),
    "the operator's agent": lambda of: of.create_agent_channel().open(asyncssh.SSHUNIXSession),
    "the operator's screen": lambda of: of.create_x11_channel().open(asyncssh.SSHTCPSession, "127.0.0.1", 1),
}


@pytest.mark.parametrize("what", OPENS)
async def test_a_machine_opens_no_way_back(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    async with unix_listener(tmp_path / "agent"), server() as (target, logged_in):
        host = await AsyncsshHosts().connect(target)
        (connection,) = logged_in
        with pytest.raises(asyncssh.ChannelOpenError):
            await OPENS[what](connection)
        assert host.is_open
        await host.close()


async def test_a_client_that_allows_it_is_reached(tmp_path: Path) -> None:
    """The control."""
    socket = tmp_path / "agent"
    async with unix_listener(socket) as reached, server() as (target, logged_in):
        client = await somebody(target, agent_forwarding=str(socket))
        channel = logged_in[0].create_agent_channel()
        await channel.open(asyncssh.SSHUNIXSession)
        await reached.wait()
        client.close()
        await client.wait_closed()
