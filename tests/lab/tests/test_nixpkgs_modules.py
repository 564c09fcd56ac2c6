"""The module system of the miniature nixpkgs: how the definitions of one option meet.

Source: NixOS manual, "Writing NixOS Modules".
"""
# ruff: noqa: E501 - Nix expressions and the messages of Nix stay on one line.

import json
from pathlib import Path
from typing import Any

import pytest

from lab.tests.nixpkgs_tree import SOURCES, Tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"), SOURCES)


def merged(tree: Tree, type_: str, *modules: str) -> Any:
    """The value of option `x` of this type, as these modules define it."""
    option = f"{{ options.x = lib.mkOption {{ type = with lib.types; {type_}; }}; }}"
    listed = " ".join(f"({module})" for module in modules)
    said = tree.library(f"(lib.evalModules {{ modules = [ {option} {listed} ]; }}).config.x")
    assert said.exit_status == 0, said.error
    return json.loads(said.out)


@pytest.mark.parametrize(
    ("type_", "modules", "value"),
    [
        pytest.param("int", ["{ x = lib.mkDefault 1; }", "{ x = 2; }"], 2, id="a plain value beats mkDefault"),
        pytest.param("int", ["{ x = lib.mkForce 3; }", "{ x = 2; }"], 3, id="mkForce beats a plain value"),
        pytest.param("int", ["{ x = lib.mkOverride 40 4; }", "{ x = lib.mkForce 3; }"], 4, id="the lowest number wins"),
        pytest.param("int", ["{ x = 1; }", "{ x = lib.mkIf false 2; }"], 1, id="mkIf false defines nothing"),
        pytest.param("int", ["lib.mkIf true { x = 1; }", "lib.mkIf false { y.z = 2; }"], 1, id="mkIf around a whole module"),
        pytest.param("int", ["lib.mkMerge [ { x = 5; } (lib.mkIf false { x = 6; }) ]"], 5, id="mkMerge around a whole module"),
        pytest.param("listOf str", ['{ x = [ "b" ]; }', '{ x = lib.mkAfter [ "c" ]; }', '{ x = lib.mkBefore [ "a" ]; }'], ["a", "b", "c"], id="lists join in order"),
        pytest.param("lines", ['{ x = "b"; }', '{ x = lib.mkBefore "a"; }'], "a\nb", id="lines join in order"),
        pytest.param("attrsOf int", ["{ x.a = 1; }", "{ x.b = 2; }", "{ x.c = lib.mkIf false 3; }"], {"a": 1, "b": 2}, id="sets join by name"),
        pytest.param("attrsOf (listOf int)", ["{ x.a = [ 1 ]; }", "{ x = lib.mkMerge [ { a = [ 2 ]; } ]; }"], {"a": [1, 2]}, id="values of one name merge"),
        pytest.param("nullOr int", ["{ x = null; }"], None, id="null is a value"),
        pytest.param("either int str", ['{ x = "s"; }'], "s", id="either takes both"),
        pytest.param("oneOf [ int str bool ]", ["{ x = true; }"], True, id="oneOf takes each"),
        pytest.param('enum [ "a" "b" ]', ['{ x = "b"; }'], "b", id="enum"),
        pytest.param('separatedString ":"', ['{ x = "a"; }', '{ x = "b"; }'], "a:b", id="separatedString"),
        pytest.param("coercedTo int toString str", ["{ x = 5; }"], "5", id="coercedTo converts"),
        pytest.param("anything", ["{ x.a.b = 1; }", "{ x.a.c = 2; }"], {"a": {"b": 1, "c": 2}}, id="anything merges deeply"),
        pytest.param(
            "attrsOf (submodule ({ name, ... }: { options.label = lib.mkOption { default = name; }; }))",
            ["{ x.one = { }; x.two.label = \"2\"; }"], {"one": {"label": "one"}, "two": {"label": "2"}},
            id="a submodule knows its name",
        ),
        pytest.param(
            "attrsOf (submodule { options.inner = lib.mkOption { default = { }; type = lib.types.attrsOf "
            "(lib.types.submodule { options.n = lib.mkOption { type = lib.types.int; default = 0; }; }); }; })",
            ["{ x.a.inner.b.n = 1; }", "{ x.a.inner.c = { }; }"], {"a": {"inner": {"b": {"n": 1}, "c": {"n": 0}}}},
            id="submodules nest",
        ),
        pytest.param(
            "submodule { freeformType = lib.types.attrsOf lib.types.int; options.known = lib.mkOption { default = 1; }; }",
            ["{ x.other = 2; }"], {"known": 1, "other": 2},
            id="freeformType takes what no option names",
        ),
    ],
)  # fmt: skip
def test_definitions_merge(tree: Tree, type_: str, modules: list[str], value: Any) -> None:
    assert merged(tree, type_, *modules) == value


def test_a_condition_that_needs_its_own_value_is_an_infinite_recursion(tree: Tree) -> None:
    module = "{ config, ... }: { x = lib.mkIf (config.x || true) true; }"
    said = tree.library(
        f"(lib.evalModules {{ modules = [ {{ options.x = lib.mkOption {{ }}; }} ({module}) ]; }}).config.x"
    )
    assert "infinite recursion encountered" in said.error


