"""What a spec asks of an EC2 instance, as values; attributes.py says how they come about and what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nixops_operator import names


@dataclass(frozen=True)
class Resolved:
    """EC2's ids for what the spec names. None: left to EC2, or, of a live instance, not known now."""

    image_id: str | None = None
    instance_type: str | None = None
    subnet_id: str | None = None
    key_name: str | None = None
    security_group_ids: tuple[str, ...] | None = None  # sorted
    tags: Mapping[str, str] = field(default_factory=dict)  # all that it carries by us, the operator's own included
    applied: frozenset[str] = frozenset()  # fields that it was given, and that go back when they leave the spec
    root_device: str | None = None  # as the image to be launched names it
    has_run: bool = False  # the instance ran a declared system once: it needs no metadata service for its host key


@dataclass(frozen=True)
class Declared:
    """Field of spec.target.ec2 → what the instance is to have, in the form in which EC2 shows it. What is None is not
    asked for at launch, and not compared with a live instance."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def but(self, **values: Any) -> Declared:
        """The same, but for these fields."""
        return Declared({**self.values, **values})

    @property
    def digest(self) -> str:
        """sha256: of equal declarations equal. The attempt's number, which stands in a tag, is no part of it."""
        tags = {key: value for key, value in (self["tags"] or {}).items() if key != names.ATTEMPT_TAG}
        text = json.dumps({**self.values, "tags": tags}, sort_keys=True, default=vars)
        return hashlib.sha256(text.encode()).hexdigest()
