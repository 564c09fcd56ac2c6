"""What binary caches say and derivations ask for, as far as it decides what is fetched."""

from __future__ import annotations

import json

import pytest

from nixops_operator.nix.binary_cache import (
    BadNarInfoError,
    NarInfo,
    in_turns,
    may_be_substituted,
    nar_info,
    urls_of,
)
from nixops_operator.nix.derivations import Derivation

A, B, C, D = (f"/nix/store/{letter * 32}-{letter}" for letter in "abcd")
GOOD = f"StorePath: {A}\nURL: nar/x.nar.xz\nFileSize: 7\nReferences: {A[11:]} {B[11:]}\nSig: k:x\n"


def test_a_path_of_a_cache() -> None:
    found = nar_info(A, GOOD.encode())
    assert (found.url, found.size, found.references) == ("nar/x.nar.xz", 7, {B})


def test_an_archive_may_be_named_with_a_query() -> None:
    """As harmonia does (harmonia-cache/src/narinfo.rs)."""
    assert nar_info(A, GOOD.replace(".nar.xz", ".nar?hash=abc").encode()).url == "nar/x.nar?hash=abc"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD.replace(A, C, 1), id="another path"),
        pytest.param(GOOD.replace("nar/x", "../x"), id="out of the cache"),
        pytest.param(GOOD.replace("nar/x", "https://example.org/x"), id="somewhere else"),
        pytest.param(GOOD.replace("nar/x", "nar/x?a?b"), id="two queries"),
        pytest.param(GOOD.replace("FileSize: 7", "FileSize: -7"), id="no size"),
        pytest.param(GOOD.replace("References: ", "References: ../x "), id="no store path"),
        pytest.param("<html>", id="a page"),
        pytest.param("größer", id="no ASCII"),
    ],
)
def test_what_is_no_answer_about_it(text: str) -> None:
    with pytest.raises(BadNarInfoError):
        nar_info(A, text.encode())


def info(path: str, *references: str) -> NarInfo:
    return NarInfo(path, "nar/x", 1, frozenset(references), b"")


def test_references_come_first() -> None:
    found = {A: ("x", info(A, B)), B: ("x", info(B, C)), C: ("x", info(C, "/nix/store/elsewhere"))}
    assert turns_of(found) == [("x", [C, B, A])]
    with pytest.raises(BadNarInfoError, match="circle"):
        in_turns({A: ("x", info(A, B)), B: ("y", info(B, A))})


def test_references_come_first_from_whatever_cache() -> None:
    """A cache of one's own mostly lacks what the NixOS one has; whichever of them is asked first."""
    own, nixos = "https://own", "https://nixos"
    assert turns_of({A: (own, info(A, B)), B: (nixos, info(B))}) == [(nixos, [B]), (own, [A])]
    found = {A: (own, info(A)), B: (nixos, info(B, A)), C: (own, info(C)), D: (own, info(D, B))}
    assert turns_of(found) == [(own, [A, C]), (nixos, [B]), (own, [D])]


def turns_of(found: dict[str, tuple[str, NarInfo]]) -> list[tuple[str, list[str]]]:
    return [(giver, [each.path for each in given]) for giver, given in in_turns(found)]


def derivation(**environment: str) -> Derivation:
    variables = {name.encode(): value.encode() for name, value in environment.items()}
    return Derivation({}, {}, frozenset(), b"x", b"x", (), variables)


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        pytest.param({}, True, id="nothing said"),
        pytest.param({"allowSubstitutes": "1"}, True, id="yes"),
        pytest.param({"allowSubstitutes": ""}, False, id="no"),
        pytest.param({"__json": '{"allowSubstitutes": false}'}, False, id="no, structured"),
        pytest.param({"__json": "nonsense"}, True, id="broken"),
    ],
)
def test_whether_caches_are_asked(environment: dict[str, str], answer: bool) -> None:
    assert may_be_substituted(derivation(**environment)) is answer


def test_where_a_fixed_output_comes_from() -> None:
    assert urls_of(derivation(urls="https://a/x mirror://gnu/x https://b/x", url="https://a/x")) == (
        "https://a/x",
        "https://b/x",
    )
    assert urls_of(derivation(__json=json.dumps({"urls": ["https://c/x"]}))) == ("https://c/x",)
    assert urls_of(derivation(urls="mirror://gnu/x")) == ()
