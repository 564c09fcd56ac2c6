"""What was freed is given back to the node."""

from __future__ import annotations

from pathlib import Path

from nixops_operator.memory import give_back


def test_what_was_freed_between_what_is_used_goes_back():
    blocks = [bytes(2000) for _ in range(50_000)]
    kept = blocks[::50]
    del blocks
    before = _resident()

    give_back()

    assert before - _resident() > 50e6
    assert kept


def _resident() -> int:
    """Bytes of this process in memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
