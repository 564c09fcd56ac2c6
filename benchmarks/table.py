"""Goal and measurement beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        rows.append([name, str(goal or ""), *measured, "" if name not in ours else _verdict(goal, ours[name])])
    _print(title, rows, below)


def show_turned(title: str, found: Mapping[str, Mapping[str, float]], judged: str, goal: Goal, below: str) -> None:
    """Prints a row per life and a column per figure, of which `judged` has the goal."""
    columns = list(next(iter(found.values())))
    rows = [["", *columns, f"{judged} {goal}"]]
    rows += [
        [name, *(f"{figures[column]:.1f}" for column in columns), _verdict(goal, figures[judged])]
        for name, figures in found.items()
    ]
    _print(title, rows, below)


def _verdict(goal: Goal | None, measured: float) -> str:
    if goal is None:
        return ""
    return "met" if goal.is_met(measured) else "MISSED"


def _print(title: str, rows: Sequence[Sequence[str]], below: str) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
    print(below, flush=True)
