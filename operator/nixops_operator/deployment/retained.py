"""Letting go: what stays in EC2 when the deployment goes is tagged, and never touched again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from nixops_operator import names, retain
from nixops_operator.informers.cloud import CloudView
from nixops_operator.step import Identity, Step


@dataclass(frozen=True)
class RetainThing(Step):
    """Tag it as let go; it is not ours any more."""

    thing_id: str

    blocked_hold: ClassVar[timedelta | None] = retain.LOOK_AGAIN

    @property
    def subject(self) -> Identity:
        return (self.thing_id,)


async def tag(step: RetainThing, view: CloudView) -> None:
    await view.cloud.create_tags([step.thing_id], {names.RETAINED_TAG: "true"})
