"""An activation's life on a machine: claimed, switched, confirmed, committed; or back where it came from, by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from contract.host_benches import BENCHES, Bench, on_machine, reached, request, seen
from nixops_operator.adapters.ssh.agent import frame, load_agent
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.host import ActivationFacts, ActivationState, HostFacts
from nixops_operator.ports.host import Host

SWITCHED, CONFIRMED, COMMITTED = ActivationState.SWITCHED, ActivationState.CONFIRMED, ActivationState.COMMITTED
ROLLED_BACK, FAILED = ActivationState.ROLLED_BACK, ActivationState.FAILED


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


def activation_of(facts: HostFacts) -> ActivationFacts:
    assert facts.activation is not None
    return facts.activation


async def test_a_first_look_shows_the_system_that_the_machine_booted(bench: Bench, host: Host) -> None:
    facts = await host.facts()
    systems = (facts.current_system, facts.booted_system, facts.profile_system, facts.profile_generation)
    assert systems == (bench.base, bench.base, bench.base, 1)
    assert (facts.is_nixos, facts.version_id, facts.state_version, facts.machine) == (True, "25.11", "25.11", "x86_64")
    assert (facts.activation, facts.highest_attempt, facts.failed_units) == (None, 0, ())
    assert not facts.boot_entry_unsure
    assert not facts.lists_left
    assert facts.free_bytes > 1 << 20


async def test_a_confirmed_activation_moves_profile_and_boot_entry_only_when_it_is_committed(
    bench: Bench, host: Host
) -> None:
    good = await bench.deliver(host, "good")
    assert await host.root_next(good)
    asked = request(good, await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)

    facts = await seen(bench, SWITCHED)
    activation = activation_of(facts)
    assert (activation.id, activation.toplevel, activation.previous) == (asked.id, good, bench.base)
    assert (activation.is_timer_armed, activation.exit_status, activation.service_result) == (True, 0, "success")
    assert (facts.current_system, facts.profile_system, await bench.boot_entry()) == (good, bench.base, bench.base)

    again = await reached(bench)
    assert await again.confirm(asked.id)
    facts = await again.facts()
    assert (activation_of(facts).state, activation_of(facts).is_timer_armed) == (CONFIRMED, False)
    assert (facts.profile_system, await bench.boot_entry()) == (bench.base, bench.base)

    await again.commit(asked.id)
    facts = await again.facts()
    assert activation_of(facts).state is COMMITTED
    assert (facts.profile_system, facts.profile_generation, await bench.boot_entry()) == (good, 2, good)
    assert not facts.boot_entry_unsure
    await again.close()


async def test_every_call_may_be_repeated(bench: Bench, host: Host) -> None:
    good = await bench.deliver(host, "good")
    assert [await host.root_next(good) for _ in range(2)] == [True, True]
    asked = request(good, await host.facts())
    assert [await host.claim(asked) for _ in range(2)] == [True, True]
    await host.activate(asked)
    await host.activate(asked)
    await seen(bench, SWITCHED)
    await host.activate(asked)
    assert await host.claim(asked)
    assert [await host.confirm(asked.id) for _ in range(2)] == [True, True]
    await host.activate(asked)
    await host.commit(asked.id)
    await host.commit(asked.id)
    await host.activate(asked)
    assert await host.confirm(asked.id)
    facts = await host.facts()
    assert (activation_of(facts).state, facts.profile_generation, facts.current_system) == (COMMITTED, 2, good)
    assert await bench.switches() == 1


async def test_of_two_operators_one_holds_the_claim(bench: Bench, host: Host) -> None:
    good, better = await bench.deliver(host, "good"), await bench.deliver(host, "better")
    other = await reached(bench)
    facts = await host.facts()
    mine, theirs = request(good, facts), request(better, facts)
    assert sorted(await asyncio.gather(host.claim(mine), other.claim(theirs))) == [False, True]
    holder = activation_of(await host.facts()).id
    assert [await host.claim(mine), await other.claim(theirs)] == [holder == mine.id, holder == theirs.id]
    await other.close()


@pytest.mark.lab
async def test_two_claims_never_look_at_the_link_at_the_same_time() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        asked = request(await machine.deliver(host, "good"), await host.facts())
        await machine.run("mkdir", "-p", "/var/lib/nixops/activation")
        lock = "/var/lib/nixops/activation/lock"
        await machine.run("systemd-run", "--unit=lock-holder", "flock", lock, "sleep", "infinity")
        while (await machine.run("sh", "-c", f"flock --nonblock {lock} true && echo free || echo held")) != "held\n":
            await machine.pause()
        claim = asyncio.create_task(host.claim(asked))
        for _ in range(10):
            facts = await host.facts()
        assert (claim.done(), facts.activation) == (False, None)
        await machine.run("systemctl", "stop", "lock-holder.service")
        assert await claim
        await host.close()


async def test_a_claim_needs_both_systems_on_the_machine(bench: Bench, host: Host) -> None:
    asked = request(bench.store_path("good"), await host.facts())
    with pytest.raises(Retry) as caught:
        await host.claim(asked)
    assert caught.value.reason is Reason.ACTIVATION_FAILED
    assert "has no bin/switch-to-configuration" in caught.value.message
    assert (await host.facts()).activation is None


async def test_a_system_that_is_not_there_is_not_rooted(bench: Bench, host: Host) -> None:
    assert not await host.root_next(bench.store_path("good"))


@pytest.mark.parametrize("name", ["good", "good Perl", "good 2020", "restarts systemd"])
async def test_without_confirmation_the_machine_returns_by_itself(bench: Bench, host: Host, name: str) -> None:
    asked = request(await bench.deliver(host, name), await host.facts(), confirm_timeout=2)
    assert await host.claim(asked)
    await host.activate(asked)
    await host.close()

    facts = await seen(bench, ROLLED_BACK)
    assert (facts.current_system, facts.profile_system, await bench.boot_entry()) == (bench.base,) * 3
    assert (activation_of(facts).is_timer_armed, facts.lists_left) == (False, False)
    assert activation_of(facts).exit_status == 0
    late = await reached(bench)
    assert not await late.confirm(asked.id)
    with pytest.raises(Retry, match="is not confirmed"):
        await late.commit(asked.id)
    assert not await late.claim(asked)
    await late.close()


@pytest.mark.parametrize(
    ("name", "state", "exit_status", "service_result"),
    [
        pytest.param("ends with 1", FAILED, 1, "exit-code", id="1, nothing moved: failed"),
        pytest.param("ends with 11", FAILED, 11, "exit-code", id="11, somebody else has the lock: failed"),
        pytest.param("ends with 100", FAILED, 100, "exit-code", id="100, another init interface: failed"),
        pytest.param("gives up at once", FAILED, 255, "exit-code", id="255, Perl died before anything: failed"),
        pytest.param("gives up before the link moves", ROLLED_BACK, 1, "exit-code", id="1, scripts had run: back"),
        pytest.param("gives up at its end", ROLLED_BACK, 255, "exit-code", id="255, Perl died at the end: back"),
        pytest.param("fails in a snippet", ROLLED_BACK, 2, "exit-code", id="2, a snippet failed: back"),
        pytest.param("ends with 3", ROLLED_BACK, 3, "exit-code", id="3, systemd was not reloaded: back"),
        pytest.param("fails in a unit", SWITCHED, 4, "exit-code", id="4, a unit failed: switched"),
        pytest.param("fails in a snippet and a unit", ROLLED_BACK, 4, "exit-code", id="4 that hides a 2: back"),
        pytest.param("Perl fails in a snippet and a unit", ROLLED_BACK, 4, "exit-code", id="the same of Perl's: back"),
        pytest.param("2020 fails in a snippet and a unit", ROLLED_BACK, 4, "exit-code", id="the same of 2020: back"),
        pytest.param(
            "quotes a failed switch", SWITCHED, 4, "exit-code", id="4, a unit quotes a failed script: switched"
        ),
        pytest.param("2020 hangs midway", ROLLED_BACK, None, "timeout", id="2020, hangs after the link moved: back"),
        pytest.param("hangs before", ROLLED_BACK, None, "timeout", id="hangs before anything moved: back"),
        pytest.param("hangs midway", ROLLED_BACK, None, "timeout", id="hangs after the link moved: back"),
        pytest.param("spins with the lock", ROLLED_BACK, None, "timeout", id="spins with the lock held: back"),
    ],
)
async def test_an_end_of_switch_to_configuration(
    bench: Bench, host: Host, name: str, state: ActivationState, exit_status: int | None, service_result: str
) -> None:
    seconds = 3 if service_result == "timeout" else 60
    asked = request(await bench.deliver(host, name), await host.facts(), timeout=seconds)
    assert await host.claim(asked)
    await host.activate(asked)

    facts = await seen(bench, FAILED, ROLLED_BACK, SWITCHED)
    activation = activation_of(facts)
    assert (activation.state, activation.exit_status, activation.service_result) == (state, exit_status, service_result)
    assert facts.current_system == (asked.toplevel if state is SWITCHED else bench.base)
    assert facts.failed_units == (("test-fail-unit.service",) if state is SWITCHED else ())
    assert not facts.lists_left
    # The next attempt finds the machine free, unless this one waits for confirmation.
    following = request(bench.base, facts)
    assert await host.claim(following) is (state is not SWITCHED)


async def test_a_killed_activation_returns(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "takes a while"), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    assert activation_of(await host.facts()).state is ActivationState.SWITCHING
    assert activation_of(await host.facts()).is_unit_active
    await bench.kill_switch(asked.id)

    facts = await seen(bench, ROLLED_BACK)
    assert (activation_of(facts).exit_status, activation_of(facts).service_result) == (None, "signal")
    assert facts.current_system == bench.base


async def test_where_nothing_recorded_the_end_the_look_says_so_and_a_rollback_mends_it(
    bench: Bench, host: Host
) -> None:
    asked = request(await bench.deliver(host, "takes a while"), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    await bench.kill_switch_and_finish(asked.id)

    activation = activation_of(await host.facts())
    assert (activation.state, activation.is_unit_active, activation.is_timer_armed) == ("switching", False, True)
    await host.activate(asked)
    assert not activation_of(await host.facts()).is_unit_active
    await host.rollback(asked.id)
    assert (await seen(bench, ROLLED_BACK)).current_system == bench.base


async def test_where_nothing_recorded_the_end_the_dead_man_returns_without_an_operator(
    bench: Bench, host: Host
) -> None:
    asked = request(await bench.deliver(host, "takes a while"), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    await bench.kill_switch_and_finish(asked.id)
    await host.close()
    await bench.let_dead_man_wake(asked.id)
    facts = await seen(bench, ROLLED_BACK)
    assert facts.current_system == bench.base


@pytest.mark.parametrize("name", ["stops sshd", "drops the network"])
async def test_a_system_that_locks_everybody_out_is_left_again_without_an_operator(
    bench: Bench, host: Host, name: str
) -> None:
    asked = request(await bench.deliver(host, name), await host.facts(), confirm_timeout=3)
    assert await host.claim(asked)
    with suppress(Retry):  # the reply may be lost with the network
        await host.activate(asked)
    facts = await seen(bench, ROLLED_BACK)
    assert facts.current_system == bench.base
    assert activation_of(facts).exit_status == 0


@pytest.mark.parametrize("is_confirmed", [False, True], ids=["switched", "confirmed"])
async def test_an_operator_may_ask_for_the_way_back(bench: Bench, host: Host, is_confirmed: bool) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    await seen(bench, SWITCHED)
    if is_confirmed:
        assert await host.confirm(asked.id)
    await host.rollback(asked.id)
    assert (await seen(bench, ROLLED_BACK)).current_system == bench.base
    await host.rollback(asked.id)
    assert activation_of(await host.facts()).state is ROLLED_BACK


async def test_a_claim_can_be_given_up_before_anything_ran(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts())
    assert await host.claim(asked)
    await host.rollback(asked.id)
    facts = await seen(bench, ROLLED_BACK)
    await host.activate(asked)
    assert (await bench.switches(), facts.current_system) == (0, bench.base)
    assert await host.claim(request(asked.toplevel, facts))


async def test_a_commit_that_the_boot_loader_refuses_can_be_repeated_or_superseded(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "refuses to boot"), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    await seen(bench, SWITCHED)
    assert await host.confirm(asked.id)
    for _ in range(2):
        with pytest.raises(Retry) as caught:
            await host.commit(asked.id)
        assert caught.value.reason is Reason.BOOT_ENTRY_FAILED
    facts = await host.facts()
    assert (activation_of(facts).state, facts.boot_entry_unsure, facts.current_system) == (
        CONFIRMED,
        True,
        asked.toplevel,
    )
    assert await bench.boot_entry() == bench.base

    mended = request(await bench.deliver(host, "good"), facts)
    assert await host.claim(mended)
    with pytest.raises(Retry, match="has superseded"):
        await host.commit(asked.id)
    await host.activate(mended)
    await seen(bench, SWITCHED)
    assert await host.confirm(mended.id)
    await host.commit(mended.id)
    facts = await host.facts()
    assert (facts.boot_entry_unsure, facts.profile_system, await bench.boot_entry()) == (
        False,
        mended.toplevel,
        mended.toplevel,
    )


async def test_a_restart_before_confirmation_ends_the_activation(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    before = await seen(bench, SWITCHED)
    await bench.reboot()

    again = await reached(bench)
    facts = await again.facts()
    activation = activation_of(facts)
    assert (facts.current_system, facts.booted_system) == (bench.base, bench.base)
    assert (facts.boot_id != before.boot_id, activation.boot_id) == (True, before.boot_id)
    assert (activation.state, activation.is_unit_active, activation.is_timer_armed) == (SWITCHED, False, False)
    assert not await again.confirm(asked.id)
    assert not await again.claim(asked)
    following = request(asked.toplevel, facts)
    assert await again.claim(following)
    await again.activate(following)
    assert (await seen(bench, SWITCHED)).current_system == asked.toplevel
    await again.close()


async def test_a_claim_from_before_a_restart_starts_nothing(bench: Bench, host: Host) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts())
    assert await host.claim(asked)
    await bench.reboot()
    again = await reached(bench)
    with pytest.raises(Retry, match="has restarted since"):
        await again.activate(asked)
    assert (await again.facts()).current_system == bench.base
    await again.close()


async def test_a_running_system_can_be_adopted_but_not_one_that_waits_for_confirmation(
    bench: Bench, host: Host
) -> None:
    asked = request(await bench.deliver(host, "good"), await host.facts())
    with pytest.raises(Retry, match="is not the running system"):
        await host.adopt(asked.toplevel)
    assert await host.claim(asked)
    await host.activate(asked)
    await seen(bench, SWITCHED)
    with pytest.raises(Retry, match="is under way"):
        await host.adopt(asked.toplevel)
    assert (await host.facts()).profile_system == bench.base
    assert await host.confirm(asked.id)
    await host.adopt(asked.toplevel)
    await host.adopt(asked.toplevel)
    facts = await host.facts()
    assert (facts.profile_system, facts.profile_generation, await bench.boot_entry()) == (
        asked.toplevel,
        2,
        asked.toplevel,
    )


async def test_directories_of_the_last_five_activations_are_kept(bench: Bench, host: Host) -> None:
    good = await bench.deliver(host, "good")
    first = request(good, await host.facts())
    for attempt in range(1, 8):
        asked = request(good, await host.facts(), attempt=attempt)
        assert await host.claim(asked)
        await host.rollback(asked.id)
        await seen(bench, ROLLED_BACK)
    assert (await host.facts()).highest_attempt == 7
    assert await host.activation_log(asked.id) == ""
    with pytest.raises(Retry, match=f"no activation {first.id}"):
        await host.activation_log(first.id)


async def test_a_call_for_an_activation_that_never_was_is_refused(bench: Bench, host: Host) -> None:
    for call in (host.confirm, host.commit, host.rollback, host.activation_log):
        with pytest.raises(Retry, match="no activation zzzzzzzz-9 on this host"):
            await call("zzzzzzzz-9")


@pytest.mark.lab
async def test_only_lists_with_units_on_them_wait_to_be_completed() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        await machine.run("sh", "-c", "for each in start restart reload; do : >/run/nixos/$each-list; done")
        assert not (await host.facts()).lists_left
        for folder in ("nixos", "systemd"):
            await machine.run("sh", "-c", f"echo multi-user.target >/run/{folder}/start-list")
            assert (await host.facts()).lists_left
            await machine.run("rm", f"/run/{folder}/start-list")

        # A program of 2020 was cut; the one that comes now does not look there.
        await machine.run("sh", "-c", "echo multi-user.target >/run/systemd/start-list")
        asked = request(await machine.deliver(host, "good"), await host.facts())
        assert await host.claim(asked)
        await host.activate(asked)
        assert not (await seen(machine, SWITCHED)).lists_left
        await host.close()


@pytest.mark.lab
async def test_what_the_new_system_stopped_the_previous_one_starts_wherever_it_looks() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        unit = "/run/systemd/system/stopped.service"
        await machine.run(
            "sh", "-c", f"printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n' >{unit}"
        )
        asked = request(await machine.deliver(host, "2020 hangs midway"), await host.facts(), timeout=4)
        assert await host.claim(asked)
        await host.activate(asked)
        await machine.run("sh", "-c", "until [ -s /run/systemd/start-list ]; do sleep 0.1; done")
        await machine.run("sh", "-c", "echo stopped.service >>/run/systemd/start-list")
        facts = await seen(machine, ROLLED_BACK)
        assert (facts.current_system, facts.lists_left) == (machine.base, False)
        assert await machine.run("systemctl", "is-active", "stopped.service") == "active\n"
        await host.close()


@pytest.mark.lab
async def test_a_way_back_that_ends_with_an_error_at_its_end_is_a_way_back() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        previous = await machine.deliver(host, "gives up at its end")
        await machine.run("sh", "-c", f"{previous}/bin/switch-to-configuration test || test $? = 255")
        asked = request(await machine.deliver(host, "ends with 3"), await host.facts())
        assert asked.previous == previous
        assert await host.claim(asked)
        await host.activate(asked)
        assert (await seen(machine, ROLLED_BACK)).current_system == previous
        await host.close()


@pytest.mark.lab
async def test_a_switch_to_configuration_that_waits_for_another_one_is_followed() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        lock = "/run/nixos/switch-to-configuration.lock"
        await machine.run("systemd-run", "--unit=lock-holder", "flock", lock, "sleep", "infinity")
        while (await machine.run("sh", "-c", f"flock --nonblock {lock} true && echo free || echo held")) != "held\n":
            await machine.pause()
        asked = request(await machine.deliver(host, "good Perl"), await host.facts())
        assert await host.claim(asked)
        await host.activate(asked)
        facts = await host.facts()
        assert (activation_of(facts).state, activation_of(facts).is_unit_active) == (ActivationState.SWITCHING, True)
        await machine.run("systemctl", "stop", "lock-holder.service")
        assert (await seen(machine, SWITCHED)).current_system == asked.toplevel
        await host.close()


@pytest.mark.lab
async def test_nixos_is_what_switch_to_configuration_takes_for_it() -> None:
    async with on_machine() as machine:
        host = await reached(machine)

        async def look(os_release: str) -> tuple[bool, str]:
            await machine.run("sh", "-c", "rm /etc/os-release; cat >/etc/os-release", stdin=os_release.encode())
            facts = await host.facts()
            return facts.is_nixos, facts.version_id

        assert await look("ID=debian\nVERSION_ID='13'\n") == (True, "13")
        await machine.run("rm", "/etc/NIXOS")
        assert await look("NAME=NixOS\nID=nixos\nVERSION_ID=20.09.4407.1c1f5649bb9\n") == (True, "20.09")
        assert await look('NAME=NixOS\nID="nixos"\nVERSION_ID="25.11"\n') == (True, "25.11")
        assert await look("ID=debian\nID_LIKE=nixos\n") == (False, "")
        await machine.run("rm", "/etc/os-release")
        assert not (await host.facts()).is_nixos
        await host.close()


@pytest.mark.lab
async def test_what_the_host_does_by_itself_needs_no_particular_shell_at_its_usual_place() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        asked = request(await machine.deliver(host, "fails in a snippet"), await host.facts())
        await machine.run("ln", "-sf", "false", "/bin/sh")
        assert await host.claim(asked)
        await host.activate(asked)
        facts = await seen(machine, ROLLED_BACK)
        assert (facts.current_system, activation_of(facts).exit_status) == (machine.base, 2)
        await host.close()


@pytest.mark.lab
async def test_an_old_nix_is_told_the_operators_key_beside_its_own() -> None:
    async with on_machine() as machine:
        # Stands in for Nix 2.3, of which no package is left: what it prints, and how it is called.
        daemon = """#!/bin/sh
        if [ "$1" = --version ]; then echo "nix-daemon (Nix) 2.3.16"; else echo "${NIX_REMOTE-unset}" "$@"; fi
        """
        settings = """#!/bin/sh
        echo 'system = x86_64-linux'; echo 'trusted-public-keys = cache.example-1:AAAA other-1:BBBB'
        """
        agent = load_agent().script.decode().replace("\nPATH=", "\nPATH=/run/old:", 1)
        for name, text in (("nix-daemon", daemon), ("nix", settings), ("agent", agent)):
            await machine.run("sh", "-c", f"mkdir -p /run/old; cat >/run/old/{name}", stdin=text.encode())
            await machine.run("chmod", "+x", f"/run/old/{name}")
        call = ["env", "NIX_REMOTE=daemon", "sh", "/run/old/agent", "daemon"]
        said = await machine.run(*call, stdin=frame("ours-1:CCCC"))
        assert said == "unset --stdio --option trusted-public-keys cache.example-1:AAAA other-1:BBBB ours-1:CCCC\n"


@pytest.mark.lab
async def test_a_machine_whose_records_somebody_has_damaged_is_told_of_and_activated() -> None:
    """What is unreadable is not there: a look that failed for it would fail for ever."""
    async with on_machine() as machine:
        host = await reached(machine)
        home = "/var/lib/nixops"
        await host.facts()
        await machine.run("sh", "-c", f"echo 'NixOS 25.11' >{home}/machine")
        for damage in (
            ": >$1/request",
            "sed -i 's,^toplevel .*,toplevel /etc,' $1/request",
            "rm $1/state.*",
            "mv $1/state.* $1/state.nonsense",
            f"rm -r $1; mkdir -p {home}/activation/abcdefgh-x; ln -sfn abcdefgh-x {home}/activation/active",
        ):
            asked = request(await machine.deliver(host, "good"), await host.facts())
            assert await host.claim(asked), damage
            await machine.run("sh", "-c", damage, "sh", f"{home}/activation/{asked.id}")
            facts = await host.facts()
            assert (facts.current_system, facts.activation, facts.state_version) == (machine.base, None, None), damage

        asked = request(asked.toplevel, facts)
        assert await host.claim(asked)
        await host.activate(asked)
        assert (await seen(machine, SWITCHED)).current_system == asked.toplevel
        await host.close()
