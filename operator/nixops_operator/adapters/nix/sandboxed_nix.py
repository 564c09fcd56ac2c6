"""The Nix port on Nix' own programs.

The store is /nix of this process, which the process may write; there is no daemon. Evaluations run in boxes (boxes/),
builds in a sandbox of their own (builder.py); what runs outside of them reads no expression and executes nothing from
the store.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from nixops_operator.adapters.egress.egress import Credential, Egress
from nixops_operator.adapters.nix.boxes.box import Box, BoxKind, EvaluationLimits
from nixops_operator.adapters.nix.boxes.folders import remove_leftovers
from nixops_operator.adapters.nix.boxes.landlock import Landlock
from nixops_operator.adapters.nix.boxes.namespaces import Namespaces
from nixops_operator.adapters.nix.builder import builder, builder_conf
from nixops_operator.adapters.nix.child import KILLED_FROM_OUTSIDE, signal_of
from nixops_operator.adapters.nix.collection import StoreCollection
from nixops_operator.adapters.nix.daemon import DaemonError, local_store
from nixops_operator.adapters.nix.disk import Disk, DiskLowError, Volume, free_bytes
from nixops_operator.adapters.nix.evaluator import Evaluator, MissingFactError
from nixops_operator.adapters.nix.fetched_trees import FetchedTrees, SourceLimits
from nixops_operator.adapters.nix.folder_size import FolderSize
from nixops_operator.adapters.nix.private_folder import private_folder
from nixops_operator.adapters.nix.probe import SandboxUnsafe, probe
from nixops_operator.adapters.nix.programs import NixFailedError, follow, output_of, trusted_environment
from nixops_operator.adapters.nix.signing import in_memory, public_half
from nixops_operator.adapters.nix.store_use import StoreUse
from nixops_operator.adapters.nix.substitution import Substituter, Substitution
from nixops_operator.api.durations import format_duration
from nixops_operator.api.reasons import Reason
from nixops_operator.egress_policy import EgressPolicy
from nixops_operator.errors import Blocked, EvaluationFailed, InvalidSpec, OperatorError, Retry, UnknownFact
from nixops_operator.facts.nix import (
    Archive,
    Evaluation,
    EvaluationRequest,
    Facts,
    Source,
    StoreSpace,
    configuration_path,
)
from nixops_operator.nix.build_errors import BuildStory
from nixops_operator.nix.evaluation_errors import MESSAGE_LIMIT, Names, used_fact
from nixops_operator.nix.expression import expression, inline_files, inline_name
from nixops_operator.nix.nar import nar_parts
from nixops_operator.nix.progress import Counter
from nixops_operator.nix.store_paths import SOURCE_NAME, is_store_path, name_of, sri, tree_path_of
from nixops_operator.nix.texts import cut

_STORE_DISK = Path("/nix")
_BOXES = _STORE_DISK / "var/nixops/boxes"  # where sources can be moved from and need not be copied
_ROOTS = _STORE_DISK / "var/nix/gcroots/nixops"
_SOURCE_FILES = 50_000
_SOURCE_BYTES = 256 * 1024**2
# Of a source, read where an error gives no line: enough for what people write by hand.
_TEXTS_FILES = 1000
_TEXTS_BYTES = 4 * 1024**2
_FACTS_LIMIT = 4096  # that one evaluation is known to have read: four of each of 256 machines are about a thousand
_PROGRESS_SECONDS = 1.0
_SYSTEM = f"{os.uname().machine}-linux"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuildLimits:
    """Of one build; which of them hold what, and who holds the rest, says limits.py."""

    max_jobs: int = 1  # builders at once
    memory: int = 8 * 1024**3  # bytes of data of each process
    processes: int = 2048  # with their threads
    disk: int = 1024**3  # bytes that stay free where store and scratch lie; with less, builds are ended and none begins
    output: int = 64 * 1024**2  # bytes of the log of each derivation
    timeout: timedelta = timedelta(hours=2)
    silent: timedelta = timedelta(minutes=30)  # of one derivation without a line of log
    # What builders see of this machine besides their inputs: the shell that nixpkgs' bootstrap asks for, and what it
    # is linked with (nix.conf(5), "sandbox-paths").
    sandbox_paths: tuple[str, ...] = ("/bin", "/usr", "/lib", "/lib64")


@dataclass(frozen=True)
class VolumeLimits:
    """Bytes that /nix and the scratch folder may take, beyond which the kubelet evicts the pod. None: as their disks
    have."""

    store: int | None = None
    scratch: int | None = None


class SandboxedNix:
    """See `ports.nix.Nix`. Its methods may run side by side."""

    def __init__(
        self,
        *,
        scratch: Path,
        signing_key: str,
        box: BoxKind,
        evaluations: int = 1,
        evaluation_limits: EvaluationLimits = EvaluationLimits(),  # noqa: B008 - frozen
        build_limits: BuildLimits = BuildLimits(),
        egress: Egress | None = None,
        source_limits: SourceLimits = SourceLimits(),  # noqa: B008 - frozen
        substituters: Sequence[Substituter] = (),
        credentials: Callable[[], Mapping[str, Credential]] = dict,
        volume_limits: VolumeLimits = VolumeLimits(),
    ) -> None:
        """`scratch`: a private, writable folder with room for builds. `signing_key`: see signing.py; it is secret.
        `egress`: what is fetched, is fetched through it; without, by the strictest policy. `credentials`: gives host →
        what that host is told where a substituter is there; asked for each build. `space` says how large the store is
        where it has a limit.

        Raises Blocked (`SecretNotFound`) if the signing key is none.
        """
        self._public_key = public_half(signing_key)
        self._signing_key = signing_key
        self._scratch = scratch
        self._environment = trusted_environment(scratch)
        volumes = _volumes(volume_limits, scratch, self._environment)
        self._size = next((volume.size for volume in volumes if volume.folder == _STORE_DISK), None)
        self._disk = Disk((_STORE_DISK, scratch), build_limits.disk, volumes)
        self._use = StoreUse()
        self._collection = StoreCollection(_ROOTS, self._environment, lambda: free_bytes(_STORE_DISK))
        self._box = box_of(box, scratch, evaluation_limits, self._disk)
        self._evaluator = Evaluator(scratch, self._box, evaluation_limits, evaluations, self._disk)
        self._build_limits = build_limits
        self._builder_trouble: str | None = "builders were not tried yet"
        self._egress = egress or Egress(EgressPolicy())
        self._trees = FetchedTrees(self._egress, scratch, source_limits, self._disk, self._use)
        self._substitution = Substitution(self._egress, scratch, substituters, credentials)

    def __repr__(self) -> str:
        return f"SandboxedNix(scratch={str(self._scratch)!r}, public_key={self._public_key!r})"

    @property
    def public_key(self) -> str:
        return self._public_key

    async def probe(self) -> None:
        """Attack the box of evaluations in the ways that must fail, and see that a harmless evaluation works. What an
        operator that crashed left of its boxes is removed before.

        Raises SandboxUnsafe, which names what got through; Retry if it was the disk.
        """
        await asyncio.to_thread(remove_leftovers, _BOXES)
        try:
            await probe(self._evaluator, self._scratch)
        except SandboxUnsafe as error:
            if self._disk.is_meant_by(error.message):
                raise Retry(Reason.EVALUATING, error.message) from error
            raise

    async def probe_builder(self) -> None:
        """Build something trivial: `no_builder` knows from then on what came of it.

        Raises Retry if it was the disk, SandboxUnsafe if nothing can be built here.
        """
        # Another one each time, or it would be there already.
        builder = f'builder = "/bin/sh"; args = [ "-c" "echo {secrets.token_hex(8)} >$out" ];'
        text = f'let built = derivation {{ name = "probe"; system = "{_SYSTEM}"; {builder} }}; in '
        text += "{ inherit (built) drvPath; toplevel = built.outPath; warnings = [ ]; }"
        try:
            await self._disk.check()
            async with self._use.building():
                evaluation = await self._evaluator.evaluate(text, (), Names({}), None)
                await self._built(evaluation.drv_path, lambda _: None)
                await asyncio.to_thread((_ROOTS / Path(evaluation.drv_path).stem).unlink)
        except (DiskLowError, OSError) as error:
            self._builder_trouble = f"the operator could not try a builder: {error}"
            raise Retry(Reason.BUILDING, self._builder_trouble) from error
        except OperatorError as error:
            self._builder_trouble = f"the operator cannot confine a builder on its node: {error.message}"
            if self._disk.is_meant_by(error.message):
                raise Retry(Reason.BUILDING, self._builder_trouble) from error
            raise SandboxUnsafe(self._builder_trouble) from error
        self._builder_trouble = None

    async def space(self) -> StoreSpace:
        try:
            return StoreSpace(free_bytes(_STORE_DISK), await self._size.now() if self._size is not None else None)
        except (NixFailedError, OSError) as error:
            raise Retry(Reason.PROGRESSING_WITH_RETRY, f"the operator's disk cannot be looked at: {error}") from error

    async def collect(self, wanted: Callable[[], Collection[str]], to_free: int) -> int:
        try:
            async with self._use.alone():
                await self._box.forget()
                return await self._collection.collect({*wanted(), *self._use.lent()}, to_free)
        except (NixFailedError, OSError) as error:
            text = f"garbage in the operator's store could not be collected: {error}"
            raise Retry(Reason.PROGRESSING_WITH_RETRY, text) from error

    def no_builder(self, system: str) -> str | None:
        if system != _SYSTEM:
            return f"the operator's node is {_SYSTEM} and builds nothing for {system}"
        return self._builder_trouble

    async def add_tree(self, files: Mapping[str, bytes]) -> Source:
        async with self._use.briefly():
            source = await self._stored(files)
            self._use.lend(source.store_path)
            return source

    async def _stored(self, files: Mapping[str, bytes]) -> Source:
        _judge_files(files)
        try:
            nar = nar_parts(files)
        except ValueError as error:
            raise InvalidSpec("spec.configuration.source", str(error)) from error
        digest = await asyncio.to_thread(_digest_of, nar)
        source = Source(tree_path_of(SOURCE_NAME, digest), sri(digest))
        try:
            async with local_store(self._environment) as store:
                if not await store.valid_paths([source.store_path]):
                    await store.add_tree(SOURCE_NAME, nar)
        except (DaemonError, OSError) as error:
            text = f"the operator's store did not take a source: {error}"
            raise Retry(Reason.EVALUATING, self._disk.explained(text) or text) from error
        return source

    async def add_path(self, path: Path) -> Source:
        folder = await asyncio.to_thread(path.resolve)
        if not await asyncio.to_thread(folder.is_dir):
            raise Blocked(Reason.SOURCE_NOT_FOUND, f"there is no folder {path} (setting nix.nixpkgs.path)")
        try:
            async with self._use.briefly():
                command = ("nix", "store", "add-path", "--name", SOURCE_NAME, str(folder))
                store_path = self._use.lend(await output_of(command, self._environment))
                nar_hash = await output_of(("nix-store", "--query", "--hash", store_path), self._environment)
            digest = await output_of(("nix", "hash", "to-sri", "--type", "sha256", nar_hash), self._environment)
        except (NixFailedError, OSError) as error:
            text = f"the operator's store did not take {path}: {error}"
            raise Retry(Reason.EVALUATING, self._disk.explained(text) or text) from error
        return Source(store_path, digest)

    async def fetch(self, archive: Archive, progress: Progress) -> Source:
        return await self._trees.fetch(archive, progress)

    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        async with self._use.briefly():
            evaluation = await self._evaluated(request)
            self._use.lend(evaluation.drv_path)
            return evaluation

    async def _evaluated(self, request: EvaluationRequest) -> Evaluation:
        peers = {name: peer.request for name, peer in request.facts.peers.items()}
        _judge(request, peers)  # refuse a bad request before anything is stored
        inline = await self._inline(request)
        inline_of_peers = {name: await self._inline(peer) for name, peer in peers.items()}
        user_files: dict[str, str] = {}
        for name, peer in peers.items():
            user_files |= _labels(peer, inline_of_peers[name], f" of {name}")
        user_files |= _labels(request, inline)
        names = Names(
            user_files=user_files,
            source=request.source.store_path if request.source else None,
            inline=inline.store_path if inline else None,
            nixpkgs=str(PurePosixPath(request.nixpkgs.store_path, request.nixpkgs_folder)),
            texts=functools.partial(_texts, request),
        )
        trees = {inline, *inline_of_peers.values()}
        for one in (request, *peers.values()):
            trees |= {one.nixpkgs, one.source}
        sources = sorted({tree.store_path for tree in trees if tree is not None})
        used: set[str] = set()

        def listen(line: str) -> None:
            if len(used) < _FACTS_LIMIT and (path := used_fact(line)) is not None:
                used.add(path)

        text = expression(request, inline, inline_of_peers)
        try:
            evaluation = await self._evaluator.evaluate(text, sources, names, request.tenant, listen)
        except MissingFactError as error:
            raise UnknownFact(error.path, request.facts.told({*used, error.path})) from error
        except Blocked as error:
            if error.reason is Reason.EVALUATION_FAILED:
                raise EvaluationFailed(error.message, request.facts.told(used)) from error
            raise
        return replace(evaluation, told=request.facts.told(used))

    async def _inline(self, request: EvaluationRequest) -> Source | None:
        """The stored tree of the modules that are given as text; None if there are none."""
        modules = inline_files(request.modules)
        return await self._stored(modules) if modules else None

    async def build(self, drv_path: str, progress: Progress) -> str:
        if not (is_store_path(drv_path) and drv_path.endswith(".drv")):
            raise Blocked(Reason.BUILD_FAILED, "not the path of a derivation")
        if self._use.is_due:
            progress("waiting until the operator's store has room again")
        async with self._use.building():
            return self._use.lend(await self._built(drv_path, progress))

    async def _built(self, drv_path: str, progress: Progress) -> str:
        root = _ROOTS / Path(drv_path).stem
        await asyncio.to_thread(_ROOTS.mkdir, parents=True, exist_ok=True)
        try:
            await self._disk.check()
            complaint = await self._disk.watched(self._substitution.bring(drv_path, progress))
        except (DiskLowError, OSError) as error:
            raise Retry(Reason.BUILDING, str(error)) from error
        try:
            await self._realise(drv_path, root, progress)
        except Blocked as error:
            if complaint:
                # What a cache would have had may come another time.
                raise Retry(Reason.BUILDING, f"{complaint}; built instead, and {error.message}") from error
            raise
        toplevel = str(await asyncio.to_thread(root.readlink))
        await self._sign(toplevel)
        return toplevel

    async def _realise(self, drv_path: str, root: Path, progress: Progress) -> None:
        """Build in the builder's sandbox and make `root` a root of the result."""
        story = BuildStory()
        command = ("nix-store", "--realise", drv_path, "--add-root", str(root), "--log-format", "internal-json")
        try:
            await self._disk.check()
            async with asyncio.timeout(self._build_limits.timeout.total_seconds()):
                status, last = await self._disk.watched(self._in_builder(command, _Report(progress, story)))
        except TimeoutError as error:
            name = name_of(drv_path).removesuffix(".drv")
            text = f"build of {name} took longer than {format_duration(self._build_limits.timeout)}"
            raise Blocked(Reason.BUILD_FAILED, text) from error
        except DiskLowError as error:
            raise Retry(Reason.BUILDING, str(error)) from error
        except OSError as error:
            raise Retry(Reason.BUILDING, f"the builder could not be started: {error.strerror or error}") from error
        if status != 0:
            await self._judge_end(status, story.failure(), last)

    async def _judge_end(self, status: int, failure: str, last: str) -> NoReturn:
        """Raises what a build is to be told of that did not end well."""
        if last.startswith("bwrap:"):
            raise Retry(Reason.BUILDING, f"the builder's sandbox could not be made: {last}")
        try:
            await self._disk.check()
        except DiskLowError as error:
            raise Retry(Reason.BUILDING, str(error)) from error
        if failure or last:
            raise Blocked(Reason.BUILD_FAILED, failure or last)
        if signal_of(status) == signal.SIGKILL:
            raise Retry(Reason.BUILDING, f"the build {KILLED_FROM_OUTSIDE}")
        raise Blocked(Reason.BUILD_FAILED, f"the builder ended with status {status}")

    async def _in_builder(self, command: Sequence[str], report: Callable[[dict[str, Any]], None]) -> tuple[int, str]:
        limits = self._build_limits
        conf = builder_conf(
            max_jobs=limits.max_jobs,
            silent_seconds=int(limits.silent.total_seconds()),
            log_bytes=limits.output,
            sandbox_paths=limits.sandbox_paths,
        )
        async with private_folder(self._scratch) as scratch:
            with in_memory("nix.conf", conf.encode()) as conf_fd:
                argv = builder(
                    memory=limits.memory,
                    processes=limits.processes,
                    scratch=scratch,
                    conf_fd=conf_fd,
                    is_root=os.geteuid() == 0,
                    command=command,
                )
                return await follow(argv, self._environment, report, (conf_fd,))

    async def _sign(self, store_path: str) -> None:
        """Sign a closure. Signing twice changes nothing."""
        with in_memory("signing-key", self._signing_key.encode()) as key:
            command = ("nix", "store", "sign", "--recursive", "--key-file", f"/proc/self/fd/{key}", store_path)
            try:
                await output_of(command, self._environment, (key,))
            except (NixFailedError, OSError) as error:
                raise Retry(Reason.BUILDING, f"{name_of(store_path)} could not be signed: {error}") from error

    async def copy(self, toplevel: str, daemon_socket: Path, progress: Progress) -> None:
        await self._copied((toplevel,), daemon_socket, progress)

    async def copy_derivations(self, drv_path: str, daemon_socket: Path, progress: Progress) -> None:
        # Since Nix 2.15 a .drv names itself; before, what it makes, unless --derivation is given. Both take the option.
        await self._copied(("--derivation", drv_path), daemon_socket, progress)

    async def _copied(self, what: Sequence[str], daemon_socket: Path, progress: Progress) -> None:
        story = BuildStory()
        async with private_folder(self._scratch) as folder:
            _write_ssh(folder / "ssh")
            environment = {
                **self._environment,
                "PATH": f"{folder}:{self._environment['PATH']}",
                "NIXOPS_DAEMON_SOCKET": str(daemon_socket),
            }
            # Only this way of copying is judged at the far end: its daemon checks the signatures.
            command = ("nix", "copy", "--log-format", "internal-json", "--to", "ssh-ng://nixops@host", *what)
            try:
                status, last = await follow(command, environment, _Report(progress, story))
            except OSError as error:
                raise Retry(Reason.COPY_FAILED, f"the copy could not be started: {error.strerror}") from error
        if status != 0:
            raise Retry(Reason.COPY_FAILED, story.failure() or last or f"the copy ended with status {status}")


