"""What is done to the worlds, and how it ends where nothing is cut."""

from __future__ import annotations

import asyncio
import copy
import functools
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from crash.bench import SHORT_LAG, Crash, Cut, Lags, Operator, Worlds
from fakes.effects import Effects
from fakes.host import Switch
from nixops_operator.facts.cloud import InstanceState, Volume, VolumeSettings
from nixops_operator.facts.kube import Key, Kind
from unit.fake_time import run

SHOP = Key(Kind.DEPLOYMENT, "default", "shop")

Interrupt = Callable[[Worlds, str, int], Cut | None]
"""Called before each effect of the first life, with its name and number, see bench.Operator."""


def _port(number: int) -> dict[str, Any]:
    return {"fromPort": number, "toPort": number, "cidrs": ["0.0.0.0/0"]}


def _key(name: str, **more: str) -> dict[str, Any]:
    return {"name": name, "secretRef": {"name": "tokens", "key": name}, **more}


def _machine(name: str, build_on: str) -> dict[str, Any]:
    return {
        "name": name,
        "target": {"ec2": {"instanceType": "t3.small", "keyPair": "main", "securityGroups": ["http", "ssh"]}},
        "configuration": {
            "modules": [{"inline": "{ services.httpd.enable = true; }"}],
            "build": {"on": build_on},
        },
        "keys": [_key("token"), _key("late", directory="/var/lib/app", upload="AfterActivation")],
        "disruption": {"replace": "WhenLost"},
        "healthChecks": [{"name": "page", "http": {"port": 80}}],
    }


def _with_disk(machine: dict[str, Any]) -> dict[str, Any]:
    machine["target"]["ec2"]["volumes"] = [
        {"name": "data", "device": "/dev/sdf", "size": 10, "deletionPolicy": "Delete"}
    ]
    return machine


DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "nixops.dev/v1alpha1",
    "kind": "NixDeployment",
    "metadata": {"namespace": "default", "name": "shop"},
    "spec": {
        "aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}},
        "keyPairs": [{"name": "main"}],
        "securityGroups": [
            {"name": "http", "description": "Web", "ingress": [_port(80)]},
            {"name": "ssh", "description": "SSH", "ingress": [_port(22)]},
        ],
        "machines": [_with_disk(_machine("db", "Operator")), _machine("web", "Target")],
    },
}


def create(worlds: Worlds) -> None:
    """kubectl apply of a deployment with a key pair, two groups and two machines; the neighbour takes notice."""
    worlds.tenant_b(worlds.kube.apply(DEPLOYMENT)["metadata"]["uid"])


def reconfigure(worlds: Worlds) -> None:
    """Another module for one machine, another port in a group."""

    def change(body: dict[str, Any]) -> None:
        body["spec"]["machines"][1]["configuration"]["modules"] = [{"inline": "{ services.nginx.enable = true; }"}]
        body["spec"]["securityGroups"][0]["ingress"] = [_port(8080)]

    worlds.kube.edit(SHOP, change)


def replace(worlds: Worlds) -> None:
    """One instance is terminated by hand; its machine allows another."""
    first = min(worlds.cloud.instances)
    worlds.cloud.set_state(first, InstanceState.TERMINATED, "Client.UserInitiatedShutdown")


def resize(worlds: Worlds) -> None:
    """Another type and a placement group for one machine, which may be stopped for it."""
    worlds.cloud.placement_groups.add("near")

    def change(body: dict[str, Any]) -> None:
        machine = body["spec"]["machines"][1]
        machine["target"]["ec2"] |= {"instanceType": "t3.medium", "placementGroup": "near"}
        machine["disruption"] = {"replace": "WhenLost", "stop": "WhenNeeded"}

    worlds.kube.edit(SHOP, change)


def other_hardware(body: dict[str, Any]) -> None:
    """What EC2 fixes at launch, of one machine, which may be replaced for it."""
    machine = body["spec"]["machines"][1]
    machine["target"]["ec2"]["tenancy"] = "Dedicated"
    machine["disruption"] = {"replace": "WhenNeeded"}


def substitute(worlds: Worlds) -> None:
    """Another tenancy for one machine, which takes another instance."""
    worlds.kube.edit(SHOP, other_hardware)


DECLARED_LATER: dict[str, Any] = {
    "monitoring": True,
    "sourceDestCheck": False,
    "metadata": {"hopLimit": 2},
    "instanceProfile": "web",
    "terminationProtection": True,
    "shutdownBehavior": "Terminate",
    "credits": "Standard",
    "tags": {"team": "web"},
    "rootVolume": {"size": 40, "throughput": 250},
}


def declare(worlds: Worlds) -> None:
    """More of a running instance, and later less of it: what leaves the spec goes back."""
    worlds.cloud.instance_profiles.add("web")
    _edit_web(worlds, lambda ec2: ec2.update(DECLARED_LATER))
    left = ("instanceProfile", "terminationProtection", "tags")
    worlds.at_rest.append(lambda worlds: _edit_web(worlds, lambda ec2: [ec2.pop(field) for field in left]))


