"""Nix on the operator's side: sources into the store, evaluation, build, signature, copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from nixops_operator.effects import effect, port
from nixops_operator.facts.nix import Evaluation, EvaluationRequest, Module, Source

Progress = Callable[[str], None]
"""Called with a short text for people, as `34 of 120 built`; from the event loop's thread, at most once a second."""


__all__ = ["Evaluation", "EvaluationRequest", "Module", "Nix", "Progress", "Source"]


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

    @effect("nix.evaluate")
    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Evaluate one machine, alone in a sandbox without network, host files, environment or store.

        The `.drv` closure is in the operator's store afterwards. Limits: settings (300 s wall, 240 s CPU, 4 GiB, 4 MiB
        output).
        Raises Blocked (`EvaluationFailed`): one message of at most 400 characters, `web.nix:3:5: syntax error, …`,
        store paths mapped to the user's
        names (labels), ANSI stripped. Retry (`Evaluating`) only when the sandbox itself could not start.
        """

    @effect("nix.build")
    async def build(self, drv_path: str, progress: Progress) -> str:
        """Build, sign, return the toplevel's store path. Repeating: safe, what exists is not built again.

        The builder has no network, no token, no Secret. Raises Blocked (`BuildFailed`) with the name of the failed
        derivation and the last useful line.
        Cancelling ends the whole process group.
        """

    @effect("nix.push")
    async def copy(self, toplevel: str, daemon_socket: Path, progress: Progress) -> None:
        """Copy the signed closure into the store behind `daemon_socket` (see Host.nix_daemon). Repeating: safe,
        resumes.

        Raises Retry (`CopyFailed`) with the last useful line.
        """

    @property
    def public_key(self) -> str:
        """The public half of the signing key, `<name>:<base64>`."""
