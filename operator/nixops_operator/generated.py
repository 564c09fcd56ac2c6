"""Files of the checkout that are made from the code: written, or compared with what lies there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path


def main(files: Mapping[str, str], module: str, what: str, arguments: list[str] | None = None) -> int:
    """Write the files (path below the checkout → content), or with --check compare them. Exit status: 1 if a file
    differs, else 0.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=f"Write {what}.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the checkout (default: current folder)")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args(arguments)
    stale = []
    for name, content in files.items():
        path = options.folder / name
        if path.is_file() and path.read_text() == content:
            continue
        stale.append(name)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if options.check and stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `make generate`\n")
        return 1
    return 0
