"""Client tokens of RunInstances.

Facts: EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API requests": a token with the parameters of its
first use gives the first result again, with others `IdempotentParameterMismatch`; it is regional, but zonal when the
request names a zone or a subnet. `IdempotentInstanceTerminated`: EC2 API Reference, "Error codes".
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nixops_lab.ec2.errors import Ec2Error

MAX_LENGTH = 64


@dataclass(frozen=True)
class Launch:
    """What a token stands for: the parameters it came with and the instances it made."""

    parameters_sha256: str
    reservation_id: str
    instance_ids: tuple[str, ...]


class TokenLedger:
    """(scope, token) → launch. Nothing is ever forgotten: the life of a token is not published."""

    def __init__(self) -> None:
        self._launches: dict[tuple[str, str], Launch] = {}

    def find(self, scope: str, token: str, parameters: Mapping[str, Any]) -> Launch | None:
        """The launch to repeat, None for a new token. Raises on malformed tokens and other parameters."""
        if len(token) > MAX_LENGTH or not token.isascii():
            raise Ec2Error(
                "InvalidClientToken", f"The client token is not ASCII text of at most {MAX_LENGTH} characters"
            )
        launch = self._launches.get((scope, token))
        if launch is not None and launch.parameters_sha256 != digest(parameters):
            raise Ec2Error(
                "IdempotentParameterMismatch",
                "The client token you have provided is associated with a resource that has been created with "
                "different parameters.",
            )
        return launch

    def find_made(self, operation: str, token: str, parameters: Mapping[str, Any]) -> str | None:
        """Id of what another operation than RunInstances made with the token. Raises as `find`."""
        launch = self.find(operation, token, parameters)
        return launch.instance_ids[0] if launch is not None else None

    def record(
        self,
        scope: str,
        token: str,
        parameters: Mapping[str, Any],
        reservation_id: str,
        instance_ids: tuple[str, ...],
    ) -> None:
        """Remember a launch that has happened."""
        self._launches[scope, token] = Launch(digest(parameters), reservation_id, instance_ids)


def digest(parameters: Mapping[str, Any]) -> str:
    """sha256 over the parameters without the token, in a fixed order of names."""
    compared = {name: value for name, value in parameters.items() if name != "ClientToken"}
    return hashlib.sha256(json.dumps(compared, sort_keys=True, default=repr).encode()).hexdigest()
