"""Processes under measurement: figures come from /proc, not from what a process says of itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
STOP_LIMIT = 60  # seconds


@dataclass(frozen=True)
class Measured:
    """A running process that writes the lateness of its event loop into `lags` when it ends."""

    process: subprocess.Popen[bytes]
    lags: Path
    log: Path

    @property
    def is_up(self) -> bool:
        """Whether its event loop runs."""
        return self.lags.exists()

    def cpu(self) -> float:
        """Seconds of CPU so far, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> list[tuple[float, float]]:
        """Asks it to end; (time.monotonic, seconds late) of each sample."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_LIMIT)
        samples: list[tuple[float, float]] = json.loads(self.lags.read_text())
        return samples

    def check(self) -> None:
        """Raises if it has ended by itself."""
        if self.process.poll() is not None:
            raise RuntimeError(f"ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")


@contextmanager
def started(module: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Measured]:
    """`python -m module`, killed at the end if it still lives."""
    lags, log = folder / f"{module}.lags", folder / f"{module}.log"
    lags.unlink(missing_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **environment, "PYTHONPATH": _path(), "LAGS": str(lags)},
            stdout=output,
            stderr=output,
        )
    try:
        yield Measured(process, lags, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_LIMIT)


def busy() -> float:
    """Seconds for which the processors of this machine have worked, whoever for."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft = fields[:7]
    return (user + nice + system + interrupts + soft) / TICKS


def of_children(*names: str) -> float:
    """Seconds of CPU of this process' children with such a name, as the API server and etcd are."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = stat.read_text().rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        fields = after.split()
        if int(fields[1]) == os.getpid() and before.partition("(")[2] in names:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def finished(module: str, environment: Mapping[str, str]) -> dict[str, float]:
    """What `python -m module` printed last. Raises RuntimeError with its words if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, **environment, "PYTHONPATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-3000:]}")
    printed: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return printed


def _path() -> str:
    return os.pathsep.join(str(ROOT / part) for part in ("operator", "tests", "."))


def settings_file(path: Path, settings: Mapping[str, Any]) -> str:
    """The operator's settings, for `NIXOPS_CONFIG`; JSON is YAML."""
    path.write_text(json.dumps(settings))
    return str(path)
