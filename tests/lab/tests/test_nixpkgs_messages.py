"""What a person reads when a configuration is wrong: the words of nixpkgs and of Nix, which programs also read."""
# ruff: noqa: E501 - Nix expressions and the messages of Nix stay on one line.

from pathlib import Path

import pytest

from lab.tests.nixpkgs_tree import A_MACHINE, SOURCES, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, SOURCES)


def error_of(
    tree: Tree, module: str, attribute: str = "config.system.build.toplevel.drvPath", more: str = A_MACHINE
) -> str:
    said = tree.evaluate(attribute, tree.write("web.nix", module), more)
    assert said.exit_status != 0, said.out
    return "\n".join(line for line in said.error.splitlines() if not line.startswith("trace: "))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(
            "{ services.htpd.enable = true; }",
            """
error: The option `services.htpd' does not exist. Definition values:
- In `web.nix':
    {
      enable = true;
    }

Did you mean `services.httpd' or `services.openssh'?
""",
            id="an option that does not exist: its place, its value, its neighbours",
        ),
        pytest.param(
            '{ services.httpd.adminAdr = "a@example.org"; }',
            """
error: The option `services.httpd.adminAdr' does not exist. Definition values:
- In `web.nix': "a@example.org"

Did you mean `services.httpd.adminAddr', `services.httpd.logDir' or `services.httpd.mpm'?
""",
            id="a misspelt option: the nearest three",
        ),
        pytest.param(
            '{ services.httpd.enable = "yes"; }',
            """
error: A definition for option `services.httpd.enable' is not of type `boolean'. Definition values:
- In `web.nix': "yes"
""",
            id="a value of the wrong type",
        ),
        pytest.param(
            "{ networking.firewall.allowedTCPPorts = [ 80 99999 ]; }",
            """
error: A definition for option `networking.firewall.allowedTCPPorts."[definition 1-entry 2]"' is not of type \
`16 bit unsigned integer; between 0 and 65535 (both inclusive)'. Definition values:
- In `web.nix': 99999
""",
            id="one wrong element of a list",
        ),
        pytest.param(
            '{ imports = [ { _file = "one.nix"; networking.hostName = "a"; } { _file = "two.nix"; networking.hostName = "b"; } ]; }',
            """
error: The option `networking.hostName' has conflicting definition values:
- In `one.nix': "a"
- In `two.nix': "b"
Use `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.
""",
            id="two modules that disagree",
        ),
        pytest.param(
            '{ services.httpd.enable = true; services.httpd.virtualHosts.a.nonsense = 1; services.httpd.adminAddr = "x"; }',
            """
error: The option `services.httpd.virtualHosts.a.nonsense' does not exist. Definition values:
- In `web.nix': 1

Did you mean `services.httpd.virtualHosts.a.hostName', `services.httpd.virtualHosts.a.listen' or \
`services.httpd.virtualHosts.a.logFormat'?
""",
            id="an unknown option inside a submodule",
        ),
        pytest.param(
            '{ services = "x"; }',
            """
error: You're trying to define a value of type `string'
rather than an attribute set for the option
`services'!

This usually happens if `services' has option
definitions inside that are not matched. Please check how to properly define
this option by e.g. referring to `man 5 configuration.nix'!
""",
            id="a value where options are",
        ),
        pytest.param(
            "{ config = { }; services.httpd.enable = true; }",
            "error: Module `web.nix' has an unsupported attribute `services'. This is caused by introducing a top-level "
            "`config' or `options' attribute. Add configuration attributes immediately on the top level instead, or move all of "
            "them (namely: services) into the explicit `config' attribute.",
            id="`config' beside definitions",
        ),
        pytest.param(
            "{\n  services.httpd.enable = true\n}",
            """
error: syntax error, unexpected '}', expecting ';'

at web.nix:3:1:
""",
            id="a syntax error: file, line and column",
        ),
        pytest.param(
            "{ pkgs, ... }: {\n  networking.hostName = hostnam;\n}",
            """
error: undefined variable 'hostnam'

at web.nix:2:25:

     1| { pkgs, ... }: {
     2|   networking.hostName = hostnam;
      |                         ^
""",
            id="an undefined variable",
        ),
        pytest.param(
            "{ pkgs, ... }: {\n  environment.systemPackages = [ pkgs.coreutil ];\n}",
            """
error: attribute 'coreutil' missing

at web.nix:2:34:

     1| { pkgs, ... }: {
     2|   environment.systemPackages = [ pkgs.coreutil ];
      |                                  ^
Did you mean coreutils?
""",
            id="a package that does not exist",
        ),
        pytest.param(
            '{ services.httpd.documentRoot = "/srv"; }',
            """
error:
Failed assertions:
- The option definition `services.httpd.documentRoot' in `web.nix' no longer has any effect; please remove it.
Please define a virtual host using `services.httpd.virtualHosts`.
""",
            id="an option that was removed",
        ),
        pytest.param(
            '{ assertions = [ { assertion = false; message = "no"; } { assertion = true; message = "yes"; } '
            '{ assertion = false; message = "nor this"; } ]; }',
            "error:\nFailed assertions:\n- no\n- nor this",
            id="failed assertions, all of them",
        ),
    ],
)
def test_a_wrong_module_is_named_with_its_place(tree: Tree, module: str, message: str) -> None:
    found = error_of(tree, module)
    assert found.startswith(message.strip()), found


