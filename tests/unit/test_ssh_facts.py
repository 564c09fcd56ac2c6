"""What a host's answer becomes, and what of it is refused: the host may be hostile."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixops_operator.adapters.ssh.facts import (
    MalformedAnswer,
    StoreRoom,
    for_people,
    last_useful_line,
    parse_build_look,
    parse_build_state,
    parse_facts,
    parse_store_room,
    parse_yes_or_no,
)
from nixops_operator.facts.host import (
    ActivationFacts,
    ActivationState,
    BuildLook,
    BuildState,
    DeliveredKey,
    FoundFile,
    HostFacts,
    HostOwner,
    Mode,
)

BOOT = "97c00c3e-e169-4e1d-b900-64f43fb8259c"
NOTHING = ""
OLD = "/nix/store/sf4llw3zmv12lybrl295ymqw7zrwrqxz-nixos-system-web-25.11"
NEW = "/nix/store/v1z67m3mh5pwhdq0sp9gflybmpnka11q-nixos-system-web-25.11"

FRESH = f"""\
nixops-facts 1
boot-id {BOOT}
current-system {OLD}
booted-system {OLD}
profile-system {NOTHING}
profile-generation {NOTHING}
boot-entry-unsure no
lists-left no
forgets no
is-nixos yes
version-id 25.11
state-version 25.11
owner {NOTHING}
building {NOTHING}
restart-for {NOTHING}
machine x86_64
free-bytes 77151477760
highest-attempt {NOTHING}
end
"""
SWITCHED = FRESH.replace(
    "highest-attempt \n",
    f"""\
failed-unit zfs.service
failed-unit dev-disk-by\\x2did.mount
highest-attempt 3
activation v1z67m3m-3
activation-state switched
activation-toplevel {NEW}
activation-previous {OLD}
activation-previous-boots yes
activation-boot-id {BOOT}
activation-unit no
activation-timer yes
activation-exit-status 4
activation-service-result exit-code
activation-mode test
activation-returns no
activation-needs-restart no
activation-held yes
activation-failed-before zfs.service
""",
)


def test_a_machine_that_was_never_activated_here() -> None:
    assert parse_facts(FRESH) == HostFacts(
        boot_id=BOOT,
        current_system=OLD,
        booted_system=OLD,
        profile_system=None,
        profile_generation=None,
        boot_entry_unsure=False,
        lists_left=False,
        is_nixos=True,
        version_id="25.11",
        state_version="25.11",
        machine="x86_64",
        failed_units=(),
        free_bytes=77151477760,
        activation=None,
        highest_attempt=0,
    )


def test_an_activation_that_waits_for_confirmation() -> None:
    facts = parse_facts(SWITCHED)
    assert facts.activation == ActivationFacts(
        id="v1z67m3m-3",
        attempt=3,
        state=ActivationState.SWITCHED,
        toplevel=NEW,
        previous=OLD,
        previous_boots=True,
        boot_id=BOOT,
        is_unit_active=False,
        is_timer_armed=True,
        exit_status=4,
        service_result="exit-code",
        mode=Mode.TEST,
        returns=False,
        is_held=True,
        failed_before=("zfs.service",),
    )
    assert facts.failed_units == ("dev-disk-by\\x2did.mount", "zfs.service")
    assert facts.highest_attempt == 3


WITH_KEYS = FRESH.replace(
    "end\n",
    f"""\
