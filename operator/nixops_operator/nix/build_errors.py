"""From what a build says to one message for people."""

from __future__ import annotations

import re
from typing import Any

from nixops_operator.nix.internal_json import text_of
from nixops_operator.nix.store_paths import STORE_PATH, name_of
from nixops_operator.nix.texts import cut, plain

MESSAGE_LIMIT = 400
# No quantifier may run over what the next one could begin with: a builder's words are a tenant's.
_FAILED_BUILDER = re.compile(r"builder for '(?P<drv>[^']{1,300})' (?P<how>failed [^;\n]*)")
_LIMITED_BUILDER = re.compile(
    r"building of '(?P<drv>[^'!]{1,300})(?:!out)?'(?: from \.drv file)? (?P<how>(?:timed out|killed) after [^;\n]*)"
)
_CONSEQUENCE = re.compile(r"\d{1,9} dependencies of derivation|build of .* failed$")


class BuildStory:
    """Follows the events of one build (or copy) and knows why it failed.

    Numbers of events (Nix, src/libutil/logging.hh): a start of type 105 is a build, its first field the derivation; a
    result of type 101 is a line of a builder.
    """

    def __init__(self, place: str = "the operator's pod or its node") -> None:
        """`place`: where the builders run, for people."""
        self._place = place
        self._derivations: dict[int, str] = {}  # running builds: activity → .drv
        self._last_line: dict[str, str] = {}  # .drv → last line that says something
        self._errors: list[str] = []

    def follow(self, event: dict[str, Any]) -> None:
        """Take the next event of the process."""
        match event:
            case {"action": "start", "type": 105, "id": int(activity), "fields": [str(drv), *_]}:
                self._derivations[activity] = drv
            case {"action": "stop", "id": int(activity)}:
                self._derivations.pop(activity, None)
            case {"action": "result", "type": 101, "id": int(activity), "fields": [str(line), *_]}:
                building = self._derivations.get(activity)
                if building is not None and (said := plain(line).strip()):
                    self._last_line[building] = said
            case {"action": "msg", "level": 0}:
                self._errors.append(text_of(event))

    def failure(self) -> str:
        """Why it failed: the failed derivation's name and its last line, else Nix' own words; at most 400 characters.
        Empty if nothing was said."""
        for error in self._errors:
            if found := _FAILED_BUILDER.search(error) or _LIMITED_BUILDER.search(error):
                said = self._last_line.get(found["drv"])
                text = f"build of {_name(found['drv'])} {found['how'].strip()}"
                if "signal 9" in found["how"]:
                    text += f", perhaps because {self._place} ran out of memory"
                return cut(f"{text}: {said}" if said else text, MESSAGE_LIMIT)
        causes = [error for error in self._errors if not _CONSEQUENCE.match(error)] or self._errors
        return cut(_without_store_paths(" ".join(causes[0].split())), MESSAGE_LIMIT) if causes else ""


def _name(drv_path: str) -> str:
    return (name_of(drv_path) if STORE_PATH.fullmatch(drv_path) else drv_path).removesuffix(".drv")


def _without_store_paths(text: str) -> str:
    return STORE_PATH.sub(lambda found: name_of(found[0]), text)