def grow(worlds: Worlds) -> None:
    """A larger root volume; the file system follows on the machine."""
    _edit_web(worlds, lambda ec2: ec2.update(rootVolume={"size": 40}))


def _disk(name: str, device: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "device": device, "size": 10, **more}


def disks(worlds: Worlds) -> None:
    """Three volumes more, one of them larger later, and then none, as in the configuration: one stays once it is
    unmounted, another is deleted, and the one that was there before is as it was."""
    kept, dropped = _disk("kept", "/dev/sdf"), _disk("dropped", "/dev/sdg", deletionPolicy="Delete")
    settings = VolumeSettings(10, "gp3", 3000, 125, encrypted=False)
    worlds.cloud.volumes["vol-0"] = Volume("vol-0", "available", "us-west-2a", settings, {"team": "archive"})
    given = {"name": "given", "device": "/dev/sdh", "volumeId": "vol-0"}
    _edit_web(worlds, lambda ec2: ec2.update(volumes=[kept, dropped, given]))

    def drop(worlds: Worlds) -> None:
        for machine in worlds.hosts.machines.values():
            machine.mounted["/dev/sdf"] = "/data"
        worlds.kube.edit(SHOP, without)

    def without(body: dict[str, Any]) -> None:
        web = body["spec"]["machines"][1]
        web["target"]["ec2"]["volumes"] = []
        web["configuration"]["modules"] = [{"inline": "{ services.nginx.enable = true; }"}]

    def unmount(worlds: Worlds) -> None:
        for machine in worlds.hosts.machines.values():
            machine.mounted.clear()

    worlds.at_rest += [
        lambda worlds: _edit_web(worlds, lambda ec2: ec2.update(volumes=[kept, dropped | {"size": 20}, given])),
        drop,
        unmount,
    ]


def _edit_web(worlds: Worlds, change: Callable[[dict[str, Any]], object]) -> None:
    worlds.kube.edit(SHOP, lambda body: change(body["spec"]["machines"][1]["target"]["ec2"]))


def settle_down(worlds: Worlds) -> None:
    """An elastic address for one machine, which loses it by hand; then one of the user's in its place; then none."""
    given = worlds.cloud.allocate()
    worlds.judge.by_hand.add(given)
    _edit_web(worlds, lambda ec2: ec2.update(elasticIp={"allocate": True}))
    worlds.at_rest += [
        _take_address_off,
        lambda worlds: _edit_web(worlds, lambda ec2: ec2.update(elasticIp={"id": given})),
        lambda worlds: _edit_web(worlds, lambda ec2: ec2.pop("elasticIp")),
    ]


def _take_address_off(worlds: Worlds) -> None:
    ours = next(one for one in worlds.cloud.addresses.values() if one.instance_id is not None)
    worlds.cloud.associate(ours.id, None)


def crowd(worlds: Worlds) -> None:
    """A machine may live in three subnets; its instance is lost while the first two have no room for another one."""
    _edit_web(worlds, lambda ec2: ec2.update(subnetIds=sorted(worlds.cloud.subnets)))
    worlds.at_rest.append(_lose_web)


def _lose_web(worlds: Worlds) -> None:
    first, second, _ = sorted(worlds.cloud.subnets)
    worlds.cloud.zones_without_capacity.add(worlds.cloud.subnets[first].zone)
    worlds.cloud.subnets_without_addresses.add(second)
    web = worlds.kube.body(Key(Kind.MACHINE, "default", "shop-web"))
    assert web is not None
    (instance,) = worlds.cloud.live(web["metadata"]["uid"])
    worlds.cloud.set_state(instance.id, InstanceState.TERMINATED, "Client.UserInitiatedShutdown")


def leave(worlds: Worlds) -> None:
    """kubectl delete, once a machine has an elastic address."""
    _edit_web(worlds, lambda ec2: ec2.update(elasticIp={"allocate": True}))
    worlds.at_rest.append(delete)


def rotate(worlds: Worlds) -> None:
    """Other contents in the Secret, another key in place of one, and the machines are power-cycled."""
    worlds.rotate_tokens()

    def change(body: dict[str, Any]) -> None:
        for machine in body["spec"]["machines"]:
            machine["keys"] = [_key("token"), _key("more", path="/srv/more")]

    worlds.kube.edit(SHOP, change)
    for machine in worlds.hosts.machines.values():
        machine.reboot()


def reboot(worlds: Worlds) -> None:
    """Another kernel for a machine that may be restarted for it: it cannot become the new system while it runs."""
    web = worlds.kube.body(Key(Kind.MACHINE, "default", "shop-web"))
    assert web is not None
    machine = worlds.hosts.machines[web["status"]["addresses"]["ssh"]]
    machine.outcomes = {str(machine.current_system): Switch()}
    machine.other_switches = Switch(100, moves_link=False, is_begun=False, needs_restart=True)

    def change(body: dict[str, Any]) -> None:
        machine = body["spec"]["machines"][1]
        machine["configuration"]["modules"] = [{"inline": "{ boot.kernelPackages = pkgs.linuxPackages_latest; }"}]
        machine["disruption"]["reboot"] = "WhenNeeded"

    worlds.kube.edit(SHOP, change)