def _volumes(limits: VolumeLimits, scratch: Path, environment: Mapping[str, str]) -> list[Volume]:
    """Those that have a limit."""
    known = (
        (_STORE_DISK, limits.store, "nix.store.maxSize", "store.sizeLimit"),
        (scratch, limits.scratch, "nix.scratch.maxSize", "scratch.sizeLimit"),
    )
    return [
        Volume(folder, FolderSize(folder, environment, free=free_bytes), limit, setting, value)
        for folder, limit, setting, value in known
        if limit is not None
    ]


def box_of(kind: BoxKind, scratch: Path, limits: EvaluationLimits, disk: Disk) -> Box:
    """A box of this kind; `scratch` is where caches of the programs outside of it go."""
    match kind:
        case BoxKind.LANDLOCK:
            return Landlock(_BOXES, limits, disk, trusted_environment(scratch))
        case BoxKind.NAMESPACES:
            return Namespaces(trusted_environment(scratch), limits)


class _Report:
    """Hands events to the story, and to people at most once a second."""

    def __init__(self, progress: Progress, story: BuildStory) -> None:
        self._progress = progress
        self._story = story
        self._counter = Counter()
        self._next = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        self._story.follow(event)
        text = self._counter.text_after(event)
        if text is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self._progress(text)


def _texts(request: EvaluationRequest) -> dict[str, str]:
    """Label → content of the request's own modules and of the Nix files beside them, as far as they are no more than
    people write."""
    texts = {module.label: module.text for module in request.modules if module.text is not None}
    if request.source is None:
        return texts
    room, root = _TEXTS_BYTES, Path(request.source.store_path)
    for path in itertools.islice(sorted(root.rglob("*.nix")), _TEXTS_FILES):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > room:
            continue
        content = path.read_text(encoding="utf-8", errors="replace")
        room -= len(content)
        texts[str(path.relative_to(root))] = content
    return texts


