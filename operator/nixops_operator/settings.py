"""Every knob, with unit, default and reason. Read once at start from a YAML file (`NIXOPS_CONFIG`) and `NIXOPS_…`
variables; unknown keys end the start.

The file is the chart's ConfigMap; keys are camelCase there. A variable wins over the file: `NIXOPS_RESYNC_PERIOD=5s`,
`NIXOPS_NIX__MAX_JOBS=2`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from nixops_operator.api.durations import parse_duration

Duration = Annotated[timedelta, BeforeValidator(lambda text: parse_duration(text) if isinstance(text, str) else text)]
"""`90s`, `5m`, `1h30m`."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Log(_Part):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Server(_Part):
    """/healthz, /readyz, /metrics."""

    port: int = 8080
    address: str = "0.0.0.0"  # noqa: S104 - probes come from the node


class Lease(_Part):
    """One acting operator per cluster. No safety rests on it; it keeps two operators from working against each other's
    patience."""

    enabled: bool = True
    namespace: str = "nixops-system"
    name: str = "nixops-operator"


Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""RFC 1123 label, as the API server wants it; in particular no pattern, which kopf would take one for."""


class Watch(_Part):
    namespaces: tuple[Namespace, ...] = ()  # whose objects are acted on; empty = the whole cluster's


class Aws(_Part):
    endpoint_url: str | None = None  # another EC2 endpoint, as VPC endpoints and test benches have


class DefaultImage(_Part):
    """The image of a machine that names none: the newest of `owner` that matches `name`."""

    owner: str = "427812963091"  # the NixOS project's AWS account (nixos.org, "Amazon EC2")
    name: str = "nixos/25.11*-x86_64-linux"


class Ec2(_Part):
    default_image: DefaultImage = DefaultImage()
    sweep_period: Duration = timedelta(seconds=10)  # instances; one call per 1,000 of them
    network_period: Duration = timedelta(seconds=30)  # security groups, rules, key pairs: they change by hand only


class Hosts(_Part):
    allowed_cidrs: tuple[IPv4Network | IPv6Network, ...] = ()  # where given hosts may lie; empty = nowhere
    denied_cidrs: tuple[IPv4Network | IPv6Network, ...] = ()  # pod and service networks of the cluster
    facts_period: Duration = timedelta(seconds=5)  # how often a held connection is asked


class Evaluation(_Part):
    memory: int = 4 * 1024**3  # bytes of address space; real hosts take 0.5-4.5 GB
    timeout: Duration = timedelta(minutes=5)
    concurrency: int = Field(1, ge=1)  # evaluations at once; each may take `memory`


class Nixpkgs(_Part):
    """The nixpkgs of configurations that name none."""

    path: Path


class Nix(_Part):
    nixpkgs: Nixpkgs | None = None
    max_jobs: int = Field(1, ge=1)  # builders at once within one build
    build_concurrency: int = Field(2, ge=1)
    copy_concurrency: int = Field(5, ge=1)
    evaluation: Evaluation = Evaluation()


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="NIXOPS_",
        env_prefix_target="all",  # else `WORKERS` and `LOG` would count: the file's names are aliases
        env_nested_delimiter="__",
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
    )

    cluster_id: str | None = None  # overrides the uid of kube-system after a cluster was rebuilt
    resync_period: Duration = timedelta(seconds=60)  # every object is looked at that often, whatever events said
    workers: int = Field(8, ge=1)  # passes at once
    progress_deadline: Duration = timedelta(minutes=30)  # work without an end is reported as stalled after this
    log: Log = Log()
    server: Server = Server()
    lease: Lease = Lease()
    watch: Watch = Watch()
    aws: Aws = Aws()
    ec2: Ec2 = Ec2()
    hosts: Hosts = Hosts()
    nix: Nix = Nix()

    @model_validator(mode="after")
    def _periods_are_positive(self) -> Settings:
        for name in ("resync_period", "progress_deadline"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"{to_camel(name)} must be longer than 0 s")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("NIXOPS_CONFIG")
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, _Variables(settings_cls))
        return (*sources, YamlConfigSettingsSource(settings_cls, yaml_file=file)) if file else sources


class _Variables(EnvSettingsSource):
    """`NIXOPS_…` variables under the file's names: merged under two names, a setting would be an unknown one."""

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = _camel(super().__call__())
        return found


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {to_camel(key): _camel(inner) for key, inner in value.items()}
    return value


def load(**overrides: Any) -> Settings:
    """Settings from the file and the environment. Raises pydantic.ValidationError naming the key, OSError if the file
    is missing."""
    file = os.environ.get("NIXOPS_CONFIG")
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"NIXOPS_CONFIG names {file}, which is no file")
    return Settings(**overrides)
