"""Brings what a build needs and somebody else has: outputs from binary caches, and files behind fixed hashes.

Nix has no network for it. What caches say and hold is fetched through the egress point into a folder in the form of a
cache, and Nix takes paths from there, with its own checks: the signature by a key of that cache, the hash of the
archive. What lies behind a fixed hash is fetched the same way, and stored by that hash.

    derivations, from the wanted one down ──► has a cache its outputs? ──► their closure, references first
                        │                              │ no
                        │                              ▼
                        └───────────────────► fixed output: fetch;  else: build it, and so look at its inputs
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from nixops_operator.adapters.egress.egress import (
    Credential,
    Egress,
    EgressError,
    Limits,
    NotAllowed,
    NotThere,
    Unreachable,
)
from nixops_operator.adapters.nix.daemon import DaemonError, local_store
from nixops_operator.adapters.nix.private_folder import private_folder
from nixops_operator.adapters.nix.programs import NixFailedError, output_of, trusted_environment
from nixops_operator.adapters.nix.unpacking import BadArchiveError, TreeLimits, unpacked
from nixops_operator.api.reasons import Reason
from nixops_operator.egress_policy import shown
from nixops_operator.errors import Blocked, Retry
from nixops_operator.nix.binary_cache import (
    TEXT_LIMIT,
    BadNarInfoError,
    NarInfo,
    in_turns,
    listed,
    may_be_substituted,
    nar_info,
    urls_of,
)
from nixops_operator.nix.derivations import Derivation, NotADerivationError, Output, derivation_of
from nixops_operator.nix.store_paths import STORE, name_of

_AT_ONCE = 16  # questions and files under way
_BATCH_BYTES = 256 * 1024**2  # of files that lie in the scratch folder at once, unless a single one is larger
_BATCH_PATHS = 200
_NAR_LIMIT = 8 * 1024**3
_FILE_LIMIT = 4 * 1024**3
_ROUNDS = 5  # plans, each without the paths that could not be had before
_FALLBACK = 30
"""Derivations that are built in place of what a cache should have, while one does not answer. Building a compiler
because of an outage of minutes helps nobody."""
_PAUSES = (0.5, 2.0)
"""Seconds before a cache is asked again that has failed. Of thousands of answers that a system takes, one may always be
lost, and what it was about would be built: a compiler, perhaps."""
_PROGRESS_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Substituter:
    """`url` without a slash at its end. `public_keys`: of whom its paths are believed, `<name>:<base64>` each."""

    url: str
    public_keys: tuple[str, ...]


@dataclass
class _Plan:
    found: dict[str, tuple[Substituter, NarInfo]] = field(default_factory=dict)  # to be fetched, closures included
    fixed: dict[str, Derivation] = field(default_factory=dict)  # .drv → to be fetched by its hash
    built: list[str] = field(default_factory=list)  # .drv, besides those that no cache is asked for


class Substitution:
    """See the module."""

    def __init__(
        self,
        egress: Egress,
        scratch: Path,
        substituters: Sequence[Substituter],
        credentials: Callable[[], Mapping[str, Credential]],
    ) -> None:
        self._egress = egress
        self._scratch = scratch
        self._substituters = tuple(substituters)
        self._credentials = credentials
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def bring(self, drv_path: str, progress: Callable[[str], None]) -> str:
        """Afterwards all is in the store that the build of this derivation needs and does not make itself, as far as
        caches and sources have it. Returns what was wrong with them, for people; empty if nothing was.

        Raises Retry (`Building`), Blocked (`BuildFailed`).
        """
        run = _Run(self, progress)
        try:
            return await run.bring(drv_path)
        except (DaemonError, NixFailedError, OSError) as error:
            raise Retry(Reason.BUILDING, f"the operator's store did not take what was fetched: {error}") from error


class _Run:
    """One call of `bring`."""

    def __init__(self, parent: Substitution, progress: Callable[[str], None]) -> None:
        self._parent = parent
        self._environment = trusted_environment(parent._scratch)  # noqa: SLF001 - its other half
        self._credentials = parent._credentials()  # noqa: SLF001
        self._progress = progress
        self._told_at = 0.0
        self._silent: dict[str, str] = {}  # cache → why it is asked no more: "does …"
        self._failed: dict[str, dict[str, str]] = {}  # path → cache → why it could not be had there
        self._lost: set[str] = set()  # of this round: paths that did not come, for whatever reason
        self._taken: set[str] = set()
        self._answers: dict[str, tuple[Substituter, NarInfo] | None] = {}
        self._done = self._bytes = 0

    async def bring(self, drv_path: str) -> str:
        for _ in range(_ROUNDS):
            plan = await self._planned(drv_path)
            if self._silent and len(plan.built) > _FALLBACK:
                waiting = f"waiting for it rather than building {len(plan.built)} things"
                raise Retry(Reason.BUILDING, f"{self._complaint()}; {waiting}")
            if not plan.found:
                break
            if await self._take(plan.found):
                break
        complaint = self._complaint()
        try:
            await self._fetch_fixed(plan.fixed)
        except Blocked as error:
            if complaint:
                # A cache has most sources, too.
                raise Retry(Reason.BUILDING, f"{complaint}; and without it {error.message}") from error
            raise
        return complaint

    def _complaint(self) -> str:
        texts = [f"the cache {url} {why}" for url, why in self._silent.items()]
        if without := self._failed.keys() - self._taken:
            why = next(iter(self._failed[min(without)].values()))
            texts.append(f"{listed(without)} could not be had from a cache ({why})")
        return "; ".join(texts)

    # --- what is to be had ---

    async def _planned(self, drv_path: str) -> _Plan:
        plan = _Plan()
        wanted: dict[str, set[str]] = {drv_path: set()}  # .drv → outputs; none: all of them
        seen: dict[str, set[str]] = {}
        while wanted:
            level = {path: await asyncio.to_thread(_derivation_at, path) for path in wanted}
            outputs = {
                path: [each for name, each in drv.outputs.items() if not wanted[path] or name in wanted[path]]
                for path, drv in level.items()
            }
            missing = await self._missing({each.path for some in outputs.values() for each in some})
            for path, some_outputs in wanted.items():
                seen.setdefault(path, set()).update(some_outputs)
            lacking = {path: [each.path for each in outputs[path] if each.path in missing] for path in level}
            asked = [each for path, paths in lacking.items() if may_be_substituted(level[path]) for each in paths]
            had = await self._closures(asked)
            following: dict[str, set[str]] = {}
            for path, paths in lacking.items():
                if not paths:
                    continue
                if all(each in had for each in paths):
                    for each in paths:
                        plan.found.update(had[each])
                    continue
                drv = level[path]
                if any(each.digest for each in drv.outputs.values()):
                    plan.fixed[path] = drv
                elif may_be_substituted(drv):
                    plan.built.append(path)
                for needed, names in drv.inputs.items():
                    if not set(names) <= seen.get(needed, set()) and not any(
                        each.digest for each in drv.outputs.values()
                    ):
                        following.setdefault(needed, set()).update(names)
            wanted = following
        return plan

    async def _missing(self, paths: set[str]) -> set[str]:
        if not paths:
            return set()
        async with local_store(self._environment) as store:
            return paths - await store.valid_paths(paths)

    async def _closures(self, paths: Sequence[str]) -> dict[str, dict[str, tuple[Substituter, NarInfo]]]:
        """Of those that a cache has, whole: path → what has to be fetched for it."""
        infos: dict[str, tuple[Substituter, NarInfo]] = {}
        asked: set[str] = set()
        level = set(paths)
        while level := level - asked:
            asked |= level
            ordered = sorted(level)
            answers = await asyncio.gather(*map(self._ask, ordered))
            infos.update({path: answer for path, answer in zip(ordered, answers, strict=True) if answer is not None})
            below = {each for path in level if path in infos for each in infos[path][1].references} - asked
            level = await self._missing(below)
            present = below - level
            asked |= present
        result = {}
        for path in paths:
            if (closure := self._closure(path, infos)) is not None:
                result[path] = closure
        return result

    @staticmethod
    def _closure(
        path: str, infos: Mapping[str, tuple[Substituter, NarInfo]]
    ) -> dict[str, tuple[Substituter, NarInfo]] | None:
        closure: dict[str, tuple[Substituter, NarInfo]] = {}
        left = [path]
        while left:
            each = left.pop()
            if each in closure:
                continue
            if each not in infos:
                return None if each == path else closure
            closure[each] = infos[each]
            left += [other for other in infos[each][1].references if other in infos]
        return closure

    async def _ask(self, path: str) -> tuple[Substituter, NarInfo] | None:
        if path not in self._answers:
            self._answers[path] = await self._asked(path)
        return self._answers[path]

    async def _asked(self, path: str) -> tuple[Substituter, NarInfo] | None:
        for substituter in self._parent._substituters:  # noqa: SLF001
            if substituter.url in self._silent or substituter.url in self._failed.get(path, {}):
                continue
            ask = functools.partial(
                self._parent._egress.read,  # noqa: SLF001
                f"{substituter.url}/{_hash_of(path)}.narinfo",
                name_of(path),
                Limits(TEXT_LIMIT, timedelta(seconds=60)),
                credentials=self._credentials,
                is_administrators=True,
            )
            try:
                return substituter, nar_info(path, await self._patiently(substituter, ask))
            except NotAllowed as error:
                # Nix takes this for "not there", too, and builds everything without a word.
                self._silent[substituter.url] = f"does not know the operator (setting nix.netrcFile): {error}"
            except NotThere:
                continue
            except BadNarInfoError as error:
                self._fail(path, substituter, f"{substituter.url}: {error}")
            except EgressError as error:
                self._silent[substituter.url] = f"does not answer ({error})"
        return None

    async def _patiently(self, substituter: Substituter, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives, tried again where the cache has failed, unless it is known to be silent by now."""
        for pause in _PAUSES:
            try:
                async with self._parent._places:  # noqa: SLF001
                    return await ask()
            except Unreachable:
                if substituter.url in self._silent:
                    raise
                await asyncio.sleep(pause)
        async with self._parent._places:  # noqa: SLF001
            return await ask()

    def _fail(self, path: str, substituter: Substituter, why: str) -> None:
        """This cache is asked no more about it; another one may be."""
        self._failed.setdefault(path, {}).setdefault(substituter.url, why)
        self._answers.pop(path, None)
        self._lost.add(path)

    # --- taking it ---

    async def _take(self, found: Mapping[str, tuple[Substituter, NarInfo]]) -> bool:
        """Whether all of it is in the store now; what could not be had where, is written down in `_failed`."""
        self._lost.clear()
        try:
            turns = in_turns(found)
        except BadNarInfoError as error:
            for path, (substituter, _) in found.items():
                self._fail(path, substituter, str(error))
            return False
        for substituter, ordered in turns:
            for batch in _batches(ordered):
                await self._take_batch(substituter, batch, len(found))
        return not self._lost

    async def _take_batch(self, substituter: Substituter, batch: Sequence[NarInfo], total: int) -> None:
        async with private_folder(self._parent._scratch) as folder:  # noqa: SLF001
            await asyncio.to_thread(_begin_cache, folder, batch)
            await asyncio.gather(*(self._fetch_nar(substituter, info, folder, total) for info in batch))
            whole = [info for info in batch if self._is_whole(info, substituter)]
            if not whole:
                return
            try:
                await self._import(substituter, folder, [info.path for info in whole])
            except NixFailedError:
                # Which of them it was, Nix says only of one that is alone.
                for info in whole:
                    if not self._is_whole(info, substituter):
                        continue
                    try:
                        await self._import(substituter, folder, [info.path])
                    except NixFailedError as error:
                        self._fail(info.path, substituter, str(error))

    def _is_whole(self, info: NarInfo, substituter: Substituter) -> bool:
        """Whether it may be taken. Asked of each after those that it refers to: what lacks something is lost, too."""
        if any(each in self._lost for each in info.references):
            self._fail(info.path, substituter, "something that it needs could not be had")
        return info.path not in self._lost

    async def _fetch_nar(self, substituter: Substituter, info: NarInfo, folder: Path, total: int) -> None:
        async def fetch() -> None:
            await self._parent._egress.save(  # noqa: SLF001
                f"{substituter.url}/{info.url}",
                name_of(info.path),
                Limits(_NAR_LIMIT, timedelta(hours=2)),
                folder / "nar" / _file_of(info),
                on_bytes=lambda count: self._moved(count, total),
                credentials=self._credentials,
                is_administrators=True,
            )

        try:
            await self._patiently(substituter, fetch)
        except EgressError as error:
            if isinstance(error, Unreachable):
                self._silent[substituter.url] = f"does not answer ({error})"
            self._fail(info.path, substituter, str(error))
            return
        self._done += 1
        self._moved(0, total)

    def _moved(self, count: int, total: int) -> None:
        self._bytes += count
        if time.monotonic() >= self._told_at + _PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            self._progress(f"{self._done} of {total} fetched, {self._bytes // 1024**2} MiB")

    async def _import(self, substituter: Substituter, folder: Path, paths: Sequence[str]) -> None:
        environment = {
            **self._environment,
            "NIX_CONFIG": f"{self._environment['NIX_CONFIG']}require-sigs = true\n"
            f"trusted-public-keys = {' '.join(substituter.public_keys)}\n",
        }
        await output_of(("nix", "copy", "--no-recursive", "--from", f"file://{folder}", *paths), environment)
        self._taken.update(paths)

    # --- files behind fixed hashes ---

    async def _fetch_fixed(self, fixed: Mapping[str, Derivation]) -> None:
        for done, (path, drv) in enumerate(sorted(fixed.items())):
            self._progress(f"{done} of {len(fixed)} sources fetched")
            await self._fetch_one(path, drv)

    async def _fetch_one(self, path: str, drv: Derivation) -> None:
        name, output = name_of(path).removesuffix(".drv"), next(iter(drv.outputs.values()))
        way_out = "with configuration.build.on: Target the machine fetches it itself"
        urls, whys, is_for_now = urls_of(drv), [], False
        if not urls:
            raise Blocked(Reason.BUILD_FAILED, f"{name} is to be fetched, and names no plain URL; {way_out}")
        for url in urls:
            try:
                async with private_folder(self._parent._scratch) as folder:  # noqa: SLF001
                    file = folder / name_of(output.path)
                    limits = Limits(_FILE_LIMIT, timedelta(hours=1))
                    await self._parent._egress.save(url, name, limits, file)  # noqa: SLF001
                    if await self._store_fixed(file, output, folder):
                        return
                whys.append(f"{shown(url)} has another hash, or is processed after it was fetched")
            except EgressError as error:
                is_for_now |= isinstance(error, Unreachable)
                whys.append(f"{shown(url)}: {error}")
        text = f"{name} could not be fetched: {'; '.join(whys)[:250]}"
        if is_for_now:
            raise Retry(Reason.BUILDING, text)
        raise Blocked(Reason.BUILD_FAILED, f"{text}; {way_out}")

    async def _store_fixed(self, file: Path, output: Output, folder: Path) -> bool:
        """Whether the file, or the tree in it, has the hash of the output; then it is stored."""
        is_tree, _, algorithm = output.algorithm.rpartition(":")
        if not is_tree:
            with file.open("rb") as content:
                digest = await asyncio.to_thread(hashlib.file_digest, content, algorithm)
            return digest.hexdigest() == output.digest and await self._stored(file, output, algorithm, ())
        for candidate in (file, await _executable(file), await _tree_in(file, folder)):
            if candidate is None:
                continue
            found = await output_of(("nix-hash", "--type", algorithm, str(candidate)), self._environment)
            if found == output.digest:
                return await self._stored(candidate, output, algorithm, ("--recursive",))
        return False

    async def _stored(self, what: Path, output: Output, algorithm: str, options: Sequence[str]) -> bool:
        named = what.with_name(name_of(output.path))
        if named != what:
            named = what.parent / "named" / named.name
            named.parent.mkdir()
            await asyncio.to_thread(what.rename, named)
        path = await output_of(("nix-store", "--add-fixed", *options, algorithm, str(named)), self._environment)
        return path == output.path


