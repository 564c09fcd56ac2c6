"""What connecting promises: the pinned key or nothing, and a named reason for each failure."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import asyncssh
import pytest

from contract.host_benches import BENCHES, SILENT_ADDRESS, Bench, MachineBench, on_machine, reached
from nixops_operator.adapters.ssh import hosts as ssh_hosts
from nixops_operator.adapters.ssh.hosts import AsyncsshHosts
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.facts.host import HostTarget


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as bench:
        yield bench


def new_key(algorithm: str = "ssh-ed25519") -> asyncssh.SSHKey:
    return asyncssh.generate_private_key(algorithm)


def private(key: asyncssh.SSHKey) -> str:
    return key.export_private_key("openssh").decode()


def public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


async def failure(bench: Bench, target: HostTarget) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        await bench.hosts.connect(target)
    return caught.value


async def test_a_connection_with_the_pinned_key_answers(bench: Bench) -> None:
    host = await bench.hosts.connect(bench.target)
    assert host.is_open
    assert host.target == bench.target
    assert (await host.facts()).current_system == bench.base
    await host.close()
    assert not host.is_open


async def test_one_of_several_pinned_keys_is_enough(bench: Bench) -> None:
    pinned = tuple(sorted((*bench.target.host_keys, public(new_key()), public(new_key("ecdsa-sha2-nistp256")))))
    host = await bench.hosts.connect(replace(bench.target, host_keys=pinned))
    assert (await host.facts()).current_system == bench.base
    await host.close()


async def test_a_host_with_another_key_is_refused(bench: Bench) -> None:
    error = await failure(bench, replace(bench.target, host_keys=(public(new_key()),)))
    assert (type(error), error.reason) == (Blocked, Reason.HOST_KEY_MISMATCH)


async def test_a_refused_client_key_is_told_apart(bench: Bench) -> None:
    error = await failure(bench, replace(bench.target, client_keys=(private(new_key()),)))
    assert (type(error), error.reason) == (Blocked, Reason.AUTHENTICATION_FAILED)
    assert "refused the client key for root" in error.message


async def test_several_client_keys_are_offered_one_after_the_other(bench: Bench) -> None:
    offered = (private(new_key()), private(new_key("ecdsa-sha2-nistp256")), *bench.target.client_keys)
    host = await bench.hosts.connect(replace(bench.target, client_keys=offered))
    assert (await host.facts()).current_system == bench.base
    await host.close()


async def test_a_client_key_as_an_editor_left_it_is_the_same_key(bench: Bench) -> None:
    damaged = "\ufeff" + bench.target.client_keys[0].replace("\n", "\r\n").rstrip()
    host = await bench.hosts.connect(replace(bench.target, client_keys=(damaged,)))
    await host.close()


@pytest.mark.parametrize("text", ["", "no key at all", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
async def test_a_client_key_that_is_none_is_told_apart_and_not_quoted(bench: Bench, text: str) -> None:
    error = await failure(bench, replace(bench.target, client_keys=(text,)))
    assert (type(error), error.reason) == (Blocked, Reason.SECRET_NOT_FOUND)
    assert "AAAA" not in error.message


async def test_a_silent_address_times_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_hosts, "CONNECT_TIMEOUT", 1)
    error = await failure(bench, replace(bench.target, address=SILENT_ADDRESS))
    assert (type(error), error.reason) == (Retry, Reason.CONNECT_TIMEOUT)


async def test_a_port_where_nothing_listens_is_told_apart(bench: Bench) -> None:
    await bench.stop_sshd()
    error = await failure(bench, bench.target)
    assert (type(error), error.reason) == (Retry, Reason.CONNECTION_REFUSED)


async def test_a_user_other_than_root_is_refused_before_anything_is_sent(bench: Bench) -> None:
    error = await failure(bench, replace(bench.target, address=SILENT_ADDRESS, user="admin"))
    assert (type(error), error.reason) == (Blocked, Reason.INVALID_SPEC)
    assert "only root" in error.message


async def test_an_account_without_a_shell_is_told_apart(bench: Bench) -> None:
    await bench.take_shell()
    host = await reached(bench)
    with pytest.raises(Blocked) as caught:
        await host.facts()
    assert caught.value.reason is Reason.AUTHENTICATION_FAILED
    assert "root" in caught.value.message
    assert "has no shell that runs commands" in caught.value.message
    await host.close()


@pytest.mark.lab
async def test_what_the_accounts_shell_says_before_is_no_part_of_the_answer(machine: MachineBench) -> None:
    """A .bashrc may print lines without an end, and turn on the shell's own echo."""
    await machine.run("sh", "-c", "printf 'echo welcome; echo hm >&2; printf \"no end\"; set -vx\\n' >/root/.bashrc")
    host = await reached(machine)
    assert (await host.facts()).current_system == machine.base
    with pytest.raises(Retry, match=r"192\.0\.2\.10: confirm: no activation 00000000-1 on this host$"):
        await host.confirm("00000000-1")
    assert await machine.deliver(host, "good")
    await host.close()


