"""The operator's image, from the repository's Dockerfile: what a node runs as a pod, and whose root file system the
operator has wherever the lab runs it.

build.py   builds or finds it; make.sh runs buildah
base.py    the image that the Dockerfile begins with, made from Debian's packages under its published name
reach.py   how this machine reaches package registries, for the build alone
"""

from nixops_lab.image.build import Image, build, build_root

__all__ = ["Image", "build", "build_root"]
