"""switch-to-configuration of the miniature nixpkgs on a real machine: real systemd, real units, real accounts."""
# ruff: noqa: E501 - Nix expressions and the messages of Nix stay on one line.

import asyncio
import io
import itertools
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from lab.tests.nixpkgs_tree import SOURCES
from nixops_lab import network
from nixops_lab.machines import OPEN, Completed, Machines, MachineSpec, root_filesystem

pytestmark = [
    pytest.mark.lab,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="machines need root"),
]

NAME = "given-host"
ADDRESS = "192.0.2.10"
BASE = '{ imports = [ <nixpkgs/lab/given-host.nix> ]; system.stateVersion = "25.11"; }'


@dataclass(frozen=True)
class Ran:
    status: int
    said: str


class Host:
    """One machine, and systems of the miniature nixpkgs built on it."""

    def __init__(self, machines: Machines, namespace: str) -> None:
        self.machines = machines
        self.namespace = namespace
        self.base = ""
        self._numbers = itertools.count()
        self._built: dict[str, str] = {}

    async def run(self, *argv: str, stdin: bytes = b"") -> Completed:
        return await self.machines.run(NAME, argv, stdin)

    async def sh(self, script: str) -> str:
        """What a shell script prints; failure of it is a failed assertion."""
        done = await self.run("sh", "-euc", script)
        assert done.exit_status == 0, f"{script}: {done.stdout!r} {done.stderr!r}"
        return done.stdout.decode().strip()

    async def build(self, *modules: str) -> str:
        """The toplevel of the base configuration and these modules."""
        listed = " ".join(f"({module})" for module in (BASE, *modules))
        expression = f'(import <nixpkgs/nixos/lib/eval-config.nix> {{ system = "x86_64-linux"; modules = [ {listed} ]; }}).config.system.build.toplevel'
        if expression not in self._built:
            root = f"/nix/var/nix/gcroots/test-{next(self._numbers)}"
            done = await self.run("nix-build", "-I", "nixpkgs=/root/nixpkgs", "-o", root, "-E", expression)
            assert done.exit_status == 0, done.stderr.decode()
            self._built[expression] = done.stdout.decode().strip()
        return self._built[expression]

    async def stc(self, toplevel: str, action: str, *environment: str) -> Ran:
        both = 'exec "$@" 2>&1'
        program = f"{toplevel}/bin/switch-to-configuration"
        done = await self.run("env", *environment, "sh", "-c", both, "sh", program, action)
        return Ran(done.exit_status, done.stdout.decode())

    async def start_stc(self, toplevel: str, action: str, unit: str) -> None:
        """In a unit of its own, as an operator does; its output goes to /run/UNIT.log."""
        log = f"append:/run/{unit}.log"
        command = [
            "systemd-run",
            f"--unit={unit}",
            "--collect",
            "-p",
            f"StandardOutput={log}",
            "-p",
            f"StandardError={log}",
        ]
        done = await self.run(*command, "--service-type=exec", f"{toplevel}/bin/switch-to-configuration", action)
        assert done.exit_status == 0, done.stderr.decode()

    async def until(self, script: str) -> None:
        """Returns when the shell script in the machine succeeds; the machine asks itself, for at most a minute."""
        done = await self.run("timeout", "60", "sh", "-c", f"until {script}; do sleep 0.1; done")
        assert done.exit_status == 0, f"never: {script}"

    async def current(self) -> str:
        return await self.sh("readlink /run/current-system")

    async def boot_entry(self) -> str:
        return await self.sh("cat /boot/nixos-entry")

    async def pid(self, unit: str) -> str:
        return await self.sh(f"systemctl show -P MainPID {unit}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def booted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    folder = tmp_path_factory.mktemp("lab")
    nixpkgs = folder / "nixpkgs"
    assembled = await asyncio.create_subprocess_exec(SOURCES / "assemble.sh", nixpkgs)
    assert await assembled.wait() == 0
    namespace = f"nixpkgs-{os.getpid()}"
    network.create(namespace)
    try:
        root = await asyncio.to_thread(root_filesystem.build, nixpkgs)
        machines = Machines(folder / "machines-lab", namespace, root)
        await machines.start()
        try:
            await machines.create(MachineSpec(NAME, ADDRESS, None, "25.11", "", ()))
            await machines.set_rules(NAME, OPEN, OPEN)
            await machines.start(NAME)
            host = Host(machines, namespace)
            await host.until("systemctl is-active -q multi-user.target")
            archive = await asyncio.to_thread(_archive, nixpkgs)
            assert (await host.run("tar", "-C", "/root", "-xf", "-", stdin=archive)).exit_status == 0
            host.base = await host.build()
            yield host
        finally:
            await machines.stop()
    finally:
        network.delete(namespace)


def _archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, "nixpkgs")
    return buffer.getvalue()


