"""What the demo shows to a person: steps, commands with their own output, progress while something takes longer."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nixops_lab import environment, state
from nixops_lab.paths import SOURCES, LabPaths
from nixops_lab.testing import Lab

QUIET_SECONDS = 2.5  # nothing is said about what takes no longer
REPEAT_SECONDS = 15.0  # a state that lasts is said again, so that nobody thinks the demo dead
LOOK_SECONDS = 0.5
LINES_SHOWN = 12  # of what one command prints
WITH_THIS_PYTHON = {**os.environ, "LAB_PYTHON": sys.executable}
KINDS = "nixdeployments.nixops.dev,nixmachines.nixops.dev"


class NotSeenError(Exception):
    """What should have been seen and was not; the demo ends with it."""


@dataclass
class Stage:
    """The running lab, told in plain lines. `began` is the demo's start on the monotonic clock."""

    lab: Lab
    began: float
    _steps: int = field(default=0, init=False)

    def step(self, title: str) -> None:
        self._steps += 1
        since = time.monotonic() - self.began
        write(f"\n== {self._steps}. {title}   [{int(since) // 60}:{int(since) % 60:02}]")

    def kubectl(self, *arguments: str, limit: float = 60) -> str:
        """Shows the command and what it prints. Returns its stdout. Raises NotSeenError if it fails or is too slow."""
        return self.show(["kubectl", *arguments], limit=limit)

    def show(self, command: Sequence[str], inside: bool = False, limit: float = 60) -> str:
        """A command as a person would type it; `inside` the lab's network, where machines have their addresses."""
        argv = ["lab", "run", "--", *command] if inside else list(command)
        write(f"   $ {shlex.join(argv)}")
        variables = environment.inside(self.lab.paths, self.lab.env)
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                argv, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, text=True
            )
            try:
                self._wait(lambda: process.poll() is not None, shlex.join(argv), limit)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait()
                for stream in (output, errors):
                    stream.seek(0)
                said, complained = output.read(), errors.read()
                indent(_beginning(said) + complained)
        if process.returncode != 0:
            raise NotSeenError(f"`{shlex.join(argv)}` ended with {process.returncode}")
        return said

    def quietly(self, *command: str) -> str:
        """stdout of a command inside the lab's network that nobody needs to see; empty if it fails."""
        return self.lab.run(command, check=False).stdout

    def until(self, question: Callable[[], bool], what: str, since: float, limit: float = 240) -> float:
        """Asks until the answer is yes; says meanwhile what the objects' status says. Returns seconds from `since`.

        Raises NotSeenError after `limit` seconds.
        """
        self._wait(question, what, limit)
        taken = time.monotonic() - since
        write(f"   ok: {what} ({taken:.1f} s)")
        return taken

    def objects(self) -> list[dict[str, Any]]:
        """Deployments and machines, as the API gives them; empty before there are any."""
        done = self.lab.kubectl("get", KINDS, "--output=json", check=False)
        return list(json.loads(done.stdout)["items"]) if done.returncode == 0 else []

    def machine(self) -> dict[str, Any]:
        """The only NixMachine. Raises NotSeenError without it."""
        for thing in self.objects():
            if thing["kind"] == "NixMachine":
                return thing
        raise NotSeenError("there is no NixMachine")

    def _wait(self, question: Callable[[], bool], what: str, limit: float) -> None:
        began = time.monotonic()
        said, said_at = "", began
        while not question():
            now = time.monotonic()
            if now - began > limit:
                raise NotSeenError(f"{what}: not within {limit:.0f} s")
            if not self.lab.operator.is_running:
                raise NotSeenError(f"{what}: not seen, the operator has ended")
            if now - began > QUIET_SECONDS:
                line = standing(self.objects())
                if line != said or now - said_at > REPEAT_SECONDS:
                    write(f"     {now - began:5.1f} s  {line}")
                    said, said_at = line, now
            time.sleep(LOOK_SECONDS)


def standing(objects: Sequence[Mapping[str, Any]]) -> str:
    """`example-webserver: Ready=Unknown Building - built 3 of 12`; machines, or else deployments."""
    machines = [thing for thing in objects if thing["kind"] == "NixMachine"]
    return "; ".join(_standing(thing) for thing in machines or objects) or "no objects"


def _standing(thing: Mapping[str, Any]) -> str:
    name = thing["metadata"]["name"]
    conditions = {each["type"]: each for each in (thing.get("status") or {}).get("conditions") or []}
    ready = conditions.get("Ready")
    if ready is None:
        return f"{name}: not looked at yet"
    telling = conditions.get("Stalled") or conditions.get("Reconciling") or ready
    return f"{name}: Ready={ready['status']} {telling['reason']} - {telling['message']}"


def is_ready(thing: Mapping[str, Any]) -> bool:
    """Ready for the newest spec."""
    status = thing.get("status") or {}
    current = status.get("observedGeneration") == thing["metadata"]["generation"]
    return current and any(
        each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or []
    )


def bring_up(paths: LabPaths, *, with_node: bool = False) -> Lab:
    """`lab up`, its progress passed on. Interrupted, it clears up what it started before this returns."""
    process = subprocess.Popen(
        [str(SOURCES / "lab"), "up", f"--dir={paths.folder}", *(["--node"] if with_node else [])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=WITH_THIS_PYTHON,
        # Not in the terminal's foreground group: Ctrl-C comes once, from here, and not in the middle of its clearing.
        process_group=0,
    )
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code != 0:
        raise NotSeenError(f"the lab did not come up; what it said is above, its logs are in {paths.logs}")
    return Lab(paths)


def take_down(paths: LabPaths) -> None:
    """`lab down`, to its end: Ctrl-C meanwhile changes nothing, it takes a second or two."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        argv = [str(SOURCES / "lab"), "down", f"--dir={paths.folder}"]
        subprocess.run(argv, stdin=subprocess.DEVNULL, env=WITH_THIS_PYTHON, process_group=0, check=True)
    finally:
        for number, earlier in zip(numbers, before, strict=True):
            signal.signal(number, earlier)


def is_up(paths: LabPaths) -> bool:
    """Whether anything of a lab is left in this folder."""
    return state.read(paths.state) is not None


def evidence(lab: Lab) -> None:
    """Where to look when something was not seen: objects, Events, the end of the operator's log."""
    write("\n-- the objects")
    indent(lab.kubectl("get", KINDS, "--output=wide", check=False).stdout)
    write("-- kubectl describe nixmachines (the end)")
    indent("\n".join(lab.kubectl("describe", "nixmachines", check=False).stdout.splitlines()[-40:]))
    write(f"-- the operator's log (the end of {lab.paths.operator / 'log'})")
    indent("\n".join(lab.operator.log().splitlines()[-25:]))


def _beginning(text: str) -> str:
    lines = text.splitlines(keepends=True)
    more = len(lines) - LINES_SHOWN
    return text if more <= 0 else "".join(lines[:LINES_SHOWN]) + f"… ({more} more lines)\n"


def indent(text: str) -> None:
    for line in text.splitlines():
        write(f"   {line}")


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