def _digest_of(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _judge(request: EvaluationRequest, peers: Mapping[str, EvaluationRequest]) -> None:
    """Raises InvalidSpec for what cannot be said in an expression; EvaluationFailed if another machine says it."""
    alone = replace(request, facts=Facts())
    expression(alone, None, {})
    for name, peer in peers.items():
        try:
            expression(peer, None, {})
        except InvalidSpec as error:
            told = request.facts.told([configuration_path(name)])
            raise EvaluationFailed(cut(f"{name}: {error.message}", MESSAGE_LIMIT), told) from error


def _labels(request: EvaluationRequest, inline: Source | None, whose: str = "") -> dict[str, str]:
    """Store path of each module that is given as text → what people call it."""
    return {
        f"{inline.store_path}/{inline_name(index)}": f"{module.label}{whose}"
        for index, module in enumerate(request.modules)
        if inline is not None and module.text is not None
    }


def _judge_files(files: Mapping[str, bytes]) -> None:
    field = "spec.configuration.source"
    if len(files) > _SOURCE_FILES:
        raise InvalidSpec(field, f"more than {_SOURCE_FILES} files")
    if sum(map(len, files.values())) > _SOURCE_BYTES:
        raise InvalidSpec(field, f"more than {_SOURCE_BYTES // 1024**2} MiB")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or name in ("", ".") or "\0" in name:
            raise InvalidSpec(field, f"`{name}` is not a relative path inside the source")


def _write_ssh(path: Path) -> None:
    """The program that Nix takes for ssh; isolated (-I) and without site (-S), it starts in a few milliseconds."""
    text = (package_files(__package__) / "ssh_to_socket.py").read_text(encoding="utf-8")
    path.write_text(f"#!{sys.executable} -IS\n{text}", encoding="utf-8")
    path.chmod(0o700)
