"""The operator's own process with everything real but Nix and EC2: for tests of how it lives and ends."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fakes.nix import FakeNix
from nixops_operator import __main__ as process
from nixops_operator import composition
from nixops_operator.ports.nix import Nix


async def _nix(core: composition.Core, stack: AsyncExitStack) -> Nix:
    return FakeNix()


composition.nix_port = _nix

if __name__ == "__main__":
    process.main()
