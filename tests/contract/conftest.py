"""Contract tests run on a fake and on the real thing; these fixtures start the real things."""

from component.conftest import api_server, crds, programs
from nixops_lab.ec2.fixtures import layer, layer_loop, moto_server

__all__ = ["api_server", "crds", "layer", "layer_loop", "moto_server", "programs"]
