"""Files with secrets on a machine: whole, with their mode and owner, remembered, and never touched without need."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from contract.host_benches import BENCHES, Bench, MachineBench, on_machine, reached
from fakes.host import File
from nixops_operator.adapters.ssh.agent import frame, load_agent
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.host import DeliveredKey, FoundFile, HostFacts
from nixops_operator.ports.host import Host, MachineKey

BYTES = bytes(range(256)) * 64 + b"\r\n\n"
"""Every byte, and a length that is no whole number of blocks."""


def digest(content: bytes) -> str:
    """Any that is another one for another content."""
    return hashlib.sha256(b"keyed" + content).hexdigest()


def machine_key(path: str, content: bytes = BYTES, *units: str, **more: object) -> MachineKey:
    fields = {"mode": 0o600, "user": "root", "group": "root", **more}
    return MachineKey(path, digest=digest(content), restart_units=units, content=content, **fields)  # type: ignore[arg-type]


def delivered(facts: HostFacts, path: str) -> DeliveredKey:
    return next(one for one in facts.keys if one.path == path)


def lies(content: bytes, mode: int = 0o600, user: str = "root", group: str = "root") -> FoundFile:
    return FoundFile(stat.S_IFREG | mode, user, group, hashlib.sha256(content).hexdigest())


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


async def test_a_machine_has_no_keys_until_it_is_given_some(host: Host) -> None:
    assert (await host.facts()).keys == ()


@pytest.mark.parametrize("content", [b"", b"one line\n", BYTES, BYTES * 63], ids=["empty", "a line", "all", "1 MiB"])
async def test_a_key_is_there_as_it_was_given(bench: Bench, host: Host, content: bytes) -> None:
    asked = machine_key("/run/keys/one", content, mode=0o640, group="keys")
    await bench.add_account("web")
    await host.deliver_keys([replace(asked, user="web", group="web")], [])
    assert await bench.file("/run/keys/one") == File(content, 0o640, "web", "web")
    facts = await host.facts()
    assert facts.keys == (
        DeliveredKey(
            path="/run/keys/one",
            mode=0o640,
            user="web",
            group="web",
            digest=digest(content),
            boot_id=facts.boot_id,
            owes_restarts=False,
            was_unowned=False,
            has_owner=True,
            file=lies(content, 0o640, "web", "web"),
        ),
    )


async def test_thirty_keys_come_in_one_call_and_each_may_be_repeated(bench: Bench, host: Host) -> None:
    asked = [machine_key(f"/run/keys/{number}", b"%d" % number) for number in range(30)]
    for _ in range(2):
        await host.deliver_keys(asked, [])
    assert {one.path for one in (await host.facts()).keys} == {key.path for key in asked}
    assert await bench.file("/run/keys/17") == File(b"17")


async def test_a_changed_key_restarts_its_units_and_no_others(bench: Bench, host: Host) -> None:
    for unit in ("mine.service", "other.service"):
        await bench.run_unit(unit)
    one = machine_key("/run/keys/one", b"old", "mine.service", "stopped.service")
    other = machine_key("/run/keys/other", b"same", "other.service")
    await host.deliver_keys([one, other], [])
    await host.deliver_keys([one, replace(other, mode=0o640)], [])
    assert [await bench.restarts("mine.service"), await bench.restarts("other.service")] == [0, 0]
    await host.deliver_keys([machine_key("/run/keys/one", b"new", "mine.service", "stopped.service")], [])
    assert [await bench.restarts("mine.service"), await bench.restarts("other.service")] == [1, 0]


async def test_what_somebody_did_to_a_key_is_seen(bench: Bench, host: Host) -> None:
    paths = [f"/run/keys/{name}" for name in ("written", "wider", "gone", "whole")]
    await host.deliver_keys([machine_key(path) for path in paths], [])
    await bench.write_file(paths[0], File(b"by hand"))
    await bench.write_file(paths[1], File(BYTES, 0o644))
    await bench.remove_file(paths[2])
    facts = await host.facts()
    assert [delivered(facts, path).file for path in paths] == [lies(b"by hand"), lies(BYTES, 0o644), None, lies(BYTES)]
    assert {one.digest for one in facts.keys} == {digest(BYTES)}


async def test_what_is_to_go_goes_if_it_was_ours(bench: Bench, host: Host) -> None:
    await host.deliver_keys([machine_key("/run/keys/one"), machine_key("/run/keys/two")], [])
    await bench.write_file("/run/keys/theirs", File(b"somebody's"))
    for _ in range(2):
        await host.deliver_keys([], ["/run/keys/one", "/run/keys/theirs"])
    assert await bench.file("/run/keys/one") is None
    assert await bench.file("/run/keys/theirs") == File(b"somebody's")
    assert [one.path for one in (await host.facts()).keys] == ["/run/keys/two"]


async def test_after_a_boot_memory_is_empty_and_the_disk_is_not(bench: Bench, host: Host) -> None:
    await host.deliver_keys([machine_key("/run/keys/one"), machine_key("/var/lib/app/one", b"kept")], [])
    before = (await host.facts()).boot_id
    await bench.reboot()
    again = await reached(bench)
    facts = await again.facts()
    assert facts.boot_id != before
    assert {one.boot_id for one in facts.keys} == {before}
    files = delivered(facts, "/run/keys/one").file, delivered(facts, "/var/lib/app/one").file
    assert files == (None, lies(b"kept"))
    await again.deliver_keys([machine_key("/run/keys/one")], [])
    facts = await again.facts()
    assert delivered(facts, "/run/keys/one").boot_id == facts.boot_id
    assert delivered(facts, "/run/keys/one").file == lies(BYTES)
    await again.close()


async def test_a_key_waits_for_its_owner(bench: Bench, host: Host) -> None:
    asked = machine_key("/run/keys/one", mode=0o400, user="web", group="web")
    await host.deliver_keys([asked], [])
    found = delivered(await host.facts(), "/run/keys/one")
    assert (found.was_unowned, found.has_owner, found.file) == (True, False, lies(BYTES, 0o400))
    await bench.add_account("web")
    assert delivered(await host.facts(), "/run/keys/one").has_owner
    await host.deliver_keys([asked], [])
    found = delivered(await host.facts(), "/run/keys/one")
    assert (found.was_unowned, found.file) == (False, lies(BYTES, 0o400, "web", "web"))


async def test_nothing_is_put_where_everybody_can_read_it(bench: Bench, host: Host) -> None:
    with pytest.raises(Retry) as caught:
        await host.deliver_keys([machine_key("/run/keys/one"), machine_key("/nix/var/one")], [])
    assert caught.value.reason is Reason.DELIVERY_FAILED
    assert "/nix/var/one lies in /nix, which everybody can read" in caught.value.message
    assert (await host.facts()).keys == ()


# --- on a real machine alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [f"/run/{'n' * 250}", f"/run/{'f' * 247}/k"], ids=["of a file", "of a folder"])
async def test_a_name_is_as_long_as_a_field_and_a_file_system_let_it_be(bench: Bench, host: Host, path: str) -> None:
    for content in (b"one", b"another"):
        await host.deliver_keys([machine_key(path, content)], [])
        assert delivered(await host.facts(), path).file == lies(content)
    await host.deliver_keys([], [path])
    assert (await host.facts()).keys == ()


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as bench:
        yield bench


async def call(machine: MachineBench, host: Host, stdin: bytes) -> str:
    """The agent's `keys`, with such a stdin; its exit status."""
    await host.facts()  # the agent is placed with the first call
    agent = f"/var/lib/nixops/agent-{load_agent().digest}"
    return await machine.run("sh", "-c", f"sh {agent} keys 2>/dev/null; echo $?", stdin=stdin)


