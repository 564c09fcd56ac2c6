"""NixOS systems of the miniature nixpkgs that go well or wrong, built and signed as an operator would have them.

`SYSTEMS` says of each how it is made and how it goes in memory; `build()` makes the real ones, once per change.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from contract import nix_namespace
from fakes.host import Build, Switch
from nixops_lab.paths import cache_folder

HERE = Path(__file__).parent
ASSEMBLE = HERE.parent / "lab/nixpkgs/assemble.sh"
SHIM = HERE / "ssh_shim.py"
RELEASE = "25.11"


@dataclass(frozen=True)
class System:
    """`module`: its NixOS module. `switch`: what the module makes switch-to-configuration do."""

    module: str
    switch: Switch = field(default_factory=Switch)


PERL = "test.stc.kind = ''perl'';"
OF_2020 = "test.stc.kind = ''perl-2020'';"
REFUSED = Switch(1, moves_link=False, is_begun=False)

GUARD = """
  systemd.services.nixops-guard = {
    wantedBy = [ "multi-user.target" ];
    unitConfig.ConditionPathExists = "/var/lib/nixops/activation/active/state.rebooting";
    serviceConfig.Type = "oneshot";
    script = "exec /bin/sh /var/lib/nixops/activation/active/agent guard";
  };
"""
"""As the guest module has it."""
BROKEN_KERNEL = (
    "imports = [ ({ pkgs, ... }: { boot.kernelPackages = pkgs.linuxPackages_broken; }) ];"
    " boot.kernelParams = [ ''panic=1'' ];"
)
OTHER_KERNEL = "boot.kernelParams = [ ''quiet'' ];"

SYSTEMS: Mapping[str, System] = {
    "guarded": System(f"{{ {GUARD} }}"),
    "panics": System(f"{{ {BROKEN_KERNEL} }}", Switch(panics=True)),
    "panics with variants": System(
        f"{{ {BROKEN_KERNEL} specialisation.other.configuration = {{ }}; }}", Switch(panics=True)
    ),
    "of another kernel": System(f"{{ {OTHER_KERNEL} }}"),
    "for a boot alone": System("{ system.switch.inhibitors.init = ''new''; }", replace(REFUSED, needs_restart=True)),
    "with an inhibitor": System("{ system.switch.inhibitors.init = ''old''; }"),
    "good": System("{ environment.etc.mark.text = ''good''; }"),
    "better": System("{ environment.etc.mark.text = ''better''; }"),
    "ends with 1": System("{ test.stc.exit = 1; }", REFUSED),
    "ends with 11": System("{ test.stc.exit = 11; }", replace(REFUSED, exit_status=11)),
    "ends with 100": System("{ test.stc.exit = 100; }", replace(REFUSED, exit_status=100)),
    "gives up at once": System(f"{{ {PERL} test.stc.giveUpAt = ''check''; }}", replace(REFUSED, exit_status=255)),
    "gives up before the link moves": System(
        "{ system.activationScripts.cut = ''exit 1''; test.stc.giveUpAt = ''activated''; }",
        Switch(1, moves_link=False),
    ),
    "gives up at its end": System(f"{{ {PERL} test.stc.giveUpAt = ''start''; }}", Switch(255)),
    "ends with 3": System("{ test.stc.exit = 3; }", Switch(3)),
    "fails in a snippet": System("{ test.stc.failSnippet = true; }", Switch(2)),
    "fails in a unit": System("{ test.stc.failUnit = true; }", Switch(4, failed_units=("test-fail-unit.service",))),
    "fails in a snippet and a unit": System(
        "{ test.stc.failSnippet = true; test.stc.failUnit = true; }", Switch(4, hides_failed_script=True)
    ),
    "Perl fails in a snippet and a unit": System(
        f"{{ {PERL} test.stc.failSnippet = true; test.stc.failUnit = true; }}", Switch(4, hides_failed_script=True)
    ),
    "2020 fails in a snippet and a unit": System(
        f"{{ {OF_2020} test.stc.failSnippet = true; test.stc.failUnit = true; }}", Switch(4, hides_failed_script=True)
    ),
    "quotes a failed switch": System(
        """{
          systemd.services.test-fail-unit = {
            wantedBy = [ "multi-user.target" ];
            serviceConfig.Type = "oneshot";
            script = "echo 'Failed to run activate script'; exit 1";
          };
        }""",
        Switch(4, failed_units=("test-fail-unit.service",)),
    ),
    "good Perl": System(f"{{ {PERL} }}"),
    "good 2020": System(f"{{ {OF_2020} }}"),
    "restarts systemd": System('{ environment.etc."systemd/system.conf".text = "[Manager]"; }'),
    "2020 hangs midway": System(f"{{ {OF_2020} test.stc.hangAt = ''restart''; }}", Switch(seconds=float("inf"))),
    "hangs before": System("{ test.stc.hangAt = ''check''; }", Switch(seconds=float("inf"))),
    "hangs midway": System("{ test.stc.hangAt = ''restart''; }", Switch(seconds=float("inf"))),
    "spins with the lock": System("{ test.stc.spinWithLock = true; }", Switch(seconds=float("inf"))),
    "takes a while": System("{ test.stc.slow = 60; }", Switch(seconds=60)),
    "stops sshd": System("{ test.stc.killSshd = true; }", Switch(stops_sshd=True)),
    "drops the network": System("{ test.stc.dropNetwork = true; }", Switch(drops_network=True)),
    "refuses to boot": System("{ test.stc.bootLoaderFails = true; }", Switch(boot_loader_error="no space in /boot")),
}


@dataclass(frozen=True)
class Trial:
    """A derivation for the machine to build. `script`: its builder. `build`: how that goes."""

    script: str
    build: Build


TRIALS: Mapping[str, Trial] = {
    "quick": Trial("echo quick > $out", Build(seconds=1)),
    "slow": Trial("export PATH=/usr/bin:/bin; echo begun; sleep 300; echo slow > $out", Build(seconds=300)),
    "fails": Trial(
        "echo there is no such header; exit 3",
        Build(
            seconds=1, service_result="exit-code", log='@nix {"action":"msg","level":0,"msg":"error: no such header"}\n'
        ),
    ),
}


class SignedSystems:
    """A store with all of SYSTEMS, bound on /nix for the processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toplevels: dict[str, str] = json.loads((folder / "toplevels.json").read_text())
        self.public_key = (folder / "key.public").read_text()

    def closure(self, toplevel: str) -> list[str]:
        return _in_store(self.folder, "nix-store", "--query", "--requisites", toplevel).stdout.split()

    def unsigned(self) -> str:
        """A small path that nobody has signed. It is built: what is named by its content proves itself."""
        arguments = 'args = [ "-c" "echo nobody has signed this > $out" ];'
        drv = f'derivation {{ name = "unsigned"; system = "x86_64-linux"; builder = "/bin/sh"; {arguments} }}'
        return _in_store(self.folder, "nix-build", "--no-out-link", "-E", drv).stdout.strip()

    def trial(self, name: str) -> tuple[str, str]:
        """The derivation of one of TRIALS, and what it makes; nothing of it is built."""
        arguments = f'args = [ "-c" {json.dumps(TRIALS[name].script).replace("$", chr(92) + "$")} ];'
        drv = f'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; {arguments} }}'
        derivation = _in_store(self.folder, "nix-instantiate", "-E", drv).stdout.strip()
        return derivation, _in_store(self.folder, "nix-store", "--query", "--outputs", derivation).stdout.strip()

    def copy_argv(self, path: str, daemon_socket: Path, *options: str) -> list[str]:
        """The command that copies the closure of `path` through the socket."""
        programs = self.folder / "programs"
        setting = ["/usr/bin/env", f"PATH={programs}:/usr/bin:/bin", f"NIX_DAEMON_SOCKET={daemon_socket}"]
        return _entering(self.folder, *setting, "nix", "copy", *options, "--to", "ssh-ng://root@host", path)