@pytest.mark.lab
@pytest.mark.parametrize(
    ("shell", "words"),
    [
        pytest.param(
            "/bin/false", "has no shell that runs commands (as /sbin/nologin and /bin/false); it ended with 1"
        ),
        pytest.param("/bin/cat", "says `cat: invalid option"),
        pytest.param("/bin/rbash", "says `"),
    ],
)
async def test_an_unusable_shell_is_named(machine: MachineBench, shell: str, words: str) -> None:
    await machine.set_shell(shell)
    host = await reached(machine)
    with pytest.raises(Blocked) as caught:
        await host.facts()
    assert caught.value.reason is Reason.AUTHENTICATION_FAILED
    assert words in caught.value.message
    await host.close()


@pytest.mark.lab
async def test_a_forced_command_is_named(machine: MachineBench) -> None:
    await machine.run("sh", "-c", "sed -i 's/^/command=\"echo only backups here\" /' /root/.ssh/authorized_keys")
    host = await reached(machine)
    with pytest.raises(Blocked, match=r"it says `only backups here`.*forced command"):
        await host.facts()
    await host.close()


async def test_an_address_resolves_to_itself_and_an_unknown_name_to_nothing(bench: Bench) -> None:
    assert await bench.hosts.resolve("192.0.2.10") == ("192.0.2.10",)
    with pytest.raises(Retry, match="does not resolve"):
        await bench.hosts.resolve("nowhere.invalid")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(["127.0.0.10", "127.0.0.9", "127.0.0.10"], ("127.0.0.9", "127.0.0.10"), id="each once, by number"),
        pytest.param(["255.255.255.255", "127.0.0.9"], ("127.0.0.9",), id="without those that cannot be connected to"),
        pytest.param(["255.255.255.255"], ("255.255.255.255",), id="unless there are no others"),
    ],
)
async def test_a_name_has_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (each, 0)) for each in answers])
    assert await AsyncsshHosts().resolve("web.example") == expected


@pytest.mark.lab
async def test_silent_addresses_hold_up_no_other_connection(machine: MachineBench) -> None:
    silent = replace(machine.target, address=SILENT_ADDRESS)
    waiting = [asyncio.create_task(machine.hosts.connect(silent)) for _ in range(ssh_hosts.SIMULTANEOUS_HANDSHAKES + 1)]
    await asyncio.sleep(0)
    host = await machine.hosts.connect(machine.target)
    assert not any(task.done() for task in waiting)
    await host.close()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.lab
async def test_an_impostor_sees_no_attempt_to_log_in(machine: MachineBench) -> None:
    pinned = new_key()
    error = await failure(machine, replace(machine.target, host_keys=(public(pinned),)))
    shown = asyncssh.import_public_key(machine.target.host_keys[0]).get_fingerprint()
    assert f"shows the host key ssh-ed25519 {shown}; pinned: ssh-ed25519 {pinned.get_fingerprint()}" in error.message
    other_type = await failure(machine, replace(machine.target, host_keys=(public(new_key("ecdsa-sha2-nistp256")),)))
    assert (other_type.reason, shown in other_type.message) == (Reason.HOST_KEY_MISMATCH, True)
    assert await logins_tried(machine) == ["Accepted"]  # the bench's own look, before

    await failure(machine, replace(machine.target, client_keys=(private(new_key()),)))
    # The control: an attempt would be seen. sshd writes of it a moment after the client knows.
    async with asyncio.timeout(30):
        while not (await logins_tried(machine))[1:]:
            continue


async def logins_tried(machine: MachineBench) -> list[str]:
    """Of the machine's sshd, which writes a line for each at LogLevel VERBOSE, and for each success at any level."""
    # By identifier: of a process that has ended before its line is read, journald cannot tell the unit any more.
    log = await machine.run("journalctl", "--identifier=sshd", "--output=cat", "--no-pager")
    words = (
        "Accepted",
        "Failed",
        "Postponed",
        "Connection closed by authenticating",
        "Connection reset by authenticating",
    )
    return [word for line in log.splitlines() for word in words if line.startswith(word)]


