"""The agent's answers as values: text in, values out. Pure.

A host may be hostile: whatever is not exactly of the expected form is refused as a whole, so nothing of it reaches a
plan or a status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from nixops_operator.facts.host import (
    ActivationFacts,
    ActivationState,
    BuildLook,
    BuildState,
    DeliveredKey,
    DryRun,
    FoundFile,
    Generation,
    HostFacts,
    HostOwner,
    Mode,
)

_STORE_PATH = r"/nix/store/[0-9a-z]{32}-[A-Za-z0-9+._?=-]{1,211}"  # Nix, src/libstore/path.hh: MaxPathLen
_BOOT_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NUMBER = r"[0-9]{1,18}"
_YES_OR_NO = r"yes|no"

# key → form of its value. Every key comes exactly once, but for the repeated ones and the activation's, of which all
# come or none.
_HOST_LINES = {
    "boot-id": _BOOT_ID,
    "current-system": rf"(?:{_STORE_PATH})?",
    "booted-system": rf"(?:{_STORE_PATH})?",
    "profile-system": rf"(?:{_STORE_PATH})?",
    "profile-generation": rf"(?:{_NUMBER})?",
    "boot-entry-unsure": _YES_OR_NO,
    "lists-left": _YES_OR_NO,
    "forgets": _YES_OR_NO,
    "is-nixos": _YES_OR_NO,
    "version-id": r"[A-Za-z0-9._-]{0,64}",
    "state-version": r"(?:[0-9]{2}\.[0-9]{2})?",
    "owner": r"(?:unreadable|(?:[A-Za-z0-9._/-]{1,320} ){2}[A-Za-z0-9._/-]{1,320})?",
    "building": rf"(?:{_STORE_PATH})?",
    "restart-for": r"(?:[a-z-]{1,16}(?: [a-z-]{1,16}){0,7})?",
    "machine": r"[a-z0-9_]{1,32}",
    "free-bytes": _NUMBER,
    "highest-attempt": rf"(?:{_NUMBER})?",
}
_ACTIVATION_LINES = {
    "activation": r"[0-9a-z]{8}-[0-9]{1,9}",
    "activation-state": "|".join(ActivationState),
    "activation-toplevel": _STORE_PATH,
    "activation-previous": _STORE_PATH,
    "activation-previous-boots": _YES_OR_NO,
    "activation-boot-id": _BOOT_ID,
    "activation-unit": _YES_OR_NO,
    "activation-timer": _YES_OR_NO,
    "activation-exit-status": r"(?:[0-9]{1,3})?",
    "activation-service-result": r"[a-z-]{0,32}",
    "activation-mode": "|".join(Mode),
    "activation-returns": _YES_OR_NO,
    "activation-needs-restart": _YES_OR_NO,
    "activation-held": _YES_OR_NO,
}
_BUILD_LINES = {
    "state": "|".join(BuildState),
    "unit": _YES_OR_NO,
    "service-result": r"[a-z-]{0,32}",
    "output": rf"(?:{_STORE_PATH})?",
    "quiet": _NUMBER,
    "free-bytes": _NUMBER,
    "offset": _NUMBER,
    "size": _NUMBER,
}
_UNIT = r"[A-Za-z0-9:_.\\@-]{1,255}"
_FAILED_UNIT, _FAILED_BEFORE = "failed-unit", "activation-failed-before"
_GENERATION = "generation"
_KEY_PATH = r"/[A-Za-z0-9._/@+=:,-]{1,255}"
_ACCOUNT = r"[A-Za-z0-9_.-]{1,64}"
# These come as often as there is something to tell.
_REPEATED = {
    _FAILED_UNIT: _UNIT,
    _FAILED_BEFORE: _UNIT,
    _GENERATION: r"[0-9]{1,9} (?:used|free)",
    "key": rf"{_KEY_PATH} [0-7]{{3}} {_ACCOUNT} {_ACCOUNT} (?:-|[0-9a-f]{{64}}) (?:whole|owed|unowned) {_BOOT_ID}",
    "key-file": rf"{_KEY_PATH} [0-9a-f]{{1,8}} {_ACCOUNT} {_ACCOUNT}",
    "key-content": rf"{_KEY_PATH} [0-9a-f]{{64}}",
    "key-user": _ACCOUNT,
    "key-group": _ACCOUNT,
}
_FORMS = {key: re.compile(form) for key, form in {**_HOST_LINES, **_ACTIVATION_LINES, **_REPEATED}.items()}
_LONGEST_QUIET = 10**9  # s; above it a machine's clock is wrong
_FIRST_LINE = "nixops-facts 1"
_LAST_LINE = "end"  # without it the answer was cut

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]")

_STORE_ROOM = re.compile(r"(\d{1,10}) (\d{1,20}) (\d{1,20}) (\d{1,20}) (\d{1,20})\n")


class MalformedAnswer(ValueError):
    """The host's answer is not of the agent's form; the text says which line, never its contents."""


@dataclass(frozen=True)
class _Lines:
    single: dict[str, str]
    repeated: dict[str, set[str]]


def parse_facts(text: str) -> HostFacts:
    """The answer to `facts`. Raises MalformedAnswer."""
    lines = _read(text)
    value = lines.single
    return HostFacts(
        boot_id=value["boot-id"],
        current_system=value["current-system"] or None,
        booted_system=value["booted-system"] or None,
        profile_system=value["profile-system"] or None,
        profile_generation=_number(value["profile-generation"]),
        boot_entry_unsure=value["boot-entry-unsure"] == "yes",
        lists_left=value["lists-left"] == "yes",
        forgets=value["forgets"] == "yes",
        is_nixos=value["is-nixos"] == "yes",
        version_id=value["version-id"],
        state_version=value["state-version"] or None,
        machine=value["machine"],
        failed_units=tuple(sorted(lines.repeated[_FAILED_UNIT])),
        free_bytes=int(value["free-bytes"]),
        activation=_activation(value, lines.repeated[_FAILED_BEFORE]) if "activation" in value else None,
        highest_attempt=_number(value["highest-attempt"]) or 0,
        owner=_owner(value["owner"]),
        building=value["building"] or None,
        keys=_keys(lines.repeated),
        generations=_generations(lines.repeated[_GENERATION]),
        restart_for=tuple(value["restart-for"].split()),
    )


@dataclass(frozen=True)
class StoreRoom:
    """Of the file system of a host's /nix/store. `inodes` 0: it has as many as are needed."""

    size: int  # bytes
    free: int  # bytes
    inodes: int
    free_inodes: int


