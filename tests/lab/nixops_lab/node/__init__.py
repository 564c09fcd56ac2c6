"""A node of the lab's cluster: kubelet, containerd and runc as on any node, in namespaces of their own.

node.py     joins it to a running lab, and brings images to it
files.py    what its programs read. Pure
inside.sh   its first process: mounts, and then the programs
oci.py      images of a few files
"""

from nixops_lab.node.node import enter, has, join, load, pid

__all__ = ["enter", "has", "join", "load", "pid"]
