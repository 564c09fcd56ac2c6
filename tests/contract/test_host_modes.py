"""What an activation leaves behind in each mode, and where nobody may return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest

from contract.host_benches import BENCHES, LIMIT, Bench, is_in_memory, on_machine, reached, request, seen
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.host import ActivationFacts, ActivationRequest, ActivationState, HostFacts, Mode
from nixops_operator.ports.host import Host

SWITCHED, CONFIRMED, COMMITTED = ActivationState.SWITCHED, ActivationState.CONFIRMED, ActivationState.COMMITTED
REBOOTING, ROLLING_BACK = ActivationState.REBOOTING, ActivationState.ROLLING_BACK
ROLLED_BACK, FAILED = ActivationState.ROLLED_BACK, ActivationState.FAILED


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    with suppress(Retry):
        await host.close()


def activation_of(facts: HostFacts) -> ActivationFacts:
    assert facts.activation is not None
    return facts.activation


async def systems(bench: Bench, host: Host) -> tuple[str | None, str | None, str]:
    """What runs, the profile, what would boot."""
    facts = await host.facts()
    return facts.current_system, facts.profile_system, await bench.boot_entry()


async def test_a_test_runs_until_the_machine_restarts(bench: Bench, host: Host) -> None:
    good = await bench.deliver(host, "good")
    asked = request(good, await host.facts(), mode=Mode.TEST)
    assert await host.claim(asked)
    await host.activate(asked)
    assert activation_of(await seen(bench, SWITCHED)).mode is Mode.TEST
    assert await host.confirm(asked.id)
    await host.commit(asked.id)
    await host.commit(asked.id)

    assert activation_of(await host.facts()).state is COMMITTED
    assert await systems(bench, host) == (good, bench.base, bench.base)
    assert await host.claim(request(bench.base, await host.facts()))

    await bench.reboot()
    again = await reached(bench)
    assert await systems(bench, again) == (bench.base,) * 3
    await again.close()


async def test_a_test_that_nobody_confirms_returns(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts(), confirm_timeout=2, mode=Mode.TEST)
    assert await host.claim(asked)
    await host.activate(asked)
    assert (await seen(bench, ROLLED_BACK)).current_system == bench.base


async def test_what_is_for_the_next_boot_changes_nothing_before(bench: Bench, host: Host) -> None:
    good = await bench.deliver(host, "good")
    assert await host.root_next(good)
    asked = request(good, await host.facts(), mode=Mode.BOOT)
    assert await host.claim(asked)
    with pytest.raises(Retry, match="for the next boot"):
        await host.activate(asked)
    await host.commit(asked.id)
    await host.commit(asked.id)

    facts = await host.facts()
    assert (activation_of(facts).state, activation_of(facts).mode) == (COMMITTED, Mode.BOOT)
    assert not facts.boot_entry_unsure
    assert await systems(bench, host) == (bench.base, good, good)
    assert await bench.switches() == 0

    await bench.reboot()
    again = await reached(bench)
    assert await systems(bench, again) == (good,) * 3
    await again.close()


async def test_a_boot_entry_that_is_refused_can_be_tried_again(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "refuses to boot"), await host.facts(), mode=Mode.BOOT)
    assert await host.claim(asked)
    for _ in range(2):
        with pytest.raises(Retry) as caught:
            await host.commit(asked.id)
        assert caught.value.reason is Reason.BOOT_ENTRY_FAILED
    facts = await host.facts()
    assert (activation_of(facts).state, facts.current_system) == (ActivationState.PREPARED, bench.base)
    await host.rollback(asked.id)
    assert activation_of(await seen(bench, ROLLED_BACK)).mode is Mode.BOOT


async def test_who_must_not_return_waits_for_ever_to_be_confirmed(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts(), confirm_timeout=1, returns=False)
    assert await host.claim(asked)
    await host.activate(asked)
    activation = activation_of(await seen(bench, SWITCHED))
    assert (activation.returns, activation.is_timer_armed) == (False, False)
    assert await host.confirm(asked.id)
    await host.commit(asked.id)
    assert await systems(bench, host) == (asked.toplevel,) * 3


@pytest.mark.parametrize(
    ("name", "runs"), [("fails in a snippet", True), ("hangs midway", True), ("ends with 1", False)]
)
async def test_who_must_not_return_stays_as_it_is_when_it_goes_wrong(
    bench: Bench, host: Host, name: str, runs: bool
) -> None:
    seconds = 3 if "hangs" in name else 60
    asked = request(await bench.deliver(host, name), await host.facts(), timeout=seconds, returns=False)
    assert await host.claim(asked)
    await host.activate(asked)

    facts = await seen(bench, FAILED)

    if name != "hangs midway" or facts.current_system == asked.toplevel:
        assert (facts.current_system == asked.toplevel) is runs
    assert (facts.profile_system, await bench.boot_entry()) == (bench.base,) * 2
    assert await host.claim(request(bench.base, facts))


async def test_where_nobody_may_return_a_call_for_the_way_back_ends_it(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "takes a while"), await host.facts(), returns=False)
    assert await host.claim(asked)
    await host.activate(asked)
    while await bench.switches() == 0:
        await bench.pause()
    await bench.kill_switch_and_finish(asked.id)
    await host.rollback(asked.id)
    assert activation_of(await seen(bench, FAILED)).returns is False
    assert await bench.switches() == 1


async def test_a_dry_run_says_what_would_be_and_changes_nothing(bench: Bench, host: Host) -> None:
    good = await bench.deliver(host, "good")

    run = await host.dry_activate(good)

    assert run.exit_status == 0
    assert "would activate the configuration..." in run.output
    assert await systems(bench, host) == (bench.base,) * 3
    assert ((await host.facts()).activation, await bench.switches()) == (None, 0)
    with pytest.raises(Retry, match="has no bin/switch-to-configuration"):
        await host.dry_activate(bench.store_path("better"))


async def restarted(bench: Bench, before: str) -> HostFacts:
    """The first look that shows another boot."""
    async with asyncio.timeout(LIMIT):
        while True:
            with suppress(Retry):
                host = await reached(bench)
                try:
                    facts = await host.facts()
                finally:
                    await host.close()
                if facts.boot_id != before:
                    return facts
            await bench.pause()


async def armed(host: Host, bench: Bench) -> None:
    """The new system's guard runs as it comes up; sshd may be there first."""
    async with asyncio.timeout(LIMIT):
        while not activation_of(await host.facts()).is_timer_armed:
            await bench.pause()


