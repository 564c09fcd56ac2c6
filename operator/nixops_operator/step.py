"""What a pass may do, as values. Each step is one short effect, or the start of a job; `apply` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

Identity = tuple[str, ...]
"""A step's type and what it acts on."""


@dataclass(frozen=True)
class Step:
    """Base of all steps.

    A step that failed is held for a while. Holds, backoff and repetition are kept per identity, so that a step which is
    refused never holds its siblings, and a new attempt at the same thing does not begin from the shortest wait.
    """

    is_harmless: ClassVar[bool] = False
    """Whether it changes neither cloud nor machine; such steps are taken while the object is suspended, too."""
    blocked_hold: ClassVar[timedelta | None] = None
    """How long to wait after it was refused; None: as all steps."""

    @property
    def subject(self) -> Identity:
        """What it acts on; steps with more than one field to tell name them here. Empty: the object itself."""
        return ()

    @property
    def identity(self) -> Identity:
        return (type(self).__name__, *self.subject)

    @property
    def of_field(self) -> str:
        """The field of the spec that it carries out, for people: AWS' refusals do not name it. Empty: none, or many."""
        return ""

    @property
    def held_with(self) -> tuple[Identity, ...]:
        """Identities of steps whose hold is this one's, too: what only prepares a refused call waits with it."""
        return ()


@dataclass(frozen=True)
class JobStep(Step):
    """The start of a job, whose end wakes the object."""

    job: str


def name_of(step: Any) -> str:
    """For logs."""
    return " ".join(step.identity)
