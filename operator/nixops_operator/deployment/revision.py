"""Short names for what all machines of a deployment are to be. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from nixops_operator.api.machine_of_deployment import ChildMachine


def revision_of(children: Iterable[ChildMachine]) -> str:
    """The same for the same specs."""
    specs = {child.name: dict(child.spec) for child in children}
    return hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:8]
