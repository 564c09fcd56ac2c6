"""The operator's own process with everything real but Nix and EC2: for tests of how it lives and ends."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fakes.nix import FakeNix
from nixops_operator import __main__ as composition


async def _nix(self: composition.Operator, stack: AsyncExitStack) -> FakeNix:
    return FakeNix()


composition.Operator._nix = _nix  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    composition.main()
