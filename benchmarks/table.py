"""Goal and measurement beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AtMost:
    """The goal holds for this figure and below."""

    figure: float

    def is_met(self, measured: float) -> bool:
        return measured <= self.figure

    def __str__(self) -> str:
        return f"≤ {self.figure:g}"


@dataclass(frozen=True)
class AtLeast:
    """The goal holds for this figure and above."""

    figure: float

    def is_met(self, measured: float) -> bool:
        return measured >= self.figure

    def __str__(self) -> str:
        return f"≥ {self.figure:g}"


Goal = AtMost | AtLeast


def show(title: str, goals: Mapping[str, Goal | None], found: Mapping[str, Mapping[str, float]], below: str) -> None:
    """Prints a row per goal and a column per program, of which the first is ours. `below`: under which load."""
    rows = [["", "goal", *found, ""]]
    ours = next(iter(found.values()))
    for name, goal in goals.items():
        measured = [f"{figures[name]:.1f}" if name in figures else "-" for figures in found.values()]
        verdict = "" if goal is None or name not in ours else "met" if goal.is_met(ours[name]) else "MISSED"
        rows.append([name, str(goal or ""), *measured, verdict])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        first, *others = (
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
    print(below, flush=True)
