"""Looking for secrets where none may be: what gives one away, and every sink that a careless line could put it in."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from cluster.place import KINDS, Place
from nixops_lab import operator_process

WORD = re.compile(rb"[A-Za-z0-9+/=]{24,}")
NO_SECRETS = b"AAAAC3NzaC1lZDI1NTE5", b"b3BlbnNzaC1rZXktdjEA"
"""How each public key of this kind begins, and each file of a private one (OpenSSH's PROTOCOL.key)."""
RUN = re.compile(rb"[A-Za-z0-9+/=%_-]{24,}")
"""Whatever holds a mark in any of its forms."""

Marks = Mapping[str, set[bytes]]
"""Name of a secret → what gives it away."""


def marks_of(secret: bytes) -> set[bytes]:
    """Each long word of it: as it is, in JSON as well; in base64 from each of the three offsets; in hex; and as URLs
    have it."""
    words = {word for word in WORD.findall(secret) if not word.startswith(NO_SECRETS)}
    found = set(words)
    for word in words:
        found |= {word.hex().encode(), word.hex().upper().encode(), quote(word, safe="").encode()}
        for offset in range(3):
            encoded = base64.b64encode(b"\0" * offset + word)
            found.add(encoded[4 : len(encoded) - 4])  # without what its neighbours have a part in
    return found


def found_in(sinks: Mapping[str, bytes], marks: Marks) -> set[str]:
    """`<secret> in <sink>`."""
    return {
        f"{name} in {sink}"
        for name, found in marks.items()
        for sink, content in sinks.items()
        if any(mark in content for mark in found)
    }


def runs_in(contents: Iterable[str | bytes]) -> bytes:
    """What could hold a mark, once each: a hundredth of a disk."""
    encoded = (each.encode() if isinstance(each, str) else each for each in contents)
    return b"\n".join({run for each in encoded for run in RUN.findall(each)})


class ProcessWatch:
    """Command lines and environments of everything below the processes `first`, looked at over and over."""

    def __init__(self, first: Iterable[int]) -> None:
        self.first = frozenset(first)
        self.arguments: set[bytes] = set()
        self.environments: set[bytes] = set()
        self.programs: set[str] = set()

    def look(self) -> None:
        waiting = list(self.first)
        while waiting:
            folder = Path(f"/proc/{waiting.pop()}")
            try:
                command = (folder / "cmdline").read_bytes()
                self.environments.add((folder / "environ").read_bytes())
                below = [(task / "children").read_text() for task in (folder / "task").iterdir()]
            except OSError:
                continue  # it ended meanwhile
            self.arguments.add(command)
            self.programs.add(Path(command.split(b"\0", 1)[0].decode(errors="replace")).name)
            waiting += [int(pid) for text in below for pid in text.split()]

    def look_at_machines(self, place: Place) -> None:
        """At those that run now, too."""
        self.first |= {each["leader"] for each in place.lab.control.machines() if each["leader"]}


@contextmanager
def watched(place: Place) -> Iterator[ProcessWatch]:
    """The operator's processes, and those of machines that run already."""
    watch, over = ProcessWatch({operators_first_process(place)}), threading.Event()
    watch.look_at_machines(place)

    def look() -> None:
        while not over.wait(0.005):
            watch.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def operators_first_process(place: Place) -> int:
    first = operator_process.running(place.lab.paths)
    assert first is not None
    return first.pid


def sinks(place: Place, since: int, watch: ProcessWatch, machines: Sequence[str]) -> dict[str, bytes]:
    """All that others may read, or find later. `since`: a mark of the audit log; `machines`: their names."""
    lab = place.lab
    audited = lab.audit_log()[since:]  # of this test: in another one a person writes a key into a module
    below = Path(f"/proc/{operators_first_process(place)}/root")
    disks = [lab.paths.machines / name / "disk" for name in machines]
    urls = [f"{lab.env['LAB_OPERATOR_URL']}/{page}" for page in ("metrics", "healthz", "readyz")]
    contents: dict[str, Iterable[str | bytes]] = {
        "the operator's output": [lab.operator.log()],
        "Events": [place.kubectl("get", "events", "--all-namespaces", "--output=json")],
        "objects": [place.kubectl("get", f"{KINDS},configmaps", "--all-namespaces", "--output=json")],
        "requests to the API server": map(json.dumps, audited),  # each status and annotation that there ever was
        "arguments": list(watch.arguments),  # at once: it goes on looking
        "environments": list(watch.environments),
        "the operator's Nix store": files_in(lab.paths.operator / "nix"),
        "the operator's other files": files_in(*(below / each for each in ("home", "tmp", "var/tmp", "dev/shm"))),
        "machines' Nix stores": files_in(*(disk / "nix" for disk in disks)),
        "machines' disks": files_in(*disks),  # not /run, where keys belong: it is memory
        "machines' journals": [place.on(name, "journalctl", "--no-pager", "--all") for name in machines],
        "EC2's calls": [lab.paths.ec2_log.read_bytes()],
        "EC2's tags": [json.dumps(place.ec2.describe_tags()["Tags"])],
        "EC2's user data": [user_data(place, name) for name in machines if name.startswith("i-")],
        "consoles": [(disk.parent / "console").read_bytes() for disk in disks],
        "metrics and probes": [lab.run(["curl", "--silent", url]).stdout for url in urls],
    }
    return {sink: runs_in(each) for sink, each in contents.items()}


def user_data(place: Place, instance: str) -> str:
    """In base64, as EC2 shows it."""
    told = place.ec2.describe_instance_attribute(InstanceId=instance, Attribute="userData")
    return str(told["UserData"]["Value"])


def files_in(*folders: Path) -> Iterator[bytes]:
    """With their names and those of folders, which may tell something as well. What goes meanwhile is left out."""
    for parent, _, names in itertools.chain.from_iterable(map(os.walk, folders)):
        yield os.fsencode(parent)
        for path in (Path(parent, name) for name in names):
            yield bytes(path)
            if path.is_file() and not path.is_symlink():
                with suppress(FileNotFoundError):
                    yield path.read_bytes()
