"""A closure's way to the host: through the held connection, its signature checked there."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator

import pytest

from contract.host_benches import MachineBench, on_machine, reached
from nixops_lab.machines import full_store
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.ports.host import Host

pytestmark = pytest.mark.lab

UNKNOWN_KEY = "somebody-else-1:" + "A" * 43 + "="


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as bench:
        yield bench


@pytest.fixture
async def host(machine: MachineBench) -> AsyncIterator[Host]:
    host = await reached(machine)
    yield host
    await host.close()


async def test_a_signed_closure_arrives_whole_with_its_signatures(machine: MachineBench, host: Host) -> None:
    good = machine.store_path("good")
    assert not await host.root_next(good)
    status, said = await machine.copy(host, good)
    assert status == 0, said
    assert await host.root_next(good)
    await machine.run("nix-store", "--verify-path", *machine.systems.closure(good))
    signatures = await machine.run("nix", "--extra-experimental-features", "nix-command", "path-info", "--sigs", good)
    assert "contract-test-1:" in signatures
    assert (await machine.run("readlink", "/nix/var/nix/gcroots/nixops/next")).strip() == good


async def test_what_is_rooted_survives_the_garbage_collector(machine: MachineBench, host: Host) -> None:
    good, better = await machine.deliver(host, "good"), await machine.deliver(host, "better")
    assert await host.root_next(good)
    await machine.run("nix-store", "--gc")
    assert await host.root_next(good)
    assert not await host.root_next(better)


async def test_a_path_without_a_signature_is_refused_by_the_host(machine: MachineBench, host: Host) -> None:
    await machine.deliver(host, "good")
    unsigned = machine.systems.unsigned()
    status, said = await machine.copy(host, unsigned)
    assert status != 0
    assert "signature" in said
    assert not await host.root_next(unsigned)


async def test_a_signature_of_a_key_that_the_host_was_not_told_is_refused(machine: MachineBench, host: Host) -> None:
    good = machine.store_path("good")
    status, said = await machine.copy(host, good, public_key=UNKNOWN_KEY)
    assert status != 0
    assert "signature" in said
    assert not await host.root_next(good)


async def test_a_cut_copy_goes_on_over_a_new_connection(machine: MachineBench, host: Host) -> None:
    good = machine.store_path("good")
    async with host.nix_daemon(machine.systems.public_key) as socket:
        copying = await asyncio.create_subprocess_exec(
            *machine.systems.copy_argv(good, socket), stderr=asyncio.subprocess.PIPE
        )
        while not (await machine.run("sh", "-c", "pgrep -f 'nix-daemon --stdio' || true")).strip():
            await machine.pause()
        await host.close()
        await copying.communicate()
    again = await reached(machine)
    status, said = await machine.copy(again, good)
    assert status == 0, said
    assert await again.root_next(good)
    await again.close()


async def test_each_connection_has_a_daemon_of_its_own_that_ends_with_it(machine: MachineBench, host: Host) -> None:
    async with host.nix_daemon(machine.systems.public_key) as socket:
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        connections = [await asyncio.open_unix_connection(socket) for _ in range(2)]
        while await daemons(machine) != 2:
            await machine.pause()
        for reader, writer in connections:
            writer.write_eof()  # half-closed: what the daemon still says arrives
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        while await daemons(machine) != 0:
            await machine.pause()
    assert not socket.parent.exists()


async def test_the_end_of_the_copy_ends_its_daemons(machine: MachineBench, host: Host) -> None:
    async with host.nix_daemon(machine.systems.public_key) as socket:
        reader, writer = await asyncio.open_unix_connection(socket)
        while await daemons(machine) != 1:
            await machine.pause()
    assert await reader.read() == b""
    writer.close()
    while await daemons(machine) != 0:
        await machine.pause()
    assert (await host.facts()).current_system == machine.base


async def test_why_a_daemon_died_is_told(machine: MachineBench, host: Host) -> None:
    """`nix copy` itself sees nothing but the end of the stream."""
    program = (await machine.run("sh", "-c", "readlink -e $(command -v nix-daemon)")).strip()
    script = "#!/bin/sh\necho 'error: creating /nix/var/nix/db: No space left on device' >&2\nexit 1\n"
    await machine.run(
        "sh", "-c", f"cat >/run/dying; chmod +x /run/dying; mount --bind /run/dying {program}", stdin=script.encode()
    )

    async def copy() -> None:
        async with host.nix_daemon(machine.systems.public_key) as socket:
            argv = machine.systems.copy_argv(machine.store_path("good"), socket)
            process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
            await process.communicate()
            raise Retry(Reason.COPY_FAILED, "unexpected end-of-file")

    with pytest.raises(Retry) as caught:
        await copy()
    assert caught.value.reason is Reason.COPY_FAILED
    assert caught.value.message.startswith(
        "unexpected end-of-file; the Nix daemon of 192.0.2.10 says: "
        "error: creating /nix/var/nix/db: No space left on device; the disk of 192.0.2.10 is full ("
    )
    await machine.run("umount", program)


@pytest.mark.parametrize(
    ("filled", "told"),
    [
        pytest.param(full_store.NO_BYTE, "the disk of 192.0.2.10 is full (0 MiB free in /nix/store)", id="no byte"),
        pytest.param(full_store.FEW_BYTES, "the disk of 192.0.2.10 is full (0 MiB free in /nix/store)", id="few bytes"),
        pytest.param(
            full_store.NO_INODE, "no inode is left for it in /nix/store of 192.0.2.10 (0 are free)", id="no inode"
        ),
        pytest.param(full_store.FEW_INODES, "no inode is left for it in /nix/store of 192.0.2.10 (", id="few inodes"),
    ],
)
async def test_what_is_used_up_is_told_and_a_copy_goes_on_when_there_is_room(
    machine: MachineBench, host: Host, filled: str, told: str
) -> None:
    """Whatever Nix' words for it: of bytes and of inodes they are the same, or SQLite's for a broken disk."""
    good = machine.store_path("good")
    await machine.run("sh", "-c", filled)

    async def copy() -> None:
        async with host.nix_daemon(machine.systems.public_key) as socket:
            argv = machine.systems.copy_argv(good, socket)
            process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
            _, said = await process.communicate()
            raise Retry(Reason.COPY_FAILED, said.decode().strip().rpartition("\n")[2])

    with pytest.raises(Retry) as caught:
        await copy()
    assert told in caught.value.message
    assert not await host.root_next(good)

    await machine.run("sh", "-c", full_store.ROOM)
    status, said = await machine.copy(host, good)
    assert status == 0, said
    assert await host.root_next(good)


async def daemons(machine: MachineBench) -> int:
    return len((await machine.run("sh", "-c", "pgrep -x nix-daemon || true")).split())


@pytest.mark.parametrize("key", ["", "name", "name:short=", "name:key\nsubstituters = http://198.51.100.1"])
async def test_what_is_no_public_key_is_refused_here(machine: MachineBench, host: Host, key: str) -> None:
    with pytest.raises(ValueError, match="not a public key"):
        async with host.nix_daemon(key):
            pass
