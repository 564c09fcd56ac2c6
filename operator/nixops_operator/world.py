"""All that a pass may use, wired once by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from nixops_operator.api.machine_spec import AwsSettings
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache
from nixops_operator.ec2.credentials import AwsIdentity, aws_identity
from nixops_operator.errors import Blocked, InvalidSpec
from nixops_operator.facts.kube import Key
from nixops_operator.facts.nix import Source
from nixops_operator.informers.cloud import CloudInformer, CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Jobs
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix


@dataclass(frozen=True)
class Policy:
    """What the administrator decided; tenants cannot change it."""

    default_image_owner: str
    default_image_name: str
    allowed_hosts: tuple[IPv4Network | IPv6Network, ...]  # where given hosts may lie
    denied_hosts: tuple[IPv4Network | IPv6Network, ...]
    nixpkgs: Path | None  # of configurations that name none
    progress_deadline: timedelta


@dataclass(frozen=True)
class World:
    """Ports and shared looks. `cluster_id` marks everything that this cluster makes in a cloud."""

    cluster_id: str
    policy: Policy
    kube: Kube
    nix: Nix
    cache: Cache
    clouds: CloudInformers
    hosts: HostInformers
    jobs: Jobs[Key]
    wake: Callable[[Key], None]
    _nixpkgs: dict[Path, Source] = field(default_factory=dict)

    async def default_nixpkgs(self) -> Source:
        """The operator's own nixpkgs in its store. Read once per process: hashing a whole nixpkgs takes seconds."""
        path = self.policy.nixpkgs
        if path is None:
            message = "no nixpkgs: set the operator's nix.nixpkgs.path, or name spec.configuration.nixpkgs.path"
            raise Blocked(Reason.SOURCE_NOT_FOUND, message)
        if path not in self._nixpkgs:
            self._nixpkgs[path] = await self.nix.add_path(path)
        return self._nixpkgs[path]

    async def identity(self, namespace: str, aws: AwsSettings) -> AwsIdentity:
        """The AWS identity that a spec names. Raises Blocked (`CredentialsForbidden`, `SecretNotFound`,
        `AuthFailure`)."""
        credentials = aws.credentials
        if credentials is None or credentials.secret_ref is None:
            message = (
                "spec.aws.credentials names no Secret, and the operator lends its own AWS identity to nobody; "
                "name one made by: kubectl create secret generic aws --from-file=credentials=$HOME/.aws/credentials"
            )
            raise Blocked(Reason.CREDENTIALS_FORBIDDEN, message)
        name = credentials.secret_ref.name
        return aws_identity(name, await self.kube.get_secret(namespace, name), credentials.profile)

    async def look_at_cloud(self, key: Key, uids: frozenset[str], aws: AwsSettings) -> CloudInformer:
        """The shared look of the identity and region that a spec names. Raises as `identity`."""
        if aws.region is None:
            raise InvalidSpec("spec.aws.region", "name the region in which the EC2 resources are to be")
        identity = await self.identity(key.namespace, aws)
        return await self.clouds.watch(key, uids, identity, aws.region, self.cluster_id)
