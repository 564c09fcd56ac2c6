"""The API group and version of both kinds."""

GROUP = "nixops.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
