"""A strict EC2 for one lab: what EC2 refuses is refused here, and a running instance is a running machine.

server.py ── signature, parameters ──► operations.py ── one function per EC2 operation
    │                                        │
    │ what is not modelled                   ├── region.py     what exists in one region
    ▼                                        ├── lifecycle.py  machines that boot, stop and go
moto.py (STS, subnets, instance types)       └── firewall.py   security groups as rules per machine

calllog.py   one line per call, the evidence of a test      faults.py, knobs.py, control.py   what tests may turn
"""

from nixops_lab.ec2.moto import MotoServer
from nixops_lab.ec2.server import Ec2Layer

__all__ = ["Ec2Layer", "MotoServer"]
