"""What an evaluation of the miniature nixpkgs gives: a system with the files of a real one, from its inputs alone."""
# ruff: noqa: E501 - Nix expressions and the messages of Nix stay on one line.

import json
import os
import subprocess
from pathlib import Path

import pytest

from lab.tests.nixpkgs_tree import A_MACHINE, AS_AN_OPERATOR_EVALUATES, SOURCES, SYSTEM, Said, Tree

PAGE = "<html><head><title>Valgrind Documentation</title></head></html>"

WEB_SERVER = """
  { config, pkgs, ... }: {
    services.httpd.enable = true;
    services.httpd.adminAddr = "webmaster@example.org";
    services.httpd.virtualHosts.localhost.documentRoot = "${pkgs.valgrind.doc}/share/doc/valgrind/html";
    networking.firewall.allowedTCPPorts = [ 80 ];
  }
"""
"""The web server of the NixOps manual."""

ON_EC2 = """{ modulesPath, ... }: {
  imports = [ "${modulesPath}/virtualisation/amazon-image.nix" ]; networking.hostName = "webserver"; system.stateVersion = "25.11";
}"""


@pytest.fixture(scope="module")
def nixpkgs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as assemble.sh makes it, with one page in the place of the manual."""
    folder = tmp_path_factory.mktemp("assembled")
    manual = folder / "cache/nixops-lab/valgrind-html"
    manual.mkdir(parents=True)
    (manual / "index.html").write_text(PAGE)
    assemble(folder / "source", folder / "cache")
    return folder / "source"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, nixpkgs: Path) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"), nixpkgs)


def assemble(dest: Path, cache: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    subprocess.run([SOURCES / "assemble.sh", dest], env=environment, check=True, capture_output=True)


def as_an_operator(tree: Tree, modules: str, attribute: str) -> Said:
    """Evaluates as a cluster's operator does: the tree comes in by its hash, and nothing else does."""
    source = tree.run("nix-store", "--add-fixed", "--recursive", "sha256", str(tree.nixpkgs)).out.strip()
    digest = tree.run("nix-hash", "--type", "sha256", "--base32", source).out.strip()
    expression = f"""
      (input:
        let
          nixpkgs = builtins.path {{ name = "source"; path = {source}; sha256 = "{digest}"; }};
          evaluated = import (nixpkgs + "/nixos/lib/eval-config.nix") {{ system = "{SYSTEM}"; modules = [ {modules} ]; }};
        in {attribute}) "{{}}"
    """
    return tree.run("nix-instantiate", "--eval", "--strict", "--json", *AS_AN_OPERATOR_EVALUATES, "-", stdin=expression)


def test_a_toplevel_has_the_files_of_a_nixos_system(tree: Tree) -> None:
    toplevel = tree.build(WEB_SERVER, ON_EC2)
    assert toplevel.name.split("-", 1)[1] == "nixos-system-webserver-25.11.lab"
    assert sorted(path.name for path in toplevel.iterdir()) == [
        "activate", "bin", "dry-activate", "etc", "init", "init-interface-version", "initrd", "kernel", "kernel-modules",
        "kernel-params", "nixos-version", "specialisation", "sw", "switch-inhibitors", "system", "systemd",
    ]  # fmt: skip
    assert os.access(toplevel / "bin/switch-to-configuration", os.X_OK)
    assert (toplevel / "nixos-version").read_text() == "25.11.lab"
    assert (toplevel / "system").read_text() == SYSTEM
    assert json.loads((toplevel / "switch-inhibitors").read_text()) == {}
    assert (toplevel / "etc/os-release").read_text().splitlines()[-1] == 'VERSION_ID="25.11"'
    for link in ("kernel", "initrd", "kernel-modules", "sw", "systemd", "etc"):
        assert (toplevel / link).exists(), link


def test_the_web_server_has_a_unit_that_serves_the_manual(tree: Tree) -> None:
    toplevel = tree.build(WEB_SERVER, ON_EC2)
    unit = (toplevel / "etc/systemd/system/httpd.service").read_text()
    (configuration,) = [line.split()[-1] for line in unit.splitlines() if line.startswith("ExecStart=")]
    (root,) = [line.split('"')[1] for line in Path(configuration).read_text().splitlines() if "DocumentRoot" in line]
    assert (Path(root) / "index.html").read_text() == PAGE
    assert os.path.lexists(toplevel / "etc/systemd/system/multi-user.target.wants/httpd.service")


def test_an_evaluation_needs_nothing_but_its_inputs(tree: Tree) -> None:
    attributes = "{ inherit (evaluated.config.system.build.toplevel) drvPath; toplevel = evaluated.config.system.build.toplevel.outPath; }"
    said = as_an_operator(tree, f"({WEB_SERVER}) ({ON_EC2})", attributes)
    assert said.exit_status == 0, said.error
    paths = json.loads(said.out)
    assert Path(paths["drvPath"]).exists()
    built = tree.run("nix-store", "--realise", paths["drvPath"])
    assert built.out.strip() == paths["toplevel"], built.error


@pytest.mark.parametrize(
    ("reach", "refusal"),
    [
        pytest.param(
            'builtins.readFile "/etc/passwd"',
            "access to absolute path '/etc/passwd' is forbidden",
            id="a file of the host",
        ),
        pytest.param("builtins.currentSystem", "attribute 'currentSystem' missing", id="the host's system"),
        pytest.param('builtins.readFile (pkgs.writeText "x" "y")', "x.drv", id="a build during evaluation"),
        pytest.param('if builtins.getEnv "HOME" == "" then throw "empty" else ""', "empty", id="the environment"),
    ],
)
def test_a_module_cannot_reach_the_machine_that_evaluates(tree: Tree, reach: str, refusal: str) -> None:
    module = f"({{ pkgs, ... }}: {{ networking.extraHosts = {reach}; }})"
    said = as_an_operator(tree, f"({A_MACHINE}) {module}", "evaluated.config.environment.etc.hosts.text")
    assert said.exit_status != 0
    assert refusal in said.error