def asked(path: str, content: bytes, *units: str) -> bytes:
    words = f"put {path} 600 root root {digest(content)} {','.join(units) or '-'}\n"
    return frame(words, content)


@pytest.mark.lab
async def test_a_call_that_is_cut_anywhere_replaces_nothing(machine: MachineBench) -> None:
    host = await reached(machine)
    await host.deliver_keys([machine_key("/run/keys/one", b"old")], [])
    whole = asked("/run/keys/one", b"new content of some length")
    for end in range(0, len(whole), 7):
        assert await call(machine, host, whole[:end]) != "0\n"
    assert await machine.file("/run/keys/one") == File(b"old")
    assert (await machine.run("ls", "-A", "/run/keys")).split() == ["one"]
    found = delivered(await host.facts(), "/run/keys/one")
    assert (found.digest, found.owes_restarts, found.file) == (digest(b"old"), False, lies(b"old"))
    await host.close()


@pytest.mark.lab
async def test_a_call_that_is_killed_between_file_and_record_is_made_up_for(machine: MachineBench) -> None:
    host = await reached(machine)
    await machine.run_unit("mine.service")
    await host.deliver_keys([machine_key("/run/keys/one", b"old", "mine.service")], [])
    # It dies before it asks systemd for the restart: the file is the new one, what is remembered the old one.
    agent = f"/var/lib/nixops/agent-{load_agent().digest}"
    cut = "sed 's/^restart_owed() {/&\\n kill -9 $$/' " + agent + " >/root/cut && sh /root/cut keys"
    await machine.run("sh", "-c", f"{cut}; true", stdin=asked("/run/keys/one", b"new", "mine.service"))
    found = delivered(await host.facts(), "/run/keys/one")
    assert (found.digest, found.owes_restarts, found.file) == (digest(b"old"), True, lies(b"new"))
    await host.deliver_keys([machine_key("/run/keys/one", b"new", "mine.service")], [])
    found = delivered(await host.facts(), "/run/keys/one")
    assert (found.digest, found.owes_restarts) == (digest(b"new"), False)
    assert await machine.restarts("mine.service") == 1
    await host.close()


