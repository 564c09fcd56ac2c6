"""`python -m nixops_lab.image` builds or finds the root file system of the image; prints its path."""

import sys

from nixops_lab.image import build_root
from nixops_lab.report import LabError

try:
    sys.stdout.write(f"{build_root()}\n")
except LabError as error:
    sys.exit(f"[lab] {error}")