def test_building_again_gives_the_same_bytes(tree: Tree) -> None:
    tree.build(WEB_SERVER, ON_EC2)
    for part in ("toplevel", "etc"):
        drv = json.loads(tree.evaluate(f"config.system.build.{part}.drvPath", WEB_SERVER, ON_EC2).out)
        again = tree.run("nix-store", "--realise", "--check", drv)
        assert again.exit_status == 0, again.error


def test_assembling_twice_gives_the_same_tree(tmp_path: Path, nixpkgs: Path) -> None:
    assemble(tmp_path / "source", nixpkgs.parent / "cache")
    hashes = {
        subprocess.run(["nix-hash", str(tree)], check=True, capture_output=True).stdout
        for tree in (nixpkgs, tmp_path / "source")
    }
    assert len(hashes) == 1
    assemble(tmp_path / "source", nixpkgs.parent / "cache")
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "source").rglob("*")}
    assert modes == {"0o755", "0o644"}


def test_the_tree_without_the_manual_says_how_to_get_it(tmp_path: Path) -> None:
    said = Tree(tmp_path, SOURCES).evaluate("config.system.build.toplevel.drvPath", WEB_SERVER, ON_EC2)
    assert "valgrind's documentation is missing: this tree was not made by tests/lab/nixpkgs/assemble.sh" in said.error


@pytest.mark.parametrize(
    ("attribute", "release"),
    [
        pytest.param("systems.ec2", "25.11", id="an instance"),
        pytest.param("systems.host", "25.11", id="the given host"),
        pytest.param('(systems.forRelease "25.05").ec2', "25.05", id="an instance of an older image"),
    ],
)
def test_a_base_system_is_of_the_release_of_its_image(tree: Tree, attribute: str, release: str) -> None:
    built = tree.run(
        "nix-build", "--no-out-link", "-E", f"let systems = import {tree.nixpkgs}/lab/base-systems.nix; in {attribute}"
    )
    assert built.exit_status == 0, built.error
    assert f'VERSION_ID="{release}"' in (Path(built.out.strip()) / "etc/os-release").read_text()


def test_an_evaluation_can_be_extended_with_all_that_it_offers(tree: Tree) -> None:
    expression = f'(({tree.system(A_MACHINE)}).extendModules {{ modules = [ {{ networking.hostName = "two"; }} ]; }})'
    said = tree.run(
        "nix-instantiate",
        "--eval",
        "--strict",
        "--json",
        "-E",
        f"with {expression}; [ config.networking.hostName pkgs.system (options ? networking) (lib ? mkIf) ]",
    )
    assert json.loads(said.out) == ["two", SYSTEM, True, True]


def test_arguments_reach_the_modules(tree: Tree) -> None:
    module = "{ name, deploymentName, ... }: { networking.hostName = name + deploymentName; }"
    said = tree.evaluate(
        "config.networking.hostName",
        A_MACHINE,
        module,
        arguments='specialArgs.name = "a"; extraArgs.deploymentName = "b";',
    )
    assert json.loads(said.out) == "ab"


def test_overlays_change_packages(tree: Tree) -> None:
    module = "{ pkgs, ... }: { nixpkgs.overlays = [ (final: prev: { hello = prev.coreutils; }) ]; networking.hostName = pkgs.hello.pname; }"
    assert json.loads(tree.evaluate("config.networking.hostName", A_MACHINE, module).out) == "coreutils"


def test_another_kernel_is_seen_in_the_links(tree: Tree) -> None:
    old = tree.build(A_MACHINE)
    new = tree.build(A_MACHINE, "{ pkgs, ... }: { boot.kernelPackages = pkgs.linuxPackages_latest; }")
    assert (old / "kernel").resolve() != (new / "kernel").resolve()
    assert (old / "initrd").resolve() != (new / "initrd").resolve()


def test_a_specialisation_is_a_system_of_its_own(tree: Tree) -> None:
    toplevel = tree.build(
        A_MACHINE, '{ specialisation.other.configuration.networking.extraHosts = "192.0.2.1 other"; }'
    )
    assert "other" in (toplevel / "specialisation/other/etc/hosts").read_text()
    assert "other" not in (toplevel / "etc/hosts").read_text()


def test_an_option_declared_by_the_deployment_is_like_any_other(tree: Tree) -> None:
    guest = (
        "{ lib, config, ... }: { options.networking.publicIPv4 = lib.mkOption { type = lib.types.nullOr lib.types.str; default = null; }; "
        'config.networking.publicIPv4 = "198.51.100.7"; config.networking.hostName = lib.mkOverride 900 "webserver"; }'
    )
    said = tree.evaluate("config.networking", A_MACHINE, guest)
    networking = json.loads(said.out)
    assert (networking["publicIPv4"], networking["hostName"]) == ("198.51.100.7", "webserver")


def test_a_huge_evaluation_meets_its_limit(tree: Tree) -> None:
    expression = f"({tree.system(A_MACHINE, '{ test.eval.allocate = 2048; }')}).config.system.build.toplevel.drvPath"
    limited = tree.run("prlimit", f"--as={1 << 30}", "nix-instantiate", "--eval", "-E", expression)
    small = f"({tree.system(A_MACHINE, '{ test.eval.allocate = 16; }')}).config.system.build.toplevel.drvPath"
    assert limited.exit_status != 0
    assert tree.run("prlimit", f"--as={1 << 30}", "nix-instantiate", "--eval", "-E", small).exit_status == 0
