"""The Kubernetes API through kubernetes.aio, with objects as plain dicts."""

from nixops_operator.adapters.kube.api import KubernetesApi
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.adapters.kube.lease import Lease

__all__ = ["Connection", "KubernetesApi", "Lease"]