@pytest_asyncio.fixture(loop_scope="module")
async def host(booted: Host) -> Host:
    """The machine with the base configuration as its running and its next system."""
    ran = await booted.stc(booted.base, "switch")
    assert (ran.status, await booted.current(), await booted.boot_entry()) == (0, booted.base, booted.base), ran.said
    return booted


def service(version: str, options: str = "") -> str:
    """A service `app` whose unit file names `version`; SIGHUP is a reload and leaves a line in /run/app.reloads."""
    return f"""{{ systemd.services.app = {{
      wantedBy = [ "multi-user.target" ];
      environment.VERSION = "{version}";
      script = "trap 'echo again >>/run/app.reloads' HUP; while :; do sleep 1000 & wait $! || true; done";
      serviceConfig.ExecReload = "/bin/kill -HUP $MAINPID";
      {options}
    }}; }}"""


class TestActions:
    async def test_switch_makes_the_system_run_now_and_at_the_next_boot(self, host: Host) -> None:
        new = await host.build(service("1"))
        ran = await host.stc(new, "switch")
        assert (ran.status, await host.current(), await host.boot_entry()) == (0, new, new)
        assert "the following new units were started: app.service" in ran.said

    async def test_test_makes_the_system_run_now_only(self, host: Host) -> None:
        new = await host.build(service("1"))
        ran = await host.stc(new, "test")
        assert (ran.status, await host.current(), await host.boot_entry()) == (0, new, host.base)

    async def test_boot_makes_the_system_run_at_the_next_boot_only(self, host: Host) -> None:
        new = await host.build(service("1"))
        ran = await host.stc(new, "boot")
        assert (ran.status, await host.current(), await host.boot_entry()) == (0, host.base, new)

    async def test_dry_activate_says_what_it_would_do_and_changes_nothing(self, host: Host) -> None:
        await host.stc(await host.build(service("1")), "switch")
        before = (
            await host.current(),
            await host.boot_entry(),
            await host.pid("app.service"),
            await host.sh("ls -lR /etc | md5sum"),
        )
        ran = await host.stc(await host.build(service("2")), "dry-activate")
        after = (
            await host.current(),
            await host.boot_entry(),
            await host.pid("app.service"),
            await host.sh("ls -lR /etc | md5sum"),
        )
        assert (ran.status, after) == (0, before)
        assert "would stop the following units: app.service" in ran.said
        assert "would start the following units: app.service" in ran.said
        assert await host.sh("ls /run/nixos") == "switch-to-configuration.lock"

    async def test_a_booted_machine_runs_what_the_boot_entry_names(self, host: Host) -> None:
        new = await host.build(
            service("1"), '{ users.groups.boot = { }; users.users.boot = { isSystemUser = true; group = "boot"; }; }'
        )
        await host.stc(new, "boot")
        before = await host.sh("cat /proc/sys/kernel/random/boot_id")
        await host.machines.reboot(NAME)
        await host.until("systemctl is-active -q app.service sshd.service")
        assert await host.sh("cat /proc/sys/kernel/random/boot_id") != before
        assert (await host.current(), await host.sh("readlink /run/booted-system")) == (new, new)
        assert "uid=" in await host.sh("id boot")
        assert await host.sh("systemctl is-active firewall.service") == "active"


