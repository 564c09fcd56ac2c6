"""Which box evaluations run in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nixops_operator.adapters.nix.boxes.box import BoxKind
from nixops_operator.adapters.nix.boxes.landlock import why_no_landlock
from nixops_operator.adapters.nix.programs import trusted_environment

_LANDLOCK_HELPS = (
    "With nix.box Landlock the node's kernel must have Landlock (Linux 5.19 or newer, `landlock` among those of "
    "/sys/kernel/security/lsm), the pod's seccomp profile must allow the landlock_… calls (RuntimeDefault does)"
)
_NAMESPACES_HELP = (
    "With nix.box Namespaces the node must let users make namespaces (sysctl user.max_user_namespaces, AppArmor's "
    "restriction of them) and the pod needs a seccomp profile that allows them (RuntimeDefault does not). Builds on "
    "the operator (nix.build.on Operator) need the same; with Target the machines build"
)


@dataclass(frozen=True)
class ChosenBox:
    """`remedy`: what to tell people if it does not hold."""

    kind: BoxKind
    remedy: str


async def chosen_box(setting: Literal["Auto", "Landlock", "Namespaces"], scratch: Path) -> ChosenBox:
    """The box that the setting `nix.box` means here. It is not tried: see probe.py."""
    help_ = f"{_LANDLOCK_HELPS}. {_NAMESPACES_HELP}."
    if setting != "Auto":
        kind = BoxKind(setting)
        missing = await why_no_landlock(trusted_environment(scratch)) if kind is BoxKind.LANDLOCK else None
        return ChosenBox(kind, f"nix.box is {setting}{f': {missing}' if missing else ''}. {help_}")
    missing = await why_no_landlock(trusted_environment(scratch))
    if missing is None:
        return ChosenBox(BoxKind.LANDLOCK, f"nix.box is Auto, which means Landlock here. {help_}")
    return ChosenBox(BoxKind.NAMESPACES, f"nix.box is Auto, which means Namespaces here: {missing}. {help_}")