def evaluated(tree: Tree, expression: str) -> Any:
    said = tree.library(expression)
    assert said.exit_status == 0, said.error
    return json.loads(said.out)


DECLARE = "{ options.x = lib.mkOption { type = lib.types.int; default = 0; }; options.y = lib.mkOption { default = [ ]; type = lib.types.listOf lib.types.str; }; }"


def test_imports_are_followed_once_each(tree: Tree) -> None:
    shared = tree.write("shared.nix", '{ y = [ "once" ]; }')
    expression = f'(lib.evalModules {{ modules = [ {DECLARE} {shared} {{ imports = [ {shared} ({{ ... }}: {{ y = [ "function" ]; }}) ]; }} ]; }}).config.y'
    assert sorted(evaluated(tree, expression)) == ["function", "once"]


def test_the_same_key_is_the_same_module(tree: Tree) -> None:
    module = '{ key = "mine"; y = [ "once" ]; }'
    assert evaluated(tree, f"(lib.evalModules {{ modules = [ {DECLARE} {module} {module} ]; }}).config.y") == ["once"]


def test_a_disabled_module_is_left_out_with_what_only_it_imports(tree: Tree) -> None:
    inner = tree.write("inner.nix", '{ y = [ "inner" ]; }')
    outer = tree.write("outer.nix", f'{{ imports = [ {inner} ]; y = [ "outer" ]; }}')
    expression = (
        f"(lib.evalModules {{ modules = [ {DECLARE} {outer} {{ disabledModules = [ {outer} ]; }} ]; }}).config.y"
    )
    assert evaluated(tree, expression) == []


def test_special_arguments_may_choose_imports(tree: Tree) -> None:
    expression = f"(lib.evalModules {{ specialArgs.extra = {{ x = 7; }}; modules = [ {DECLARE} ({{ extra, ... }}: {{ imports = [ extra ]; }}) ]; }}).config.x"
    assert evaluated(tree, expression) == 7


def test_module_arguments_come_from_the_configuration(tree: Tree) -> None:
    expression = f"(lib.evalModules {{ modules = [ {DECLARE} {{ _module.args.seven = 7; }} ({{ seven, ... }}: {{ x = seven; }}) ]; }}).config.x"
    assert evaluated(tree, expression) == 7


def test_unknown_options_pass_where_checking_is_off(tree: Tree) -> None:
    expression = (
        f"(lib.evalModules {{ modules = [ {DECLARE} {{ _module.check = false; x = 1; nonsense = 2; }} ]; }}).config.x"
    )
    assert evaluated(tree, expression) == 1


def test_an_evaluation_can_be_extended(tree: Tree) -> None:
    expression = f"((lib.evalModules {{ modules = [ {DECLARE} {{ x = lib.mkDefault 1; }} ]; }}).extendModules {{ modules = [ {{ x = 2; }} ]; }}).config.x"
    assert evaluated(tree, expression) == 2


def test_options_say_where_they_are_defined(tree: Tree) -> None:
    expression = (
        f'let o = (lib.evalModules {{ modules = [ {DECLARE} {{ _file = "one.nix"; x = 1; }} ]; }}).options.x; '
        "in { inherit (o) files isDefined highestPrio value definitions; }"
    )
    assert evaluated(tree, expression) == {
        "files": ["one.nix"],
        "isDefined": True,
        "highestPrio": 100,
        "value": 1,
        "definitions": [1],
    }


def test_a_read_only_option_takes_one_definition(tree: Tree) -> None:
    said = tree.library(
        "(lib.evalModules { modules = [ { options.x = lib.mkOption { readOnly = true; type = lib.types.int; }; } "
        '{ _file = "a"; x = 1; } { _file = "b"; x = 1; } ]; }).config.x'
    )
    assert (
        "error: The option `x' is read-only, but it's set multiple times. Definition values:\n- In `a': 1\n- In `b': 1"
        in said.error
    )


def test_two_declarations_of_one_option_are_refused(tree: Tree) -> None:
    said = tree.library(
        "(lib.evalModules { modules = [ "
        '{ _file = "a"; options.x = lib.mkOption { type = lib.types.int; }; } { _file = "b"; options.x = lib.mkOption { type = lib.types.str; }; } ]; }).config.x'
    )
    assert "error: The option `x' in `b' is already declared in `a'." in said.error


def test_a_submodule_may_be_declared_in_parts(tree: Tree) -> None:
    part = "{{ options.x = lib.mkOption {{ type = lib.types.attrsOf (lib.types.submodule {{ options.{0} = lib.mkOption {{ default = 1; }}; }}); }}; }}"
    expression = (
        f"(lib.evalModules {{ modules = [ {part.format('a')} {part.format('b')} {{ x.n = {{ }}; }} ]; }}).config.x"
    )
    assert evaluated(tree, expression) == {"n": {"a": 1, "b": 1}}


def test_the_library_says_its_release(tree: Tree) -> None:
    release = Path(SOURCES / ".version").read_text()
    assert evaluated(tree, "lib.trivial.release") == release
    assert evaluated(tree, "lib.versionAtLeast lib.version lib.trivial.release") is True
