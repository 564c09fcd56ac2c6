"""One held connection a machine: asked regularly, made again after a cut, and woken for news alone. Nothing that a pass
reads waits for the machine."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from datetime import timedelta

import pytest

from fakes.host import Activation, FakeHosts, FakeMachine
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import NotYet, Retry
from nixops_operator.facts.host import ActivationRequest
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.hosts import HostInformer, HostInformers
from unit.fake_time import run

WEB = Key(Kind.MACHINE, "default", "web")
OTHER = Key(Kind.MACHINE, "default", "other")
ENDED = "00000001-1"


class Bench:
    def __init__(self) -> None:
        self.hosts = FakeHosts()
        self.machine = self.hosts.add(FakeMachine("192.0.2.10"))
        self.woken: list[float] = []
        self.informers = HostInformers(self.hosts, timedelta(seconds=5), self._wake)

    def _wake(self, key: Key) -> None:
        self.woken.append(asyncio.get_running_loop().time())

    def watch(self) -> HostInformer:
        return self.informers.watch(WEB, self.machine.target())

    def asked(self) -> int:
        return len(self.hosts.effects.of("facts"))

    def connected(self) -> int:
        return len(self.hosts.effects.of("host.connect"))


def test_the_first_answer_wakes_and_equal_ones_do_not():
    async def go() -> Bench:
        bench = Bench()
        look = bench.watch()
        assert look.answer.facts is None
        assert look.answer.error is None
        await asyncio.sleep(60)
        assert look.answer.facts is not None
        await bench.informers.close()
        return bench

    bench = run(go())
    assert bench.woken == [0.0]
    assert bench.connected() == 1
    assert 11 <= bench.asked() <= 13


def test_free_space_is_no_news_and_another_system_is():
    async def go() -> list[float]:
        bench = Bench()
        bench.watch()
        await asyncio.sleep(1)
        bench.machine.free_bytes -= 1
        await asyncio.sleep(10)
        bench.machine.current_system = "/nix/store/by-hand"
        await asyncio.sleep(10)
        await bench.informers.close()
        return bench.woken

    first, second = run(go())
    assert first == 0
    assert 11 <= second <= 16


def test_after_a_cut_there_are_no_facts_until_it_answers_again():
    async def go() -> tuple[object, object]:
        bench = Bench()
        look = bench.watch()
        await asyncio.sleep(1)
        bench.machine.is_silent = True
        await asyncio.sleep(10)
        cut = look.answer
        with pytest.raises(Retry):
            look.host()
        bench.machine.is_silent = False
        await asyncio.sleep(40)
        await bench.informers.close()
        return cut, look.answer

    cut, again = run(go())
    assert cut.facts is None
    assert cut.error.reason is Reason.CONNECT_TIMEOUT
    assert again.facts is not None
    assert again.error is None


def test_a_silent_machine_is_knocked_at_more_and_more_slowly():
    async def go() -> int:
        bench = Bench()
        bench.machine.is_silent = True
        bench.watch()
        await asyncio.sleep(600)
        await bench.informers.close()
        return bench.connected()

    assert 20 <= run(go()) <= 30


def test_a_machine_that_answers_and_then_fails_is_not_knocked_at_in_a_loop():
    async def go() -> int:
        bench = Bench()
        bench.hosts.effects.standing_error["facts"] = Retry(Reason.CONNECT_TIMEOUT, "no answer")
        bench.watch()
        await asyncio.sleep(600)
        await bench.informers.close()
        return bench.connected()

    assert run(go()) <= 30


def test_while_something_moves_it_asks_twice_a_second_for_a_while():
    async def go() -> tuple[int, int]:
        bench = Bench()
        look = bench.watch()
        await asyncio.sleep(1)
        before = bench.asked()
        look.hurry()
        await asyncio.sleep(5)
        hurried = bench.asked() - before
        await asyncio.sleep(50)
        calm = bench.asked() - before - hurried
        await bench.informers.close()
        return hurried, calm

    hurried, calm = run(go())
    assert 9 <= hurried <= 12
    assert 9 <= calm <= 11


def test_another_target_is_another_connection():
    async def go() -> Bench:
        bench = Bench()
        first = bench.watch()
        await asyncio.sleep(1)
        same = bench.watch()
        other = bench.informers.watch(WEB, replace(bench.machine.target(), port=2222))
        assert first is same
        assert other is not first
        await asyncio.sleep(0.1)
        assert bench.machine.connections == []
        await bench.informers.close()
        return bench

    assert run(go()).connected() == 2


def test_a_confirmation_goes_over_a_connection_of_its_own():
    async def go() -> tuple[int, bool]:
        bench = Bench()
        look = bench.watch()
        await asyncio.sleep(1)
        fresh = await look.connect_anew()
        is_other = fresh is not look.host()
        await fresh.close()
        await bench.informers.close()
        return bench.connected(), is_other

    assert run(go()) == (2, True)


def test_nothing_is_held_once_the_key_is_dropped():
    async def go() -> list[object]:
        bench = Bench()
        bench.watch()
        await asyncio.sleep(1)
        bench.informers.drop(WEB)
        with pytest.raises(Retry):
            bench.informers.of(WEB)
        await bench.informers.close()
        return bench.machine.connections

    assert run(go()) == []


def with_ended_activation(bench: Bench) -> None:
    request = ActivationRequest("/nix/store/1-system", "/nix/store/0-system", 1, timedelta(0), timedelta(0))
    bench.machine.activations[ENDED] = Activation(request, "boot", log="error: it did not work\n")


def test_an_activations_log_is_read_without_waiting_and_wakes_when_it_has_come():
    async def go() -> tuple[list[object], list[float]]:
        bench = Bench()
        with_ended_activation(bench)
        look = bench.watch()
        read: list[object] = [look.activation_log(ENDED)]  # not connected yet
        await asyncio.sleep(1)
        read.append(look.activation_log(ENDED))
        await asyncio.sleep(1)
        read += [look.activation_log(ENDED), look.activation_log(ENDED)]
        await bench.informers.close()
        assert len(bench.hosts.effects.of("activation_log")) == 1
        return read, bench.woken

    log = "error: it did not work\n"
    assert run(go()) == ([None, None, log, log], [0.0, 1.0])


def test_a_host_that_hangs_on_its_log_holds_up_nothing_but_that():
    async def go() -> tuple[object, int, int]:
        bench = Bench()
        with_ended_activation(bench)
        bench.hosts.effects.gates["activation_log"] = asyncio.Event()
        look = bench.watch()
        await asyncio.sleep(1)
        for _ in range(600):
            assert look.activation_log(ENDED) is None
            await asyncio.sleep(1)
        asked, logs = bench.asked(), len(bench.hosts.effects.of("activation_log"))
        await bench.informers.close()
        return look.answer.error, asked, logs

    error, asked, logs = run(go())
    assert error is None
    assert asked >= 110
    assert 9 <= logs <= 11  # one at a time, each given up after a minute


def test_a_host_that_hangs_on_facts_becomes_an_error_and_is_connected_to_anew():
    async def go() -> Bench:
        bench = Bench()
        bench.hosts.effects.gates["facts"] = asyncio.Event()
        look = bench.watch()
        await asyncio.sleep(65)
        assert look.answer.error == Retry(Reason.CONNECT_TIMEOUT, "192.0.2.10 did not answer `facts` in time")
        await bench.informers.close()
        return bench

    bench = run(go())
    assert bench.connected() == 2
    assert bench.woken == [60.0]


def test_a_host_that_does_not_take_leave_holds_up_nobody():
    async def go() -> float:
        bench = Bench()
        bench.watch()
        await asyncio.sleep(1)
        bench.hosts.effects.gates["close"] = asyncio.Event()
        bench.informers.drop(WEB)
        look = bench.watch()
        await asyncio.sleep(1)
        assert look.answer.facts is not None
        await bench.informers.close()
        return asyncio.get_running_loop().time()

    assert run(go()) == 12.0  # two connections, given up at once


def test_a_fault_of_ours_is_an_error_and_not_silence(caplog: pytest.LogCaptureFixture):
    async def go() -> tuple[object, object]:
        bench = Bench()
        bench.machine.failed_units = None  # type: ignore[assignment]
        look = bench.watch()
        await asyncio.sleep(1)
        failed = look.answer.error
        bench.machine.failed_units = ()
        await asyncio.sleep(60)
        await bench.informers.close()
        return failed, look.answer.facts

    failed, facts = run(go())
    assert failed == Retry(
        Reason.PROGRESSING_WITH_RETRY, "192.0.2.10: internal error (TypeError); the operator's log has more"
    )
    assert facts is not None


# --- a host that tells of changes ------------------------------------------------------------------------------------


class Telling(Bench):
    """Whose machine can watch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.machine.can_watch = True

    def switch_by_hand(self, name: str) -> None:
        self.machine.current_system = f"/nix/store/{name}"
        self.machine.tell()


