"""Store paths follow from content, as Nix computes them (figures made with Nix 2.8's own programs)."""

from __future__ import annotations

import hashlib

import pytest

from nixops_operator.nix.nar import nar_of
from nixops_operator.nix.store_paths import is_store_path, name_of, sri, text_path, tree_path

TREE = {"a": b"1", "b/c": b"2"}


def test_a_text_has_the_path_of_builtins_to_file() -> None:
    assert text_path("a.txt", b"hi", ()) == "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a.txt"


def test_a_tree_has_the_path_of_nix_store_add_fixed_recursive() -> None:
    assert tree_path("source", nar_of(TREE)) == "/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source"


def test_the_order_of_files_does_not_matter() -> None:
    assert nar_of(dict(reversed(TREE.items()))) == nar_of(TREE)


def test_references_are_part_of_a_text_s_path() -> None:
    reference = "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a.txt"
    assert text_path("b", b"x", (reference,)) != text_path("b", b"x", ())


def test_a_digest_in_sri_form() -> None:
    assert sri(hashlib.sha256(nar_of(TREE)).digest()) == "sha256-l8su7DiUHZLWrvwUSvDsi7n91HSmAbbcj+1WUlNSt1I="


def test_the_name_is_what_follows_the_hash() -> None:
    assert name_of("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a-b.txt") == "a-b.txt"


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a.txt", True),
        ("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a.txt/x", False),
        ("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv", False),
        ("/nix/store/../etc/passwd", False),
        ("--option", False),
        ("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a\n", False),
    ],
)
def test_what_is_a_store_path(text: str, is_path: bool) -> None:
    assert is_store_path(text) is is_path


@pytest.mark.parametrize("files", [{"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}])
def test_a_path_is_a_file_or_a_folder(files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="a"):
        nar_of(files)