async def restart(bench: Bench, host: Host, name: str) -> ActivationRequest:
    """Restarted into that system, and its guard waits."""
    facts = await host.facts()
    asked = request(await bench.deliver(host, name), facts, mode=Mode.RESTART)
    assert await host.claim(asked)
    with suppress(Retry):  # the reply may go down with the machine
        await host.restart(asked.id)
    facts = await restarted(bench, facts.boot_id)
    state, booted = activation_of(facts).state, facts.booted_system
    assert (state, facts.current_system, booted) == (REBOOTING, asked.toplevel, asked.toplevel)
    return asked


async def test_a_machine_restarts_into_a_new_system_and_waits_to_be_confirmed(bench: Bench, host: Host) -> None:
    asked = await restart(bench, host, "guarded")
    again = await reached(bench)
    await armed(again, bench)
    assert not await again.claim(request(bench.base, await again.facts()))
    await again.restart(asked.id)
    assert await again.hold(asked.id, timedelta(minutes=5))
    assert await again.confirm(asked.id)
    facts = await again.facts()
    assert (activation_of(facts).state, activation_of(facts).is_timer_armed) == (CONFIRMED, False)
    assert await systems(bench, again) == (asked.toplevel, asked.toplevel, bench.base)
    await again.commit(asked.id)
    facts = await again.facts()
    assert (activation_of(facts).state, facts.boot_entry_unsure) == (COMMITTED, False)
    assert await systems(bench, again) == (asked.toplevel,) * 3
    assert await again.claim(request(bench.base, facts))
    await again.close()


@pytest.mark.parametrize("is_asked_for", [False, True], ids=["by itself", "when an operator says so"])
async def test_what_was_booted_and_not_confirmed_is_left_by_another_boot(
    bench: Bench, host: Host, is_asked_for: bool
) -> None:
    asked = await restart(bench, host, "guarded")
    again = await reached(bench)
    await armed(again, bench)
    before = (await again.facts()).boot_id
    if is_asked_for:
        with suppress(Retry):
            await again.rollback(asked.id)
    else:
        await bench.let_dead_man_wake(asked.id, "confirm")
    facts = await restarted(bench, before)
    assert (activation_of(facts).state, facts.current_system) == (ROLLED_BACK, bench.base)
    late = await reached(bench)
    assert await systems(bench, late) == (bench.base,) * 3
    assert not await late.confirm(asked.id)
    await late.close()


@pytest.mark.parametrize("name", ["panics", "panics with variants"])
async def test_a_kernel_that_does_not_come_up_is_left_by_the_reset(bench: Bench, host: Host, name: str) -> None:
    facts = await host.facts()
    asked = request(await bench.deliver(host, name), facts, mode=Mode.RESTART)
    assert await host.claim(asked)
    with suppress(Retry):
        await host.restart(asked.id)
    facts = await restarted(bench, facts.boot_id)
    assert (facts.current_system, facts.booted_system) == (bench.base, bench.base)
    assert activation_of(facts).state is REBOOTING

    again = await reached(bench)
    await again.rollback(asked.id)
    assert activation_of(await seen(bench, ROLLED_BACK)).toplevel == asked.toplevel
    assert await systems(bench, again) == (bench.base,) * 3
    assert not (await again.facts()).boot_entry_unsure
    await again.close()


