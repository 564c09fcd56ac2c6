"""Evaluations, each in a box and a store of its own, and the way of their derivations into ours.

Nothing that comes out of the sandbox is believed: not the paths (each must follow from its content, and the store
computes it once more), not what derivations refer to (see derivations.py; nothing refers to more than the sources and
what came before it), not the name of the result (it is read from its derivation).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Awaitable, Callable, Sequence, Set
from pathlib import Path
from typing import TypeVar

from nixops_operator.adapters.nix.boxes.box import CPU_MARK, Box, BoxKind, EvaluationLimits, Running
from nixops_operator.adapters.nix.child import KILLED_FROM_OUTSIDE, OUTPUT_LIMIT, Lines, feed, signal_of
from nixops_operator.adapters.nix.daemon import Daemon, DaemonError, local_store
from nixops_operator.adapters.nix.disk import Disk, DiskLowError
from nixops_operator.adapters.nix.exported import ExportedPath, NotAnExportError, exported_paths
from nixops_operator.adapters.nix.programs import NixFailedError, last_word, output_of, trusted_environment
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.nix import Evaluation
from nixops_operator.nix.derivations import NotADerivationError, derivation_of, objection
from nixops_operator.nix.evaluation_errors import MESSAGE_LIMIT, Names, evaluation_message, unknown_fact
from nixops_operator.nix.store_paths import is_store_path, name_of, text_path, tree_path_of
from nixops_operator.nix.texts import cut, plain

_T = TypeVar("_T")
_Take = Callable[[asyncio.StreamReader, set[str]], Awaitable[_T]]
"""Makes something of a program's output; the paths that are known of its store (see Running)."""
# Nix' own last words; the second ones are those of its garbage collector.
_OUT_OF_MEMORY = "out of memory"
_NO_MEMORY = "GC Warning: Out of Memory!"
# Messages are judged elsewhere; the collector of Nix speaks of what it does not find in a box.
_CHATTER = ("@nix ", "GC Warning: ")
_NO_SPACE = "No space left on device"
_NEARLY_ALL = 0.8
"""The share of the CPU limit from which a SIGKILL is put down to it. The kernel counts RLIMIT_CPU in ticks
(kernel/time/posix-cpu-timers.c), the shell's `times` says what the scheduler measured; on a busy node they differ."""
_AT_ONCE = 1000  # paths in one command line, which takes some 20,000
_PATH_LIMIT = 256  # bytes of a store path
_SOUND_LIMIT = 100_000  # paths that are remembered as judged, some 100 bytes each
_WARNINGS = 32
_PATHS_LIMIT = 200_000  # derivations and files of one system: a real one has some thousands


