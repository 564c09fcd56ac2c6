"""Many machines of the lab at once, each with a story of its own, as they are seen past their sshd and their network;
and what a login finds on them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.place import Place, Thing, condition, standing
from nixops_lab.machines.cgroups import MachineCgroups

Story = Iterator[None]
"""What happens on one machine: after each `yield` all objects were looked at anew."""

LOOK_EVERY = 0.5  # seconds
_OVER = object()
ACTIVATIONS = "var/lib/nixops/activation"
PANIC = "Kernel panic - not syncing"


class Machine:
    """`name`: of the NixMachine. What happened before `begin` does not count."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self.name = name
        self.thing: Thing = {}  # as it was at the last look
        self._earlier = ""
        self._panics_before = 0
        self._init_before: int | None = None
        self._generation_before = 0

    def begin(self) -> None:
        self._earlier, self._panics_before, self._init_before = self._newest(), self._panics(), self._init()
        self._generation_before = self.thing["metadata"]["generation"]

    @property
    def instance(self) -> str:
        return str(self.thing["status"]["instance"]["id"])

    @property
    def address(self) -> str:
        return str(self.thing["status"]["addresses"]["ssh"])

    # --- what happens on it -------------------------------------------------------------------------------------------

    @property
    def activation(self) -> str:
        """The id of the newest one; empty if there is none yet."""
        newest = self._newest()
        return newest if newest != self._earlier else ""

    @property
    def state(self) -> str:
        """Of that, in the machine's own words."""
        found = self._names(f"{ACTIVATIONS}/{self.activation}") if self.activation else []
        return next((name.removeprefix("state.") for name in found if name.startswith("state.")), "")

    @property
    def log(self) -> str:
        """Of switch-to-configuration."""
        file = self._file(f"{ACTIVATIONS}/{self.activation}/log")
        with suppress(OSError):
            return file.read_text(errors="replace") if file is not None else ""
        return ""

    @property
    def has_restarted(self) -> bool:
        now = self._init()
        return now is not None and now != self._init_before

    @property
    def has_panicked(self) -> bool:
        return self._panics() > self._panics_before

    @property
    def system(self) -> str:
        """The toplevel that runs."""
        init = self._init()
        with suppress(OSError):
            return str(Path(f"/proc/{init}/root/run/current-system").readlink()) if init is not None else ""
        return ""

    def has(self, path: str) -> bool:
        return self._file(path) is not None

    def run(self, *command: str) -> str:
        return self._place.on(self.instance, *command)

    # --- what is done to it -------------------------------------------------------------------------------------------

    def hold(self, what: str) -> None:
        """The next one waits from now on. `what`: a switch, or a shutdown."""
        (self._root() / f"run/held-{what}").touch()

    def let_go(self) -> None:
        """Also while it shuts down."""
        for what in ("switch", "shutdown"):
            (self._root() / f"run/held-{what}").unlink(missing_ok=True)

    def reset(self) -> None:
        """As somebody does in EC2's console."""
        self._place.ec2.reboot_instances(InstanceIds=[self.instance])

    # --- what the operator says of it -----------------------------------------------------------------------------

    @property
    def ready(self) -> tuple[str, str, str]:
        """As `ready_of`, of a spec that is new."""
        is_new = self.thing["metadata"]["generation"] > self._generation_before
        return ready_of(self.thing) if is_new else ("", "", "")

    @property
    def desired(self) -> str:
        """The toplevel that was declared last and built."""
        return str(self.thing["status"]["system"]["desired"])

    @property
    def is_reached(self) -> bool:
        return condition(self.thing, "Reachable").get("status") == "True"

    def standing(self) -> str:
        """All that is known of it, for a failed test."""
        return f"{self.activation} is {self.state} on the machine; {standing(self.thing)}"

    # ------------------------------------------------------------------------------------------------------------------

    def _init(self) -> int | None:
        """Pid; None between the two halves of a reboot."""
        return MachineCgroups(self._place.lab.paths.namespace, self.instance).leader()

    def _root(self) -> Path:
        init = self._init()
        assert init is not None, f"{self.name} is between two boots"
        return Path(f"/proc/{init}/root")

    def _file(self, path: str) -> Path | None:
        init = self._init()
        found = Path(f"/proc/{init}/root") / path
        return found if init is not None and found.exists() else None

    def _names(self, path: str) -> list[str]:
        folder = self._file(path)
        with suppress(OSError):  # it goes down just now
            return [each.name for each in folder.iterdir()] if folder is not None else []
        return []

    def _newest(self) -> str:
        ids = [name for name in self._names(ACTIVATIONS) if name.rpartition("-")[2].isdecimal()]
        return max(ids, key=lambda name: int(name.rpartition("-")[2]), default="")

    def _panics(self) -> int:
        console = self._place.lab.paths.machines / self.instance / "console"
        return console.read_text(errors="replace").count(PANIC)


