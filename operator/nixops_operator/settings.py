"""Every knob, with unit, default and reason. Read once at start from a YAML file (`NIXOPS_CONFIG`) and `NIXOPS_…`
variables; unknown keys end the start.

The file is the chart's ConfigMap; keys are camelCase there. A variable wins over the file: `NIXOPS_RESYNC_PERIOD=5s`,
`NIXOPS_NIX__BUILD__MAX_JOBS=2`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from nixops_operator.api.durations import parse_duration
from nixops_operator.api.machine_spec import BuildOn
from nixops_operator.egress_policy import parsed

PREFIX = "NIXOPS_"
GIB = 1024**3
MIB = 1024**2


def _duration(given: object) -> object:
    if isinstance(given, timedelta):
        return given
    if not isinstance(given, str):
        # pydantic would take a number for seconds, and 0 for a period that never waits.
        raise ValueError("write it with its unit, as 90s, 5m or 1h30m")  # noqa: TRY004 - pydantic turns it into its own
    return parse_duration(given)


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""`90s`, `5m`, `1h30m`; longer than 0 s."""
Network = IPv4Network | IPv6Network
Port = Annotated[int, Field(ge=1, le=65535)]
AtLeastOne = Annotated[int, Field(ge=1)]


def _bytes(given: object) -> object:
    """A number of bytes, or a quantity as Kubernetes writes it (`20Gi`)."""
    if not isinstance(given, str) or (found := _QUANTITY.fullmatch(given)) is None:
        return given
    return int(float(found["number"]) * _UNITS[found["unit"]])


_UNITS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}
_QUANTITY = re.compile(rf"(?P<number>\d{{1,15}}(?:\.\d{{1,3}})?)(?P<unit>{'|'.join(sorted(_UNITS, reverse=True))})")
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Log(_Part):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Server(_Part):
    """/healthz, /readyz, /metrics."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8080  # 0 = any free one
    address: str = "0.0.0.0"  # noqa: S104 - probes come from the node


class Lease(_Part):
    """One acting operator per cluster. No safety rests on it; it keeps two operators from working against each other's
    patience."""

    enabled: bool = True
    namespace: str = "nixops-system"
    name: str = "nixops-operator"


Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""RFC 1123 label, as the API server wants it; in particular no pattern, which kopf would take one for."""


class Kube(_Part):
    """How the API server is asked."""

    # At most; not set: as the API server lets it (docs/decisions/0016). For one that shares badly among its clients.
    requests_per_second: AtLeastOne | None = None


class Watch(_Part):
    namespaces: tuple[Namespace, ...] = ()  # whose objects are acted on; empty = the whole cluster's


class Loan(_Part):
    """The operator's own AWS identity, for the objects of a namespace that name no Secret with credentials."""

    namespace: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    # Role ARNs that it may be used to act as, and nothing else. Empty: the identity itself, and no role.
    roles: tuple[str, ...] = ()


class Aws(_Part):
    endpoint_url: str | None = None  # another EC2 endpoint, as VPC endpoints and test benches have
    # To whom the operator lends the identity that it has by itself: of its service account (IRSA, EKS Pod Identity) or
    # of its node. Whoever may create a NixMachine there then acts with its rights.
    lend: tuple[Loan, ...] = ()


class DefaultImage(_Part):
    """The image of a machine that names none: of those of `owner` that match `name`, the newest for the architecture of
    the machine's instance type. So `name` names no architecture."""

    owner: str = "427812963091"  # the NixOS project's AWS account (nixos.org, "Amazon EC2")
    name: str = "nixos/25.11*"


class Ec2(_Part):
    default_image: DefaultImage = DefaultImage()
    sweep_period: Duration = timedelta(seconds=10)  # instances; one call per 1,000 of them
    network_period: Duration = timedelta(seconds=30)  # security groups, rules, key pairs: they change by hand only


NEVER_A_MACHINE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "::1/128",
        "169.254.0.0/16",  # link-local, the instance metadata of EC2 among it
        "fe80::/10",
        "fd00:ec2::254/128",  # instance metadata by IPv6 (EC2 User Guide, "Access instance metadata")
    )
)


class Hosts(_Part):
    """Where the operator may connect to by SSH. Whoever may create a NixMachine chooses the address."""

    allowed_cidrs: tuple[Network, ...] = ()  # where given hosts may lie; empty = nowhere
    # Where no machine lies, whatever is allowed. Put the cluster's networks of pods and services here, and keep the
    # default's: a list given replaces it.
    denied_cidrs: tuple[Network, ...] = NEVER_A_MACHINE
    allowed_ports: tuple[Port, ...] = (22,)  # which target.host.port may name: others would let it scan for services
    facts_period: Duration = timedelta(seconds=5)  # looks at a machine that does not tell of changes