def test_a_change_that_is_told_is_seen_at_once_and_looks_are_rare_otherwise():
    async def go() -> tuple[Telling, int]:
        bench = Telling()
        bench.watch()
        await asyncio.sleep(100)
        asked = bench.asked()
        bench.switch_by_hand("by-hand")
        await asyncio.sleep(10)
        await bench.informers.close()
        return bench, asked

    bench, asked = run(go())
    assert bench.woken == [0.0, 100.0]
    assert asked <= 6


def test_what_changes_during_a_look_is_looked_at_after_it():
    async def go() -> Telling:
        bench = Telling()
        bench.watch()
        await asyncio.sleep(10)
        gate = bench.hosts.effects.gates["facts"] = asyncio.Event()
        bench.switch_by_hand("first")
        await asyncio.sleep(1)
        bench.hosts.effects.gates.clear()
        bench.machine.tell()
        gate.set()
        asked = bench.asked()
        await asyncio.sleep(1)
        assert bench.asked() == asked + 1
        await bench.informers.close()
        return bench

    run(go())


def test_a_host_that_tells_of_changes_all_the_time_is_asked_twice_a_second():
    async def go() -> int:
        bench = Telling()
        bench.watch()
        for number in range(1000):
            bench.switch_by_hand(str(number))
            await asyncio.sleep(0.01)
        asked = bench.asked()
        await bench.informers.close()
        return asked

    assert run(go()) <= 25


