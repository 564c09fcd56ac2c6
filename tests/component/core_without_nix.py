"""The operator's own process with everything real but Nix and EC2: for tests of how it lives and ends."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fakes.effects import Call
from fakes.nix import FakeNix
from nixops_operator import __main__ as process
from nixops_operator import composition
from nixops_operator.ports.nix import Nix


class _Forgotten(list[Call]):
    """A log of calls that nobody reads: it would be counted as the operator's memory."""

    def append(self, call: Call) -> None:
        pass


async def _nix(core: composition.Core, stack: AsyncExitStack) -> Nix:
    nix = FakeNix()
    nix.effects.calls = _Forgotten()
    return nix


composition.nix_port = _nix

if __name__ == "__main__":
    process.main()
