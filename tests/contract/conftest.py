"""Contract tests run on a fake and on the real thing; these fixtures start the real things."""

from component.conftest import api_server, crds, programs

__all__ = ["api_server", "crds", "programs"]