def _derivation_at(path: str) -> Derivation:
    try:
        return derivation_of(Path(path).read_bytes())
    except FileNotFoundError:
        raise Blocked(Reason.BUILD_FAILED, f"{name_of(path)} is not in the operator's store") from None
    except NotADerivationError as error:
        raise Blocked(Reason.BUILD_FAILED, f"{name_of(path)} is no derivation: {error}") from error


def _batches(ordered: Sequence[NarInfo]) -> list[list[NarInfo]]:
    batches: list[list[NarInfo]] = []
    size = 0
    for info in ordered:
        if not batches or len(batches[-1]) >= _BATCH_PATHS or size + info.size > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(info)
        size += info.size
    return batches


def _begin_cache(folder: Path, batch: Sequence[NarInfo]) -> None:
    (folder / "nar").mkdir()
    (folder / "nix-cache-info").write_text(f"StoreDir: {STORE}\n")
    for info in batch:
        file = f"URL: nar/{_file_of(info)}".encode()
        lines = [file if line.startswith(b"URL: ") else line for line in info.text.splitlines()]
        (folder / f"{_hash_of(info.path)}.narinfo").write_bytes(b"\n".join(lines) + b"\n")


def _file_of(info: NarInfo) -> str:
    """The name of its archive here. Of its own: caches name the archive of two paths with equal content once."""
    return f"{_hash_of(info.path)}.nar"


def _hash_of(path: str) -> str:
    return path.removeprefix(f"{STORE}/")[:32]


async def _executable(file: Path) -> Path:
    """As fetchurl's `executable = true` stores it."""
    await asyncio.to_thread(file.chmod, 0o755)
    return file


async def _tree_in(file: Path, folder: Path) -> Path | None:
    """As fetchzip and fetchFromGitHub store it."""
    inside = folder / "unpacked"
    inside.mkdir()
    try:
        return await unpacked(file, inside, TreeLimits())
    except BadArchiveError:
        return None
