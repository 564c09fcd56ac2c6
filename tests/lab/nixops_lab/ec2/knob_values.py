"""What the values of knobs mean: JSON or text in, values out. Each reader raises ValueError for what it cannot read."""

import difflib
import functools
import re
from collections.abc import Collection
from dataclasses import dataclass

import botocore.session

from nixops_lab.ec2.filters import matches

# Read by YAML, `off` and `no` are false.
_NOTHING = (None, False, "", "off")


def nearest(name: str, known: Collection[str]) -> str:
    """Says which of the known names was probably meant."""
    return f"did you mean {difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)[0]}?"


def seconds(given: object) -> float:
    """Zero or more."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError("takes a number of seconds")  # noqa: TRY004 - the control interface's one class
    number = float(given)
    if not 0 <= number < float("inf"):
        raise ValueError("takes a number of seconds, zero or more")
    return number


def count(given: object) -> int | None:
    """A whole number, zero or more; None for no limit."""
    if given in {None, "", "unlimited"} or given is False:
        return None
    if isinstance(given, bool) or not str(given).isdecimal():
        raise ValueError("takes a number, or `unlimited`")
    return int(str(given))


@dataclass(frozen=True)
class Death:
    """What becomes of a launch: its StateReason, and after how many seconds."""

    code: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.code}:{self.seconds:g}"


def death(given: object) -> Death | None:
    """`Client.InternalError:5`; None for nothing."""
    if given in _NOTHING:
        return None
    code, _, after = str(given).partition(":")
    if not re.fullmatch(r"(Client|Server)\.[A-Za-z.]+", code) or not after:
        raise ValueError("takes a StateReason and seconds, as Client.InternalError:5")
    return Death(code, seconds(after))


def delay(given: object) -> float | None:
    """Zero or more seconds; None for never."""
    return None if given in {None, "", "off"} or given is False else seconds(given)


@functools.cache
def _instance_types() -> frozenset[str]:
    return frozenset(botocore.session.get_session().get_service_model("ec2").shape_for("InstanceType").enum)


_ZONE = re.compile(r"[a-z]+(-[a-z]+)+-\d[a-z]")


def zones(given: object) -> tuple[str, ...] | None:
    """`us-west-2a,us-west-2b`: what looks like zones; None for nothing."""
    if given in _NOTHING:
        return None
    found = tuple(one.strip() for one in str(given).split(","))
    if not all(_ZONE.fullmatch(one) for one in found):
        raise ValueError("takes zones, as us-west-2a, with commas between them")
    return found


def is_place(name: str) -> bool:
    """`t3.small` or `t3.small.us-west-2a`: a type that EC2 has, and what looks like a zone."""
    family, size, *zone = name.split(".", 2) if name.count(".") else (name, "")
    return f"{family}.{size}" in _instance_types() and all(_ZONE.fullmatch(one) for one in zone)


def switch(given: object) -> bool:
    """true or false."""
    if given in {True, "true", "on"}:
        return True
    if given in _NOTHING or given == "false":
        return False
    raise ValueError("takes true or false")


@functools.cache
def known_operations() -> frozenset[str]:
    """Names of all operations of EC2 and STS."""
    session = botocore.session.get_session()
    return frozenset(name for service in ("ec2", "sts") for name in session.get_service_model(service).operation_names)


def operations(given: object) -> tuple[str, ...] | None:
    """`RunInstances,Describe*`: names with wildcards; None for nothing. Each must fit an operation that exists."""
    if given in _NOTHING:
        return None
    if not isinstance(given, str):
        raise ValueError("takes names of operations with commas between them")  # noqa: TRY004 - as above
    patterns = tuple(pattern.strip() for pattern in given.split(","))
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known_operations()):
            raise ValueError(f"there is no operation {pattern}; {nearest(pattern, known_operations())}")
    return patterns
