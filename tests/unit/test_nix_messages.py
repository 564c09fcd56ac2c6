"""What Nix says becomes one line for people, in their own file names. Texts as Nix 2.8 and nixpkgs' lib write them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nixops_operator.nix.build_errors import BuildStory
from nixops_operator.nix.evaluation_errors import MESSAGE_LIMIT, Names, evaluation_message
from nixops_operator.nix.internal_json import ShortStrings, event, text_of
from nixops_operator.nix.progress import Counter, moved
from nixops_operator.nix.texts import HEAD, TAIL, bounded, plain

USER = "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-source/module-0.nix"
SOURCE = "/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source"
NIXPKGS = "/nix/store/a15nfi42zfs2g93aplfdada4ca25x6h3-source"
NAMES = Names({USER: "modules[0]"}, source=SOURCE, inline=USER.rsplit("/", 1)[0], nixpkgs=NIXPKGS)


def error(raw: str, file: str | None = None, line: int | None = None, column: int | None = None, **more: Any) -> str:
    said = {"action": "msg", "level": 0, "raw_msg": raw, "file": file, "line": line, "column": column, **more}
    return nix_line(said)


def nix_line(event: dict[str, Any]) -> str:
    """As Nix writes it."""
    return f"@nix {json.dumps(event, sort_keys=True, separators=(',', ':'), ensure_ascii=False)}"


def frame(raw: str, file: str | None = None, line: int | None = None, column: int | None = None) -> dict[str, Any]:
    return {"raw_msg": raw, "file": file, "line": line, "column": column}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(
            error("syntax error, unexpected '='", f"{SOURCE}/web.nix", 3, 5),
            "web.nix:3:5: syntax error, unexpected '='",
            id="a place in a file of the source",
        ),
        pytest.param(
            error("-----BEGIN RSA PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END RSA PRIVATE KEY----- is wrong", USER, 1, 32),
            "modules[0]:1:32: [redacted] is wrong",
            id="a private key in what a module throws",
        ),
        pytest.param(
            error("undefined variable '\x1b[35;1mfooo\x1b[0m'", USER, 1, 32),
            "modules[0]:1:32: undefined variable 'fooo'",
            id="a place in a module given as text; colours go",
        ),
        pytest.param(
            error(
                "attribute 'x' missing",
                f"{NIXPKGS}/lib/attrsets.nix",
                9,
                9,
                trace=[frame("from call site", f"{NIXPKGS}/lib/lists.nix", 1, 1), frame("from call site", USER, 7, 3)],
            ),
            "modules[0]:7:3: attribute 'x' missing",
            id="an error inside nixpkgs: the nearest call from the user's files",
        ),
        pytest.param(
            error(
                f"The option `services.htpd' does not exist. Definition values:\n- In `{USER}':\n    {{\n      a = 1;"
            ),
            "modules[0]: The option `services.htpd' does not exist.",
            id="unknown option: the file that it stands in",
        ),
        pytest.param(
            error(
                f"The option `services.htpd' does not exist. Definition values:\n- In `{USER}': 1\n\n"
                "Did you mean `services.httpd', `services.xserver' or `services.x'?",
                msg="…\n\nDid you mean `services.httpd', `services.xserver' or `services.x'?",
            ),
            "modules[0]: The option `services.htpd' does not exist. "
            "Did you mean `services.httpd', `services.xserver' or `services.x'?",
            id="unknown option with a suggestion",
        ),
        pytest.param(
            error(
                "A definition for option `services.httpd.enable' is not of type `boolean'. Definition values:\n"
                f'- In `{SOURCE}/a/web.nix\': "yes"'
            ),
            "a/web.nix: A definition for option `services.httpd.enable' is not of type `boolean'.",
            id="wrong type",
        ),
        pytest.param(
            error(
                f"The option `networking.hostName' has conflicting definition values:\n- In `{USER}': \"a\"\n"
                f'- In `{SOURCE}/b.nix\': "b"\nUse `lib.mkForce value` to change the priority.'
            ),
            "The option `networking.hostName' has conflicting definition values: In `modules[0]': \"a\"; "
            'In `b.nix\': "b" Use `lib.mkForce value` to change the priority.',
            id="conflict: all files, in the sentence",
        ),
        pytest.param(
            error(
                "\nFailed assertions:\n- The ‘fileSystems’ option does not specify your root file system.\n- And\n  so."
            ),
            "Failed assertions: The ‘fileSystems’ option does not specify your root file system.; And so.",
            id="failed assertions: all of them",
        ),
        pytest.param(
            error(
                "infinite recursion encountered",
                f"{NIXPKGS}/lib/modules.nix",
                1,
                2,
                trace=[
                    frame("while evaluating the option `networking.hostName':"),
                    frame("while evaluating the option `system.build.toplevel':"),
                    frame(f"while evaluating definitions from `{USER}':"),
                ],
            ),
            "modules[0]: infinite recursion encountered while evaluating the option `networking.hostName'",
            id="infinite recursion: the nearest option",
        ),
        pytest.param(
            error(
                "attribute 'foo' missing", trace=[frame(f'while evaluating the module argument `foo\' in "{USER}":')]
            ),
            "modules[0]: there is no module argument `foo'",
            id="unknown module argument",
        ),
        pytest.param(
            error(f"path '{NIXPKGS}/nixos/x.nix' and '/nix/store/0j7px61l5wlr3s7iy6wlcfy5aga0pzi1-top/a' differ"),
            "path 'nixpkgs/nixos/x.nix' and 'top/a' differ",
            id="no store path is left",
        ),
        pytest.param(
            '@nix {"action":"msg","level":0,"msg":"\\u001b[31;1merror:\\u001b[0m out of memory"}',
            "out of memory",
            id="no raw text",
        ),
        pytest.param(error("x" * 1000), "x" * (MESSAGE_LIMIT - 1) + "…", id="cut at 400 characters"),
        pytest.param(
            error("cannot look up '<nixpkgs>' in pure evaluation mode (use '--impure' to override)", USER, 1, 8),
            "modules[0]:1:8: cannot look up '<nixpkgs>' in pure evaluation mode: "
            "not known to files that callPackage reads: take `pkgs` or `lib` as an argument there",
            id="nixpkgs where it is not known",
        ),
        pytest.param(
            error("cannot look up '<nixpkgs-unstable/lib>'", trace=[frame("from call site", USER, 1, 8)]),
            "modules[0]:1:8: cannot look up '<nixpkgs-unstable/lib>': "
            "only <nixpkgs> is known: put its files into spec.configuration.source, and import them by their path",
            id="another name",
        ),
        pytest.param(
            error(
                "access to absolute path '/etc/x' is forbidden in pure eval mode (use '--impure' to override)",
                trace=[frame("while evaluating 'x'", f"{SOURCE}/web.nix", 2, 3)],
            ),
            "web.nix:2:3: access to absolute path '/etc/x' is forbidden in pure eval mode: "
            "put the file into spec.configuration.source and name it relative to the module",
            id="an absolute path",
        ),
        pytest.param(
            error(
                "access to URI 'https://example.org/x.tar.gz' is forbidden in restricted mode",
                trace=[frame("while calling 'fetchTarball'", USER, 4, 1)],
            ),
            "modules[0]:4:1: access to URI 'https://example.org/x.tar.gz' is forbidden in restricted mode: "
            "an evaluation has no network: name a tree of modules in spec.configuration.source.archive (url, hash), "
            "and put single files into the source",
            id="the network",
        ),
        pytest.param(
            error("access to URI 'https://github.com/NixOS/nixpkgs/archive/1.tar.gz' is forbidden in restricted mode"),
            "access to URI 'https://github.com/NixOS/nixpkgs/archive/1.tar.gz' is forbidden in restricted mode: "
            "an evaluation has no network: name this nixpkgs in spec.configuration.nixpkgs (url, hash); "
            "<nixpkgs>, `pkgs` and `lib` are of that one",
            id="a nixpkgs from the network",
        ),
        pytest.param(
            error("attribute 'currentSystem' missing", USER, 1, 3),
            "modules[0]:1:3: attribute 'currentSystem' missing: "
            "only files of the configuration have builtins.currentSystem: give `system` as an argument",
            id="the current system",
        ),
        pytest.param(
            error("syntax error, unexpected invalid token", f"{SOURCE}/web.nix", 1, 1),
            "web.nix:1:1: syntax error, unexpected invalid token: "
            "perhaps a byte-order mark; save the file as UTF-8 without one",
            id="a byte-order mark",
        ),
        pytest.param(
            error("syntax error, unexpected invalid token", USER, 3, 1),
            "modules[0]:3:1: syntax error, unexpected invalid token",
            id="a strange character elsewhere",
        ),
        pytest.param(
            error("first" + " " * 120_000 + "last"),
            "first … last",
            id="120 kB of blanks between two words",
        ),
    ],
)
def test_an_evaluation_error_in_the_words_of_the_user(line: str, message: str) -> None:
    assert evaluation_message(["GC Warning: noise", line, "@nix {broken"], NAMES) == message


def test_a_nixpkgs_in_the_source_is_not_the_user_s() -> None:
    raised = error("attribute 'x' missing", f"{SOURCE}/pkgs/a.nix", 9, 9, trace=[frame("", f"{SOURCE}/b.nix", 7, 3)])
    names = replace(NAMES, nixpkgs=f"{SOURCE}/pkgs")
    assert evaluation_message([raised], names) == "b.nix:7:3: attribute 'x' missing"


def test_warnings_and_traces_are_no_error() -> None:
    warning = json.dumps({"action": "msg", "level": 1, "msg": "warning: deprecated"})
    assert evaluation_message([f"@nix {warning}", "trace: x"], NAMES) == ""


DRV = "/nix/store/wwdvx1hs51c3jj8vzfaxgzhlixjpwsrv-bad-1.0.drv"
TOP = "/nix/store/kahncmy9p0sabclm1dnkgyg0fpisajzc-top.drv"


def told(*events: dict[str, Any]) -> str:
    story = BuildStory()
    for said in events:
        story.follow(said)
    return story.failure()


def start(activity: int, drv: str) -> dict[str, Any]:
    return {"action": "start", "id": activity, "type": 105, "fields": [drv, "", 1, 1], "text": f"building '{drv}'"}


def log_line(activity: int, text: str) -> dict[str, Any]:
    return {"action": "result", "id": activity, "type": 101, "fields": [text]}


def failed(raw: str) -> dict[str, Any]:
    return {"action": "msg", "level": 0, "raw_msg": raw}


def test_a_failed_build_names_the_derivation_and_its_last_line() -> None:
    story = (
        start(1, DRV),
        start(2, TOP),
        log_line(1, "compiling"),
        log_line(1, "\x1b[31mboom: no such thing\x1b[0m"),
        log_line(2, "all is well"),
        log_line(1, "   "),
        failed(f"builder for '\x1b[35;1m{DRV}\x1b[0m' failed with exit code 3"),
        {"action": "stop", "id": 1},
        failed(f"\x1b[35;1m1\x1b[0m dependencies of derivation '{TOP}' failed to build"),
    )
    assert told(*story) == "build of bad-1.0 failed with exit code 3: boom: no such thing"


def test_a_failed_build_without_output() -> None:
    assert told(start(1, DRV), failed(f"builder for '{DRV}' failed with exit code 3")) == (
        "build of bad-1.0 failed with exit code 3"
    )


def test_any_other_failure_in_nix_own_words() -> None:
    words = f"a 'aarch64-linux' with features {{}} is required to build '{DRV}', but I am a 'x86_64-linux'"
    assert told(failed(words), failed(f"1 dependencies of derivation '{TOP}' failed to build")) == (
        "a 'aarch64-linux' with features {} is required to build 'bad-1.0.drv', but I am a 'x86_64-linux'"
    )


def test_progress_counts_what_is_built_and_copied() -> None:
    counter = Counter()
    events = [
        {"action": "start", "id": 1, "type": 102, "text": ""},
        {"action": "start", "id": 2, "type": 104, "text": ""},
        {"action": "start", "id": 3, "type": 103, "text": ""},
        {"action": "result", "id": 1, "type": 105, "fields": [5, 9, 0, 0]},
        {"action": "result", "id": 2, "type": 105, "fields": [0, 0, 0, 0]},
        {"action": "result", "id": 2, "type": 105, "fields": [34, 120, 2, 0]},
        {"action": "result", "id": 3, "type": 105, "fields": [1, 2, 0, 0]},
        {"action": "stop", "id": 2},
        {"action": "result", "id": 2, "type": 105, "fields": [35, 120, 2, 0]},
    ]
    assert [text for said in events if (text := counter.text_after(said))] == ["34 of 120 built", "1 of 2 copied"]


@pytest.mark.parametrize("line", ["plain text", "@nix {", "@nix 3", "", "@nixos {}"])
def test_other_output_is_no_event(line: str) -> None:
    assert event(line) is None


HOSTILE = [
    pytest.param(" ", id="blanks"),
    pytest.param("\n", id="line feeds"),
    pytest.param("\n \n- ", id="paragraphs"),
    pytest.param("Did you mean ", id="suggestions"),
    pytest.param("In `/nix/store/", id="files"),
    pytest.param("module argument ", id="arguments"),
    pytest.param("while evaluating the option `", id="options"),
    pytest.param("Failed assertions:\n- ", id="assertions"),
    pytest.param("attribute '", id="attributes"),
    pytest.param("builder for '/nix/store/", id="builders"),
    pytest.param("\x1b]", id="escapes"),
    pytest.param("/nix/store/0j7px61l5wlr3s7iy6wlcfy5aga0pzi1-a/", id="store paths"),
]


@pytest.mark.parametrize("part", HOSTILE)
def test_patterns_meet_some_kilobytes_of_any_text(part):
    """A module can throw a message of any length, and name its options as it likes."""
    text = "x" + part * (200_000 // len(part)) + "y"
    said = event(error(text, trace=[frame(text)], msg=text))
    assert said is not None
    assert len(text_of(said)) <= HEAD + TAIL + 3
    assert len(plain(text)) <= HEAD + TAIL + 3
    assert text_of(said).startswith("x"), "what is wrong stands at the beginning"
    assert text_of(said).endswith("y"), "the cause stands at the end"
    assert len(evaluation_message([error(text, trace=[frame(text)], msg=text)], NAMES)) <= MESSAGE_LIMIT
    assert len(told({"action": "msg", "level": 0, "raw_msg": text})) <= MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        pytest.param(HEAD + TAIL, HEAD + TAIL, id="short enough"),
        pytest.param(HEAD + TAIL + 1, HEAD + TAIL + 3, id="one more"),
        pytest.param(10**6, HEAD + TAIL + 3, id="a megabyte"),
    ],
)
def test_a_text_is_bounded(length, kept):
    assert len(bounded("x" * length)) == kept


def passed_on(line: str, piece: int) -> str:
    """What ShortStrings keeps of a line that comes in pieces of this many bytes."""
    short, whole = ShortStrings(), line.encode()
    kept = b"".join(short.feed(whole[at : at + piece]) for at in range(0, len(whole), piece))
    return (kept + short.end()).decode(errors="replace")


@pytest.mark.parametrize("piece", [1, 7, 4096, 10**6])
@pytest.mark.parametrize("line", ["", "plain", 'an "open string', 'a "\\', '@nix {"a":"b","c":["\\\\","\\"",1]}'])
def test_a_line_of_short_strings_passes_as_it_is(line, piece):
    assert passed_on(line, piece) == line


@pytest.mark.parametrize("piece", [999, 65536])
@pytest.mark.parametrize("filling", ["x", "\n", "\x1b[31m", "\U0001f600", '"', "\\", "ä"])
@pytest.mark.parametrize("offset", range(3))
def test_of_a_long_string_beginning_and_end_are_kept(filling, offset, piece):
    text = "o" * offset + "first" + filling * 50_000 + "last"
    said = {"action": "msg", "level": 0, "msg": f"error: {text}", "raw_msg": text, "trace": [{"raw_msg": text}] * 2}
    line = passed_on(nix_line(said), piece)
    kept = event(line)
    assert kept is not None
    for each in (kept["raw_msg"], kept["trace"][1]["raw_msg"]):
        assert each.startswith("o" * offset + "first")
        assert each.endswith("last")
        assert len(plain(each)) == len(plain(text)), "as many characters as of the whole"


def test_a_message_that_breaks_off_in_its_trace_is_told():
    """Newer versions put the trace in front of the message's own text, and what is wrong after it."""
    whole = error("no such thing", USER, 1, 2, trace=[frame("inner"), *[frame("x" * 100)] * 100])
    assert evaluation_message([whole[:5000]], NAMES) == "modules[0]:1:2: no such thing"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(
            f"builder for '{DRV}' failed due to signal 9 (Killed)",
            "build of bad-1.0 failed due to signal 9 (Killed), "
            "perhaps because the operator's pod or its node ran out of memory",
            id="killed, and nobody knows by whom",
        ),
        pytest.param(
            f"building of '{DRV}!out' from .drv file timed out after 60 seconds of silence",
            "build of bad-1.0 timed out after 60 seconds of silence",
            id="silence",
        ),
        pytest.param(
            f"building of '{DRV}' killed after writing more than 1000 bytes of log output",
            "build of bad-1.0 killed after writing more than 1000 bytes of log output",
            id="too long a log",
        ),
    ],
)
def test_a_build_that_was_ended_says_by_what(raw, message):
    assert told({"action": "msg", "level": 0, "raw_msg": raw}) == message


def test_a_copy_tells_of_paths_and_of_bytes_within_one():
    """Nix counts whole paths; a large one over a slow line must not look as if nothing moved."""
    counter = Counter()
    heard = [
        counter.text_after(each)
        for each in (
            moved("@moved 4096"),
            {"action": "start", "type": 103, "id": 1, "text": "copying 2 paths"},
            {"action": "start", "type": 100, "id": 2},
            moved(f"@moved {5 * 1024**2}"),
            moved(f"@moved {900 * 1024**2}"),
            {"action": "stop", "id": 2},
        )
        if each is not None
    ]
    assert heard == [
        "asking what the machine has",
        None,
        None,
        "0 of 2 copied, 5 MiB sent",
        "0 of 2 copied, 900 MiB sent",
        "1 of 2 copied, 900 MiB sent",
    ]


@pytest.mark.parametrize("line", ["", "@moved", "@moved x", "@moved 1 2", "x @moved 1", "@moved " + "9" * 50])
def test_what_is_not_said_of_bytes_is_no_event(line):
    assert moved(line) is None
