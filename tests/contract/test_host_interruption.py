"""The agent killed before each of its effects: whoever looks next brings it to one of the two good ends.

A copy of the script carries a `cut_here` before every line that changes something. One run notes which of them it
comes by; then each of these kills the script once (SIGKILL, in the session or in a unit of systemd), and an operator
that knows nothing but the facts goes on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from contract.host_benches import LIMIT, MachineBench, on_machine, reached, request
from nixops_lab.machines import Completed
from nixops_operator.adapters.ssh.agent import frame, load_agent
from nixops_operator.adapters.ssh.facts import parse_facts
from nixops_operator.facts.host import ActivationRequest, ActivationState, HostFacts

pytestmark = [pytest.mark.lab, pytest.mark.long(instead="contract/test_host_activation.py")]

CUT_HERE = """
cut_here() {
    echo "$1" >>/run/came-by
    if [ "$(cat /run/cut-at 2>/dev/null)" = "$1" ]; then
        rm -f /run/cut-at
        kill -KILL $$
    fi
}
"""
# Killed anywhere else, it is as if it were killed before the next of these.
EFFECT = re.compile(
    r"^ {4,}(?!case |if |until |while |done|exec )"
    r"(?=.*(?:\bmove |\bmv |\bln |\brm |\bpoint |\barm |\brun_unit |\brun_install |systemctl (?:stop|start)|\brelease|"
    r"\btidy|\bleave|\bstop_timers|\bsettle|\bprune|\blay_down|\binstall_system|nix-env|configuration\" boot|"
    r"\breturn_from |\bstart_rollback|\bswitch_back|\bopen_sshd|\bmkdir |>\"))"
)
CONTINUED = re.compile(r"(\\|\|\||&&)$")
PATTERN = re.compile(r"^\s*[^\s()]+( \| [^\s()]+)*\) ")
LINE_OF_A_LIST = re.compile(r";;$")
FUNCTION = re.compile(r"^([a-z_]+)\(\) \{$")
BEFORE_FUNCTIONS = "# --- arguments\n"


def instrumented(script: str) -> str:
    head, separator, body = script.partition(BEFORE_FUNCTIONS)
    lines: list[str] = []
    previous = function = ""
    for number, line in enumerate(body.splitlines()):
        if starts := FUNCTION.match(line):
            function = starts[1]
        is_statement = not (CONTINUED.search(previous) or PATTERN.match(line) or LINE_OF_A_LIST.search(line))
        if EFFECT.match(line) and is_statement:
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}cut_here {function}:{number}")
        lines.append(line)
        previous = line
    return "\n".join([head + CUT_HERE + separator, *lines]) + "\n"


@dataclass
class Operator:
    """Decides from facts alone, with every call made through the instrumented script."""

    machine: MachineBench
    confirms: bool

    async def call(self, *words: str, stdin: bytes = b"") -> Completed:
        return await self.machine.machines.run("given-host", ["sh", "/var/lib/nixops/instrumented", *words], stdin)

    async def look(self) -> HostFacts:
        """A killed look is no look."""
        while True:
            done = await self.call("facts")
            if done.exit_status == 0:
                return parse_facts(done.stdout.decode())
            assert done.exit_status < 0 or done.exit_status == 137, done

    async def reach(self, asked: ActivationRequest) -> HostFacts:
        claim = frame(
            asked.toplevel,
            asked.previous,
            *(str(int(t.total_seconds())) for t in (asked.timeout, asked.confirm_timeout)),
            asked.mode,
            "yes" if asked.returns else "no",
        )
        for _ in range(400):
            facts = await self.look()
            activation = facts.activation
            if activation is None or activation.id != asked.id:
                await self.call("claim", asked.id, stdin=claim)
                continue
            match activation.state:
                case ActivationState.PREPARED:
                    # The directory may be there without the claim.
                    await self.call("claim", asked.id, stdin=claim)
                    await self.call("activate", asked.id)
                case ActivationState.SWITCHING | ActivationState.ROLLING_BACK if not activation.is_unit_active:
                    await self.call("rollback", asked.id)
                case ActivationState.SWITCHED if self.confirms:
                    await self.call("confirm", asked.id)
                case ActivationState.CONFIRMED:
                    await self.call("commit", asked.id)
                case ActivationState.COMMITTED | ActivationState.ROLLED_BACK | ActivationState.FAILED:
                    return facts
                case _:
                    await self.machine.pause()
        raise AssertionError(f"no end in sight: {facts}")


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as bench:
        await bench.run("mkdir", "-p", "-m", "700", "/var/lib/nixops")
        script = instrumented(load_agent().script.decode())
        await bench.run("sh", "-c", "cat > /var/lib/nixops/instrumented", stdin=script.encode())
        await bench.run("sh", "-n", "/var/lib/nixops/instrumented")
        yield bench


async def deliver(machine: MachineBench, *names: str) -> list[str]:
    host = await reached(machine)
    toplevels = [await machine.deliver(host, name) for name in names]
    await host.close()
    return toplevels


async def points_on_the_way(machine: MachineBench) -> list[str]:
    """Where the script came by, in order."""
    return list(dict.fromkeys((await machine.run("cat", "/run/came-by")).split()))


async def assert_nothing_stays(machine: MachineBench) -> None:
    """A timer that a killed step has left tidies up when it wakes; nothing else is left."""
    for service in await names_of_units(machine, "nixops-deadman-*.service", "nixops-confirm-*.service"):
        await machine.run("systemctl", "start", service)
    async with asyncio.timeout(LIMIT):
        while await names_of_units(machine, "nixops-*"):
            await machine.pause()
    assert "active" not in await machine.run("ls", "/var/lib/nixops/activation")


async def names_of_units(machine: MachineBench, *patterns: str) -> list[str]:
    lines = await machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", *patterns)
    return [line.split()[0] for line in lines.splitlines()]


async def assert_it_ended_whole(machine: MachineBench, facts: HostFacts, asked: ActivationRequest, at: str) -> None:
    assert facts.activation is not None
    is_committed = facts.activation.state is ActivationState.COMMITTED
    systems = (facts.current_system, facts.profile_system, await machine.boot_entry())
    assert (at, systems) == (at, (asked.toplevel if is_committed else asked.previous,) * 3)
    assert (at, facts.lists_left, facts.boot_entry_unsure) == (at, False, False)


CONFIRMED = {
    *(
        "claim",
        "claimed",
        "lay_down",
        "point",
        "activate",
        "arm",
        "run_unit",
        "begin",
        "finish",
        "confirm",
        "stop_timers",
    ),
    *("commit", "run_install", "install_activated", "install_system", "settle", "tidy", "release"),
}
RETURNING = {
    "finish",
    "expire",
    "return_from",
    "start_rollback",
    "return_to_previous",
    "leave",
    "open_sshd",
    "tidy",
    "release",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("names", "confirms", "cut_in"),
    [
        pytest.param(("good", "better"), True, CONFIRMED, id="confirmed"),
        pytest.param(("fails in a snippet",), True, RETURNING, id="mixed"),
        pytest.param(("ends with 1",), True, {"finish", "tidy", "release"}, id="refused"),
        pytest.param(("good",), False, {"expire", "return_from", "start_rollback", "tidy"}, id="unconfirmed"),
    ],
)
async def test_killed_before_any_effect_an_activation_still_ends_whole(
    machine: MachineBench, names: tuple[str, ...], confirms: bool, cut_in: set[str]
) -> None:
    toplevels = await deliver(machine, *names)
    operator = Operator(machine, confirms)

    async def activated(at: str) -> None:
        before = await operator.look()
        toplevel = next(each for each in toplevels if each != before.current_system)
        asked = request(toplevel, before, confirm_timeout=30 if confirms else 1)
        facts = await operator.reach(asked)
        await assert_it_ended_whole(machine, facts, asked, at)

    await activated("nowhere")
    points = [point for point in await points_on_the_way(machine) if point.partition(":")[0] in cut_in]
    assert points != []
    for point in points:
        await machine.run("sh", "-c", f"echo {point} >/run/cut-at")
        await activated(point)
        assert await machine.run("sh", "-c", "cat /run/cut-at 2>/dev/null || true") == "", f"{point} was not met"
    await activated("nowhere again")
    await assert_nothing_stays(machine)
