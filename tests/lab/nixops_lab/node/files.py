"""What the node's programs read, and the rules of its network. Pure: values in, texts out."""

import json

from nixops_lab.control_plane import SERVICE_ADDRESS
from nixops_lab.machines.firewall import WIRE
from nixops_lab.machines.wires import CLIENT_ADDRESS

PODS = "10.88.0.0/16"
ADDRESS = CLIENT_ADDRESS  # the node is what machines see of all clients in the lab
PAUSE = "localhost/pause:lab"

CONTAINERD = f"""\
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
  # Lowering a score takes a capability that root in a container lacks.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/usr/lib/cni']
  conf_dir = '/etc/cni/net.d'
"""

NETWORK = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni/networks",
                },
            }
        ],
    }
)

# YAML is JSON and more.
KUBELET = json.dumps(
    {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,  # machines with the older hierarchies are nodes, too
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": "/etc/kubernetes/authority.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "clusterDNS": [ADDRESS],  # where nobody answers: a cluster without DNS
        "clusterDomain": "cluster.local",
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
)


def rules(api: int, ec2: int) -> str:
    """Text for `nft -f`: the Service `kubernetes`, and the node's address as the way to EC2, lead to what listens on
    the lab's loopback; `api`, `ec2`: ports there. Machines see pods as they see every client."""
    return f"""\
table ip labnode {{}}
delete table ip labnode
table ip labnode {{
    chain from_pod {{
        type nat hook prerouting priority -101;
        ip daddr {SERVICE_ADDRESS} tcp dport 443 dnat to 127.0.0.1:{api}
        ip saddr {PODS} ip daddr {ADDRESS} tcp dport {ec2} dnat to 127.0.0.1:{ec2}
    }}
    chain from_node {{
        type nat hook output priority -101;
        ip daddr {SERVICE_ADDRESS} tcp dport 443 dnat to 127.0.0.1:{api}
    }}
    chain to_machine {{
        type nat hook postrouting priority 99;
        ip saddr {PODS} oifname "{WIRE}*" snat to {ADDRESS}
    }}
}}
"""
