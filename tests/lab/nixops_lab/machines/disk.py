"""What the image and the launch put on a machine's disk before its first boot."""

import json
from pathlib import Path

from nixops_lab.machines.spec import MachineError, MachineSpec

PROFILES = Path("nix/var/nix/profiles")


def make_disk(disk: Path, system: str, spec: MachineSpec) -> None:
    """Fills the empty folder `disk`, which lies over the root file system. `system` is the toplevel that boots first.

    User data and public keys lie where NixOS' images have them (nixpkgs
    nixos/modules/virtualisation/ec2-metadata-fetcher.sh).
    """
    metadata = disk / "etc/ec2-metadata"
    metadata.mkdir(parents=True)
    (disk / "etc").chmod(0o755)
    metadata.chmod(0o700)
    (metadata / "user-data").write_text(spec.user_data)
    (metadata / "public-keys-0-openssh-key").write_text("".join(f"{key}\n" for key in spec.authorized_keys))
    (disk / PROFILES).mkdir(parents=True)
    (disk / PROFILES / "system-1-link").symlink_to(system)
    (disk / PROFILES / "system").symlink_to("system-1-link")
    (disk / "boot").mkdir()
    (disk / "boot/nixos-entry").write_text(f"{system}\n")


def base_system(root: Path, spec: MachineSpec) -> str:
    """The toplevel in the root file system `root` that the machine boots first.

    Raises MachineError if there is none for its release.
    """
    systems = json.loads((root / "systems.json").read_text())
    if spec.release not in systems:
        raise MachineError(
            f"{spec.name}: no image of release {spec.release!r}; there are: {', '.join(sorted(systems))}"
        )
    return str(systems[spec.release]["ec2" if spec.name.startswith("i-") else "host"])
