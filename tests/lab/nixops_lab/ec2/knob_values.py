"""What the values of knobs mean: JSON or text in, values out. Each reader raises ValueError for what it cannot read."""

import difflib
import functools
from collections.abc import Collection

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
