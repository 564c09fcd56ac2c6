"""Trees that come as tarballs: fetched through the egress point, unpacked, and stored only with the right hash."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from nixops_operator.adapters.egress.egress import (
    Egress,
    EgressError,
    Forbidden,
    Limits,
    NotThere,
    TooLarge,
)
from nixops_operator.adapters.nix.daemon import DaemonError, local_store
from nixops_operator.adapters.nix.disk import Disk, DiskLowError
from nixops_operator.adapters.nix.private_folder import private_folder
from nixops_operator.adapters.nix.programs import NixFailedError, output_of, trusted_environment
from nixops_operator.adapters.nix.store_use import StoreUse
from nixops_operator.adapters.nix.unpacking import BadArchiveError, TreeLimits, unpacked
from nixops_operator.api.reasons import Reason
from nixops_operator.egress_policy import shown
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.nix import Archive, Source
from nixops_operator.nix.store_paths import SOURCE_NAME, digest_of, sri, tree_path_of

_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class SourceLimits:
    """Of one tarball. `compressed`: bytes."""

    compressed: int = 256 * 1024**2
    tree: TreeLimits = TreeLimits()  # noqa: RUF009 - frozen
    timeout: timedelta = timedelta(minutes=30)


class FetchedTrees:
    """See the module."""

    def __init__(self, egress: Egress, scratch: Path, limits: SourceLimits, disk: Disk, use: StoreUse) -> None:
        self._egress = egress
        self._scratch = scratch
        self._environment = trusted_environment(scratch)
        self._limits = limits
        self._disk = disk
        self._use = use

    async def fetch(self, archive: Archive, progress: Callable[[str], None]) -> Source:
        """See ports.nix.Nix.fetch."""
        source = Source(tree_path_of(SOURCE_NAME, digest_of(archive.nar_hash)), archive.nar_hash)
        try:
            async with self._use.briefly(), local_store(self._environment) as store:
                if await store.valid_paths([source.store_path]):
                    self._use.lend(source.store_path)
                    return source
            await self._disk.check()
            async with private_folder(self._scratch) as folder:
                return await self._disk.watched(self._fetched(archive, source, folder, progress))
        except EgressError as error:
            raise _as_ours(archive, error) from error
        except BadArchiveError as error:
            raise Blocked(Reason.SOURCE_NOT_FOUND, f"{shown(archive.url)}: {error}") from error
        except DiskLowError as error:
            raise Retry(Reason.FETCHING, str(error)) from error
        except (DaemonError, NixFailedError, OSError) as error:
            text = f"the operator's store did not take {shown(archive.url)}: {error}"
            raise Retry(Reason.FETCHING, self._disk.explained(text) or text) from error

    async def _fetched(self, archive: Archive, source: Source, folder: Path, progress: Callable[[str], None]) -> Source:
        tarball, inside = folder / "tarball", folder / "unpacked"
        await self._egress.save(
            archive.url,
            f"source {archive.nar_hash}",
            Limits(self._limits.compressed, self._limits.timeout),
            tarball,
            on_bytes=_Told(progress),
            is_administrators=archive.is_administrators,
        )
        progress("unpacking")
        inside.mkdir()
        tree = await unpacked(tarball, inside, self._limits.tree)
        found = sri(bytes.fromhex(await output_of(("nix-hash", "--type", "sha256", str(tree)), self._environment)))
        if found != archive.nar_hash:
            text = f"the tree in {shown(archive.url)} has the hash {found}, not {archive.nar_hash}"
            raise Blocked(Reason.SOURCE_NOT_FOUND, f"{text}; if it is the one that is meant, write that one")
        progress("storing")
        # Under this name it is stored; and of its folder's contents nothing else counts.
        named = await asyncio.to_thread(tree.rename, folder / SOURCE_NAME)
        async with self._use.briefly():
            command = ("nix-store", "--add-fixed", "--recursive", "sha256", str(named))
            stored = self._use.lend(await output_of(command, self._environment))
        if stored != source.store_path:
            raise NixFailedError(f"it is stored as {stored} instead of {source.store_path}")
        return source


class _Told:
    """Tells of bytes at most once a second."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._count = 0
        self._next = 0.0

    def __call__(self, count: int) -> None:
        self._count += count
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self._progress(f"{self._count // 1024**2} MiB fetched")


def _as_ours(archive: Archive, error: EgressError) -> Blocked | Retry:
    url = shown(archive.url)
    match error:
        case Forbidden():
            return Blocked(Reason.SOURCE_FORBIDDEN, f"{url} is not fetched: {error}")
        case NotThere() | TooLarge():
            return Blocked(Reason.SOURCE_NOT_FOUND, f"{url} was not fetched: {error}")
        case _:
            return Retry(Reason.FETCHING, f"{url} was not fetched: {error}")
