"""Every way to lock everybody out of a machine, side by side on real ones: with the operator alive, and with one that
is killed while they switch, restart or are being copied to. Then they are back by themselves before there is any
operator. Afterwards each can be logged in to, runs its old system or the new one, nothing of the other, and its
conditions say what the documentation says.

A row is a line of the tables in docs/how-to/activation.md, or a part of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import pytest

from cluster import specs
from cluster.lockouts.company import Company, Found, Machine, Story, log_in, ready_of, until
from cluster.place import Place
from cluster.test_crashes import kill
from nixops_lab.machines import full_store

pytestmark = pytest.mark.timeout(3600)

SITE, BY_HAND, SHUT = "site", "by-hand", "shut"
ALIVE, DEAD = "alive", "dead"
OLD = "The old page"
LIMIT = 900.0  # seconds, for one part of the table
# As long as `Machine.hold` says so, a switch waits in a check of the new system, or a shutdown for a unit of the one
# that runs.
HELD = """
  system.preSwitchChecks.held = "while [ -e /run/held-switch ]; do : >/run/holding; sleep 0.1; done";
  systemd.services.held = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig = { Type = "oneshot"; RemainAfterExit = true; TimeoutStopSec = "infinity"; };
    script = ":";
    preStop = "while [ -e /run/held-shutdown ]; do sleep 0.1; done";
  };
