"""Where a lab keeps its things. One lab is one folder; everything else is named after that folder."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
SOURCES = CHECKOUT / "tests" / "lab"
DEFAULT_FOLDER = Path("/var/lib/nixops-lab/default")


def cache_folder() -> Path:
    """What is built once and shared by all labs of this user: compiled programs, root file systems."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nixops-lab"


@dataclass(frozen=True)
class LabPaths:
    """The files of one lab. `folder` is absolute and free of symbolic links, so that one folder has one name."""

    folder: Path

    @classmethod
    def of(cls, folder: str | os.PathLike[str] | None) -> "LabPaths":
        """The lab in `folder`; None is the one in LAB_DIR, or else the default one."""
        return cls(Path(folder or os.environ.get("LAB_DIR") or DEFAULT_FOLDER).resolve())

    @property
    def namespace(self) -> str:
        """The network namespace: short, and different for every folder."""
        return "nixops-lab-" + hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:6]

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def environment(self) -> Path:
        return self.folder / "env"

    @property
    def identities(self) -> Path:
        """Keys and access keys of this lab: made once, kept over `down`."""
        return self.folder / "identities"

    @property
    def client_key(self) -> Path:
        return self.identities / "client"

    @property
    def host_key(self) -> Path:
        return self.identities / "given-host"

    @property
    def programs(self) -> Path:
        """kubectl, helm and the lab command, for PATH."""
        return self.folder / "bin"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    @property
    def ec2_log(self) -> Path:
        return self.folder / "ec2.log"

    @property
    def control_plane(self) -> Path:
        return self.folder / "control-plane"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def nixpkgs(self) -> Path:
        return self.folder / "nixpkgs"

    @property
    def archives(self) -> Path:
        """What the server of sources shows under /archive/."""
        return self.folder / "archives"

    @property
    def machines(self) -> Path:
        return self.folder / "machines"

    @property
    def node(self) -> Path:
        return self.folder / "node"

    @property
    def operator(self) -> Path:
        return self.folder / "operator"
