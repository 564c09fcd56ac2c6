"""Nix on the operator's side: sources into the store, evaluation, build, signature, copy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from nixops_operator.effects import effect, look, port
from nixops_operator.facts.nix import Archive, Evaluation, EvaluationRequest, Module, Source, StoreSpace

Progress = Callable[[str], None]
"""Called with a short text for people, as `34 of 120 built`; from the event loop's thread, at most once a second, and
as long as anything moves: of a copy also while one large path is on its way."""


__all__ = ["Evaluation", "EvaluationRequest", "Module", "Nix", "Progress", "Source", "StoreSpace"]


@port
class Nix(Protocol):
    """The operator's own store and the sandboxed processes around it."""

    @effect("nix.add_source")
    async def add_tree(self, files: Mapping[str, bytes]) -> Source:
        """Store a tree (relative path → content) under the name `source`. Repeating: safe, content-addressed.

        Raises InvalidSpec(`spec.configuration.source`) for absolute names, `..`, more than 50 000 files or 256 MiB.
        """

    @effect("nix.add_source")
    async def add_path(self, path: Path) -> Source:
        """Store a folder of the operator's own disk (the default nixpkgs) under the name `source`. As `add_tree`.

        Raises Blocked (`SourceNotFound`) naming the setting if the folder does not exist.
        """

    @effect("nix.fetch")
    async def fetch(self, archive: Archive, progress: Progress) -> Source:
        """Fetch a tarball into the store, as the tree of its one folder. Repeating: safe; a tree that the store has is
        not fetched again.

        Limits: settings (256 MiB compressed, 250 000 files, 2 GiB unpacked). Raises Blocked (`SourceForbidden`) for a
        place that the operator may not fetch from, Blocked (`SourceNotFound`) for what is not there, is no tarball, or
        has another hash, which the message names; Retry (`Fetching`) where it may come another time.
        """

    @effect("nix.evaluate")
    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Evaluate one machine, alone in a sandbox without network, host files, environment or store.

        The `.drv` closure is in the operator's store afterwards; none of its derivations is built from a store path
        that is neither one of the request's sources nor made by this evaluation. Limits: settings (300 s wall, 240 s
        CPU, 4 GiB, 4 MiB output).

        The result, a failure too, holds as long as the facts that were read are as they were told.

        Raises UnknownFact for one that is needed and not known. EvaluationFailed: one message of at most 400
        characters, `web.nix:3:5: syntax error, …`, store paths mapped to the user's names (labels), ANSI stripped.
        Retry (`Evaluating`) when the configuration is not the cause: the sandbox could not start, the operator's disk
        is full, somebody else killed the process.
        """

    @effect("nix.build")
    async def build(self, drv_path: str, progress: Progress) -> str:
        """Build, sign, return the toplevel's store path. Repeating: safe, what exists is not built again.

        The builder has no network, no token, no Secret. Limits: settings (2 h, 30 min of silence, memory, processes,
        log). Raises Blocked (`BuildFailed`) with the name of the failed derivation and the last useful line; Retry
        (`Building`) as `evaluate`. Cancelling ends the whole process group.
        """

    @effect("nix.push")
    async def copy(self, toplevel: str, daemon_socket: Path, progress: Progress) -> None:
        """Copy the signed closure into the store behind `daemon_socket` (see Host.nix_daemon). Repeating: safe,
        resumes.

        Without a time limit of its own: the caller hears of progress, and ends what makes none.
        Raises Retry (`CopyFailed`) with the last useful line.
        """

    @effect("nix.push_derivations")
    async def copy_derivations(self, drv_path: str, daemon_socket: Path, progress: Progress) -> None:
        """Copy a derivation with all that it is built from (derivations and sources, no results) into the store behind
        `daemon_socket`, in one stream. All of it is named by its content and needs no signature. As `copy`."""

    @look
    async def space(self) -> StoreSpace:
        """How much room the store has. Raises Retry."""

    @effect("nix.collect")
    async def collect(self, wanted: Callable[[], Collection[str]], to_free: int) -> int:
        """Delete what is not needed from the store, until so many bytes more are free or nothing is left to delete.
        Returns how many more are free. Repeating: safe.

        Needed is what `wanted` names, with all that it refers to; what this port gave to somebody within the last hour;
        and everything while any other method works with it. For the last of these no build begins from now on, and
        those that run are waited for, hours perhaps; then `wanted` is asked, nothing else begins either, and it is
        done in seconds. What `wanted` was built with is deleted last. Raises Retry; half an hour at most.
        """

    @look
    def no_builder(self, system: str) -> str | None:
        """Why nothing can be built here for `system`, for people; None if it can. The answer may change: builders are
        tried again where they failed. With an answer `build` is not to be called."""

    @property
    def public_key(self) -> str:
        """The public half of the signing key, `<name>:<base64>`."""