"""
DISABLED = "services.openssh.enable = lib.mkForce false;"
BROKEN_KERNEL = "imports = [ ({ pkgs, ... }: { boot.kernelPackages = pkgs.linuxPackages_broken; }) ];"
PANICS = 'boot.kernelParams = [ "panic=1" ];'


class Dies(Enum):
    """The moment at which the operator is killed, of each machine."""

    SWITCHING = auto()  # as a check of the new system waits
    HANGING = auto()  # as it hangs by itself
    RESTARTING = auto()  # as the machine goes down
    COPYING = auto()  # as the system cannot be brought there


def nobody(machine: Machine) -> Story:
    yield from ()


def somebody_resets_it(machine: Machine) -> Story:
    yield from until(lambda: machine.has_panicked)
    machine.reset()


def its_minutes_are_over(machine: Machine) -> Story:
    yield from until(lambda: machine.state == "rebooting" and machine.has_restarted)
    guard = f"nixops-confirm-{machine.activation}"
    yield from until(lambda: machine.has(f"run/systemd/transient/{guard}.timer"))
    machine.run("systemctl", "start", "--no-block", f"{guard}.service")


@dataclass(frozen=True)
class Row:
    """`line`: how the line in the documentation begins. `reason`: of Ready. `says`: in its message."""

    line: str
    module: str = ""
    reason: str = "ActivationFailed"
    says: str = ""
    runs_new: bool = False
    dies: Dies = Dies.SWITCHING
    inhibitor: str = "old"
    fields: Mapping[str, Any] = field(default_factory=dict)
    help: Callable[[Machine], Story] = nobody
    fills: str = ""  # a script of full_store


RESTARTED: dict[str, Any] = {"disruption": {"reboot": "WhenNeeded"}}
DID_NOT_COME_UP = "did not come up, or could not be reached"
SSHD, KEY, NETWORK = "stops or disables sshd", "admits another key", "closes port 22"

ROWS = {
    "sshd is stopped": Row(
        SSHD,
        "test.stc.killSshd = true;",
        says="refused the connection: nothing listens there. It has to let root in on port 22",
    ),
    "sshd is disabled": Row(SSHD, DISABLED, says="did not answer SSH in time"),
    "sshd is on another port": Row(SSHD, "services.openssh.ports = [ 2222 ];", says="did not answer SSH in time"),
    "another key is authorised": Row(
        KEY,
        'services.openssh.authorizedKeysFiles = lib.mkForce [ "/etc/nobody-s-keys" ];',
        says="refused the client key for root",
    ),
    "root may not log in": Row(
        KEY,
        'services.openssh.settings.PermitRootLogin = lib.mkForce "no";',
        says="refused the client key for root",
    ),
    "the firewall closes port 22": Row(
        NETWORK, "services.openssh.openFirewall = lib.mkForce false;", says="did not answer SSH in time"
    ),
    "the network goes down": Row(NETWORK, "test.stc.dropNetwork = true;", says="did not answer SSH in time"),
    "the switch hangs": Row(
        "hangs",
        'test.stc.hangAt = "restart";',
        says="did not end within activation.timeout",
        dies=Dies.HANGING,
        # Longer than a look at all machines takes: else it is over before anybody has seen it hang.
        fields={"activation": {"timeout": "90s", "confirmTimeout": "30s"}},
    ),
    "exit 2": Row("has it end with 2", "test.stc.failSnippet = true;", says="ended with exit code 2"),
    "exit 3": Row("has it end with 2", "test.stc.exit = 3;", says="exit code 3"),
    "exit 1": Row("has it end with 1 ", "test.stc.exit = 1;", says="nothing was changed"),
    "exit 4": Row(
        "has it end with 4",
        "test.stc.failUnit = true;",
        "Succeeded",
        says="units failed when it was activated",
        runs_new=True,
    ),
    "exit 4 and checks": Row(
        "has it end with 4",
        "test.stc.failUnit = true;",
        "HealthCheckFailed",
        says="units failed that had not before",
        fields={"healthChecks": [{"name": "ssh", "tcp": {"port": 22}}]},
    ),
    "exit 11": Row(
        "has it end with 11",
        "test.stc.exit = 11;",
        "Activating",
        says="somebody else's switch-to-configuration runs",
    ),
    "exit 100": Row("has it end with 100", "test.stc.exit = 100;", "RebootRequired"),
    "an inhibitor": Row("has it end with 100", reason="RebootRequired", inhibitor="new"),
    "no room": Row(
        "finds no room",
        reason="CopyFailed",
        says="is full (0 MiB free in /nix/store)",
        dies=Dies.COPYING,
        fills=full_store.NO_BYTE,
    ),
    "no room to build": Row(
        "finds no room",
        reason="BuildFailed",
        says="MiB free in /nix/store, and nothing is built with less",
        dies=Dies.COPYING,
        fills=full_store.NO_BYTE,
        fields={"configuration": {"build": {"on": "Target"}}},
    ),
    "no inode": Row(
        "finds no room",
        reason="CopyFailed",
        says="no inode is left for it in /nix/store",
        dies=Dies.COPYING,
        fills=full_store.NO_INODE,
    ),
    "the kernel panics": Row(
        "is booted, and does not come up",
        BROKEN_KERNEL + PANICS,
        says=DID_NOT_COME_UP,
        dies=Dies.RESTARTING,
        fields=RESTARTED,
    ),
    "the kernel hangs": Row(
        "is booted, and does not come up",
        BROKEN_KERNEL,
        says=DID_NOT_COME_UP,
        dies=Dies.RESTARTING,
        inhibitor="new",
        fields=RESTARTED,
        help=somebody_resets_it,
    ),
    "booted without sshd": Row(
        "is booted, and cannot be reached",
        DISABLED,
        says=DID_NOT_COME_UP,
        dies=Dies.RESTARTING,
        inhibitor="new",
        fields=RESTARTED,
        help=its_minutes_are_over,
    ),
}


@dataclass(frozen=True)
class Ec2Row:
    """`deployment`: one with a group, and a machine, of its own."""

    line: str
    deployment: str
    reason: str
    says: str = ""


EC2_ROWS = {
    "a rule taken by hand": Ec2Row("somebody takes the rule", BY_HAND, "SecurityGroupDrift"),
    "a spec without a rule": Ec2Row(
        "the spec has no rule", SHUT, "ChangeForbidden", "the declared rules let nobody reach"
    ),
}

ALL: Mapping[str, Row | Ec2Row] = {**ROWS, **EC2_ROWS}


# --- the table, carried out -------------------------------------------------------------------------------------------


@dataclass
class End:
    """Of one row with an operator alive or dead. `old`: the toplevel to which the machine returns. `alone`: what a
    login found before there was an operator again. `wanted`: the toplevel that is to run. `ready`: status, reason and
    message."""

    before: Found
    old: str
    failure: str = ""
    alone: Found | None = None
    after: Found = field(default_factory=Found)
    wanted: str = ""
    ready: tuple[str, str, str] = ("", "", "")
    is_reached: bool = False
    seconds: float = 0.0  # from the new spec to the condition
    has_gone_on: bool = False


class Table:
    """All rows, each on a machine of its own."""

    def __init__(self, place: Place, rows: Mapping[str, Row | Ec2Row]) -> None:
        self._place = place
        self._rows = {name: row for name, row in rows.items() if isinstance(row, Row)}
        self._ec2_rows = {name: row for name, row in rows.items() if isinstance(row, Ec2Row)}
        self._specs = {name: _machine(name, row, OLD, is_old=True) for name, row in self._rows.items()}
        names = {name: f"{SITE}-{_label(name)}" for name in self._rows}
        names |= {name: f"{row.deployment}-web" for name, row in self._ec2_rows.items()}
        self._company = Company(place, {name: Machine(place, of) for name, of in names.items()})

    def launch(self) -> None:
        """Every machine runs its old system."""
        self._declare()
        for row in self._ec2_rows.values():
            self._place.apply(_ec2_deployment(row.deployment))
        names = [*([SITE] if self._rows else []), *(row.deployment for row in self._ec2_rows.values())]
        self._place.wait_ready(*(f"nixdeployment/{name}" for name in names), limit=int(LIMIT))
        self._company.look()

    def beside_a_living_operator(self) -> dict[str, End]:
        ends = self._begin()
        self._declare("A page beside a living operator", self._rows)
        self._shut_in_ec2()
        self._play(ends, self._told(ends, {name: row.help for name, row in self._rows.items()}))
        return self._ended(ends)

    def without_an_operator(self) -> dict[str, End]:
        """It dies when all of them are at their moment."""
        ends = self._begin()
        for name, row in self._rows.items():
            if row.dies is not Dies.HANGING:
                self._company.machines[name].hold("shutdown" if row.dies is Dies.RESTARTING else "switch")
        by_themselves = {name for name, row in self._rows.items() if row.dies is Dies.HANGING}
        for names in (self._rows.keys() - by_themselves, by_themselves):  # who hangs has seconds only
            self._declare("A page without an operator", names)
            self._play(ends, {name: self._at_its_moment(name) for name in names})
        kill(self._place)
        for name in self._rows:
            self._company.machines[name].let_go()
        self._play(ends, {name: self._back(name, ends[name]) for name in self._rows})
        for name, found in log_in(self._place, self._company.machines).items():
            ends[name].alone = found
        self._shut_in_ec2()
        self._place.lab.operator.restart()
        self._play(ends, self._told(ends, {}))
        return self._ended(ends)

    def _begin(self) -> dict[str, End]:
        for row in self._ec2_rows.values():
            self._place.apply(_ec2_deployment(row.deployment))
        for name, machine in self._company.machines.items():
            machine.begin()
            if name in self._rows and self._rows[name].fills:
                machine.run("sh", "-c", self._rows[name].fills)
        self._since, self._begun = self._place.mark(), time.monotonic()
        found = log_in(self._place, self._company.machines)
        return {name: End(one, one.running) for name, one in found.items()}

    def _declare(self, title: str = "", names: Iterable[str] = ()) -> None:
        """The new systems of these rows."""
        self._specs |= {name: _machine(name, self._rows[name], title) for name in names}
        if self._specs:
            self._place.apply(_deployment(SITE, list(self._specs.values())))

    def _shut_in_ec2(self) -> None:
        for name, row in self._ec2_rows.items():
            if row.deployment == SHUT:
                self._place.apply(_ec2_deployment(SHUT, ports=[80]))
            else:
                group = self._group_of(name)
                rules = [rule for rule in group["IpPermissions"] if rule["FromPort"] == 22]
                self._place.ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=rules)

    def _group_of(self, name: str) -> dict[str, Any]:
        (instance,) = self._place.ec2.describe_instances(InstanceIds=[self._company.machines[name].instance])[
            "Reservations"
        ][0]["Instances"]
        (group,) = instance["SecurityGroups"]
        (found,) = self._place.ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
        return dict(found)

    # --- stories ------------------------------------------------------------------------------------------------------

    def _play(self, ends: Mapping[str, End], stories: Mapping[str, Story]) -> None:
        """Of those rows that have not failed yet."""
        going = {name: story for name, story in stories.items() if not ends[name].failure}
        for name, failure in self._company.play(going, LIMIT).items():
            ends[name].failure = failure

    def _at_its_moment(self, name: str) -> Story:
        machine, row = self._company.machines[name], self._rows[name]
        moments = {
            Dies.SWITCHING: lambda: machine.state == "switching" and machine.has("run/holding"),
            Dies.HANGING: lambda: machine.state == "switching" and "hanging at" in machine.log,
            Dies.RESTARTING: lambda: machine.state == "rebooting",
            Dies.COPYING: lambda: machine.ready[1] == row.reason,
        }
        yield from until(moments[row.dies])

    def _back(self, name: str, end: End) -> Story:
        """Without anybody's help but that of a person, or of time."""
        machine, row = self._company.machines[name], self._rows[name]
        yield from row.help(machine)
        if row.dies in (Dies.SWITCHING, Dies.HANGING):
            yield from until(lambda: machine.state in ("rolledback", "failed"))
        if row.dies is Dies.RESTARTING:
            yield from until(lambda: machine.has_restarted and machine.system == end.old)

    def _told(self, ends: Mapping[str, End], helped: Mapping[str, Callable[[Machine], Story]]) -> dict[str, Story]:
        machines = {name: self._status_of(name, ends[name], helped.get(name, nobody)) for name in self._rows}
        return machines | {name: self._status_of_ec2(name, ends[name]) for name in self._ec2_rows}

    def _status_of(self, name: str, end: End, helped: Callable[[Machine], Story]) -> Story:
        machine, row = self._company.machines[name], self._rows[name]
        yield from helped(machine)
        yield from until(lambda: machine.ready[1] == row.reason and machine.is_reached)
        end.ready, end.is_reached, end.seconds = machine.ready, machine.is_reached, time.monotonic() - self._begun

    def _status_of_ec2(self, name: str, end: End) -> Story:
        machine, row = self._company.machines[name], self._ec2_rows[name]
        if row.deployment == BY_HAND:
            told = ("False", row.reason)
            yield from until(lambda: told in self._place.told(BY_HAND, "UpToDate", self._since))
            yield from until(lambda: any(rule["FromPort"] == 22 for rule in self._group_of(name)["IpPermissions"]))
            end.ready = ("False", row.reason, "")
        else:
            yield from until(lambda: self._ready_of(SHUT)[1] == row.reason)
            end.ready = self._ready_of(SHUT)
        yield from until(lambda: machine.is_reached)
        end.seconds = time.monotonic() - self._begun

    def _ready_of(self, deployment: str) -> tuple[str, str, str]:
        return ready_of(self._company.deployments[deployment])

    def _ended(self, ends: dict[str, End]) -> dict[str, End]:
        for name, found in log_in(self._place, self._company.machines).items():
            ends[name].after = found
        for name in self._ec2_rows:
            ends[name].wanted = ends[name].before.running
        for name, row in self._rows.items():
            machine = self._company.machines[name]
            ends[name].wanted = machine.desired if row.runs_new else ends[name].old
            if row.fills:
                machine.run("sh", "-c", full_store.ROOM)
        self._play(ends, {name: self._goes_on(name, ends[name]) for name, row in self._rows.items() if row.fills})
        return ends

    def _goes_on(self, name: str, end: End) -> Story:
        machine = self._company.machines[name]
        yield from until(lambda: machine.ready[0] == "True" and machine.system == machine.desired)
        end.has_gone_on = True