def parse_store_room(text: str) -> StoreRoom:
    """The answer to `store-room`. Raises MalformedAnswer."""
    found = _STORE_ROOM.fullmatch(text)
    if found is None:
        raise MalformedAnswer("not an answer to `store-room`")
    block, blocks, free, inodes, free_inodes = map(int, found.groups())
    return StoreRoom(block * blocks, block * free, inodes, free_inodes)


def parse_build_look(text: str) -> BuildLook | None:
    """The answer to `build-look`. Raises MalformedAnswer."""
    if text == "none\n":
        return None
    head, mark, log = text.partition("\nlog\n")
    value = dict(line.partition(" ")[::2] for line in head.split("\n"))
    if not mark or value.keys() != _BUILD_LINES.keys():
        raise MalformedAnswer("not an answer to `build-look`, or cut")
    for key, form in _BUILD_LINES.items():
        if re.fullmatch(form, value[key]) is None:
            raise MalformedAnswer(f"malformed value of {key}")
    return BuildLook(
        state=BuildState(value["state"]),
        is_unit_active=value["unit"] == "yes",
        quiet=timedelta(seconds=min(int(value["quiet"]), _LONGEST_QUIET)),
        free_bytes=int(value["free-bytes"]),
        service_result=value["service-result"],
        output=value["output"] or None,
        log=log,
        offset=int(value["offset"]),
        has_more=int(value["offset"]) < int(value["size"]),
    )


def parse_build_state(text: str) -> BuildState | None:
    """`built` or `building`; None for `missing`. Raises MalformedAnswer."""
    match text:
        case "built\n":
            return BuildState.BUILT
        case "building\n":
            return BuildState.BUILDING
        case "missing\n":
            return None
    raise MalformedAnswer("none of built, building and missing")


def parse_dry_run(text: str) -> DryRun:
    """The answer to `dry-activate`. Raises MalformedAnswer."""
    status, newline, output = text.partition("\n")
    if re.fullmatch("[0-9]{1,3}", status) is None or not newline:
        raise MalformedAnswer("no exit status")
    return DryRun(int(status), for_people(output))


def parse_probe(text: str) -> str:
    """Why a health check does not pass; empty if it does. Raises MalformedAnswer."""
    if re.fullmatch(r"(?:[ -~]{1,400}\n)?", text) is None:
        raise MalformedAnswer("not one line of text")
    return text.removesuffix("\n")