class TestUnits:
    """What happens to a running unit whose file changes."""

    @pytest.mark.parametrize(
        ("options", "said", "same_process", "reloads"),
        [
            pytest.param(
                "",
                "stopping the following units: app.service",
                False,
                0,
                id="stopped by its old file, started by its new one",
            ),
            pytest.param(
                "stopIfChanged = false;",
                "restarting the following units: app.service",
                False,
                0,
                id="stopIfChanged off: restarted",
            ),
            pytest.param(
                "reloadIfChanged = true;",
                "reloading the following units: app.service",
                True,
                1,
                id="reloadIfChanged: reloaded",
            ),
            pytest.param(
                "restartIfChanged = false;",
                "NOT restarting the following changed units: app.service",
                True,
                0,
                id="restartIfChanged off: left alone",
            ),
        ],
    )
    async def test_a_changed_unit(self, host: Host, options: str, said: str, same_process: bool, reloads: int) -> None:
        await host.stc(await host.build(service("1", options)), "test")
        before = await host.pid("app.service")
        await host.sh("rm -f /run/app.reloads")
        ran = await host.stc(await host.build(service("2", options)), "test")
        assert ran.status == 0
        assert said in ran.said
        assert (await host.pid("app.service") == before) is same_process
        if reloads:
            await host.until("[ -s /run/app.reloads ]")
        assert await host.sh("cat /run/app.reloads 2>/dev/null | wc -l") == str(reloads)
        assert "VERSION=2" in await host.sh("systemctl show -P Environment app.service")

    async def test_another_reload_trigger_reloads(self, host: Host) -> None:
        await host.stc(await host.build(service("1", 'reloadTriggers = [ "a" ];')), "test")
        before = await host.pid("app.service")
        ran = await host.stc(await host.build(service("1", 'reloadTriggers = [ "b" ];')), "test")
        assert "reloading the following units: app.service" in ran.said
        assert await host.pid("app.service") == before

    async def test_an_equal_unit_is_left_alone(self, host: Host) -> None:
        await host.stc(await host.build(service("1")), "test")
        before = await host.pid("app.service")
        ran = await host.stc(await host.build(service("1"), '{ environment.etc."else".text = ""; }'), "test")
        assert "app.service" not in ran.said
        assert await host.pid("app.service") == before

    async def test_a_unit_that_is_gone_is_stopped(self, host: Host) -> None:
        await host.stc(await host.build(service("1")), "test")
        ran = await host.stc(host.base, "test")
        assert "stopping the following units: app.service" in ran.said
        assert (await host.run("systemctl", "is-active", "app.service")).stdout == b"inactive\n"
        assert (await host.run("test", "-L", "/etc/systemd/system/app.service")).exit_status == 1

    async def test_a_disabled_unit_is_stopped_and_masked(self, host: Host) -> None:
        await host.stc(await host.build(service("1")), "test")
        await host.stc(
            await host.build(service("1"), "{ lib, ... }: { systemd.services.app.enable = lib.mkForce false; }"), "test"
        )
        assert await host.sh("systemctl show -P LoadState -P ActiveState app.service") == "masked\ninactive"

    async def test_a_unit_of_debian_is_never_touched(self, host: Host) -> None:
        before = await host.pid("dbus.service")
        await host.stc(await host.build(service("1")), "test")
        assert await host.pid("dbus.service") == before

    async def test_a_timer_starts_its_service(self, host: Host) -> None:
        module = """{
          systemd.services.tick = { startAt = "*:*:*"; script = "echo tick >>/run/ticks"; };
          systemd.timers.tick.timerConfig.AccuracySec = "100ms";
        }"""
        await host.stc(await host.build(module), "test")
        await host.until("[ -s /run/ticks ]")


