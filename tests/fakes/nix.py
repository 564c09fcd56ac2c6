"""Nix in memory, for everything that uses ports.nix. Nothing is parsed: equal requests have equal systems, other
requests have others.

nix = FakeNix(receive=hosts.receive)
nix.effects.gates["nix.build"] = asyncio.Event()                  # builds wait until it is set
nix.effects.next_error["nix.evaluate"] = Blocked(Reason.EVALUATION_FAILED, "web.nix:3:5: syntax error")
nix.warnings["webserver"] = ("…",)                                # of that machine's evaluations
nix.reads["webserver"] = ("nodes.db",)                            # the facts that they read, in order
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path, PurePosixPath

from fakes.effects import Effects, effect
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, InvalidSpec, Retry, UnknownFact
from nixops_operator.facts.nix import Archive, Evaluation, EvaluationRequest, Facts, Source, StoreSpace, Told
from nixops_operator.nix.nar import nar_of
from nixops_operator.nix.store_paths import digest_of, sri, text_path, tree_path, tree_path_of
from nixops_operator.ports.nix import Progress

PUBLIC_KEY = "fake-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SOURCE_FILES = 50_000
MIB = 1024**2  # what each thing in the store takes
SOURCE_BYTES = 256 * 1024**2


class FakeNix:
    """All state is public. `receive` is called with socket and toplevel when a copy arrives."""

    def __init__(self, receive: Callable[[Path, str], None] = lambda _socket, _toplevel: None) -> None:
        self.effects = Effects()
        self.receive = receive
        self.trees: dict[str, Mapping[str, bytes]] = {}  # store path → files
        self.archives: dict[str, Mapping[str, bytes]] = {}  # URL → files of the tree in it
        self.systems: dict[str, str] = {}  # .drv → toplevel
        self.built: set[str] = set()
        self.room = StoreSpace(free=100 * 1024 * MIB)
        self.lent_for = timedelta(hours=1)
        self.lent: dict[str, float] = {}  # in the process: path → until when it stays for whoever was given it
        self.obstacles: dict[str, str] = {}  # system → why nothing can be built for it
        self.warnings: dict[str, tuple[str, ...]] = {}  # machine → warnings
        self.reads: dict[str, tuple[str, ...]] = {}  # machine → paths of facts
        self.told: dict[str, Told] = {}  # toplevel → what its evaluation read

    @effect("nix.push_derivations")
    async def copy_derivations(self, drv_path: str, daemon_socket: Path, progress: Progress) -> None:
        if drv_path not in self.systems:
            raise Retry(Reason.COPY_FAILED, f"{drv_path} is not in the operator's store")
        progress("1 of 1 copied")
        self.receive(daemon_socket, drv_path)

    @property
    def public_key(self) -> str:
        return PUBLIC_KEY

    @effect("nix.add_source")
    async def add_tree(self, files: Mapping[str, bytes]) -> Source:
        field = "spec.configuration.source"
        if len(files) > SOURCE_FILES or sum(map(len, files.values())) > SOURCE_BYTES:
            raise InvalidSpec(field, "too large")
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or name in ("", "."):
                raise InvalidSpec(field, f"`{name}` is not a relative path inside the source")
        return self._stored(files)

    @effect("nix.add_source")
    async def add_path(self, path: Path) -> Source:
        files = _files_under(path)
        if files is None:
            raise Blocked(Reason.SOURCE_NOT_FOUND, f"there is no folder {path} (setting nix.nixpkgs.path)")
        return self._stored(files)

    def _stored(self, files: Mapping[str, bytes]) -> Source:
        nar = nar_of(files)
        source = Source(tree_path("source", nar), sri(hashlib.sha256(nar).digest()))
        self.trees[source.store_path] = dict(files)
        self._lend(source.store_path)
        return source

    @effect("nix.fetch")
    async def fetch(self, archive: Archive, progress: Progress) -> Source:
        source = Source(tree_path_of("source", digest_of(archive.nar_hash)), archive.nar_hash)
        if source.store_path not in self.trees:
            if archive.url not in self.archives:
                raise Blocked(Reason.SOURCE_NOT_FOUND, f"{archive.url} was not fetched")
            stored = self._stored(self.archives[archive.url])
            if stored != source:
                raise Blocked(Reason.SOURCE_NOT_FOUND, f"the tree in {archive.url} has the hash {stored.nar_hash}")
            progress("1 MiB fetched")
        self._lend(source.store_path)
        return source

    @effect("nix.evaluate")
    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        for source in filter(None, (request.nixpkgs, request.source)):
            if source.store_path not in self.trees:
                raise Blocked(Reason.SOURCE_NOT_FOUND, f"{source.store_path} is not in the operator's store")
        name = f"nixos-system-{request.name}-25.11"
        reads = self.reads.get(request.name, ())
        told = request.facts.told(reads)
        for place, path in enumerate(reads):
            if told[path] is None:
                raise UnknownFact(path, request.facts.told(reads[: place + 1]))
        alone = replace(request, facts=Facts())
        canonical = repr((alone, sorted(request.arguments.items()), *([told] if told else ()))).encode()
        drv = text_path(f"{name}.drv", canonical, ())
        self.systems[drv] = text_path(name, canonical, ())
        self.told[self.systems[drv]] = told
        self._lend(drv)
        return Evaluation(drv, self.systems[drv], self.warnings.get(request.name, ()), told)

    @effect("nix.build")
    async def build(self, drv_path: str, progress: Progress) -> str:
        if drv_path not in self.systems:
            raise Blocked(Reason.BUILD_FAILED, f"{drv_path} is not in the operator's store")
        progress("1 of 1 built")
        self.built.add(self.systems[drv_path])
        self._lend(self.systems[drv_path])
        return self.systems[drv_path]

    async def space(self) -> StoreSpace:
        return self.room

    def _lend(self, path: str) -> None:
        self.lent[path] = asyncio.get_running_loop().time() + self.lent_for.total_seconds()

    @effect("nix.collect")
    async def collect(self, wanted: Callable[[], Collection[str]], to_free: int) -> int:
        now = asyncio.get_running_loop().time()
        kept = {*wanted(), *(path for path, until in self.lent.items() if until > now)}
        before = len(self.trees) + len(self.systems) + len(self.built)
        # Of a system that was built nothing else is needed; of one that was not, its derivation.
        self.trees = {path: files for path, files in self.trees.items() if path in kept}
        self.systems = {drv: toplevel for drv, toplevel in self.systems.items() if drv in kept}
        self.built &= kept
        freed = (before - len(self.trees) - len(self.systems) - len(self.built)) * MIB
        self.room = replace(self.room, free=self.room.free + freed)
        return freed

    def no_builder(self, system: str) -> str | None:
        return self.obstacles.get(system)

    @effect("nix.push")
    async def copy(self, toplevel: str, daemon_socket: Path, progress: Progress) -> None:
        if toplevel not in self.built:
            raise Retry(Reason.COPY_FAILED, f"{toplevel} is not in the operator's store")
        progress("1 of 1 copied")
        self.receive(daemon_socket, toplevel)


def _files_under(folder: Path) -> dict[str, bytes] | None:
    if not folder.is_dir():
        return None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