class MissingFactError(Exception):
    """The fact at this path was needed, and is not known."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Evaluator:
    """Runs evaluations, at most `slots` at once, each in `box`, which holds it to `limits`."""

    def __init__(self, scratch: Path, box: Box, limits: EvaluationLimits, slots: int, disk: Disk) -> None:
        self._environment = trusted_environment(scratch)
        self._scratch = scratch
        self._box = box
        self._limits = limits
        self._disk = disk
        self._slots = asyncio.Semaphore(slots)
        self._sound: set[str] = set()  # paths that were judged, and found right

    async def evaluate(
        self,
        text: str,
        sources: Sequence[str],
        names: Names,
        tenant: str | None,
        on_line: Callable[[str], None] | None = None,
    ) -> Evaluation:
        """Evaluate an expression whose value is as entry.nix describes; its derivations are in the store afterwards.

        `sources`: store paths that it may read. `tenant`: whose earlier evaluations may spare it work; None for
        nobody's. `on_line` is called with each line that Nix says meanwhile. Raises Blocked (`EvaluationFailed`), Retry
        (`Evaluating`), MissingFactError.
        """

        async def take(output: asyncio.StreamReader, known: set[str]) -> Evaluation:
            evaluation = _evaluation(await _line(output, OUTPUT_LIMIT))
            known |= await self._store_exported(output, {*sources, *known})
            if evaluation.drv_path not in known:
                raise Blocked(Reason.EVALUATION_FAILED, "the system's derivation is missing")
            if evaluation.toplevel not in await asyncio.to_thread(_outputs, evaluation.drv_path):
                raise Blocked(Reason.EVALUATION_FAILED, "the system is not an output of its derivation")
            return evaluation

        try:
            self._disk.check_free()
        except (DiskLowError, OSError) as error:
            raise Retry(Reason.EVALUATING, str(error)) from error
        return await self._boxed(text, sources, names, take, tenant=tenant, on_line=on_line)

    async def value(self, text: str, sources: Sequence[str] = ()) -> str:
        """The JSON of any expression's value; nothing is stored. Raises as `evaluate`."""

        async def take(output: asyncio.StreamReader, _known: set[str]) -> str:
            value = await _line(output, OUTPUT_LIMIT)
            await output.read()
            return value

        return await self._boxed(text, sources, Names({}), take)

    @property
    def kind(self) -> BoxKind:
        return self._box.kind

    async def run(self, command: Sequence[str], text: str = "") -> str:
        """What a program writes that runs in the place of Nix and reads `text`. Raises as `evaluate`."""

        async def take(output: asyncio.StreamReader, _known: set[str]) -> str:
            return (await output.read()).decode(errors="replace")

        return await self._boxed(text, (), Names({}), take, command=command)

    async def _boxed(
        self,
        text: str,
        sources: Sequence[str],
        names: Names,
        take: _Take[_T],
        *,
        command: Sequence[str] | None = None,
        tenant: str | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> _T:
        """What `take` makes of the output; only if the program then ended well, in time and within its limits."""
        known: set[str] = set()

        async def attempt(tenant: str | None) -> _T:
            nonlocal known
            async with self._box.run(command, sources, registration, tenant) as running:
                known = running.known
                return await self._taken(running, text, names, take, Lines(on_line))

        async with self._slots:
            registration = await self._registration(sources)
            try:
                async with asyncio.timeout(self._limits.timeout.total_seconds()):
                    try:
                        return await attempt(tenant)
                    except Blocked:
                        if not known:
                            raise
                    # Nothing is put down to a configuration that what an earlier one left may be the cause of.
                    return await attempt(None)
            except TimeoutError as error:
                raise Blocked(
                    Reason.EVALUATION_FAILED,
                    f"the evaluation took longer than {self._limits.timeout.total_seconds():g} s "
                    "(setting nix.evaluation.timeout)",
                ) from error
            except OSError as error:
                raise Retry(Reason.EVALUATING, f"the evaluator could not be started: {error.strerror}") from error

    async def _taken(
        self,
        running: Running,
        text: str,
        names: Names,
        take: _Take[_T],
        messages: Lines,
    ) -> _T:
        process = running.process
        assert process.stdout is not None  # noqa: S101 - child() makes pipes
        tasks = (
            asyncio.ensure_future(feed(process.stdin, text.encode())),
            asyncio.ensure_future(messages.read(process.stderr)),
        )
        try:
            try:
                result = await _whole(process.stdout, running.known, take)
            except NotAnExportError as error:
                # Output that breaks off is explained by what the process said as it ended.
                if process.stdout.at_eof():
                    await self._end(running, messages, tasks[1], names)
                raise Blocked(Reason.EVALUATION_FAILED, f"the evaluation's result was refused: {error}") from error
            await self._end(running, messages, tasks[1], names)
            return result
        finally:
            for task in tasks:
                task.cancel()

    async def _end(self, running: Running, messages: Lines, reading: asyncio.Future[None], names: Names) -> None:
        """Raises if the process did not end well: the one thing that tells half a result from a whole one."""
        status = await running.process.wait()
        await reading
        if status == 0:
            return
        if running.over is not None:
            raise running.over
        memory = f"{self._limits.memory // 1024**2} MiB of memory (setting nix.evaluation.memory)"
        kept = [line.replace(running.root, "") for line in messages.kept] if running.root else messages.kept
        if (path := await asyncio.to_thread(unknown_fact, kept)) is not None:
            raise MissingFactError(path)
        said = await asyncio.to_thread(evaluation_message, kept, names)
        if said:
            full = f"{self._limits.disk_message}: {said}" if said.endswith(_NO_SPACE) else said
            too_large = f"the evaluation needs more than {memory}" if said == _OUT_OF_MEMORY else full
            raise Blocked(Reason.EVALUATION_FAILED, too_large)
        lines, cpu = _without_cpu(kept)
        if any(line.startswith(_NO_MEMORY) for line in lines):
            raise Blocked(Reason.EVALUATION_FAILED, f"the evaluation needs more than {memory}")
        text = last_word([line for line in lines if not line.startswith(_CHATTER)])
        if self._box.not_made(text):
            raise Retry(Reason.EVALUATING, f"the evaluator's box could not be made: {text}")
        match signal_of(status):
            case signal.SIGKILL if cpu >= _NEARLY_ALL * self._limits.cpu.total_seconds():
                seconds = f"{self._limits.cpu.total_seconds():g} s of CPU (setting nix.evaluation.timeout)"
                raise Blocked(Reason.EVALUATION_FAILED, f"the evaluation took more than {seconds}")
            case signal.SIGXFSZ:
                raise Blocked(Reason.EVALUATION_FAILED, self._limits.disk_message)
            case signal.SIGKILL:
                raise Retry(Reason.EVALUATING, f"the evaluation {KILLED_FROM_OUTSIDE}")
            case int(number):
                ended = f"the evaluation ended with signal {number}"
            case None:
                ended = f"the evaluation ended with status {status}"
        raise Blocked(Reason.EVALUATION_FAILED, cut(f"{ended}: {text}" if text else ended, MESSAGE_LIMIT))

    async def _registration(self, sources: Sequence[str]) -> bytes:
        """What tells the box' own store that the sources are there."""
        known = []
        try:
            for start in range(0, len(sources), _AT_ONCE):
                at_once = sources[start : start + _AT_ONCE]
                known.append(await output_of(("nix-store", "--dump-db", *at_once), self._environment))
        except NixFailedError as error:
            raise Blocked(Reason.SOURCE_NOT_FOUND, f"a source is not in the operator's store: {error}") from error
        return "".join(f"{one}\n" for one in known).encode()

    async def _store_exported(self, output: asyncio.StreamReader, known: set[str]) -> Set[str]:
        """Judge each announced path that is not `known`, and bring those that our store lacks into it, by their
        content. Returns them; `known` holds them, too, from then on."""
        announced: set[str] = set()
        count = 0
        while path := await _line(output, _PATH_LIMIT):
            count += 1
            if count > _PATHS_LIMIT or not is_store_path(path):
                raise NotAnExportError("not a list of store paths")
            if path not in known:
                announced.add(path)
        if not announced:
            return announced
        try:
            async with local_store(self._environment) as store:
                missing = announced - await store.valid_paths(announced)
                async for exported in exported_paths(output, len(announced), self._scratch, self._limits.disk):
                    if exported.path not in announced:
                        raise NotAnExportError(f"{exported.path} was not announced")
                    # What our store has already is judged all the same: an older release may have taken it unjudged.
                    await asyncio.to_thread(_judge, exported, known, exported.path in self._sound)
                    if exported.path in missing:
                        await _store_one(store, exported)
                    known.add(exported.path)
                    self._remember(exported.path)
        except DaemonError as error:
            text = f"the operator's store refused a derivation: {error}"
            if (full := self._disk.explained(text)) is not None:
                raise Retry(Reason.EVALUATING, full) from error
            raise Blocked(Reason.EVALUATION_FAILED, text) from error
        except OSError as error:
            text = f"what was evaluated could not be read: {error}"
            raise Retry(Reason.EVALUATING, self._disk.explained(text) or text) from error
        return announced

    def _remember(self, path: str) -> None:
        if len(self._sound) >= _SOUND_LIMIT:
            self._sound.clear()
        self._sound.add(path)


async def _whole(output: asyncio.StreamReader, known: set[str], take: _Take[_T]) -> _T:
    result = await take(output, known)
    if await output.read(1):
        raise NotAnExportError("there is more than was announced")
    return result


def _judge(exported: ExportedPath, known: Set[str], is_sound: bool) -> None:
    """Raises NotAnExportError for a path that does not follow from its content or refers to what is not `known`;
    Blocked for a derivation that must not be built.

    `is_sound`: this path was judged before. As its content follows from it, only what is known may have changed.
    """
    path, references = exported.path, exported.references
    if path not in (_text_path(exported), tree_path_of(name_of(path), exported.nar.digest, references)):
        raise NotAnExportError(f"{path} does not follow from its content")
    if is_sound and references <= known:
        return
    if not path.endswith(".drv"):
        if foreign := min(references - known, default=None):
            raise NotAnExportError(f"{path} refers to {foreign}, which it was not given")
        return
    if exported.text is None or path != _text_path(exported):
        why: str | None = "it is not a text"
    else:
        try:
            why = objection(path, derivation_of(exported.text), references, known)
        except NotADerivationError as error:
            why = f"it is not as Nix writes one: {error}"
    if why is not None:
        name = name_of(path).removesuffix(".drv")
        raise Blocked(Reason.EVALUATION_FAILED, cut(f"the derivation {name} was refused: {why}", MESSAGE_LIMIT))


def _text_path(exported: ExportedPath) -> str | None:
    """Where it would lie as a text; None if it is none."""
    return None if exported.text is None else text_path(name_of(exported.path), exported.text, exported.references)


def _outputs(drv_path: str) -> Set[str]:
    """Of a derivation that was judged. Raises NotAnExportError if our store has lost it since."""
    try:
        derivation = derivation_of(Path(drv_path).read_bytes())
    except OSError as error:
        raise NotAnExportError(f"{name_of(drv_path)} is gone: {error.strerror}") from error
    return {output.path for output in derivation.outputs.values()}


async def _store_one(store: Daemon, exported: ExportedPath) -> None:
    name, references = name_of(exported.path), exported.references
    if exported.text is not None and exported.path == _text_path(exported):
        stored = await store.add_text(name, exported.text, references)
    else:
        stored = await store.add_tree(name, exported.nar.parts(), references)
    if stored != exported.path:
        raise NotAnExportError(f"{exported.path} does not follow from its content")


def _without_cpu(lines: list[str]) -> tuple[list[str], float]:
    """The lines before the last CPU_MARK, and the seconds of CPU that stand behind it; 0 if it is not there."""
    if CPU_MARK not in lines:
        return lines, 0.0
    at = len(lines) - 1 - lines[::-1].index(CPU_MARK)
    times = [part.split("m") for line in lines[at + 1 : at + 3] for part in line.split()]  # as 0m1.250000s
    try:
        return lines[:at], sum(60 * int(minutes) + float(seconds.rstrip("s")) for minutes, seconds in times)
    except ValueError:
        return lines[:at], 0.0


def _evaluation(line: str) -> Evaluation:
    try:
        match json.loads(line):
            case {"drvPath": str(drv), "toplevel": str(toplevel), "warnings": [*warnings]} if (
                is_store_path(drv) and drv.endswith(".drv") and is_store_path(toplevel)
            ):
                return Evaluation(drv, toplevel, _bounded(warnings))
    except ValueError as error:
        raise NotAnExportError("not JSON") from error
    raise NotAnExportError("not a system")


def _bounded(warnings: Sequence[object]) -> tuple[str, ...]:
    """The first of them, each as a line of a message: a module may warn of anything, thousands of times."""
    kept = itertools.islice(dict.fromkeys(map(str, warnings)), _WARNINGS)
    return tuple(cut(" ".join(plain(warning).split()), MESSAGE_LIMIT) for warning in kept)


async def _line(output: asyncio.StreamReader, limit: int) -> str:
    """One line without its end. Raises NotAnExportError if it is too long or breaks off."""
    try:
        line = await output.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise NotAnExportError("it breaks off") from error
    except asyncio.LimitOverrunError as error:
        raise NotAnExportError(f"more than {OUTPUT_LIMIT // 1024**2} MiB") from error
    if len(line) > limit:
        raise NotAnExportError(f"a line of more than {limit} bytes")
    return line[:-1].decode(errors="replace")