def parse_host_key(text: str) -> str:
    """A public host key of the kind that is staged, with its newline. Raises MalformedAnswer."""
    if re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]{68}\n", text) is None:
        raise MalformedAnswer("not a public ed25519 key")
    return text.removesuffix("\n")


def parse_yes_or_no(text: str) -> bool:
    """`yes` or `no`, with its newline. Raises MalformedAnswer."""
    match text:
        case "yes\n":
            return True
        case "no\n":
            return False
    raise MalformedAnswer("neither yes nor no")


def for_people(text: str) -> str:
    """Output of foreign programs without escape sequences and control characters, so that it may be shown."""
    return _UNPRINTABLE.sub("", _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n")))


def first_useful_line(text: str) -> str:
    """The first line with something on it, at most 120 characters; empty if there is none."""
    lines = (line.strip() for line in for_people(text[:4096]).splitlines())
    return next((line for line in lines if line), "")[:120]


def last_useful_line(text: str) -> str:
    """The last line with something on it, at most 300 characters; empty if there is none."""
    lines = [line.strip() for line in for_people(text[-4096:]).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _read(text: str) -> _Lines:
    head, *body = text.split("\n")
    if head != _FIRST_LINE or body[-2:] != [_LAST_LINE, ""]:
        raise MalformedAnswer("not an answer to `facts`, or cut")
    single: dict[str, str] = {}
    repeated: dict[str, set[str]] = {key: set() for key in _REPEATED}
    for line in body[:-2]:
        key, separator, value = line.partition(" ")
        form = _FORMS.get(key)
        if form is None or not separator:
            raise MalformedAnswer("unknown line")
        if form.fullmatch(value) is None:
            raise MalformedAnswer(f"malformed value of {key}")
        if key in repeated:
            repeated[key].add(value)
        elif key in single:
            raise MalformedAnswer(f"{key} comes twice")
        else:
            single[key] = value
    expected = set(_HOST_LINES) | (set(_ACTIVATION_LINES) if "activation" in single else set())
    if set(single) != expected:
        raise MalformedAnswer(f"missing or surplus: {', '.join(sorted(set(single) ^ expected))}")
    return _Lines(single, repeated)


def _activation(value: dict[str, str], failed_before: set[str]) -> ActivationFacts:
    activation_id = value["activation"]
    return ActivationFacts(
        id=activation_id,
        attempt=int(activation_id.rpartition("-")[2]),
        state=ActivationState(value["activation-state"]),
        toplevel=value["activation-toplevel"],
        previous=value["activation-previous"],
        previous_boots=value["activation-previous-boots"] == "yes",
        boot_id=value["activation-boot-id"],
        is_unit_active=value["activation-unit"] == "yes",
        is_timer_armed=value["activation-timer"] == "yes",
        exit_status=_number(value["activation-exit-status"]),
        service_result=value["activation-service-result"],
        mode=Mode(value["activation-mode"]),
        returns=value["activation-returns"] == "yes",
        needs_restart=value["activation-needs-restart"] == "yes",
        is_held=value["activation-held"] == "yes",
        failed_before=tuple(sorted(failed_before)),
    )


def _keys(lines: dict[str, set[str]]) -> tuple[DeliveredKey, ...]:
    """What the host remembers of keys, with what its other lines say of the same paths."""
    contents = dict(line.split(" ") for line in lines["key-content"])
    files = {}
    for path, mode, user, group in (line.split(" ") for line in lines["key-file"]):
        files[path] = FoundFile(int(mode, 16), user, group, contents.get(path, ""))
    found = {}
    for path, mode, user, group, digest, state, boot_id in (line.split(" ") for line in sorted(lines["key"])):
        found[path] = DeliveredKey(
            path=path,
            mode=int(mode, 8),
            user=user,
            group=group,
            digest="" if digest == "-" else digest,
            boot_id=boot_id,
            owes_restarts=state == "owed",
            was_unowned=state == "unowned",
            has_owner=user in lines["key-user"] and group in lines["key-group"],
            file=files.get(path),
        )
    return tuple(found[path] for path in sorted(found))


def _generations(lines: set[str]) -> tuple[Generation, ...]:
    told = (line.split(" ") for line in lines)
    return tuple(sorted(Generation(int(number), is_used=word == "used") for number, word in told))


def _owner(text: str) -> HostOwner | None:
    if text == "unreadable":
        return HostOwner("", "", "")
    return HostOwner(*text.split(" ")) if text else None


def _number(text: str) -> int | None:
    return int(text) if text else None
