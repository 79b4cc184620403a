"""`python -m weights.demo FOLDER` builds the demo weights there, in a process of its own that may import torch."""

from __future__ import annotations

import sys
from pathlib import Path

from . import ensure

if __name__ == "__main__":
    print(ensure(Path(sys.argv[1])))  # noqa: T201
