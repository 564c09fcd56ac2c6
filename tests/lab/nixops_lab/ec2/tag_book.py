"""Which tags each resource has had, and since when: answers are given as of a moment that may lie in the past."""

from collections.abc import Iterator, Mapping

Tags = Mapping[str, str]


class TagBook:
    """Resource id → its sets of tags, the newest last. Times are seconds since 1970."""

    def __init__(self) -> None:
        self._sets: dict[str, list[tuple[float, Tags]]] = {}

    def put(self, resource: str, tags: Tags, now: float) -> None:
        """All tags of the resource from now on."""
        self._sets.setdefault(resource, []).append((now, dict(tags)))

    def now(self, resource: str) -> Tags:
        """As they are; none for what was never tagged."""
        return self.as_of(resource, float("inf"))

    def as_of(self, resource: str, moment: float) -> Tags:
        """As they were at that moment; none before the resource was."""
        past = [tags for since, tags in self._sets.get(resource, []) if since <= moment]
        return past[-1] if past else {}

    def forget(self, resource: str) -> None:
        """The resource is gone."""
        self._sets.pop(resource, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)
