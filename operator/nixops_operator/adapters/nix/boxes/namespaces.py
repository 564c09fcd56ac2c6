"""The box of bubblewrap(1): namespaces of its own for files, processes, network, IPC and user.

Its /nix is empty but for its sources, mounted read-only, and lies in memory of a bounded size. It needs a node and a
pod that let a user without rights make namespaces and mounts; the security profile that Kubernetes gives by default
(RuntimeDefault) does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from nixops_operator.adapters.nix.boxes.box import (
    EVALUATION,
    EVALUATOR_CONF,
    Box,
    BoxKind,
    EvaluationLimits,
    Running,
)
from nixops_operator.adapters.nix.bubblewrap import PROCESSES, SHUT, SHUT_OFF
from nixops_operator.adapters.nix.child import child
from nixops_operator.adapters.nix.limits import FIRST_TO_GO, evaluation_limits
from nixops_operator.adapters.nix.signing import in_memory
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked

_SOURCES_LIMIT = 2500
"""bubblewrap takes 9,000 arguments in all, in its command line or from a file (bubblewrap.c, MAX_ARGS)."""


class Namespaces(Box):
    """See the module. `environment`: of bubblewrap itself; nothing of it comes in."""

    def __init__(self, environment: Mapping[str, str], limits: EvaluationLimits) -> None:
        self._environment = environment
        self._limits = limits

    @property
    def kind(self) -> BoxKind:
        return BoxKind.NAMESPACES

    @contextlib.asynccontextmanager
    async def run(
        self,
        command: Sequence[str] | None,
        sources: Sequence[str],
        registration: bytes,
        tenant: str | None,  # noqa: ARG002 - nothing is kept for anybody
    ) -> AsyncIterator[Running]:
        if len(sources) > _SOURCES_LIMIT:
            raise Blocked(
                Reason.EVALUATION_FAILED,
                f"{len(sources)} sources are more than nix.box Namespaces can show ({_SOURCES_LIMIT})",
            )
        listed = "".join(f"{source}\n" for source in sources).encode()
        with (
            in_memory("nix.conf", EVALUATOR_CONF.encode()) as conf,
            in_memory("registration", registration) as registered,
            in_memory("sources", listed) as names,
            in_memory("arguments", "".join(f"{part}\0" for part in self._mounts(sources)).encode()) as mounts,
        ):
            argv = self._argv(command or EVALUATION, conf, registered, names, mounts)
            async with child(argv, self._environment, (conf, registered, names, mounts)) as process:
                yield Running(process)

    async def forget(self) -> None:
        """It keeps nothing: its store lies in memory."""

    def not_made(self, said: str) -> bool:
        return said.startswith("bwrap:")

    def _argv(self, command: Sequence[str], conf: int, registration: int, sources: int, mounts: int) -> list[str]:
        limits = self._limits
        return [
            *FIRST_TO_GO,
            *evaluation_limits(limits.memory, int(limits.cpu.total_seconds()), limits.disk),
            *PROCESSES,
            *SHUT_OFF,
            *("--setenv", "IN", "/run", "--setenv", "OUT", "/tmp", "--setenv", "GUARD", ""),  # noqa: S108 - the box' own
            *("--ro-bind-data", str(conf), "/conf/nix.conf"),
            *("--ro-bind-data", str(registration), "/run/registration"),
            *("--ro-bind-data", str(sources), "/run/sources"),
            *("--symlink", "/dev/null", "/run/known"),
            *("--args", str(mounts)),
            "--",
            *("prlimit", f"--nproc={limits.processes}", "--"),
            *command,
        ]

    def _mounts(self, sources: Sequence[str]) -> list[str]:
        size = str(self._limits.disk)
        return [
            *("--size", size, "--tmpfs", "/tmp"),  # noqa: S108 - the box' own
            *("--size", size, "--tmpfs", "/nix"),
            *(part for source in sources for part in ("--ro-bind", source, source)),
            *SHUT,
        ]
