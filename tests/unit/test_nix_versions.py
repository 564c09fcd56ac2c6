"""What a person reads of every kind of failure, on every Nix: see `data/nix_messages/README.md`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nixops_operator.nix.build_errors import BuildStory
from nixops_operator.nix.evaluation_errors import Names, evaluation_message
from nixops_operator.nix.internal_json import event
from nixops_operator.nix.nar import nar_of
from nixops_operator.nix.store_paths import tree_path

DATA = Path(__file__).parents[1] / "data" / "nix_messages"
MODULES: dict[str, str] = json.loads((DATA / "modules.json").read_text())
NIXPKGS = "/nix/store/a15nfi42zfs2g93aplfdada4ca25x6h3-source"
VERSIONS = ("2.8.0", "2.26.3", "2.34.8")
RUNS = sorted(DATA.glob("*/*.txt"))


def run_id(path: Path) -> str:
    return f"{path.parent.name} {path.stem}"


def names(module: str) -> Names:
    """Of an evaluation that has this one module, as text."""
    inline = tree_path("source", nar_of({"module-0.nix": module.encode()}))
    files = {f"{inline}/module-0.nix": "modules[0]"}
    return Names(files, inline=inline, nixpkgs=NIXPKGS, texts=lambda: {"modules[0]": module})


@pytest.mark.parametrize("path", RUNS, ids=run_id)
def test_what_a_person_reads(path: Path) -> None:
    wanted, *said = path.read_text().splitlines()
    if path.stem in MODULES:
        read = evaluation_message(said, names(MODULES[path.stem]))
    else:
        story = BuildStory()
        for line in said:
            if (found := event(line)) is not None:
                story.follow(found)
        read = story.failure()
    assert read == wanted


@pytest.mark.parametrize("path", RUNS, ids=run_id)
def test_it_is_one_line_without_store_paths_or_switches(path: Path) -> None:
    wanted = path.read_text().splitlines()[0]
    assert wanted
    assert len(wanted) <= 400
    for alien in ("/nix/store/", "--", "\x1b", "trace:", "«"):
        assert alien not in wanted.replace("example.org", "")


def test_each_kind_was_run_on_each_version() -> None:
    kinds = {version: {path.stem for path in RUNS if path.parent.name == version} for version in VERSIONS}
    assert {path.parent.name for path in RUNS} == set(VERSIONS)
    assert kinds["2.8.0"] == kinds["2.26.3"] == kinds["2.34.8"]
    assert set(MODULES) < kinds["2.8.0"]