def ready_of(thing: Thing) -> tuple[str, str, str]:
    """Status, reason and message of Ready for the newest generation; empty before there is one."""
    found = condition(thing, "Ready")
    is_new = found.get("observedGeneration") == thing["metadata"]["generation"]
    return (found["status"], found["reason"], found["message"]) if is_new else ("", "", "")


def until(question: Callable[[], object]) -> Story:
    """Until the answer is neither empty, None nor False."""
    while not question():
        yield


class Company:
    """Machines, and deployments, that are looked at in one request."""

    def __init__(self, place: Place, machines: Mapping[str, Machine]) -> None:
        self.place = place
        self.machines = machines
        self.deployments: dict[str, Thing] = {}

    def look(self) -> None:
        things = {(thing["kind"], thing["metadata"]["name"]): thing for thing in self.place.objects()}
        self.deployments = {name: thing for (kind, name), thing in things.items() if kind == "NixDeployment"}
        for machine in self.machines.values():
            machine.thing = things["NixMachine", machine.name]

    def play(self, stories: Mapping[str, Story], limit: float) -> dict[str, str]:
        """All of them at once, until each has ended, for `limit` seconds at most; what is known of the others then."""
        left, deadline = dict(stories), time.monotonic() + limit
        while True:
            self.look()
            for name, story in list(left.items()):
                if next(story, _OVER) is _OVER:
                    del left[name]
            if not left or time.monotonic() > deadline:
                return {name: f"not within {limit:.0f} s: {self.machines[name].standing()}" for name in left}
            time.sleep(LOOK_EVERY)


@dataclass(frozen=True)
class Found:
    """By somebody who logs in. Store paths of toplevels, empty where nothing was found."""

    running: str = ""
    profile: str = ""
    boots: str = ""
    is_etc_its_own: bool = False
    title: str = ""

    @property
    def is_whole(self) -> bool:
        """One system, and nothing of another."""
        return bool(self.running) and self.running == self.profile == self.boots and self.is_etc_its_own


_QUESTIONS = r"""
readlink /run/current-system
readlink -f /nix/var/nix/profiles/system
cat /boot/nixos-entry
[ "$(readlink -f /etc/static)" = "$(readlink -f /run/current-system/etc)" ] && echo yes || echo no
curl --silent --max-time 10 http://localhost/ | sed -n 's:.*<title>\(.*\)</title>.*:\1:p'; echo
"""


def log_in(place: Place, machines: Mapping[str, Machine]) -> dict[str, Found]:
    """To all of them, each by its address, with the key that their key pair was made from."""
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10"
    script = "\n".join(
        f'ssh -i "$LAB_SSH_KEY" {options} -o ConnectionAttempts=20 root@{machine.address} {shlex.quote(_QUESTIONS)} '
        f"</dev/null 2>&1 | sed 's/^/{machine.name} /' &"
        for machine in machines.values()
    )
    said: dict[str, list[str]] = {machine.name: [] for machine in machines.values()}
    for line in place.lab.run(["sh", "-c", f"{script}\nwait"]).stdout.splitlines():
        name, _, words = line.partition(" ")
        said[name].append(words)
    return {name: _found(said[machine.name]) for name, machine in machines.items()}


def _found(lines: list[str]) -> Found:
    if len(lines) != 5:
        return Found(title="\n".join(lines))
    running, profile, boots, is_own, title = lines
    return Found(running, profile, boots, is_own == "yes", title)
