"""EC2's own limits of calls: token buckets by account and region, and by kind of call.

Facts: EC2 Developer Guide, "Request throttling for the Amazon EC2 API", its tables of bucket sizes and refill rates.
What counts per resource instead of per request is left out.
"""

from dataclasses import dataclass

_FILTERED = ("looks by filter or page", 100, 20.0)
_BARE = ("looks without either", 50, 10.0)
_CHANGES = ("changes", 50, 5.0)
_RULES = ("rules", 50, 5.0)
_TAGS = ("tags", 100, 10.0)
_OF_OPERATION = {
    "RunInstances": ("RunInstances", 5, 2.0),
    "StartInstances": ("StartInstances", 5, 2.0),
    "TerminateInstances": ("TerminateInstances", 100, 5.0),
    "CreateTags": _TAGS,
    "DeleteTags": _TAGS,
    "AuthorizeSecurityGroupIngress": _RULES,
    "AuthorizeSecurityGroupEgress": _RULES,
    "RevokeSecurityGroupIngress": _RULES,
    "RevokeSecurityGroupEgress": _RULES,
    "CreateKeyPair": _RULES,
}


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class Buckets:
    """Those of all regions; `factor` makes them larger or smaller than the published ones."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def has_token(self, region: str, operation: str, parameters: object, factor: float, now: float) -> bool:
        """Takes one, if there is one. `parameters`: of the request."""
        name, size, rate = _bucket_of(operation, parameters)
        bucket = self._buckets.setdefault((region, name), _Bucket(size * factor, now))
        bucket.tokens = min(size * factor, bucket.tokens + (now - bucket.filled_at) * rate * factor)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _bucket_of(operation: str, parameters: object) -> tuple[str, int, float]:
    if operation in _OF_OPERATION:
        return _OF_OPERATION[operation]
    if not operation.startswith(("Describe", "Get")):
        return _CHANGES
    is_bounded = isinstance(parameters, dict) and bool(parameters.keys() & {"Filters", "MaxResults"})
    return _FILTERED if is_bounded else _BARE