class TestExits:
    async def test_an_unknown_action_is_1(self, host: Host) -> None:
        ran = await host.stc(host.base, "restart")
        assert ran.status == 1
        assert "Usage:" in ran.said

    async def test_a_machine_that_is_not_nixos_is_1(self, host: Host) -> None:
        script = f"mv /etc/NIXOS /etc/NIXOS.away; mv /etc/os-release /etc/os-release.away; set +e; {host.base}/bin/switch-to-configuration test 2>&1; s=$?; mv /etc/NIXOS.away /etc/NIXOS; mv /etc/os-release.away /etc/os-release; exit $s"
        done = await host.run("sh", "-euc", script)
        assert (done.exit_status, done.stdout) == (1, b"This is not a NixOS installation!\n")

    async def test_a_failed_pre_switch_check_is_1_and_changes_nothing(self, host: Host) -> None:
        new = await host.build(
            '{ system.preSwitchChecks.moon = "[ \\"$2\\" = boot ] || { echo full moon; exit 1; }"; }'
        )
        ran = await host.stc(new, "switch")
        assert (ran.status, await host.current(), await host.boot_entry()) == (1, host.base, host.base)
        assert "full moon\nPre-switch check 'moon' failed\nPre-switch checks failed\n" in ran.said
        assert (await host.stc(new, "check")).status == 1
        assert (await host.stc(new, "test", "NIXOS_NO_CHECK=1")).status == 0

    async def test_a_changed_inhibitor_refuses_all_but_boot(self, host: Host) -> None:
        first = await host.build('{ system.switch.inhibitors.kernel = "1"; system.switch.inhibitors.dbus = "x"; }')
        assert (await host.stc(first, "test")).status == 0
        second = await host.build('{ system.switch.inhibitors.kernel = "2"; system.switch.inhibitors.dbus = "x"; }')
        ran = await host.stc(second, "test")
        assert (ran.status, await host.current()) == (1, first)
        assert "Pre-switch check 'switchInhibitors' failed" in ran.said
        assert (await host.stc(second, "boot")).status == 0
        assert (await host.stc(host.base, "test")).status == 0, (
            "an inhibitor that only one of two systems has refuses nothing"
        )

    async def test_a_failed_boot_loader_is_1_and_the_old_system_runs(self, host: Host) -> None:
        ran = await host.stc(await host.build("{ test.stc.bootLoaderFails = true; }"), "switch")
        assert (ran.status, await host.current(), await host.boot_entry()) == (1, host.base, host.base)

    async def test_a_failed_snippet_is_2_and_the_rest_is_active(self, host: Host) -> None:
        new = await host.build("{ test.stc.failSnippet = true; }", service("1"))
        ran = await host.stc(new, "test")
        assert (ran.status, await host.current()) == (2, new)
        assert "Activation script snippet 'test-fail-snippet' failed (1)\nFailed to run activate script\n" in ran.said
        assert await host.sh("systemctl is-active app.service") == "active"

    async def test_a_failed_unit_is_4(self, host: Host) -> None:
        new = await host.build("{ test.stc.failUnit = true; }")
        ran = await host.stc(new, "test")
        assert (ran.status, await host.current()) == (4, new)
        assert "warning: the following units failed: test-fail-unit.service" in ran.said

    async def test_a_failed_unit_hides_a_failed_snippet(self, host: Host) -> None:
        ran = await host.stc(await host.build("{ test.stc.failUnit = true; test.stc.failSnippet = true; }"), "test")
        assert ran.status == 4
        assert "Failed to run activate script" in ran.said

    async def test_a_unit_that_fails_again_and_again_is_4(self, host: Host) -> None:
        module = '{ systemd.services.flap = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; serviceConfig = { Restart = "on-failure"; RestartSec = 1000; Type = "oneshot"; }; }; }'
        ran = await host.stc(await host.build(module), "test")
        assert ran.status == 4
        assert "the following units failed: flap.service" in ran.said

    async def test_a_held_lock_is_11(self, host: Host) -> None:
        await host.start_stc(await host.build("{ test.stc.spinWithLock = true; }"), "test", "spin")
        # To ask the lock itself would take it for a moment, and the run that is to hold it tries only once.
        await host.until("grep -q 'spinning with the lock' /run/spin.log")
        ran = await host.stc(host.base, "switch")
        await host.sh("systemctl stop spin.service")
        assert (ran.status, ran.said) == (11, "Could not acquire lock\n")
        assert (await host.stc(host.base, "switch")).status == 0

    async def test_another_init_interface_is_100_and_the_boot_entry_has_moved(self, host: Host) -> None:
        new = await host.build("{ lib, ... }: { system.build.initInterfaceVersion = lib.mkForce 3; }")
        ran = await host.stc(new, "switch")
        assert (ran.status, await host.current(), await host.boot_entry()) == (100, host.base, new)

    @pytest.mark.parametrize("status", [1, 3, 11, 100])
    async def test_a_test_can_ask_for_an_exit(self, host: Host, status: int) -> None:
        new = await host.build(f"{{ test.stc.exit = {status}; }}")
        assert (await host.stc(new, "test")).status == status
        assert await host.current() == (new if status == 3 else host.base)


