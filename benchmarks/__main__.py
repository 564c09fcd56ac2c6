"""`python -m benchmarks 7`: the benchmark of that number."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    known = {str(int(path.stem[1:3])): path.stem for path in sorted(Path(__file__).parent.glob("b[0-9][0-9]_*.py"))}
    chosen = sys.argv[1:]
    if len(chosen) != 1 or chosen[0] not in known:
        print("which one? " + ", ".join(f"B={number} ({name})" for number, name in known.items()), file=sys.stderr)
        sys.exit(2)
    import_module(f"benchmarks.{known[chosen[0]]}").main()


if __name__ == "__main__":
    main()
