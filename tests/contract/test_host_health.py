"""A machine's health: asked on the machine itself, and waited for before an activation is confirmed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from contract.host_benches import BENCHES, Bench, on_machine, reached, request, seen
from nixops_operator.errors import Retry
from nixops_operator.facts.health import ExecProbe, HttpProbe, Probe, TcpProbe, UnitsProbe
from nixops_operator.facts.host import ActivationState
from nixops_operator.ports.host import Host

SWITCHED, CONFIRMED, ROLLED_BACK = ActivationState.SWITCHED, ActivationState.CONFIRMED, ActivationState.ROLLED_BACK
SOON, LONG = timedelta(seconds=2), timedelta(minutes=9)


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


async def switched(bench: Bench, host: Host, name: str = "good", confirm_timeout: float = 30) -> str:
    """The id of an activation of that system that waits to be confirmed."""
    asked = request(await bench.deliver(host, name), await host.facts(), confirm_timeout=confirm_timeout)
    assert await host.claim(asked)
    await host.activate(asked)
    await seen(bench, SWITCHED)
    return asked.id


async def test_a_held_activation_waits_longer_and_can_be_confirmed(bench: Bench, host: Host) -> None:
    name = await switched(bench, host)
    before = (await host.facts()).activation
    assert before is not None
    assert not before.is_held

    assert [await host.hold(name, LONG) for _ in range(2)] == [True, True]
    held = (await host.facts()).activation
    assert held is not None
    assert (held.state, held.is_held, held.is_timer_armed) == (SWITCHED, True, True)

    assert await host.confirm(name)
    after = (await host.facts()).activation
    assert after is not None
    assert (after.state, after.is_timer_armed) == (CONFIRMED, False)
    assert await host.hold(name, LONG)


async def test_whose_health_nobody_sees_to_its_end_returns_by_itself(bench: Bench, host: Host) -> None:
    name = await switched(bench, host)
    assert await host.hold(name, SOON)
    await host.close()

    facts = await seen(bench, ROLLED_BACK)

    assert facts.current_system == bench.base
    again = await reached(bench)
    assert not await again.hold(name, LONG)
    assert not await again.confirm(name)
    await again.close()


async def test_a_held_activation_can_be_returned_from(bench: Bench, host: Host) -> None:
    name = await switched(bench, host)
    assert await host.hold(name, LONG)
    await host.rollback(name)
    facts = await seen(bench, ROLLED_BACK)
    assert facts.current_system == bench.base
    assert facts.activation is not None
    assert not facts.activation.is_timer_armed


async def test_units_that_failed_before_are_told_apart(bench: Bench, host: Host) -> None:
    first = await switched(bench, host, "fails in a unit")
    assert await host.confirm(first)
    await host.commit(first)
    failed = ("test-fail-unit.service",)
    facts = await host.facts()
    assert facts.activation is not None
    assert (facts.failed_units, facts.activation.failed_before) == (failed, ())

    await switched(bench, host, "good")
    facts = await host.facts()
    assert facts.activation is not None
    assert facts.activation.failed_before == failed


MODULES = "/usr/lib/apache2/modules"
WEB_SERVER = f"""\
ServerName localhost
PidFile /run/web.pid
ErrorLog /run/web.log
Listen 127.0.0.1:8080
Listen [::1]:8081
LoadModule mpm_event_module {MODULES}/mod_mpm_event.so
LoadModule authz_core_module {MODULES}/mod_authz_core.so
LoadModule dir_module {MODULES}/mod_dir.so
DocumentRoot /etc
"""
"""On another port of each of both loopback addresses."""
PASSES, REFUSED = "", "refused"
HTTP4, HTTP6, NOBODY = 8080, 8081, 8088
PROBES: dict[str, tuple[Probe, str]] = {
    "http": (HttpProbe(HTTP4, "localhost", "/hostname", 200), PASSES),
    "http, IPv6 alone": (HttpProbe(HTTP6, "localhost", "/hostname", 200), PASSES),
    "http, another status": (HttpProbe(HTTP4, "localhost", "/none?a=[b]&c={d}", 404), PASSES),
    "http, not there": (HttpProbe(HTTP4, "localhost", "/none", 200), "port 8080 answers 404, not 200"),
    "http, a redirection is not followed": (HttpProbe(HTTP4, "localhost", "/ssh", 301), PASSES),
    "http, the machine is only called so": (HttpProbe(HTTP4, "192.0.2.99", "/hostname", 200), PASSES),
    "http, no name of a host": (HttpProbe(HTTP4, "x/y", "/", 200), REFUSED),
    "http, no path": (HttpProbe(HTTP4, "x", "@192.0.2.99/", 200), REFUSED),
    "http, nobody there": (HttpProbe(NOBODY, "localhost", "/", 200), "nothing listens on port 8088"),
    "tcp": (TcpProbe(22), PASSES),
    "tcp, IPv6 alone": (TcpProbe(HTTP6), PASSES),
    "tcp, nobody there": (TcpProbe(NOBODY), "nothing listens on port 8088"),
    "units": (UnitsProbe(("web.service", "multi-user.target")), PASSES),
    "units, one is not": (UnitsProbe(("web.service", "none.service")), "none.service is inactive"),
    "exec": (ExecProbe(("test", "-e", "/etc/hostname")), PASSES),
    "exec, arguments": (ExecProbe(("test", "two words\n", "=", "two words\n")), PASSES),
    "exec, other arguments": (ExecProbe(("test", "two words\n", "=", "two words")), "the command ends with 1"),
    "exec, fails": (ExecProbe(("sh", "-c", "echo secret; echo secret >&2; exit 3")), "the command ends with 3"),
    "exec, not there": (ExecProbe(("no-such-program",)), "the command cannot be run"),
    "exec, hangs": (ExecProbe(("sleep", "infinity")), "the command did not end within 5 s"),
}


async def said(host: Host, probe: Probe, limit: float = 5) -> str:
    try:
        return await host.probe(probe, timedelta(seconds=limit))
    except Retry:
        return REFUSED


@pytest.mark.lab
async def test_a_check_says_why_it_fails_and_nothing_else() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        await machine.run("tee", "/run/web.conf", stdin=WEB_SERVER.encode())
        await machine.run("systemd-run", "--unit=web", "apache2", "-f", "/run/web.conf", "-DFOREGROUND")
        while await host.probe(TcpProbe(HTTP6), timedelta(seconds=5)):
            await machine.pause()
        probes = {name: probe for name, (probe, _) in PROBES.items()}

        found = {name: await said(host, probe) for name, probe in probes.items()}

        assert found == {name: words for name, (_, words) in PROBES.items()}
        assert (await said(host, HttpProbe(22, "localhost", "/", 200))).startswith("no answer of HTTP on port 22")
        await machine.run("systemctl", "kill", "--signal=SIGSTOP", "web.service")
        assert await said(host, HttpProbe(HTTP4, "localhost", "/", 200), 1) == "no answer on port 8080 within 1 s"
        await host.close()
