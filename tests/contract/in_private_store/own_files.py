"""What `<nixpkgs>` means in the files of a configuration: the given nixpkgs, wherever such a file is read from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contract.nix_bench import nixpkgs_folder, request
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import EvaluationRequest, Module, Source


def of_files(nixpkgs: Source, source: Source, *paths: str) -> EvaluationRequest:
    return replace(request(nixpkgs, source=source), modules=tuple(Module(path, path=path) for path in paths))


def named(expression: str) -> str:
    """A module whose system has this value in its name."""
    return f"{{ config, pkgs, ... }}: {{ networking.hostName = {expression}; }}"


async def name_of_system(nix: SandboxedNix, wanted: EvaluationRequest) -> str:
    """What stands in its name before the release."""
    return (await nix.evaluate(wanted)).toplevel.partition("-nixos-system-")[2].rpartition("-")[0]


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        pytest.param("with import <nixpkgs> { }; builtins.substring 0 5 hello.name", "hello", id="the packages"),
        pytest.param('(import <nixpkgs/lib>).removePrefix "a" "ab"', "b", id="the library"),
        pytest.param("builtins.substring 0 2 (builtins.readFile <nixpkgs/.version>)", "25", id="a file of it"),
        pytest.param("builtins.import <nixpkgs/lib/trivial.nix> { lib = { }; } ? id", None, id="builtins.import"),
        pytest.param("builtins.currentSystem", "x86_64-linux", id="the machine's system"),
        pytest.param(
            'if (import <nixpkgs> { }).hello.drvPath == pkgs.hello.drvPath then "same" else "other"',
            "same",
            id="the packages are those of the machine",
        ),
        pytest.param('(import <nixpkgs> { system = "aarch64-linux"; }).system', "aarch64-linux", id="another system"),
        pytest.param(
            '(import <nixpkgs> { localSystem.system = "aarch64-linux"; }).system', "aarch64-linux", id="a local system"
        ),
        pytest.param(
            'if builtins.isFunction (import <nix/fetchurl.nix>) then "there" else "gone"', "there", id="Nix' own file"
        ),
    ],
)
async def test_it_is_the_given_nixpkgs(nix: SandboxedNix, nixpkgs: Source, expression: str, name: str | None) -> None:
    if name is None:
        expression, name = f'if {expression} then "yes" else "no"', "yes"
    assert await name_of_system(nix, request(nixpkgs, named(expression))) == name


async def test_it_is_known_in_every_file_of_the_source(nix: SandboxedNix, nixpkgs: Source) -> None:
    files = {
        "web.nix": "{ imports = [ <nixpkgs/nixos/modules/virtualisation/amazon-image.nix> ./parts ]; }",
        "parts/default.nix": "{ imports = [ { imports = [ ../deep.nix ]; } ]; }",
        "deep.nix": "{ lib, ... }: { networking.hostName = lib.concatStrings (map import [ ./one.nix ./two.nix ]); }",
        "one.nix": '(import <nixpkgs/lib>).removeSuffix "lo" (import ./three.nix)',
        "two.nix": "builtins.import ./three.nix",
        "three.nix": "builtins.substring 0 5 (import <nixpkgs> { }).hello.name",
    }
    source = await nix.add_tree({name: text.encode() for name, text in files.items()})
    assert await name_of_system(nix, of_files(nixpkgs, source, "web.nix")) == "helhello"


async def test_it_is_known_in_files_of_submodules(nix: SandboxedNix, nixpkgs: Source) -> None:
    files = {
        "web.nix": "{ specialisation.other.configuration = ./other.nix; }",
        "other.nix": 'assert (import <nixpkgs/lib>).hasPrefix "a" "ab"; { networking.extraHosts = ""; }',
    }
    source = await nix.add_tree({name: text.encode() for name, text in files.items()})
    assert await name_of_system(nix, of_files(nixpkgs, source, "web.nix")) == "webserver"


async def test_it_is_the_one_that_a_source_holds(nix: SandboxedNix) -> None:
    tree = nixpkgs_folder()
    files = {
        f"our/nixpkgs/{path.relative_to(tree)}": path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and "html" not in path.parts
    }
    files["our/nixpkgs/.version"] = b"77.07"
    files["web.nix"] = named("builtins.substring 0 2 (builtins.readFile <nixpkgs/.version>)").encode()
    source = await nix.add_tree(files)
    wanted = replace(of_files(source, source, "web.nix"), nixpkgs_folder="our/nixpkgs")
    assert await name_of_system(nix, wanted) == "77"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        pytest.param(
            "import <home-manager/nixos>",
            "cannot look up '<home-manager/nixos>': only <nixpkgs> is known: put its files into "
            "spec.configuration.source, and import them by their path",
            id="another one",
        ),
        pytest.param(
            "import <nixpkgs-unstable> { }", "cannot look up '<nixpkgs-unstable>': only <nixpkgs>", id="like it"
        ),
        pytest.param("builtins.readFile <nixpkgs/../../../etc/passwd>", "forbidden in pure eval", id="a way out of it"),
        pytest.param("toString builtins.currentTime", "attribute 'currentTime' missing", id="the time"),
        pytest.param(
            "(import <nixpkgs/nixos> { configuration = { }; }).pkgs.system",
            "only files of the configuration have builtins.currentSystem",
            id="the current system, asked for by nixpkgs",
        ),
    ],
)
async def test_nothing_else_is(nix: SandboxedNix, nixpkgs: Source, expression: str, message: str) -> None:
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(request(nixpkgs, f"{{\n  networking.hostName = {expression};\n}}"))
    assert failed.value.message.startswith("modules[0]:2:")
    assert message in failed.value.message


async def test_a_file_that_call_package_reads_is_told_to_take_arguments(nix: SandboxedNix, nixpkgs: Source) -> None:
    files = {
        "web.nix": "{ pkgs, ... }: { networking.hostName = pkgs.callPackage ./name.nix { }; }",
        "name.nix": "{ lib }: (import <nixpkgs/lib>).version",
    }
    source = await nix.add_tree({name: text.encode() for name, text in files.items()})
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(of_files(nixpkgs, source, "web.nix"))
    assert failed.value.message.startswith("name.nix:1:")
    assert "not known to files that callPackage reads: take `pkgs` or `lib` as an argument" in failed.value.message