key /run/keys/token 440 web keys {"d" * 64} whole {BOOT}
key /run/keys/new 600 root root - whole {BOOT}
key /srv/late 640 other other {"d" * 64} unowned {BOOT}
key-file /run/keys/token 8120 web keys
key-file /srv/late 81a0 root root
key-content /run/keys/token {"c" * 64}
key-user web
key-user root
key-group keys
key-group root
end
""",
)


def test_keys_and_what_lies_in_their_places() -> None:
    new, token, late = parse_facts(WITH_KEYS).keys
    assert token == DeliveredKey(
        path="/run/keys/token",
        mode=0o440,
        user="web",
        group="keys",
        digest="d" * 64,
        boot_id=BOOT,
        owes_restarts=False,
        was_unowned=False,
        has_owner=True,
        file=FoundFile(0o100440, "web", "keys", "c" * 64),
    )
    assert (new.digest, new.file, new.has_owner) == ("", None, True)
    assert (late.was_unowned, late.has_owner, late.file) == (True, False, FoundFile(0o100640, "root", "root", ""))
    assert "c" * 64 not in repr(token)


@pytest.mark.parametrize(("length", "is_read"), [(211, True), (212, False)])
def test_a_system_is_called_as_long_as_nix_lets_it_be(length: int, is_read: bool) -> None:
    longest = "/nix/store/v1z67m3mh5pwhdq0sp9gflybmpnka11q-" + "n" * length
    answer = FRESH.replace(f"current-system {OLD}", f"current-system {longest}")
    if is_read:
        assert parse_facts(answer).current_system == longest
    else:
        with pytest.raises(MalformedAnswer, match="current-system"):
            parse_facts(answer)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("whole", "broken", id="no such state"),
        pytest.param("d" * 64, "d" * 63, id="a digest that is cut"),
        pytest.param("/run/keys/token 440", "/run/keys/to ken 440", id="a blank in a path"),
        pytest.param("8120", "8120x", id="a mode that is none"),
        pytest.param("key-user web", "key-user $(reboot)", id="no name of a user"),
    ],
)
def test_keys_of_another_form_are_refused_with_all_the_rest(old: str, new: str) -> None:
    assert old in WITH_KEYS
    with pytest.raises(MalformedAnswer):
        parse_facts(WITH_KEYS.replace(old, new))


@pytest.mark.parametrize(
    ("value", "owner"),
    [
        pytest.param("", None, id="nobody's"),
        pytest.param("7f5c 0c9e shop/web", HostOwner("7f5c", "0c9e", "shop/web"), id="an object's"),
        pytest.param("unreadable", HostOwner("", "", ""), id="somebody's, whoever that is"),
    ],
)
def test_whose_a_host_is(value: str, owner: HostOwner | None) -> None:
    assert parse_facts(FRESH.replace("owner \n", f"owner {value}\n")).owner == owner


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("owner \n", "owner somebody\n", id="an owner of one word"),
        pytest.param("owner \n", "owner a b <script>\n", id="an owner with other characters"),
        pytest.param("end\n", "", id="cut before its end"),
        pytest.param("end\n", "end", id="cut in its last line"),
        pytest.param("nixops-facts 1\n", "nixops-facts 2\n", id="another version"),
        pytest.param("nixops-facts 1\n", "motd\nnixops-facts 1\n", id="something before it"),
        pytest.param("end\n", "end\nmore\n", id="something after it"),
        pytest.param("lists-left no\n", "", id="a line is missing"),
        pytest.param("lists-left no\n", "lists-left no\nlists-left no\n", id="a line comes twice"),
        pytest.param("lists-left no\n", "lists-left no\nlists-right no\n", id="an unknown line"),
        pytest.param("lists-left no\n", "lists-left maybe\n", id="neither yes nor no"),
        pytest.param("activation-timer yes\n", "", id="half an activation"),
        pytest.param(f"current-system {OLD}\n", "current-system /etc/passwd\n", id="a system outside the store"),
        pytest.param(f"current-system {OLD}\n", f"current-system {OLD}/bin\n", id="a path inside a system"),
        pytest.param(f"current-system {OLD}\n", f"current-system {OLD}\x1b[2J\n", id="an escape sequence in a path"),
        pytest.param("activation-state switched\n", "activation-state done\n", id="an unknown state"),
        pytest.param("activation v1z67m3m-3\n", "activation ../../etc\n", id="an id that leaves its folder"),
        pytest.param("free-bytes 77151477760\n", "free-bytes -1\n", id="a negative size"),
        pytest.param("free-bytes 77151477760\n", f"free-bytes {'9' * 5000}\n", id="a number without end"),
        pytest.param("failed-unit zfs.service\n", "failed-unit zfs service\n", id="a unit's name with a space"),
    ],
)
def test_an_answer_of_another_form_is_refused_as_a_whole(old: str, new: str) -> None:
    assert old in SWITCHED
    with pytest.raises(MalformedAnswer):
        parse_facts(SWITCHED.replace(old, new, 1))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(MalformedAnswer):
        parse_facts(text)


@given(st.data())
def test_a_refusal_quotes_nothing_of_the_answer(data: st.DataObject) -> None:
    lines = SWITCHED.splitlines()
    number = data.draw(st.integers(1, len(lines) - 2))
    lines[number] = lines[number].partition(" ")[0] + " MARK MARK"
    with pytest.raises(MalformedAnswer) as caught:
        parse_facts("\n".join(lines) + "\n")
    assert "MARK" not in str(caught.value)


@pytest.mark.parametrize("text", ["yes", "yes\nno\n", "", "YES\n", " yes\n"])
def test_only_a_plain_yes_or_no_is_an_answer(text: str) -> None:
    assert (parse_yes_or_no("yes\n"), parse_yes_or_no("no\n")) == (True, False)
    with pytest.raises(MalformedAnswer):
        parse_yes_or_no(text)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        pytest.param("\x1b[31;1merror:\x1b[0m no space", "error: no space", id="colours"),
        pytest.param("\x1b]0;title\x07done", "done", id="a window's title"),
        pytest.param("a\r\nb\x00\x08\x7f", "a\nb", id="control characters"),
        pytest.param("naïve ‘quotes’\ttab", "naïve ‘quotes’\ttab", id="ordinary text stays"),
    ],
)
def test_output_is_cleaned_for_people(raw: str, shown: str) -> None:
    assert for_people(raw) == shown


def test_the_last_line_with_something_on_it_tells_why() -> None:
    assert last_useful_line("first\n  Failed to install bootloader  \n\n \x1b[0m\n") == "Failed to install bootloader"
    assert last_useful_line(" \n") == ""
    assert len(last_useful_line("x" * 1000)) == 300


LOOK = f"""state building
unit yes
service-result{" "}
output{" "}
quiet 3
free-bytes 77151477760
offset 524288
size 600000
log
"""


def test_a_build_that_goes_on() -> None:
    look = parse_build_look(f"{LOOK}@nix {{}}\nlog\n")
    assert look == BuildLook(
        BuildState.BUILDING, True, timedelta(seconds=3), 77151477760, "", None, "@nix {}\nlog\n", 524288, True
    )


def test_a_build_that_has_ended() -> None:
    text = LOOK.replace("building", "built").replace("yes", "no").replace("service-result ", "service-result success")
    look = parse_build_look(text.replace("output ", f"output {NEW}").replace("600000", "524288"))
    assert look is not None
    assert (look.state, look.is_unit_active, look.service_result) == (BuildState.BUILT, False, "success")
    assert (look.output, look.log, look.has_more) == (NEW, "", False)


def test_no_such_build() -> None:
    assert parse_build_look("none\n") is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("\nlog\n", "\n", id="cut"),
        pytest.param("quiet 3\n", "", id="a line is missing"),
        pytest.param("quiet 3", "quiet -3", id="no number"),
        pytest.param("state building", "state rotten", id="an unknown state"),
        pytest.param("output ", "output /etc/shadow", id="no store path"),
        pytest.param("unit yes", "unit yes\nmore 1", id="a line too many"),
    ],
)
def test_a_look_at_a_build_of_another_form_is_refused(old: str, new: str) -> None:
    assert old in LOOK
    with pytest.raises(MalformedAnswer):
        parse_build_look(LOOK.replace(old, new))


@pytest.mark.parametrize(
    ("text", "state"), [("built\n", BuildState.BUILT), ("building\n", BuildState.BUILDING), ("missing\n", None)]
)
def test_how_a_build_begins(text: str, state: BuildState | None) -> None:
    assert parse_build_state(text) is state
    with pytest.raises(MalformedAnswer):
        parse_build_state(text.strip())


def test_the_room_in_a_store() -> None:
    assert parse_store_room("4096 1000 300 64000 17\n") == StoreRoom(4_096_000, 1_228_800, 64_000, 17)


@pytest.mark.parametrize("text", ["", "4096 1000 300 64000\n", "4096 1000 300 64000 -1\n", "4096 1000 300 64000 17"])
def test_a_room_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(MalformedAnswer):
        parse_store_room(text)
