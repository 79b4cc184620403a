"""The same engine behind two servers that others would write: LitServe, and plain FastAPI with a lock.

    python -m benchmarks.peers litserve|fastapi --weights FOLDER --port N

Both take the very body that our server takes at /v1/{slug} and answer the same bytes. Neither has a queue on disk, jobs
that survive a crash, checks of what a client sends, or cancelling.
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from pathlib import Path

# As in our worker, and before torch is imported: threads that wait for each other sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=("litserve", "fastapi"))
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--port", type=int, required=True)
    given = options.parse_args()
    import_module(f"benchmarks.peer_{given.kind}").serve(given.weights, given.port)


if __name__ == "__main__":
    main()