@pytest.mark.lab
async def test_a_cut_connection_is_noticed_and_a_new_one_goes_on(machine: MachineBench) -> None:
    host = await machine.hosts.connect(machine.target)
    await host.facts()
    await machine.run("systemctl", "kill", "--signal=SIGKILL", "sshd.service")
    error = None
    while error is None:
        try:
            await host.facts()
        except Retry as caught:
            error = caught
    assert error.reason is Reason.CONNECT_TIMEOUT
    again = await reached(machine)
    assert (await again.facts()).current_system == machine.base
    await again.close()


@pytest.mark.lab
async def test_the_agent_is_placed_again_where_it_is_missing_or_damaged(machine: MachineBench) -> None:
    for damage in ("rm", "truncate --size=100"):
        await machine.run("sh", "-c", f"{damage} /var/lib/nixops/agent-*")
        host = await machine.hosts.connect(machine.target)
        assert (await host.facts()).current_system == machine.base
        await host.close()
    names = (await machine.run("ls", "/var/lib/nixops")).split()
    assert len([name for name in names if name.startswith("agent-")]) == 1


class HostileServer(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True


@asynccontextmanager
async def hostile_host(answer: bytes, is_endless: bool = False, is_framed: bool = True) -> AsyncIterator[HostTarget]:
    """A host on loopback that takes the agent and then answers every command with `answer`, between the marks or
    without any."""
    key = new_key()
    connections: list[asyncssh.SSHServerConnection] = []

    class Server(HostileServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        mark = str(process.command).partition("n=")[2][:16].encode()
        try:
            if is_framed:
                process.stdout.write(b"\nnixops-%b begin\n" % mark)
            if not is_framed or "sha256sum" not in str(process.command):
                process.stdout.write(answer)
                while is_endless:
                    await process.stdout.drain()
                    process.stdout.write(answer)
            if is_framed:
                process.stdout.write(b"\nnixops-%b end\n" % mark)
        except (BrokenPipeError, asyncssh.Error):
            return
        process.exit(0)

    server = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[key], process_factory=serve, encoding=None
    )
    try:
        yield HostTarget("127.0.0.1", server.get_port(), "root", (private(new_key()),), (public(key),))
    finally:
        server.close()
        # The listener's end is not theirs: left open, they would be found as a leak by a later test.
        for connection in connections:
            connection.abort()
            await connection.wait_closed()
        await server.wait_closed()


async def test_an_answer_without_end_is_cut() -> None:
    async with hostile_host(b"x" * (1 << 16), is_endless=True) as target:
        host = await AsyncsshHosts().connect(target)
        with pytest.raises(Retry, match="longer than 1 MiB"):
            await host.facts()
        await host.close()


async def test_an_answer_of_another_form_is_refused_and_not_quoted() -> None:
    async with hostile_host(b"nixops-facts 1\ncurrent-system <script>\nend\n") as target:
        host = await AsyncsshHosts().connect(target)
        with pytest.raises(Retry) as caught:
            await host.facts()
        assert "cannot be read" in caught.value.message
        assert "script" not in caught.value.message
        await host.close()


async def test_a_shell_that_talks_without_end_is_cut_and_named() -> None:
    async with hostile_host(b"welcome!\n" * 1000, is_endless=True, is_framed=False) as target:
        host = await AsyncsshHosts().connect(target)
        with pytest.raises(Blocked, match="it says `welcome!`"):
            await host.root_next("/nix/store/" + "0" * 32 + "-system")
        await host.close()


async def ended(writer: asyncio.StreamWriter) -> None:
    """The connection's end, whoever ends it first."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def test_something_else_than_ssh_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    has_ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000)
        await ended(writer)
        has_ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Retry) as caught:
        await AsyncsshHosts().connect(
            HostTarget("127.0.0.1", port, "root", (private(new_key()),), (public(new_key()),))
        )
    assert caught.value.reason in {Reason.CONNECTION_REFUSED, Reason.CONNECT_TIMEOUT}
    await has_ended.wait()
    server.close()
    await server.wait_closed()


async def test_a_server_that_says_nothing_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_hosts, "CONNECT_TIMEOUT", 1)
    is_over, has_ended = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        await ended(writer)
        has_ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Retry) as caught:
        await AsyncsshHosts().connect(
            HostTarget("127.0.0.1", port, "root", (private(new_key()),), (public(new_key()),))
        )
    assert caught.value.reason is Reason.CONNECT_TIMEOUT
    is_over.set()
    await has_ended.wait()
    server.close()
    await server.wait_closed()
