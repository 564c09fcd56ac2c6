"""The Kubernetes API through kubernetes.aio."""