class TestCut:
    """A run that is killed on its way: the next one does what it left."""

    @pytest.mark.parametrize(
        ("phase", "options", "list_file"),
        [
            pytest.param("restart", "stopIfChanged = false;", "restart-list", id="before restarting"),
            pytest.param("reload", "reloadIfChanged = true;", "reload-list", id="before reloading"),
            pytest.param("start", "", "start-list", id="stopped, not started yet"),
        ],
    )
    async def test_the_next_run_completes_it(self, host: Host, phase: str, options: str, list_file: str) -> None:
        await host.stc(await host.build(service("1", options)), "test")
        await host.sh("rm -f /run/app.reloads /run/cut.log")
        before = await host.pid("app.service")
        await host.start_stc(
            await host.build(service("2", options), f'{{ test.stc.hangAt = "{phase}"; }}'), "test", "cut"
        )
        await host.until(f"grep -q 'hanging at {phase}' /run/cut.log")
        await host.sh(
            "systemctl kill -s KILL cut.service; until ! systemctl -q is-active cut.service; do sleep 0.1; done"
        )
        assert "app.service" in (await host.sh(f"cat /run/nixos/{list_file}")).splitlines()

        # The link has moved: by their files alone the two systems have nothing to do any more.
        ran = await host.stc(await host.build(service("2", options)), "test")
        assert ran.status == 0
        assert await host.sh("systemctl is-active app.service") == "active"
        if phase == "reload":
            await host.until("[ -s /run/app.reloads ]")
        else:
            assert await host.pid("app.service") != before
        assert "VERSION=2" in await host.sh("systemctl show -P Environment app.service")
        assert await host.sh("ls /run/nixos") == "switch-to-configuration.lock"

    async def test_a_run_cut_while_stopping_leaves_the_old_system(self, host: Host) -> None:
        await host.sh("rm -f /run/cut.log")
        await host.start_stc(await host.build('{ test.stc.hangAt = "stop"; }'), "test", "cut")
        await host.until("grep -q 'hanging at stop' /run/cut.log")
        await host.sh("systemctl kill -s KILL cut.service")
        assert await host.current() == host.base


OF_2020 = '{ test.stc.kind = "perl-2020"; }'
PERL = '{ test.stc.kind = "perl"; }'
NG = "{ }"


