"""Real machines: systemd, sshd and Nix under systemd-nspawn, behind a router with security groups.

lab_machines.py ── Machines: all of one lab ──► machine.py   one machine: disk and power
                        │                          ├─► cgroups.py   which processes are its own
                        │                          └─► launch.sh    one boot
                        ├─► wires.py, firewall.py
                        └─► volumes.py             what outlives machines
root_filesystem.py      the disk that all machines share, built once
"""

from nixops_lab.machines.lab_machines import Machines
from nixops_lab.machines.leftovers import clean
from nixops_lab.machines.spec import OPEN, Completed, Disk, MachineError, MachineSpec, PowerState, Rule

__all__ = ["OPEN", "Completed", "Disk", "MachineError", "MachineSpec", "Machines", "PowerState", "Rule", "clean"]
