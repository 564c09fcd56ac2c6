"""The lab as tests hold it: everything through the same command that a person uses, and the control interface.

with Lab.up(tmp_path / "lab") as lab:
    lab.operator.start(settings={"resyncPeriod": "1s"})
    lab.kubectl("apply", "--kustomize", "examples/…")
    lab.fault(match={"op": "RunInstances", "nth": 1}, do="commit-drop")
"""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nixops_lab import environment, identities, inside, lifecycle, operator_pod, operator_process
from nixops_lab.control import Control
from nixops_lab.control_plane import Reader
from nixops_lab.paths import SOURCES, LabPaths
from nixops_lab.report import LabError

Completed = subprocess.CompletedProcess[str]


class CommandFailedError(Exception):
    """A command of the lab, or one inside it, ended with another status than 0; the text holds what it said."""


@dataclass(frozen=True)
class OperatorControl:
    """`lab operator …` of one lab."""

    paths: LabPaths

    def start(
        self,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
        *,
        is_pod: bool = False,
        values: Mapping[str, object] | None = None,
    ) -> None:
        """`settings`: dotted key → value. `command` runs in the operator's place, under all its limits. `is_pod`: on
        the lab's node, by the chart, with more of its `values`."""
        words = [f"--set={key}={json.dumps(value)}" for key, value in (settings or {}).items()]
        words += [f"--env={name}={value}" for name, value in (environment or {}).items()]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            if is_pod:
                json.dump(values or {}, file)
                file.flush()
                words += ["--pod", f"--values={file.name}"]
            _lab(self.paths, "operator", "start", *words, *(["--", *command] if command else []))

    def stop(self) -> None:
        _lab(self.paths, "operator", "stop")

    def kill(self) -> None:
        """SIGKILL, to all that it started as well."""
        _lab(self.paths, "operator", "kill")

    def restart(self) -> None:
        """With what the last start was given."""
        _lab(self.paths, "operator", "restart")

    @property
    def is_pod(self) -> bool:
        """Whether the last start was one of a pod."""
        return operator_process.last_launch(self.paths).is_pod

    @property
    def is_running(self) -> bool:
        """A pod: whether it is Ready."""
        return (operator_pod if self.is_pod else operator_process).running(self.paths) is not None

    def log(self) -> str:
        """All starts in this lab, the oldest first; empty before the first. Of pods, those that are still there."""
        if self.is_pod:
            return operator_pod.log(self.paths)
        log = self.paths.operator / "log"
        return log.read_text() if log.exists() else ""


class Lines:
    """A file that grows by lines of JSON. Each is read once: over a session the logs of a lab become long, and tests
    ask for them again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._entries: list[dict[str, Any]] = []

    def entries(self) -> list[dict[str, Any]]:
        """Of all whole lines, for reading only; empty before there is a file."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                *lines, _ = file.read().split(b"\n")
            self._entries += map(json.loads, lines)
            self._offset += sum(len(line) + 1 for line in lines)
        return list(self._entries)


class Lab:
    """A running lab. As a context it is taken down at the end."""

    def __init__(self, paths: LabPaths) -> None:
        """Of a lab that is up. Raises LabError otherwise."""
        self.paths = paths
        self.state = lifecycle.running(paths)
        self.env = environment.variables(paths, self.state, identities.load(paths))
        self.read = Reader(paths.kubeconfig).get
        self.control = Control(self.env["LAB_CONTROL_URL"])
        self.operator = OperatorControl(paths)
        self._ec2_log, self._audit_log = Lines(paths.ec2_log), Lines(paths.audit_log)

    @classmethod
    def up(cls, folder: Path | None = None, seed: int = 0, *, with_node: bool = False) -> Self:
        """Starts it; a running one is taken as it is, and gets a node if it is to have one."""
        paths = LabPaths.of(folder)
        _lab(paths, "up", f"--seed={seed}", *(["--node"] if with_node else []))
        return cls(paths)

    def down(self) -> None:
        _lab(self.paths, "down")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def command(self, *words: str) -> Completed:
        """`lab` with these words, as a person types it."""
        return _lab(self.paths, *words)

    def run(self, command: Sequence[str], stdin: str = "", check: bool = True) -> Completed:
        """Inside the lab's network, with its environment: `lab run`, without a process of `lab`."""
        return _inside(inside.of_network(self.paths, self.env, command), stdin, check)

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> Completed:
        """As the cluster's administrator, from outside."""
        variables = environment.inside(self.paths, self.env)
        return _finish([str(self.paths.programs / "kubectl"), *arguments], variables, stdin, check)

    def machine_exec(self, name: str, command: Sequence[str], stdin: str = "", check: bool = True) -> Completed:
        """In a machine as root, not through SSH: `lab machine exec`, without a process of `lab`. `name`: instance id,
        NixMachine or given-host."""
        try:
            entering = inside.of_machine(self.paths, self.control, name, command)
        except LabError as error:
            if check:
                raise CommandFailedError(f"{shlex.join(command)} in {name}: {error}") from error
            return Completed(list(command), 1, "", f"{error}\n")
        return _inside(entering, stdin, check)

    def ec2_log(self) -> list[dict[str, Any]]:
        """The call log, the oldest first."""
        return self._ec2_log.entries()

    def audit_log(self) -> list[dict[str, Any]]:
        """audit.k8s.io/v1 events, the oldest first."""
        return self._audit_log.entries()

    def fill_cache(self) -> None:
        """The binary cache gets its packages; until then it has none."""
        _lab(self.paths, "cache", "fill")

    def set(self, **knobs: object) -> None:
        """Knobs of the EC2 layer (ec2/knobs.py)."""
        self.control.set_knobs(knobs)

    def fault(self, **fault: object) -> None:
        """One fault of the EC2 layer (ec2/faults.py)."""
        self.control.fault(fault)

    def reset(self) -> None:
        """Knobs and faults as after `up`."""
        self.control.reset()


def _lab(paths: LabPaths, *words: str, stdin: str = "", check: bool = True) -> Completed:
    head, tail = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, ())
    return _finish([str(SOURCES / "lab"), *head, f"--dir={paths.folder}", *tail], os.environ, stdin, check)


def _inside(command: inside.Command, stdin: str, check: bool) -> Completed:
    return _finish(command.argv, command.variables, stdin, check)


def _finish(argv: Sequence[str], variables: Mapping[str, str], stdin: str, check: bool) -> Completed:
    done = subprocess.run(list(argv), env=dict(variables), input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise CommandFailedError(f"{shlex.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done