def _label(name: str) -> str:
    return name.replace(" ", "")  # a dash in it would lengthen the name of the object


def _machine(name: str, row: Row, title: str, *, is_old: bool = False) -> dict[str, Any]:
    inhibitor = f'system.switch.inhibitors.init = "{"old" if is_old else row.inhibitor}";'
    module = specs.page(f"{title}, {name}", f"{HELD} {inhibitor} {'' if is_old else row.module}")
    fields = dict(row.fields) if not is_old else {}
    return {
        "name": _label(name),
        "target": {"ec2": {"instanceType": "t2.micro", "keyPair": "key", "securityGroups": ["web"]}},
        "activation": {"timeout": "10m", "confirmTimeout": "30s"},
        **fields,
        "configuration": {"modules": [{"inline": module}], **fields.get("configuration", {})},
    }


def _deployment(name: str, machines: list[dict[str, Any]], ports: Sequence[int] = (22, 80)) -> dict[str, Any]:
    spec = {
        "aws": specs.aws(),
        "keyPairs": [{"name": "key", "privateKeySecretRef": {"name": "existing-host-ssh"}}],
        "securityGroups": [{"name": "web", "description": "Site", "ingress": [specs.rule(port) for port in ports]}],
        "machines": machines,
    }
    return {"apiVersion": "nixops.dev/v1alpha1", "kind": "NixDeployment", "metadata": {"name": name}, "spec": spec}