def test_the_end_of_a_failed_unit_is_looked_for_as_often_as_ever():
    """A host tells of units that fail, not of those that are well again."""

    async def go() -> list[float]:
        bench = Telling()
        bench.machine.failed_units = ("httpd.service",)
        bench.watch()
        await asyncio.sleep(62)
        bench.machine.failed_units = ()
        await asyncio.sleep(60)
        await bench.informers.close()
        return bench.woken

    _, well_again = run(go())
    assert well_again <= 67


def test_a_connection_that_ends_is_noticed_at_once():
    async def go() -> list[float]:
        bench = Telling()
        bench.watch()
        await asyncio.sleep(70)
        bench.machine.cut_connections()
        await asyncio.sleep(1)
        await bench.informers.close()
        return bench.woken

    assert run(go())[1] == 70.0


def test_a_host_that_cannot_watch_is_asked_for_it_more_and_more_slowly():
    async def go() -> int:
        bench = Bench()
        bench.watch()
        await asyncio.sleep(3600)
        await bench.informers.close()
        return len(bench.hosts.effects.of("changes"))

    assert 12 <= run(go()) <= 25


# --- names --------------------------------------------------------------------------------------------------------


def resolved(bench: Bench, key: Key = WEB) -> tuple[str, ...]:
    return bench.informers.resolve(key, "web.example")


def test_an_address_is_its_own_and_asks_nobody():
    async def go() -> list[tuple[str, ...]]:
        bench = Bench()
        found = [bench.informers.resolve(WEB, each) for each in ("192.0.2.10", "2001:DB8::1")]
        assert bench.hosts.effects.of("resolve") == []
        await bench.informers.close()
        return found

    assert run(go()) == [("192.0.2.10",), ("2001:db8::1",)]


