"""What an activation leaves behind in each mode, and where nobody may return."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from contract.host_benches import BENCHES, Bench, reached, request, seen
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.host import ActivationFacts, ActivationState, HostFacts, Mode
from nixops_operator.ports.host import Host

SWITCHED, COMMITTED = ActivationState.SWITCHED, ActivationState.COMMITTED
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
        assert caught.value.reason is Reason.ACTIVATION_FAILED
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
