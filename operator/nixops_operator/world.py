"""All that a pass may use, wired once by the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nixops_operator.api.machine_spec import AwsSettings, BuildOn
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache
from nixops_operator.ec2.credentials import AssumedRole, AwsIdentity, Lent, aws_identity, own_identity
from nixops_operator.errors import Blocked, InvalidSpec
from nixops_operator.facts.kube import Key
from nixops_operator.facts.nix import Archive, Folder, Source, Tree
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Jobs
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix
from nixops_operator.reads import Reads
from nixops_operator.shared_facts import SharedFacts
from nixops_operator.store_room import stored_at

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView


@dataclass(frozen=True)
class Policy:
    """What the administrator decided; tenants cannot change it."""

    default_image_owner: str
    default_image_name: str
    hosts: HostPolicy
    nixpkgs: Tree | None  # of configurations that name none
    progress_deadline: timedelta
    lent: tuple[Lent, ...] = ()  # to whom the operator's own AWS identity is
    build_on: BuildOn = BuildOn.AUTO  # of machines that do not say
    build_timeout: timedelta = timedelta(hours=2)  # of a build on a machine, by the clock
    build_silent: timedelta = timedelta(minutes=30)  # of one derivation there without a line of log
    namespaces: tuple[str, ...] = ()  # whose objects are watched; empty = the whole cluster's


@dataclass(frozen=True)
class World:
    """Ports and what is shared around them. `cluster_id` marks everything that this cluster makes in a cloud; `now` is
    aware UTC."""

    cluster_id: str
    policy: Policy
    kube: Kube
    nix: Nix
    cache: Cache
    clouds: CloudInformers
    hosts: HostInformers
    jobs: Jobs[Key]
    reads: Reads
    wake: Callable[[Key], None]
    now: Callable[[], datetime]
    digest_key: bytes = field(repr=False)
    """What digests of secrets are keyed with; it is the operator's alone, and lasts (machine/keys.py)."""
    answered_tokens: set[str] = field(default_factory=set)
    """Client tokens all of whose calls were made by this process and answered: what EC2 said of them is all there is.
    Other tokens may have been sent by a process that died before it heard the answer."""
    replacements: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a pass that begins to replace an instance, so that of a deployment's machines one does."""
    facts: SharedFacts = field(default_factory=SharedFacts)
    _folders: dict[Path, Source] = field(default_factory=dict)

    async def tree(self, tree: Tree, progress: Callable[[str], None] = lambda _text: None) -> Source:
        """A tree in the operator's store. Folders are read once per process: hashing a whole nixpkgs takes seconds.

        Raises as Nix.fetch and Nix.add_path.
        """
        match tree:
            case Archive():
                return await self.nix.fetch(tree, progress)
            case Folder(path):
                if path not in self._folders:
                    self._folders[path] = await self.nix.add_path(path)
                return self._folders[path]

    def hash_of(self, tree: Tree) -> str | None:
        """Its NAR hash; None for a folder that was not read yet."""
        match tree:
            case Archive(_, nar_hash):
                return nar_hash
            case Folder(path):
                return self._folders[path].nar_hash if path in self._folders else None

    def default_sources(self) -> frozenset[str]:
        """Store paths of the trees of configurations that name none, as far as they were asked for."""
        return stored_at(self.policy.nixpkgs) | {source.store_path for source in self._folders.values()}

    async def identity(self, namespace: str, aws: AwsSettings, *, is_leaving: bool = False) -> AwsIdentity:
        """The AWS identity that a spec names. `is_leaving`: one whose Secret has gone meanwhile serves, too.

        Raises Blocked (`CredentialsForbidden`, `SecretNotFound`, `AuthFailure`).
        """
        credentials = aws.credentials
        wanted = credentials.assume_role if credentials is not None else None
        role = AssumedRole(wanted.role_arn, wanted.external_id) if wanted is not None else None
        if credentials is None or credentials.secret_ref is None:
            return own_identity(self.policy.lent, namespace, role)
        name = credentials.secret_ref.name
        secret = await self.reads.secret(namespace, name)
        if secret is None and is_leaving:
            secret = self.reads.last_secret(namespace, name)
        try:
            keys = aws_identity(name, secret.data if secret is not None else None, credentials.profile)
            return replace(keys, role=role)
        except Blocked:
            self.reads.forget_secret(namespace, name)
            raise

    async def cloud(self, key: Key, uids: frozenset[str], aws: AwsSettings, *, is_leaving: bool = False) -> CloudView:
        """EC2 as the identity and region of a spec show it, for `key`. Raises as `identity`."""
        if aws.region is None:
            raise InvalidSpec("spec.aws.region", "name the region in which the EC2 resources are to be")
        identity = await self.identity(key.namespace, aws, is_leaving=is_leaving)
        view = self.clouds.view(key, uids, identity, aws.region, self.cluster_id)
        if isinstance(view.error, Blocked) and aws.credentials is not None and aws.credentials.secret_ref is not None:
            # What EC2 refuses may have been rotated.
            self.reads.forget_secret(key.namespace, aws.credentials.secret_ref.name)
        return view


def no_nixpkgs() -> Blocked:
    """Neither the configuration nor the administrator names one."""
    message = "no nixpkgs: set the operator's nix.nixpkgs, or name spec.configuration.nixpkgs"
    return Blocked(Reason.SOURCE_NOT_FOUND, message)