@pytest.mark.lab
async def test_a_first_delivery_that_is_killed_leaves_nothing_that_nobody_knows_of(machine: MachineBench) -> None:
    host = await reached(machine)
    await host.facts()
    agent = f"/var/lib/nixops/agent-{load_agent().digest}"
    cut = "sed 's/^exchange_keys() {/&\\n kill -9 $$/' " + agent + " >/root/cut && sh /root/cut keys"
    await machine.run("sh", "-c", f"{cut}; true", stdin=asked("/run/keys/one", b"secret"))
    assert (await machine.run("ls", "-A", "/run/keys")).split() == [".one.nixops-new"]
    assert (delivered(await host.facts(), "/run/keys/one").digest, await machine.file("/run/keys/one")) == ("", None)
    await host.deliver_keys([], ["/run/keys/one"])
    assert (await machine.run("ls", "-A", "/run/keys")).split() == []
    assert (await host.facts()).keys == ()
    await host.close()


@pytest.mark.lab
async def test_a_reader_sees_the_old_content_or_the_new_one(machine: MachineBench) -> None:
    host = await reached(machine)
    contents = [b"a" * 300_000, b"b" * 400_000]
    await host.deliver_keys([machine_key("/run/keys/one", contents[0])], [])
    reading = "while [ ! -e /run/over ]; do sha256sum </run/keys/one; done | sort -u"
    reader = asyncio.create_task(machine.run("sh", "-c", reading))
    for turn in range(6):
        await host.deliver_keys([machine_key("/run/keys/one", contents[turn % 2])], [])
    await machine.run("touch", "/run/over")
    seen_ones = {line.split()[0] for line in (await reader).splitlines()}
    assert seen_ones <= {hashlib.sha256(content).hexdigest() for content in contents}
    await host.close()