def test_a_name_is_asked_for_outside_of_the_pass_and_its_changes_wake_whoever_read_it():
    async def go() -> tuple[list[object], list[float], int]:
        bench = Bench()
        bench.hosts.names["web.example"] = ("192.0.2.10",)
        with pytest.raises(NotYet):
            resolved(bench)
        await asyncio.sleep(10)
        read: list[object] = [resolved(bench)]
        await asyncio.sleep(600)
        bench.hosts.names["web.example"] = ("192.0.2.11",)
        await asyncio.sleep(60)
        read.append(resolved(bench))
        asked = len(bench.hosts.effects.of("resolve"))
        await bench.informers.close()
        return read, bench.woken, asked

    read, (first, second), asked = run(go())
    assert read == [("192.0.2.10",), ("192.0.2.11",)]
    assert first == 0
    assert 610 <= second <= 670
    assert 11 <= asked <= 13


def test_a_name_with_several_addresses_cuts_no_connection():
    """Name servers show them in turn."""

    async def go() -> tuple[str, ...]:
        bench = Bench()
        bench.hosts.names["web.example"] = ("192.0.2.10", "192.0.2.9")
        with pytest.raises(NotYet):
            resolved(bench)
        await asyncio.sleep(1)
        bench.informers.watch(WEB, replace(bench.machine.target(), address=resolved(bench)[0]))
        bench.hosts.names["web.example"] = ("192.0.2.9", "192.0.2.10")
        await asyncio.sleep(61)
        found = resolved(bench)
        assert resolved(bench, OTHER) == ("192.0.2.9", "192.0.2.10")
        await bench.informers.close()
        return found

    assert run(go()) == ("192.0.2.10", "192.0.2.9")


def test_an_address_that_the_name_has_no_more_is_not_kept():
    async def go() -> tuple[str, ...]:
        bench = Bench()
        bench.hosts.names["web.example"] = ("192.0.2.9",)
        bench.watch()
        with pytest.raises(NotYet):
            resolved(bench)
        await asyncio.sleep(1)
        found = resolved(bench)
        await bench.informers.close()
        return found

    assert run(go()) == ("192.0.2.9",)


def test_a_name_that_does_not_resolve_is_asked_for_more_and_more_slowly():
    async def go() -> tuple[int, list[float]]:
        bench = Bench()
        with pytest.raises(NotYet):
            resolved(bench)
        for _ in range(60):
            await asyncio.sleep(10)
            with pytest.raises(Retry, match="does not resolve") as caught:
                resolved(bench)
            assert caught.value.reason is Reason.CONNECT_TIMEOUT
        await bench.informers.close()
        return len(bench.hosts.effects.of("resolve")), bench.woken

    asked, woken = run(go())
    assert 20 <= asked <= 26
    assert woken == [0.0]  # the same error again is no news


def test_a_name_server_that_hangs_has_a_deadline_and_takes_no_connection_away():
    async def go() -> tuple[str, ...]:
        bench = Bench()
        bench.hosts.names["web.example"] = ("192.0.2.10",)
        with pytest.raises(NotYet):
            resolved(bench)
        await asyncio.sleep(1)
        bench.hosts.effects.gates["resolve"] = asyncio.Event()
        await asyncio.sleep(600)
        found = resolved(bench)
        with pytest.raises(NotYet):
            bench.informers.resolve(OTHER, "other.example")
        await asyncio.sleep(20)
        with pytest.raises(Retry, match="no name server answers in time"):
            bench.informers.resolve(OTHER, "other.example")
        await bench.informers.close()
        return found

    assert run(go()) == ("192.0.2.10",)


def test_a_life_that_is_cut_leaves_nothing_unawaited():
    """What ends in the background may be cancelled before it has begun; Python warns of a coroutine that nobody awaits,
    and here every warning is an error."""

    async def go() -> None:
        bench = Bench()
        bench.watch()
        await asyncio.sleep(1)
        bench.informers.drop(WEB)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    run(go())
    gc.collect()