async def test_nobody_cuts_the_way_back_from_a_restart(bench: Bench, host: Host) -> None:
    facts = await host.facts()
    asked = request(await bench.deliver(host, "panics"), facts, mode=Mode.RESTART)
    assert await host.claim(asked)
    with suppress(Retry):
        await host.restart(asked.id)
    facts = await restarted(bench, facts.boot_id)

    again = await reached(bench)
    await bench.delay_way_back()
    await again.rollback(asked.id)
    assert activation_of(await again.facts()).state is ROLLING_BACK
    assert not await again.claim(request(asked.toplevel, facts))
    await bench.end_delay()
    facts = await seen(bench, ROLLED_BACK)
    assert await again.claim(request(asked.toplevel, facts))
    await again.close()


@pytest.mark.lab
async def test_a_machine_whose_boot_loader_refuses_the_way_back_boots_what_it_boots_by_itself() -> None:
    """A guard that cannot take the boot entry back has to return all the same, and says nothing that is not so."""
    async with on_machine() as machine:
        asked = await restart(machine, await reached(machine), "guarded")
        again = await reached(machine)
        await armed(again, machine)
        before = (await again.facts()).boot_id
        await machine.delay_way_back()
        await machine.let_dead_man_wake(asked.id, "confirm")
        assert (await restarted(machine, before)).current_system == machine.base

        late = await reached(machine)
        await late.rollback(asked.id)
        facts = await seen(machine, ROLLED_BACK)
        assert not facts.boot_entry_unsure
        assert await systems(machine, late) == (machine.base,) * 3
        await late.close()


@pytest.mark.lab
async def test_what_is_being_left_by_a_boot_is_never_called_left() -> None:
    """An operator that takes it for over would make what still runs the boot entry, and the machine boot it again."""
    async with on_machine() as machine:
        asked = await restart(machine, await reached(machine), "guarded")
        again = await reached(machine)
        lingering = ["--unit=lingers", "-p", "KillSignal=SIGCONT", "-p", "TimeoutStopSec=3", "sleep", "infinity"]
        await machine.run("systemd-run", *lingering)
        await again.rollback(asked.id)
        states = set()
        with suppress(Retry):
            while True:
                facts = await again.facts()
                if facts.current_system == asked.toplevel:
                    states.add(activation_of(facts).state)
        assert states == {ROLLING_BACK}
        assert (await seen(machine, ROLLED_BACK)).current_system == machine.base


async def test_a_machine_that_is_reset_before_the_confirmation_is_committed_boots_its_previous_system(
    bench: Bench, host: Host
) -> None:
    asked = await restart(bench, host, "guarded")
    again = await reached(bench)
    assert await again.confirm(asked.id)
    await again.close()
    await bench.reboot()
    late = await reached(bench)
    facts = await late.facts()
    assert (activation_of(facts).state, facts.current_system) == (CONFIRMED, bench.base)
    assert await late.claim(request(asked.toplevel, facts))
    await late.close()


async def test_a_restart_is_called_off_before_it_began(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "guarded"), await host.facts(), mode=Mode.RESTART)
    assert await host.claim(asked)
    await host.rollback(asked.id)
    await seen(bench, ROLLED_BACK)
    with pytest.raises(Retry):
        await host.restart(asked.id)
    assert await systems(bench, host) == (bench.base,) * 3


async def test_another_kernel_is_told_and_whether_the_system_before_has_the_booted_one(
    bench: Bench, host: Host
) -> None:
    assert (await host.facts()).restart_for == ()
    other = await bench.deliver(host, "of another kernel")
    if is_in_memory(host):
        host.machine.kernels[other] = "another"  # type: ignore[attr-defined]
    asked = request(other, await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    facts = await seen(bench, SWITCHED)
    assert facts.restart_for == ("kernel" if is_in_memory(host) else "kernel-params",)
    assert activation_of(facts).previous_boots
    assert await host.confirm(asked.id)
    await host.commit(asked.id)
    further = request(await bench.deliver(host, "guarded"), await host.facts())
    assert await host.claim(further)
    facts = await host.facts()
    assert (activation_of(facts).previous, activation_of(facts).previous_boots) == (other, False)


async def test_a_system_that_cannot_be_switched_to_says_so(bench: Bench, host: Host) -> None:
    first = request(await bench.deliver(host, "with an inhibitor"), await host.facts())
    assert await host.claim(first)
    await host.activate(first)
    await seen(bench, SWITCHED)
    assert await host.confirm(first.id)
    await host.commit(first.id)
    for name in ("for a boot alone", "ends with 100"):
        asked = request(await bench.deliver(host, name), await host.facts())
        assert await host.claim(asked)
        await host.activate(asked)
        assert activation_of(await seen(bench, FAILED)).needs_restart, name