class TestKinds:
    """What the programs of NixOS that bear this name differ in."""

    @pytest.mark.parametrize("kind", [PERL, OF_2020], ids=["perl", "perl-2020"])
    async def test_perl_knows_no_checks(self, host: Host, kind: str) -> None:
        refusing = '{ system.preSwitchChecks.never = "false"; }'
        assert (await host.stc(await host.build(refusing, kind), "check")).status == 1
        assert (await host.stc(await host.build(refusing, kind), "test")).status == 0

    @pytest.mark.parametrize("kind", [PERL, OF_2020], ids=["perl", "perl-2020"])
    async def test_perl_does_not_say_that_a_script_failed(self, host: Host, kind: str) -> None:
        new = await host.build("{ test.stc.failUnit = true; test.stc.failSnippet = true; }", kind)
        ran = await host.stc(new, "test")
        assert ran.status == 4
        assert "Activation script snippet 'test-fail-snippet' failed (1)" in ran.said
        assert "Failed to run activate script" not in ran.said

    async def test_perl_waits_for_the_lock_and_that_of_2020_has_none(self, host: Host) -> None:
        perl, of_2020 = await host.build(PERL), await host.build(OF_2020)
        hold = "flock /run/nixos/switch-to-configuration.lock"
        for toplevel, status in ((perl, 124), (of_2020, 0)):
            done = await host.run("sh", "-c", f"{hold} timeout 3 {toplevel}/bin/switch-to-configuration test")
            assert done.exit_status == status

    async def test_lists_of_2020_lie_elsewhere(self, host: Host) -> None:
        await host.start_stc(await host.build(OF_2020, '{ test.stc.hangAt = "start"; }'), "test", "cut")
        await host.until("grep -q 'hanging at start' /run/cut.log")
        await host.sh(
            "systemctl kill -s KILL cut.service; until ! systemctl -q is-active cut.service; do sleep 0.1; done"
        )
        assert "multi-user.target" in (await host.sh("cat /run/systemd/start-list")).splitlines()
        assert (await host.run("test", "-e", "/run/nixos/start-list")).exit_status == 1
        assert (await host.stc(await host.build(OF_2020), "test")).status == 0
        assert (await host.run("test", "-e", "/run/systemd/start-list")).exit_status == 1

    @pytest.mark.parametrize(
        ("kind", "action"), [(NG, "test"), (PERL, "test"), (OF_2020, "")], ids=["ng", "perl", "perl-2020"]
    )
    async def test_scripts_know_the_action(self, host: Host, kind: str, action: str) -> None:
        snippet = '{ system.activationScripts.note = "echo action=$NIXOS_ACTION"; }'
        assert f"action={action}\n" in (await host.stc(await host.build(snippet, kind), "test")).said

    @pytest.mark.parametrize(("kind", "status"), [(NG, 0), (PERL, 0), (OF_2020, 4)], ids=["ng", "perl", "perl-2020"])
    async def test_a_unit_to_be_reloaded_that_has_stopped(self, host: Host, kind: str, status: int) -> None:
        options = "reloadIfChanged = true;"
        await host.stc(await host.build(service("1", options), kind), "test")
        stopping = '{ system.activationScripts.stop = "systemctl stop app.service"; }'
        ran = await host.stc(await host.build(service("2", options), stopping, kind), "test")
        assert ran.status == status
        left = await host.run("stat", "-c", "%s", "/run/nixos/reload-list")
        assert left.stdout == (b"" if kind == OF_2020 else b"0\n")
        await host.sh("rm -f /run/nixos/reload-list")

    @pytest.mark.parametrize(("kind", "status"), [(NG, 4), (PERL, 0), (OF_2020, 0)], ids=["ng", "perl", "perl-2020"])
    async def test_a_unit_that_does_not_stop_in_time(self, host: Host, kind: str, status: int) -> None:
        stubborn = """{ systemd.services.stubborn = {
          wantedBy = [ "multi-user.target" ];
          unitConfig.JobTimeoutSec = 1;
          serviceConfig.TimeoutStopSec = 1000;
          script = "trap : TERM; while :; do sleep 1000 & wait $! || true; done";
        }; }"""
        await host.stc(await host.build(stubborn, kind), "test")
        ran = await host.stc(await host.build(kind), "test")
        await host.sh(
            "systemctl kill -s KILL stubborn.service; systemctl stop stubborn.service; systemctl reset-failed"
        )
        assert ran.status == status, ran.said

    async def test_where_it_gives_up_is_1_and_perls_255(self, host: Host) -> None:
        dying = '{ test.stc.giveUpAt = "activate"; }'
        assert (await host.stc(await host.build(dying), "test")).status == 1
        assert (await host.stc(await host.build(dying, PERL), "test")).status == 255

    async def test_a_target_may_ask_to_be_stopped_first(self, host: Host) -> None:
        target = """{ systemd.targets.%s = {
          wantedBy = [ "multi-user.target" ]; unitConfig.X-StopOnReconfiguration = %s;
        }; }"""
        systems = [
            await host.build(target % ("milestone", "true"), target % ("other", "false"), kind)
            for kind in (NG, '{ environment.etc.x.text = ""; }')
        ]
        await host.stc(systems[0], "test")
        show = "systemctl show -P ActiveEnterTimestampMonotonic %s.target"
        before = [await host.sh(show % name) for name in ("milestone", "other")]
        ran = await host.stc(systems[1], "test")
        after = [await host.sh(show % name) for name in ("milestone", "other")]
        assert (ran.status, after[0] != before[0], after[1] == before[1]) == (0, True, True)
        assert "milestone" not in ran.said

    async def test_systemd_starts_itself_anew_where_its_settings_have_changed(self, host: Host) -> None:
        await host.stc(await host.build(service("1")), "test")
        before = await host.pid("app.service")
        settings = '{ environment.etc."systemd/system.conf".text = "[Manager]\\nDefaultTimeoutStartSec=77s\\n"; }'
        ran = await host.stc(await host.build(service("1"), settings), "test")
        assert (ran.status, await host.pid("app.service")) == (0, before)
        assert "restarting systemd...\n" in ran.said
        assert await host.sh("systemctl show -P DefaultTimeoutStartUSec") == "1min 17s"

    async def test_managers_of_users_start_anew(self, host: Host) -> None:
        # By hand: there is no logind here that would start it for a login.
        unit = """[Service]
        Type=notify
        Delegate=yes
        RuntimeDirectory=user/0
        Environment=XDG_RUNTIME_DIR=/run/user/0
        ExecStart=/usr/lib/systemd/systemd --user
        """
        await host.sh(f"echo '{unit}' >/run/systemd/system/user@0.service; systemctl daemon-reload")
        await host.sh("systemctl start user@0.service")
        ran = await host.stc(await host.build(service("1")), "test")
        await host.sh("systemctl stop user@0.service; rm /run/systemd/system/user@0.service; systemctl daemon-reload")
        assert ran.status == 0, ran.said
        assert "reloading user units for root...\n" in ran.said