def test_a_system_without_root_file_system_and_boot_loader_is_refused(tree: Tree) -> None:
    assert error_of(tree, "{ }", more='{ system.stateVersion = "25.11"; }') == (
        "error:\nFailed assertions:\n"
        "- You must set the option ‘boot.loader.grub.devices’ or 'boot.loader.grub.mirroredBoots' to make the system bootable.\n"
        "- The ‘fileSystems’ option does not specify your root file system."
    )


def test_an_option_without_a_value_is_named(tree: Tree) -> None:
    module = "{ lib, config, ... }: { options.site.name = lib.mkOption { type = lib.types.str; }; config.networking.hostName = config.site.name; }"
    assert "The option `site.name' was accessed but has no value defined. Try setting the option." in error_of(
        tree, module
    )


def test_an_error_inside_a_value_leads_to_the_option_and_the_file(tree: Tree) -> None:
    tree.write("web.nix", '{ networking.hostName = throw "not yet known"; }')
    expression = f"({tree.system(tree.folder / 'web.nix', A_MACHINE)}).config.system.build.toplevel.drvPath"
    said = tree.run("nix-instantiate", "--eval", "--show-trace", "-E", expression)
    assert "error: not yet known" in said.error
    assert "while evaluating the option `networking.hostName':" in said.error
    assert "while evaluating definitions from `web.nix':" in said.error


def test_an_unknown_argument_of_a_module_is_named(tree: Tree) -> None:
    said = tree.run(
        "nix-instantiate", "--eval", "--show-trace", "-E",
        f"({tree.system(tree.write('web.nix', '{ region, ... }: { networking.hostName = region; }'), A_MACHINE)}).config.networking.hostName",
    )  # fmt: skip
    assert "error: attribute 'region' missing" in said.error
    assert 'while evaluating the module argument `region\' in "web.nix":' in said.error


def test_a_value_that_depends_on_itself_names_its_option(tree: Tree) -> None:
    tree.write("web.nix", "{ test.eval.recurse = true; }")
    expression = f"({tree.system(tree.folder / 'web.nix', A_MACHINE)}).config.system.build.toplevel.drvPath"
    said = tree.run("nix-instantiate", "--eval", "--show-trace", "-E", expression)
    assert "infinite recursion encountered" in said.error
    assert "while evaluating the option `test.eval.again':" in said.error


def test_warnings_are_shown_and_do_not_refuse(tree: Tree) -> None:
    module = tree.write("web.nix", '{ warnings = [ "this is old" ]; }')
    said = tree.evaluate("config.system.build.toplevel.drvPath", module, A_MACHINE)
    assert said.exit_status == 0
    assert "trace: evaluation warning: this is old" in said.error


def test_a_long_value_is_cut_to_five_lines(tree: Tree) -> None:
    found = error_of(tree, "{ nonsense = { a = 1; b = 2; c = 3; d = 4; e = 5; f = 6; }; }")
    assert found.startswith(
        "error: The option `nonsense' does not exist. Definition values:\n- In `web.nix':\n    {\n      a = 1;\n      b = 2;\n      c = 3;\n      d = 4;\n    ..."
    ), found