def _ec2_deployment(name: str, ports: Sequence[int] = (22, 80)) -> dict[str, Any]:
    return _deployment(name, [_machine("web", Row(""), OLD, is_old=True)], ports)


# --- what it shows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest, shared_place: Place) -> Table:
    """Of those rows that are to be looked at."""
    chosen = {item.callspec.params["row"] for item in request.session.items if item.path == request.node.path}
    shared_place.aws_secret()
    shared_place.ssh_secret()
    made = Table(shared_place, {name: row for name, row in ALL.items() if name in chosen})
    made.launch()
    return made


@pytest.fixture(scope="module")
def alive(table: Table) -> dict[str, End]:
    return table.beside_a_living_operator()


@pytest.fixture(scope="module")
def dead(table: Table) -> dict[str, End]:
    return table.without_an_operator()


@pytest.mark.parametrize("operator", ["alive", "dead"])
@pytest.mark.parametrize("row", ALL)
def test_nobody_is_locked_out_where(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], row: str, operator: str
) -> None:
    end: End = request.getfixturevalue(operator)[row]
    expected = ALL[row]
    with capsys.disabled():
        print(f"\n{row}, operator {operator}: {end.seconds:.0f} s; {': '.join(end.ready[1:])}")

    assert not end.failure
    assert end.before.running, end.before
    if isinstance(expected, Row) and operator == "dead":
        assert end.alone is not None
        assert (end.alone.running, end.alone.boots) == (end.old, end.old)
        assert (end.alone.title == end.before.title) is (end.old == end.before.running)
        assert end.alone.is_etc_its_own
        # Of a kernel that did not come up nobody has taken the profile back yet: no boot chooses by it.
        assert end.alone.is_whole or expected.dies is Dies.RESTARTING
    assert expected.says in end.ready[2]
    assert end.after.is_whole
    assert end.after.running == end.wanted
    assert (end.after.title == end.before.title) is (end.wanted == end.before.running)
    assert end.has_gone_on is bool(isinstance(expected, Row) and expected.fills)