class TestAccountsAndFiles:
    ACCOUNTS = """{ pkgs, ... }: {
      users.groups.app = { };
      users.users.app = { isSystemUser = true; group = "app"; extraGroups = [ "keys" ]; };
      users.users.alice = { isNormalUser = true; uid = 1234; openssh.authorizedKeys.keys = [ "ssh-ed25519 AAAA alice" ]; };
    }"""

    async def test_accounts_come_and_go_with_their_declaration(self, host: Host) -> None:
        assert (await host.stc(await host.build(self.ACCOUNTS), "test")).status == 0
        assert await host.sh("id -nG app") == "app keys"
        assert await host.sh("id -u alice; stat -c '%a %U %G' /home/alice") == "1234\n700 alice users"
        assert (
            await host.sh("cat /etc/ssh/authorized_keys.d/alice; stat -c '%F %a' /etc/ssh/authorized_keys.d/alice")
            == "ssh-ed25519 AAAA alice\nregular file 444"
        )
        ran = await host.stc(host.base, "test")
        assert "removing user ‘alice’" in ran.said
        for gone in ("passwd app", "passwd alice", "group app"):
            assert (await host.run("getent", *gone.split())).exit_status == 2, gone
        assert await host.sh("getent passwd daemon; getent group keys") != ""

    async def test_an_account_follows_its_declaration(self, host: Host) -> None:
        await host.stc(await host.build(self.ACCOUNTS), "test")
        changed = '{ users.users.app.extraGroups = [ "adm" ]; users.users.app.home = "/srv/app"; }'
        await host.stc(await host.build(self.ACCOUNTS, changed), "test")
        assert await host.sh("id -nG app; getent passwd app | cut -d: -f6") in (
            "app adm keys\n/srv/app",
            "app keys adm\n/srv/app",
        )

    async def test_files_come_and_go_and_debians_come_back(self, host: Host) -> None:
        await host.sh("rm -rf /etc/issue; echo debian >/etc/issue")
        files = '{ environment.etc."site/app.conf".text = "one"; environment.etc."issue".text = "ours"; environment.etc."copy" = { text = "c"; mode = "0640"; group = "adm"; }; }'
        await host.stc(await host.build(files), "test")
        assert await host.sh("cat /etc/site/app.conf /etc/issue") == "oneours"
        assert await host.sh("stat -c '%F %a %G' /etc/copy") == "regular file 640 adm"
        await host.stc(await host.build(files.replace('"one"', '"two"')), "test")
        assert await host.sh("cat /etc/site/app.conf") == "two"
        await host.stc(host.base, "test")
        assert await host.sh("cat /etc/issue") == "debian"
        assert (await host.run("test", "-e", "/etc/site/app.conf")).exit_status == 1
        assert (await host.run("test", "-e", "/etc/copy")).exit_status == 1

    async def test_the_name_of_the_machine_follows(self, host: Host) -> None:
        await host.stc(
            await host.build(
                '{ lib, ... }: { networking.hostName = lib.mkForce "renamed"; networking.extraHosts = "192.0.2.1 peer"; }'
            ),
            "test",
        )
        assert await host.sh("uname -n; getent hosts peer | tr -s ' '") == "renamed\n192.0.2.1 peer"
        await host.stc(host.base, "test")
        assert await host.sh("uname -n") == NAME

    async def test_programs_are_those_of_the_system(self, host: Host) -> None:
        await host.stc(await host.build("{ pkgs, ... }: { environment.systemPackages = [ pkgs.hello ]; }"), "test")
        assert await host.sh("/run/current-system/sw/bin/hello") == "Hello, world!"
        dangling = await host.sh("find -L /run/current-system/sw/bin -type l")
        assert dangling == ""


