"""What a lab has started, in a file: written before anything depends on it, so that a crash leaves nothing unknown."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from nixops_lab.processes import Recorded


@dataclass(frozen=True)
class State:
    """One lab between `up` and `down`.

    Ports: name → number, the same inside the lab's network and on the caller's loopback.
    """

    phase: Literal["starting", "ready"]
    seed: int
    ports: Mapping[str, int]
    processes: Mapping[str, Recorded] = field(default_factory=dict)

    def with_process(self, name: str, process: Recorded) -> "State":
        return replace(self, processes={**self.processes, name: process})


def read(path: Path) -> State | None:
    """None: nothing was started here, or it was taken down."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    content = json.loads(text)
    processes = {name: Recorded(**recorded) for name, recorded in content.pop("processes").items()}
    return State(processes=processes, **content)


def write(path: Path, state: State) -> None:
    """Whole or not at all: a reader never sees half a file, a crash leaves the old one."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w") as file:
        json.dump(asdict(state), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
