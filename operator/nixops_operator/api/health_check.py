"""`spec.healthChecks`: what has to hold on a machine before a new system is confirmed, and ever after."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from nixops_operator.api.field_types import (
    IN_ORDER,
    MERGED_BY_NAME,
    SET,
    Label,
    LongText,
    SpecModel,
    UpToHalfAMinute,
    UpToThreeMinutes,
    cel_rules,
)

Port = Annotated[int, Field(ge=1, le=65535)]


class HttpCheck(SpecModel):
    """An answer to GET over plain HTTP, from the machine itself; a redirection is an answer and is not followed."""

    port: Port
    """Port on the machine's loopback address."""
    path: Annotated[str, StringConstraints(max_length=1024, pattern="^/[!-~]*$")] = "/"
    """What is asked for, with its query."""
    host: Annotated[str, StringConstraints(max_length=253, pattern="^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")] = (
        "localhost"
    )
    """The Host header: which of several virtual hosts. The connection goes to the machine itself whatever it says."""
    expect_status: Annotated[int, Field(ge=100, le=599)] = 200
    """The status of the answer."""


class TcpCheck(SpecModel):
    """Something listens."""

    port: Port
    """Port on the machine's loopback address."""


class ExecCheck(SpecModel):
    """A command that ends with 0."""

    command: Annotated[
        tuple[Annotated[LongText, StringConstraints(max_length=1024)], ...],
        Field(min_length=1, max_length=32, json_schema_extra=IN_ORDER),
    ]
    """Program and arguments, as root, without a shell, with the running system's programs on PATH. It must change
    nothing. What it prints is dropped: it may hold secrets. A text with a private key or an AWS access key id is
    refused."""


UnitName = Annotated[
    str,
    StringConstraints(
        max_length=255,
        pattern=r"^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|mount|automount|swap|path|timer|slice|scope|device)$",
    ),
]
_ONE_KIND = "a health check is exactly one of http, tcp, units and exec"
_KINDS = ("http", "tcp", "units", "exec")


class HealthCheck(SpecModel):
    """One question, asked on the machine again and again."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (f"[{', '.join(f'has(self.{kind})' for kind in _KINDS)}].exists_one(x, x)", _ONE_KIND)
        )
    )

    name: Label
    """What messages call it."""
    http: HttpCheck | None = None
    """A web server answers."""
    tcp: TcpCheck | None = None
    """Something listens."""
    units: Annotated[tuple[UnitName, ...], Field(min_length=1, max_length=16, json_schema_extra=SET)] | None = None
    """systemd units are active."""
    exec: ExecCheck | None = None
    """A command succeeds."""
    initial_delay: UpToThreeMinutes | None = None
    """How long after a change of the running system it is asked for the first time. Absent: at once."""
    period: UpToHalfAMinute = timedelta(seconds=10)
    """How long from one time to the next."""
    timeout: UpToHalfAMinute = timedelta(seconds=5)
    """How long an answer may take."""
    failure_threshold: Annotated[int, Field(ge=1, le=5)] = 3
    """How many failures in a row count as one."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.http, self.tcp, self.units, self.exec].count(None) != len(_KINDS) - 1:
            raise ValueError(_ONE_KIND)
        return self


def _named_once(checks: tuple[HealthCheck, ...]) -> tuple[HealthCheck, ...]:
    names = [check.name for check in checks]
    if len(set(names)) < len(names):
        raise ValueError("two health checks have the same name")
    return checks


HealthChecks = Annotated[
    tuple[HealthCheck, ...], Field(max_length=8, json_schema_extra=MERGED_BY_NAME), AfterValidator(_named_once)
]