@functools.cache
def build() -> SignedSystems:
    """Seconds after a change of the miniature, else at once. Raises CalledProcessError."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "contract-systems.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        nixpkgs = assembled()
        wanted = _digest(nixpkgs, Path(__file__).read_bytes(), SHIM.read_bytes())
        folder = cache / "contract-systems"
        if not (folder / "made-from").exists() or (folder / "made-from").read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, nixpkgs)
            (folder / "made-from").write_text(wanted)
    return SignedSystems(folder)


@functools.cache
def assembled() -> Path:
    """The miniature nixpkgs as it is now; a copy for this process alone, because others may be replacing theirs."""
    folder = Path(tempfile.mkdtemp(prefix="contract-nixpkgs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    nixpkgs = folder / "nixpkgs"
    subprocess.run([str(ASSEMBLE), str(nixpkgs)], check=True, capture_output=True)
    return nixpkgs


def _make(folder: Path, nixpkgs: Path) -> None:
    for name in ("nix", "conf", "programs"):
        (folder / name).mkdir(parents=True)
    (folder / "conf/nix.conf").write_text(
        "build-users-group =\nsandbox = false\nsubstituters =\nexperimental-features = nix-command\n"
    )
    shim = folder / "programs/ssh"
    # The cache outlives the checkout and its virtual environment; -S needs nothing of that.
    shim.write_text(f"#!{Path(sys.executable).resolve()} -SE\n{SHIM.read_text()}")
    shim.chmod(0o755)
    (folder / "systems.nix").write_text(_expression(nixpkgs))
    argv = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", str(folder / "systems.nix")]
    drvs = json.loads(_in_store(folder, *argv).stdout)
    names = list(drvs)
    built = _in_store(folder, "nix-store", "--realise", *(drvs[name] for name in names)).stdout.split()
    key, public = folder / "key", folder / "key.public"
    _in_store(folder, "nix-store", "--generate-binary-cache-key", "contract-test-1", str(key), str(public))
    _in_store(folder, "nix", "store", "sign", "--recursive", "--key-file", str(key), *built)
    (folder / "toplevels.json").write_text(json.dumps(dict(zip(names, built, strict=True))))


def _expression(nixpkgs: Path) -> str:
    modules = "\n".join(f"  {json.dumps(name)} = {system.module};" for name, system in SYSTEMS.items())
    return f"""
let
  evaluate = module: (import {nixpkgs}/nixos/lib/eval-config.nix {{
    system = "x86_64-linux";
    modules = [ {nixpkgs}/lab/given-host.nix {{ system.stateVersion = "{RELEASE}"; }} module ];
  }}).config.system.build.toplevel.drvPath;
in builtins.mapAttrs (_: evaluate) {{
{modules}
}}
"""


def _in_store(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(_entering(folder, *argv), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr}")
    return done


def _entering(folder: Path, *argv: str) -> list[str]:
    nix_namespace.make_mount_point()
    setting = ["/usr/bin/env", "-i", f"PATH={os.environ['PATH']}", f"HOME={folder}", f"NIX_CONF_DIR={folder}/conf"]
    bind = ["sh", "-c", 'mount --bind "$0/nix" /nix && exec "$@"', str(folder)]
    return ["unshare", "--mount", "--propagation=private", *bind, *setting, *argv]


def _digest(tree: Path, *parts: bytes) -> str:
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        digest.update(str(path.relative_to(tree)).encode())
        if path.is_file():
            digest.update(path.read_bytes())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
