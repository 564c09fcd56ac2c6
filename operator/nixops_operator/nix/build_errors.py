"""From what a build says to one message for people. Words of Nix 2.8 to 2.34, in src/libstore/build/."""

from __future__ import annotations

import re
from typing import Any

from nixops_operator.nix.internal_json import is_error, text_of
from nixops_operator.nix.store_paths import STORE_PATH, name_of
from nixops_operator.nix.texts import cut, plain

MESSAGE_LIMIT = 400
# No quantifier may run over what the next one could begin with: a builder's words are a tenant's.
_FAILED = (
    re.compile(r"builder for '(?P<drv>[^']{1,300})' (?P<how>failed [^;\n]*)"),
    re.compile(
        r"building (?:of|derivation) '(?P<drv>[^'!^]{1,300})(?:[!^]out)?'(?: from \.drv file)? "
        r"(?P<how>(?:timed out|killed) after [^;\n]*)"
    ),
    re.compile(r"Cannot build '(?P<drv>[^']{1,300})'\.\nReason: (?:builder )?(?P<how>failed [^\n]*)\.\n"),
    re.compile(r"Cannot build '(?P<drv>[^']{1,300})'\.\nReason: (?P<why>[^\n]*(?:\n[^\n]+){0,8})"),
    re.compile(r"(?P<how>timed out after [^;\n]*)"),
)
_CONSEQUENCE = re.compile(
    r"\d{1,9} dependencies of derivation|build of .* failed$|"
    r"Cannot build '[^']{1,300}'\.\nReason: \d{1,9} dependenc(?:y|ies) failed"
)
# Where the missing output should have been, as the builder's sandbox had it.
_PLACE_OF_OUTPUT = re.compile(r" at (?:'[^']{1,600}'|\"[^\"]{1,600}\")$")
# Until 2.19 a child that could not become the builder wrote its error as bytes of the daemon's protocol, and they went
# into the log: Nix, src/libutil/serialise.cc, `operator << (Sink & sink, const Error & ex)`.
_SERIALIZED_ERROR = re.compile(r"Error\0{3}[^\0]{1,2}\0{6,7}(?P<text>[^\0]{1,1000})\0")


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
        self._ended = ""  # the build that ended last
        self._errors: list[tuple[str, str]] = []  # what was said, and which build it may be about

    def follow(self, event: dict[str, Any]) -> None:
        """Take the next event of the process."""
        match event:
            case {"action": "start", "type": 105, "id": int(activity), "fields": [str(drv), *_]}:
                self._derivations[activity] = drv
            case {"action": "stop", "id": int(activity)}:
                self._ended = self._derivations.pop(activity, self._ended)
            case {"action": "result", "type": 101, "id": int(activity), "fields": [str(line), *_]}:
                building = self._derivations.get(activity)
                if building is not None and (said := _said(line)):
                    self._last_line[building] = said
            case _ if is_error(event):
                running = list(self._derivations.values())
                self._errors.append((text_of(event), running[0] if len(running) == 1 else self._ended))

    def failure(self) -> str:
        """Why it failed: the failed derivation's name and its last line, else Nix' own words; at most 400 characters.
        Empty if nothing was said."""
        causes = [error for error in self._errors if not _CONSEQUENCE.match(error[0])] or self._errors
        for text, drv in causes:
            for pattern in _FAILED:
                if found := pattern.search(text):
                    return cut(self._failed(found, drv), MESSAGE_LIMIT)
        return cut(_without_store_paths(" ".join(causes[0][0].split())), MESSAGE_LIMIT) if causes else ""

    def _failed(self, found: re.Match[str], running: str) -> str:
        groups = found.groupdict()
        drv = groups.get("drv") or running
        if why := groups.get("why"):
            lines = [line.strip(" .") for line in why.partition("\nOutput paths:")[0].split("\n")]
            return f"build of {_name(drv)} failed: {_without_store_paths('; '.join(lines))}"
        how = _PLACE_OF_OUTPUT.sub("", found["how"].strip().rstrip("."))
        text = f"build of {_name(drv)} {how}" if drv else f"a build {how}"
        if "signal 9" in how:
            text += f", perhaps because {self._place} ran out of memory"
        said = self._last_line.get(drv)
        return f"{text}: {said}" if said else text


def _said(line: str) -> str:
    serialized = _SERIALIZED_ERROR.search(line[:4096])
    return plain(serialized["text"] if serialized else line).strip().removeprefix("error: ")


def _name(drv_path: str) -> str:
    return (name_of(drv_path) if STORE_PATH.fullmatch(drv_path) else drv_path).removesuffix(".drv")


def _without_store_paths(text: str) -> str:
    return STORE_PATH.sub(lambda found: name_of(found[0]), text)