class TestWebServer:
    MODULE = """{ pkgs, ... }: {
      services.httpd.enable = true;
      services.httpd.adminAddr = "webmaster@example.org";
      services.httpd.virtualHosts.localhost.documentRoot = "${pkgs.valgrind.doc}/share/doc/valgrind/html";
      networking.firewall.allowedTCPPorts = [ 80 ];
    }"""

    async def fetch(self, host: Host, path: str) -> str:
        """Over the network: the machine's own firewall has to let it in."""
        argv = [*network.entering(host.namespace), "curl", "-sS", "--max-time", "20", f"http://{ADDRESS}{path}"]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        page, _ = await process.communicate()
        assert process.returncode == 0
        return page.decode(errors="replace")

    async def test_it_serves_valgrinds_manual_to_the_network(self, host: Host) -> None:
        ran = await host.stc(await host.build(self.MODULE), "test")
        assert ran.status == 0, ran.said
        assert "<title>Valgrind Documentation</title>" in await self.fetch(host, "/")
        assert "Memcheck" in await self.fetch(host, "/mc-manual.html")
        assert await host.sh("stat -c %U /var/log/httpd") == "wwwrun"
        assert "GET / HTTP/1.1" in await host.sh("cat /var/log/httpd/access-localhost.log")

    async def test_a_changed_page_is_served_after_a_switch(self, host: Host) -> None:
        await host.stc(await host.build(self.MODULE), "test")
        page = """{ lib, pkgs, ... }: {
          services.httpd.virtualHosts.localhost.documentRoot = lib.mkForce (pkgs.writeTextDir "index.html" "changed");
        }"""
        ran = await host.stc(await host.build(self.MODULE, page), "test")
        assert "stopping the following units: httpd.service" in ran.said
        assert await self.fetch(host, "/") == "changed"

    async def test_the_firewall_admits_what_is_allowed(self, host: Host) -> None:
        assert "tcp dport 22 accept" in await host.sh("nft list chain inet nixos-fw input")
        await host.stc(await host.build(self.MODULE), "test")
        assert "tcp dport { 22, 80 } accept" in await host.sh("nft list chain inet nixos-fw input")
        await host.stc(await host.build("{ networking.firewall.enable = false; }"), "test")
        assert await host.sh("nft list tables") == ""


class TestFailures:
    """What tests of a deployment ask for, and that going back mends it."""

    async def test_sshd_is_stopped_and_comes_back_with_the_old_system(self, host: Host) -> None:
        assert (await host.stc(await host.build("{ test.stc.killSshd = true; }"), "test")).status == 0
        assert (await host.run("systemctl", "is-active", "sshd.service")).stdout == b"inactive\n"
        await host.stc(host.base, "test")
        assert await host.sh("systemctl is-active sshd.service") == "active"

    async def test_a_configuration_without_sshd_stops_it(self, host: Host) -> None:
        new = await host.build("{ lib, ... }: { services.openssh.enable = lib.mkForce false; }")
        ran = await host.stc(new, "test")
        assert "stopping the following units: sshd.service" in ran.said
        await host.stc(host.base, "test")
        assert await host.sh("systemctl is-active sshd.service") == "active"

    async def test_the_network_is_dropped_and_comes_back_with_the_old_system(self, host: Host) -> None:
        assert await self.sshd_answers(host, 20)
        await host.stc(await host.build("{ test.stc.dropNetwork = true; }"), "test")
        assert not await self.sshd_answers(host, 2)
        await host.stc(host.base, "test")
        assert await self.sshd_answers(host, 20)

    async def sshd_answers(self, host: Host, seconds: int) -> bool:
        connect = [
            *network.entering(host.namespace),
            "timeout",
            str(seconds),
            "bash",
            "-c",
            f"exec 3<>/dev/tcp/{ADDRESS}/22",
        ]
        process = await asyncio.create_subprocess_exec(*connect, stderr=asyncio.subprocess.DEVNULL)
        return await process.wait() == 0
