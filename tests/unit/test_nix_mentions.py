"""The line that a message is about, where Nix and the module system do not know it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nixops_operator.nix.evaluation_errors import Names, evaluation_message
from nixops_operator.nix.mentions import place_of, words_of

INLINE = "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-source"
SOURCE = "/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source"
TEXTS = {
    "modules[0]": "{ pkgs, ... }:\n{\n  services.htpd.enable = true;\n  x = [ pkgs.unrar ];\n}",
    "web.nix": "{\n  imports = [ ./other.nix ];\n  y = pkgs.unrar-free;\n  services.nginx = {\n    enabl = 1;\n  };\n}",
}


@pytest.mark.parametrize(
    ("message", "place"),
    [
        pytest.param("The option `services.htpd' does not exist.", ("modules[0]", 3), id="an option by its path"),
        pytest.param("The option `services.nginx.enabl' does not exist.", ("web.nix", 5), id="by its last name"),
        pytest.param("Package ‘unrar-5.9.2’ has an unfree license", ("modules[0]", 4), id="a package"),
        pytest.param("getting status of '/nix/store/x-source/other.nix'", ("web.nix", 2), id="a file"),
        pytest.param(
            "cannot build '/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-unrar-5.9.2.drv^out' during evaluation",
            ("modules[0]", 4),
            id="a derivation",
        ),
        pytest.param("attribute 'pkgs' missing", None, id="a word of several lines tells nothing"),
        pytest.param("attribute 'tpd' missing", None, id="nor does a part of a word"),
        pytest.param("it is 'nowhere' to be found", None, id="nor one that nobody wrote"),
        pytest.param("nothing is quoted", None, id="nor a message without names"),
    ],
)
def test_a_word_that_stands_in_one_line_tells_the_place(message: str, place: tuple[str, int] | None) -> None:
    assert place_of(words_of(message), TEXTS) == place


def test_a_long_message_has_a_bounded_number_of_characters_between_quotes() -> None:
    assert words_of("'" * 8000) == []
    assert words_of("`" + "x" * 8000 + "'") == []


def said(raw: str, *frames: str) -> list[str]:
    trace = [{"raw_msg": frame, "file": None, "line": None, "column": None} for frame in frames]
    return [f"@nix {json.dumps({'action': 'msg', 'level': 0, 'raw_msg': raw, 'trace': trace})}"]


NAMES = Names({f"{INLINE}/module-0.nix": "modules[0]"}, source=SOURCE, inline=INLINE, nixpkgs=None, texts=lambda: TEXTS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(
            said(f"The option `services.htpd' defined in `{INLINE}/module-0.nix' does not exist."),
            "modules[0]:3: The option `services.htpd' defined in `modules[0]' does not exist.",
            id="an option in the words of 2020",
        ),
        pytest.param(
            said(f"The option value `services.nginx.enabl' in `{SOURCE}/web.nix' is not of type `unrar'."),
            "web.nix:5: The option value `services.nginx.enabl' in `web.nix' is not of type `unrar'.",
            id="the type is no word of the user's",
        ),
        pytest.param(
            said(f"The option value `unrar' in `{SOURCE}/web.nix' is not of type `x'."),
            "web.nix: The option value `unrar' in `web.nix' is not of type `x'.",
            id="only the file that is named is searched",
        ),
        pytest.param(
            said(
                "I say no",
                f"while evaluating definitions from `{INLINE}/module-0.nix':",
                "while evaluating the option `services.htpd.enable':",
            ),
            "modules[0]:3: I say no",
            id="the option around what a module throws",
        ),
        pytest.param(
            said("Package ‘unrar-5.9.2’ in /x/y.nix:4 has an unfree license (‘unfree’), refusing to evaluate."),
            "modules[0]:4: Package ‘unrar-5.9.2’ in /x/y.nix:4 has an unfree license (‘unfree’), refusing to evaluate: "
            "to allow it, set nixpkgs.config.allowUnfree = true in a module",
            id="a package, and how to allow it",
        ),
        pytest.param(
            said("\nFailed assertions:\n- set `services.htpd'"),
            "Failed assertions: set `services.htpd'",
            id="an assertion says what its author found useful",
        ),
    ],
)
def test_a_message_begins_with_its_line(lines: list[str], message: str) -> None:
    assert evaluation_message(lines, NAMES) == message


NETWORK = """{
  network.description = "Web server";
  backend = { pkgs, ... }: { services.httpd.enable = true; };
}"""
HIVE = "{\n  meta = { nixpkgs = <nixpkgs>; };\n  host-a = { services.httpd.enable = true; };\n}"
FLAKE = """{
  description = "All my machines";
  inputs.nixpkgs.url = "nixpkgs/nixos-25.11";
  outputs = { nixpkgs, ... }: { };
}"""
ACME = "{\n  securty = 1;\n  security.acme = {\n    defaults = { };\n    meta.outputs = [ ];\n  };\n}"


@pytest.mark.parametrize(
    ("text", "option", "advice"),
    [
        pytest.param(NETWORK, "network", "a whole network (NixOps, colmena)", id="a network: its own attribute"),
        pytest.param(NETWORK, "backend", "a whole network (NixOps, colmena)", id="a network: a machine (nixops#1026)"),
        pytest.param(HIVE, "host-a", "a whole network (NixOps, colmena)", id="a hive of colmena"),
        pytest.param(FLAKE, "inputs", "a flake, which is no module", id="a flake"),
        pytest.param(ACME, "securty", None, id="a module with a mistake"),
        pytest.param(NETWORK, "services.htpd", None, id="a mistake in a machine"),
    ],
)
def test_a_file_that_is_no_module_is_told_for_what_it_is(text: str, option: str, advice: str | None) -> None:
    lines = said(f"The option `{option}' does not exist. Definition values:\n- In `{INLINE}/module-0.nix': 1")

    message = evaluation_message(lines, replace(NAMES, texts=lambda: {"modules[0]": text}))

    assert message.startswith("modules[0]")
    assert ("looks like" in message) is (advice is not None)
    assert (advice or "") in message


def test_the_user_s_files_are_read_only_for_an_error() -> None:
    def never() -> dict[str, str]:
        raise AssertionError("read")

    assert evaluation_message(["trace: x"], Names({}, texts=never)) == ""
