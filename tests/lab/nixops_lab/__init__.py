"""The lab: a real Kubernetes API, a strict EC2, real systemd machines with sshd and Nix, in one network namespace.

cli.py ── lifecycle.py ──┬─ prerequisites.py   what the machine must have
                         ├─ network.py         the namespace; forwarder.py: its ports on the caller's loopback
                         ├─ control_plane.py   etcd, kube-apiserver, kube-controller-manager
                         ├─ daemon.py          machines/ and ec2/ in one process, and the control interface
                         └─ operator_process.py  the operator as in its pod: own uid, root file system and service
                         account
"""