def delete(worlds: Worlds) -> None:
    """kubectl delete."""
    worlds.kube.delete(SHOP)


def retain(worlds: Worlds) -> None:
    """kubectl delete, right after deletionPolicy became Retain."""
    worlds.kube.edit(SHOP, lambda body: body["spec"].update(deletionPolicy="Retain"))
    worlds.kube.delete(SHOP)


WORKLOADS: dict[str, Callable[[Worlds], None]] = {
    "create": create,
    "reconfigure": reconfigure,
    "replace": replace,
    "declare": declare,
    "settle": settle_down,
    "leave": leave,
    "crowd": crowd,
    "disks": disks,
    "grow": grow,
    "resize": resize,
    "substitute": substitute,
    "rotate": rotate,
    "reboot": reboot,
    "delete": delete,
    "retain": retain,
}


@dataclass(frozen=True)
class Snapshot:
    """Worlds at rest, and what time it is there."""

    worlds: Worlds
    now: float


@dataclass(frozen=True)
class Reference:
    """A workload without a cut: its effects in order, and what came of it."""

    trace: tuple[str, ...]
    end: dict[str, Any]
    after: Snapshot


@functools.cache
def nixpkgs() -> Path:
    """A folder that is the operator's nixpkgs."""
    folder = Path(tempfile.mkdtemp(prefix="nixpkgs-"))
    (folder / "default.nix").write_text("{ }: { }\n")
    return folder


@functools.cache
def at_rest() -> Snapshot:
    """Worlds in which the deployment is ready."""
    return reference("create").after


@functools.cache
def reference(workload: str, lags: Lags = SHORT_LAG) -> Reference:
    """The workload's life without a cut."""
    worlds, operator, now = _play(workload, None, lags=lags)
    return Reference(tuple(operator.trace), worlds.end_state(), Snapshot(worlds, now))


def play(workload: str, cut: Cut, lags: Lags = SHORT_LAG) -> tuple[Worlds, bool]:
    """The workload with a cut, then a new operator until rest. Returns the worlds and whether the cut was met."""
    worlds, operator, _ = _play(workload, cut, lags=lags)
    return worlds, operator.trace.count(cut.effect) >= cut.number


def play_interrupted(workload: str, interrupt: Interrupt, lags: Lags) -> Worlds:
    """The same; the user comes in between, before any effect, and says where the process dies, if it does."""
    return _play(workload, None, lags=lags, interrupt=interrupt)[0]


def play_collected(workload: str) -> tuple[Worlds, tuple[str, ...]]:
    """The workload while garbage in the operator's store is collected twice a second; worlds and trace."""
    worlds, operator, _ = _play(workload, None, collects=True)
    return worlds, tuple(operator.trace)


def follow(script: Callable[[Worlds], Coroutine[Any, Any, None]], lags: Lags, *, from_rest: bool) -> Worlds:
    """Whatever else happens, in the worlds' own time: an operator lives until the script is done and all is at rest."""
    return _play(None if from_rest else "create", None, lags=lags, script=script)[0]


def _play(
    workload: str | None,
    cut: Cut | None,
    *,
    lags: Lags = SHORT_LAG,
    interrupt: Interrupt | None = None,
    script: Callable[[Worlds], Coroutine[Any, Any, None]] | None = None,
    collects: bool = False,
) -> tuple[Worlds, Operator, float]:
    before = None if workload == "create" else at_rest()

    async def lives() -> tuple[Worlds, Operator, float]:
        worlds = Worlds(nixpkgs()) if before is None else copy.deepcopy(before.worlds)
        lags.apply(worlds.cloud)
        worlds.collects = collects
        worlds.nix.lent_for = timedelta(seconds=1) if collects else worlds.nix.lent_for
        if workload is not None:
            WORKLOADS[workload](worlds)
        asyncio.get_running_loop().set_exception_handler(_only_real_errors)
        turning = asyncio.create_task(worlds.turn())
        scripted = asyncio.create_task(script(worlds)) if script is not None else None
        first = Operator(worlds, cut, functools.partial(interrupt, worlds) if interrupt is not None else None)
        try:
            if not await first.live(scripted):
                await Operator(worlds).live()
            await asyncio.sleep(worlds.kube.gc_delay.total_seconds() + 1)
        finally:
            turning.cancel()
            await asyncio.gather(turning, return_exceptions=True)
        worlds.judge.holds()
        _forget_calls(worlds)
        return worlds, first, asyncio.get_running_loop().time()

    return run(lives(), 0.0 if before is None else before.now)


def _only_real_errors(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A task that met the cut ends with it, and nobody asks for its result."""
    if not isinstance(context.get("exception"), Crash):
        loop.default_exception_handler(context)


def _forget_calls(worlds: Worlds) -> None:
    for fake in (worlds.kube, worlds.cloud, worlds.hosts, worlds.nix):
        log: Effects = fake.effects
        log.calls.clear()