class Evaluation(_Part):
    """Of configurations. Real hosts take 0.5-4.5 GB and up to 46 s of CPU."""

    concurrency: AtLeastOne = 1  # at once; each may take `memory`
    memory: Bytes = 4 * GIB  # of address space
    timeout: Duration = timedelta(minutes=5)  # of CPU and by the clock
    disk: Bytes = 256 * MIB  # of the files that it makes: derivations, its store's data base


class Build(_Part):
    """Of systems. Limits are those of one build; a build over one is ended and told. `timeout` and `silent` hold on
    machines, too; the others are about builds in the operator's own pod."""

    # Where machines' systems are built that do not say. Auto: Operator where a builder can be confined, else Target.
    on: BuildOn = BuildOn.AUTO

    @model_validator(mode="before")
    @classmethod
    def _on_without_quotes(cls, given: Any) -> Any:
        """YAML 1.1 reads an unquoted `on` as true; Helm hands it on as the text "true"."""
        if not isinstance(given, dict):
            return given
        return {"on" if name is True or name == "true" else name: value for name, value in given.items()}

    concurrency: AtLeastOne = 2  # at once
    max_jobs: AtLeastOne = 1  # builders at once within one build
    memory: Bytes = 8 * GIB  # of data of each process; a pod's own limit holds for all of them together
    processes: AtLeastOne = 2048  # with their threads
    free_disk: Bytes = GIB  # that stay free beside store and scratch; with less, none begins
    timeout: Duration = timedelta(hours=2)  # by the clock
    silent: Duration = timedelta(minutes=30)  # one derivation without a line of log


class Store(_Part):
    """The operator's Nix store. Systems that a living machine is to run, runs or ran before, the trees that its spec
    names, and what jobs work with, stay; everything else is collected before room ends."""

    min_free: Bytes = 4 * GIB  # with less free where it lies, garbage is collected; more than nix.build.freeDisk
    max_free: Bytes = 8 * GIB  # until so much is free
    # What it may take, as 20Gi; it is collected from 85 % of that on. The chart names the limit of its own volume
    # (store.sizeLimit), beyond which the kubelet evicts the pod: with less than freeDisk left of it, or a twentieth,
    # builds are ended. Not set: the disk alone counts.
    max_size: Bytes | None = None


class Scratch(_Part):
    """The folder where evaluations and builds work, below TMPDIR."""

    # As that of the store, with scratch.sizeLimit.
    max_size: Bytes | None = None


class Copy(_Part):
    """Of closures to machines."""

    concurrency: AtLeastOne = 5  # at once; each is mostly the network's
    stall: Duration = timedelta(minutes=5)  # nothing has moved for so long: ended, its place goes to another


class Nixpkgs(_Part):
    """The nixpkgs of configurations that name none: a folder that is mounted into the pod, or a tarball by the hash of
    the tree in it. A change moves no machine before its spec changes or it is asked to (docs/decisions/0021)."""

    path: Path | None = None
    url: str | None = None  # https://github.com/NixOS/nixpkgs/archive/<revision>.tar.gz
    hash: Annotated[str, StringConstraints(pattern=r"^sha256-[A-Za-z0-9+/]{43}=$")] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.path is None) == (self.url is None) or (self.url is None) != (self.hash is None):
            raise ValueError("give either path, or url with hash")
        if self.url is not None:
            parsed(self.url)
        return self


class Sources(_Part):
    """Limits of trees that are fetched as tarballs. nixpkgs has 50 MB compressed, 50,000 files, 300 MB unpacked."""

    concurrency: AtLeastOne = 4  # fetched at once
    compressed: Bytes = 256 * 1024**2
    files: AtLeastOne = 250_000
    unpacked: Bytes = 2 * GIB


class Egress(_Part):
    """Where the operator may fetch from over HTTP. Sources, caches and fixed outputs are fetched from what the name
    shows on the internet; private, link-local and loopback addresses, those of hosts.deniedCidrs and the API server are
    refused."""

    # Networks of such addresses that may be fetched from all the same, each inside of one of them: 10.1.2.3/32 for a
    # mirror in the cluster. 0.0.0.0/0 opens none.
    allowed_cidrs: tuple[Network, ...] = ()
    allowed_ports: tuple[Port, ...] = (80, 443)  # of URLs that tenants and their modules write