@pytest.mark.lab
async def test_folders_are_those_of_people_who_may_read_keys(machine: MachineBench) -> None:
    host = await reached(machine)
    await host.deliver_keys([machine_key("/run/keys/one"), machine_key("/srv/app/keys/one")], [])
    for folder in ("/run/keys", "/srv/app/keys"):
        assert (await machine.run("stat", "-c", "%a %U %G", folder)).strip() == "750 root keys"
    assert (await machine.run("stat", "-c", "%a %U %G", "/var/lib/nixops/keys")).strip() == "600 root root"
    await host.close()


@pytest.mark.lab
async def test_a_link_into_the_store_or_at_a_key_s_place_leads_nowhere(machine: MachineBench) -> None:
    host = await reached(machine)
    await machine.run("sh", "-c", "mkdir -p /srv; ln -s /nix/var /srv/link; echo theirs >/srv/theirs")
    with pytest.raises(Retry, match="lies in /nix"):
        await host.deliver_keys([machine_key("/srv/link/one")], [])
    await machine.run(
        "sh", "-c", "mkdir /srv/keys; ln -s /srv/theirs /srv/keys/one; ln -s /srv/theirs /srv/keys/.one.nixops-new"
    )
    await host.deliver_keys([machine_key("/srv/keys/one")], [])
    assert await machine.file("/srv/theirs") == File(b"theirs\n", 0o644)
    assert await machine.file("/srv/keys/one") == File(BYTES)
    await host.close()


@pytest.mark.lab
@pytest.mark.parametrize(
    "words",
    [
        "put /run/../etc/one 600 root root {digest} -",
        "put run/one 600 root root {digest} -",
        "put /run/one 4600 root root {digest} -",
        "put /run/one 600 root $(reboot) {digest} -",
        "put /run/one 600 root root {digest} --now",
        "take /run/one 600 root root {digest} -",
        "drop /run/*",
    ],
)
async def test_what_is_not_of_the_agreed_form_is_refused(machine: MachineBench, words: str) -> None:
    host = await reached(machine)
    stdin = frame(words.format(digest=digest(b"x")) + "\n", b"x")
    assert await call(machine, host, stdin) == "64\n"
    assert (await host.facts()).keys == ()
    await host.close()


@pytest.mark.lab
async def test_lines_that_somebody_damaged_are_nobody_s(machine: MachineBench) -> None:
    host = await reached(machine)
    await host.deliver_keys([machine_key("/run/keys/one")], [])
    await machine.run("sh", "-c", "printf 'x\\n/run/../a 600 root root - whole 0\\n\\n' >>/var/lib/nixops/keys")
    assert [one.path for one in (await host.facts()).keys] == ["/run/keys/one"]
    await host.deliver_keys([machine_key("/run/keys/two")], [])
    assert [one.path for one in (await host.facts()).keys] == ["/run/keys/one", "/run/keys/two"]
    await host.close()


@pytest.mark.lab
async def test_an_owner_of_any_name_holds_up_no_look(machine: MachineBench) -> None:
    """SSSD calls accounts alice@example.org; nothing was known of the machine any more until somebody gave it back."""
    host = await reached(machine)
    await host.deliver_keys([machine_key("/run/keys/one", b"x")], [])
    await machine.run(
        "sh", "-c", "echo 'alice@example.org:x:1777:1777::/:/bin/sh' >>/etc/passwd; chown 1777 /run/keys/one"
    )

    found = delivered(await host.facts(), "/run/keys/one").file

    assert found is not None
    assert (found.user, found.group) == ("-", "root")
    await host.close()


@pytest.mark.lab
async def test_a_file_that_is_no_file_holds_up_no_look(machine: MachineBench) -> None:
    host = await reached(machine)
    await host.deliver_keys([machine_key(f"/run/keys/{name}") for name in ("pipe", "link", "large")], [])
    await machine.run("sh", "-c", "cd /run/keys && rm * && mkfifo pipe && ln -s /dev/zero link && truncate -s 9T large")
    found = {one.path: one.file for one in (await host.facts()).keys}
    assert all(file is not None and file.sha256 == "" for file in found.values())
    await host.close()
