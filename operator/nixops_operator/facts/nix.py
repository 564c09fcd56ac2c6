"""Sources, evaluations and their results as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """An immutable tree in the operator's store."""

    store_path: str  # /nix/store/…-source
    nar_hash: str  # sha256-… (SRI)


@dataclass(frozen=True)
class Module:
    """One NixOS module. Either `text` (a file of its own) or `path` inside the machine's source; `label` is what
    messages call it."""

    label: str  # "modules[0]" for inline text, "configuration.nix" for a file of the source
    text: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class SystemInput:
    """What a machine's evaluation depends on; hashed into the job's name."""

    name: str
    deployment: str
    uuid: str
    system: str
    is_ec2: bool
    files: Mapping[str, bytes] | None
    nixpkgs_path: str | None  # inside the files; None: the operator's own
    modules: tuple[Module, ...]
    state_version: str | None
    arguments: Mapping[str, str]


@dataclass(frozen=True)
class EvaluationRequest:
    """All that an evaluation depends on; equal requests have equal results."""

    name: str  # the machine's name in its deployment
    deployment: str
    uuid: str
    system: str  # x86_64-linux | aarch64-linux
    is_ec2: bool  # the guest module then imports nixpkgs' amazon-image.nix
    nixpkgs: Source
    source: Source | None
    modules: tuple[Module, ...]
    state_version: str | None  # of system.stateVersion, unless a module says it; None: a module must
    trusted_public_key: str  # added to the machine's nix.settings.trusted-public-keys
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What a configuration is."""

    drv_path: str
    toplevel: str
    warnings: tuple[str, ...] = ()