class Substituter(_Part):
    """A binary cache. It is believed what one of its keys has signed."""

    url: str
    public_keys: Annotated[tuple[str, ...], Field(min_length=1)]  # <name>:<base64>

    @field_validator("url")
    @classmethod
    def _one_way_to_read_it(cls, url: str) -> str:
        return str(parsed(url)).rstrip("/")


# Key: nix.conf(5), "trusted-public-keys".
NIXOS_CACHE = Substituter(
    url="https://cache.nixos.org",
    public_keys=("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",),
)


class Nix(_Part):
    # Where systems that the operator builds come from as far as somebody has built them; in this order.
    substituters: tuple[Substituter, ...] = (NIXOS_CACHE,)
    # netrc(5) with what those of them are told that ask for a password, by host and over https alone.
    netrc_file: Path | None = None
    nixpkgs: Nixpkgs | None = None
    # What evaluations run in. Landlock needs a kernel that has it, Namespaces a node and a pod that allow user
    # namespaces; Auto takes Landlock where it is there. Either is attacked at start.
    box: Literal["Auto", "Landlock", "Namespaces"] = "Auto"
    sources: Sources = Sources()
    egress: Egress = Egress()
    evaluation: Evaluation = Evaluation()
    build: Build = Build()
    store: Store = Store()
    scratch: Scratch = Scratch()
    # Not `copy`, which every pydantic model has as a method.
    copies: Copy = Field(Copy(), alias="copy")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_prefix_target="all",  # else `WORKERS` and `LOG` would count: the file's names are aliases
        env_nested_delimiter="__",
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
    )

    cluster_id: str | None = None  # overrides the uid of kube-system after a cluster was rebuilt
    resync_period: Duration = timedelta(seconds=60)  # every object is looked at that often, whatever events said
    workers: AtLeastOne = 16  # passes at once; a pass waits for the API server alone
    progress_deadline: Duration = timedelta(minutes=30)  # work without an end is reported as stalled after this
    log: Log = Log()
    server: Server = Server()
    lease: Lease = Lease()
    kube: Kube = Kube()
    watch: Watch = Watch()
    aws: Aws = Aws()
    ec2: Ec2 = Ec2()
    hosts: Hosts = Hosts()
    nix: Nix = Nix()

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


class Refused(ValueError):
    """Settings that cannot be used; for people, a line for each that is wrong."""


def load(**overrides: Any) -> Settings:
    """Settings from the file and the environment. Raises Refused, which names each key that is wrong, and OSError if
    the file is missing."""
    file = os.environ.get("NIXOPS_CONFIG")
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"NIXOPS_CONFIG names {file}, which is no file")
    slips = list(_misspelt_variables(os.environ))
    if slips:
        raise Refused("\n".join(slips))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise Refused("\n".join(_lines(error))) from error
    except SettingsError as error:
        raise Refused(f"{error}: {error.__cause__}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"{file} holds no settings: {error}") from error


def _lines(error: ValidationError) -> Iterator[str]:
    for one in error.errors(include_url=False):
        name = ".".join(str(part) for part in one["loc"])
        if one["type"] == "extra_forbidden":
            yield f"{name}: there is no such setting{_did_you_mean(name, _names(Settings))}"
        else:
            yield f"{name}: {one['msg']}"


def _misspelt_variables(environment: Iterable[str]) -> Iterator[str]:
    """Variables that are no setting and look like one. pydantic passes over them, as over those of others that begin
    with the prefix: Kubernetes makes some for each Service."""
    known = {variable_name(name): name for name in _names(Settings)}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable == "NIXOPS_CONFIG":
            continue
        is_known = any(variable == name or variable.startswith(f"{name}__") for name in known)
        if not is_known and (near := difflib.get_close_matches(variable, known, 1, 0.85)):
            yield f"{variable}: there is no such setting; did you mean {near[0]}?"


def variable_name(name: str) -> str:
    """`NIXOPS_NIX__BUILD__MAX_JOBS` of `nix.build.maxJobs`."""
    parts = ("".join(f"_{letter}" if letter.isupper() else letter for letter in part) for part in name.split("."))
    return PREFIX + "__".join(parts).upper()


def _names(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Dotted names of all settings and their groups, as in the file."""
    for field in model.model_fields.values():
        yield (name := f"{before}{field.alias}")
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _names(part, f"{name}.")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
