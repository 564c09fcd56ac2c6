"""The miniature nixpkgs in a store of its own: evaluate modules, build systems, read what Nix says."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "nixpkgs"
SYSTEM = "x86_64-linux"

AS_AN_OPERATOR_EVALUATES = [
    "--read-write-mode",
    *("--option", "pure-eval", "true"),
    *("--option", "restrict-eval", "true"),
    *("--option", "allow-import-from-derivation", "false"),
    *("--option", "allowed-uris", ""),
    *("--option", "max-jobs", "0"),
]
"""Nothing of the machine that evaluates is visible; only what `builtins.path` gives with its hash."""

A_MACHINE = """
  { fileSystems."/".device = "/dev/vda1"; boot.loader.grub.device = "/dev/vda"; system.stateVersion = "25.11"; }
"""
"""The least that every system must say: root file system and boot loader."""


@dataclass(frozen=True)
class Said:
    """`out` is standard output; `error` what Nix says, without indentation, folders shortened."""

    exit_status: int
    out: str
    error: str


class Tree:
    """`folder` takes modules and a Nix store; `nixpkgs` is the tree under test."""

    def __init__(self, folder: Path, nixpkgs: Path) -> None:
        self.folder = folder
        self.nixpkgs = nixpkgs
        self.store = folder / "nix/store"
        (folder / "etc").mkdir(parents=True, exist_ok=True)
        (folder / "etc/nix.conf").write_text("build-users-group =\nsandbox = false\nsubstituters =\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "NIX_STORE_DIR": str(self.store),
            "NIX_STATE_DIR": str(folder / "nix/var/nix"),
            "NIX_LOG_DIR": str(folder / "nix/var/log"),
            "NIX_CONF_DIR": str(folder / "etc"),
        }

    def run(self, *argv: str, stdin: str = "") -> Said:
        done = subprocess.run(
            argv, input=stdin, env=self._environment, capture_output=True, text=True, check=False, timeout=120
        )
        lines = [
            line.removeprefix("       ") for line in done.stderr.splitlines() if not line.startswith("warning: you did")
        ]
        text = "\n".join(line for line in lines if not line.startswith("(use '--show-trace'"))
        return Said(
            done.returncode, done.stdout, text.replace(f"{self.folder}/", "").replace(f"{self.nixpkgs}/", "<nixpkgs>/")
        )

    def write(self, name: str, module: str) -> Path:
        """A module as a file: messages name it by `name`."""
        path = self.folder / name
        path.write_text(module)
        return path

    def evaluate(self, attribute: str, *modules: str | Path, arguments: str = "") -> Said:
        """`attribute` of the evaluation (`config.x`, `options.y`) as JSON."""
        return self.run(
            "nix-instantiate",
            "--eval",
            "--strict",
            "--json",
            "-E",
            f"({self.system(*modules, arguments=arguments)}).{attribute}",
        )

    def library(self, expression: str) -> Said:
        """A Nix expression as JSON, with the library as `lib`."""
        return self.run(
            "nix-instantiate",
            "--eval",
            "--strict",
            "--json",
            "-E",
            f"let lib = import {self.nixpkgs}/lib; in {expression}",
        )

    def system(self, *modules: str | Path, arguments: str = "") -> str:
        """The Nix expression of an evaluation of these modules (paths, or Nix expressions)."""
        listed = " ".join(str(module) if isinstance(module, Path) else f"({module})" for module in modules)
        given = f'system = "{SYSTEM}"; modules = [ {listed} ]; {arguments}'
        return f"import {self.nixpkgs}/nixos/lib/eval-config.nix {{ {given} }}"

    def build(self, *modules: str | Path) -> Path:
        """The toplevel of these modules; an error of Nix is a failed assertion."""
        expression = f"({self.system(*modules)}).config.system.build.toplevel"
        said = self.run("nix-build", "--no-out-link", "-E", expression)
        assert said.exit_status == 0, said.error
        return Path(said.out.strip())
