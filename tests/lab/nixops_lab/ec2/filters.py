"""Filters and pages of the Describe operations.

Meaning: EC2 User Guide, "Filter your resources": values of one filter are alternatives, filters must all match,
`*` and `?` are wildcards, a backslash takes their meaning away, case matters.
"""

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nixops_lab.ec2.errors import Ec2Error, combination, invalid

Item = TypeVar("Item")

# EC2 API Reference, DescribeInstances: "Filter": at most 200 values in a request.
MAX_VALUES = 200


@functools.lru_cache(maxsize=1024)
def _pattern(value: str) -> re.Pattern[str]:
    parts = []
    for token in re.findall(r"\\.|.", value, re.DOTALL):
        if token == "*":
            parts.append(".*")
        elif token == "?":
            parts.append(".")
        else:
            parts.append(re.escape(token[-1]))
    return re.compile("".join(parts), re.DOTALL)


def matches(value: str, pattern: str) -> bool:
    """Whether the whole of `value` fits a filter value with wildcards."""
    return _pattern(pattern).fullmatch(value) is not None


def select(
    items: Iterable[Item],
    filters: Sequence[Mapping[str, Any]],
    readers: Mapping[str, Callable[[Item], Iterable[str]]],
    tags_of: Callable[[Item], Mapping[str, str]],
) -> list[Item]:
    """The items that all filters admit. A filter that `readers` does not have is refused."""
    if sum(len(given.get("Values", [])) for given in filters) > MAX_VALUES:
        raise Ec2Error("FilterLimitExceeded", f"The maximum number of filter values is {MAX_VALUES}")
    chosen = list(items)
    for given in filters:
        name, values = given.get("Name", ""), given.get("Values", [])
        read = _reader(name, readers, tags_of)
        if not values:
            raise invalid(f"The filter '{name}' has no values")
        chosen = [item for item in chosen if any(matches(seen, value) for seen in read(item) for value in values)]
    return chosen


def _reader(
    name: str,
    readers: Mapping[str, Callable[[Item], Iterable[str]]],
    tags_of: Callable[[Item], Mapping[str, str]],
) -> Callable[[Item], Iterable[str]]:
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda item: [value for tag, value in tags_of(item).items() if tag == key]
    if name == "tag-key":
        return lambda item: tags_of(item).keys()
    if name == "tag-value":
        return lambda item: tags_of(item).values()
    if name not in readers:
        raise invalid(f"The filter '{name}' is invalid")
    return readers[name]


def always(value: str) -> Callable[[object], Iterable[str]]:
    """A reader for what is the same for all."""
    return lambda _item: (value,)


def page(
    items: Iterable[Item],
    name_of: Callable[[Item], str],
    draw: Callable[[], str],
    params: Mapping[str, Any],
    ids: str,
    most: int = 1000,
) -> tuple[list[Item], str | None]:
    """One page of the items and the token of the next; `ids` names the parameter that forbids paging.

    EC2 promises no order, so each answer has another one, which follows from the text that `draw` gives; the pages of
    one answer go on in theirs, whatever comes or goes meanwhile. `name_of` tells items apart.
    """
    size, token = params.get("MaxResults"), params.get("NextToken")
    if params.get(ids) and (size is not None or token is not None):
        raise combination(f"The parameter {ids} cannot be used with the parameter maxResults")
    if size is not None and not 5 <= size <= most:
        raise invalid(f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value from 5 to {most}.")
    salt, after = (draw(), "") if token is None else _read_token(token)
    placed = {_place(salt, name_of(item)): item for item in items}
    left = [place for place in sorted(placed) if place > after]
    shown = left[:size]
    following = _write_token(salt, shown[-1]) if len(shown) < len(left) else None
    return [placed[place] for place in shown], following


def _place(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()


def _write_token(salt: str, last: str) -> str:
    return base64.urlsafe_b64encode(f"{salt}/{last}".encode()).decode()


def _read_token(token: str) -> tuple[str, str]:
    try:
        salt, last = base64.urlsafe_b64decode(token).decode().split("/")
    except (ValueError, binascii.Error):
        raise invalid(f"Invalid value '{token}' for nextToken") from None
    return salt, last
