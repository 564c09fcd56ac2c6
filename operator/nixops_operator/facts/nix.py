"""Sources, evaluations and their results as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """An immutable tree in the operator's store."""

    store_path: str  # /nix/store/…-source
    nar_hash: str  # sha256-… (SRI)


@dataclass(frozen=True)
class Archive:
    """A tarball whose one folder has this NAR hash. `is_administrators`: it is named in the settings."""

    url: str
    nar_hash: str  # sha256-… (SRI)
    is_administrators: bool = False

    @property
    def identity(self) -> str:
        """Equal for equal trees, wherever they come from."""
        return self.nar_hash

    @property
    def origin(self) -> str:
        """Equal for equal trees from equal places: what one place answers says nothing of another."""
        return f"{self.nar_hash} {self.url}{' (settings)' if self.is_administrators else ''}"


@dataclass(frozen=True)
class Folder:
    """A folder of the operator's own disk."""

    path: Path

    @property
    def identity(self) -> str:
        """Equal for equal places: what lies there is known once it was read."""
        return f"path:{self.path}"

    @property
    def origin(self) -> str:
        """As an archive's."""
        return self.identity


Tree = Archive | Folder


@dataclass(frozen=True)
class Module:
    """One NixOS module. Either `text` (a file of its own) or `path` inside the machine's source; `label` is what
    messages call it."""

    label: str  # "modules[0]" for inline text, "configuration.nix" for a file of the source
    text: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class KeyFile:
    """A file that the operator delivers, as modules are told of it."""

    name: str
    path: str
    user: str
    group: str
    permissions: str
    is_first: bool  # no system is activated before it is there


@dataclass(frozen=True)
class SystemInput:
    """What a machine's evaluation depends on; hashed into the job's name."""

    name: str
    deployment: str
    uuid: str
    system: str
    is_ec2: bool
    files: Mapping[str, bytes] | None
    archive: Archive | None  # instead of files
    nixpkgs_path: str | None  # a folder of the files, or of the archive
    nixpkgs: Tree | None  # None: where nixpkgs_path says
    modules: tuple[Module, ...]
    state_version: str | None
    arguments: Mapping[str, str]
    keys: tuple[KeyFile, ...] = ()

    @property
    def trees(self) -> tuple[Tree, ...]:
        """What has to be fetched first, each once."""
        return tuple(dict.fromkeys(tree for tree in (self.archive, self.nixpkgs) if tree is not None))


@dataclass(frozen=True)
class Peer:
    """Another machine of the deployment. `request`: for its own evaluation, its facts aside; `revision`: another one
    for another request."""

    request: EvaluationRequest
    revision: str


@dataclass(frozen=True)
class Facts:
    """What an evaluation is told of the deployment around its machine, to read as it needs it.

    `values`: path, as `nodes.db.config.networking.privateIPv4` → JSON text. `peers`: name of another machine → what
    `nodes.<name>` is made of. What is in neither is not known.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)

    def told(self, paths: Iterable[str]) -> Told:
        """What was said of these."""
        revisions = {configuration_path(name): peer.revision for name, peer in self.peers.items()}
        return {path: self.values.get(path, revisions.get(path)) for path in paths}


Told = Mapping[str, str | None]
"""Path of a fact → another text for another value; None: it is not known."""


def configuration_path(machine: str) -> str:
    """The fact that another machine's configuration is."""
    return f"nodes.{machine}"


@dataclass(frozen=True)
class EvaluationRequest:
    """All that an evaluation depends on; equal requests have equal results.

    `tenant` changes nothing of them: it is the namespace whose evaluations may find what its earlier ones left.
    """

    name: str  # the machine's name in its deployment
    deployment: str
    uuid: str
    system: str  # x86_64-linux | aarch64-linux
    is_ec2: bool  # the guest module then imports nixpkgs' amazon-image.nix
    nixpkgs: Source
    nixpkgs_folder: str  # inside of nixpkgs; "": it is the tree itself
    source: Source | None
    modules: tuple[Module, ...]
    state_version: str | None  # of system.stateVersion, unless a module says it; None: a module must
    trusted_public_key: str  # added to the machine's nix.settings.trusted-public-keys
    tenant: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[KeyFile, ...] = ()
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class StoreSpace:
    """`free`: bytes that may still be written where the operator's store lies. `used`: bytes that it takes there; None
    if that is not measured."""

    free: int
    used: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a configuration is, as long as the facts that it read are as it was `told`. `warnings`: the first few
    dozen, each a short line."""

    drv_path: str
    toplevel: str
    warnings: tuple[str, ...] = ()
    told: Told = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    """An evaluation that cannot be finished before the fact at `path` is known. `told`: as an Evaluation's."""

    path: str
    told: Told
