"""All benchmarks that a machine can run, one after the other, their reports kept in benchmarks/results.

    python -m benchmarks.suite cpu          # demo weights, no card needed
    python -m benchmarks.suite gpu          # a CUDA card: full size with random values, no download

One that fails does not keep the others from running; the exit status is then 1 and the last lines name it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ON_ANY_MACHINE = (
    ("overhead",),
    ("polls",),
    ("throughput", "--weights", "demo", "--model", "flux-depth-dev", "--jobs", "100", "--steps", "4"),
    ("levers", "--weights", "demo", "--steps", "4"),
    ("cold_start", "--weights", "demo", "--model", "flux-depth-dev", "--steps", "4"),
    ("load", "--weights", "demo"),
    ("latency", "--weights", "demo", "--side", "256,1024", "--steps", "4"),
)

ON_A_CARD = (
    ("latency", "--weights", "random", "--tiers", "exact,fast,turbo", "--side", "512,1024", "--steps", "28"),
    ("throughput", "--weights", "random"),
    (
        "levers",
        "--weights",
        "random",
        "--levers",
        "batching,prepare_ahead,compile,attention",
        "--jobs",
        "8",
        "--rounds",
        "1",
    ),
    ("cold_start", "--weights", "random"),
    ("load", "--weights", "random"),
)

SUITES = {"cpu": ON_ANY_MACHINE, "gpu": ON_A_CARD}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("machine", choices=tuple(SUITES))
    failed = [benchmark for benchmark in SUITES[options.parse_args().machine] if not ran(benchmark)]
    for name, *arguments in failed:
        print(f"FAILED: python -m benchmarks.{name} {' '.join(arguments)}", file=sys.stderr)
    raise SystemExit(bool(failed))


def ran(benchmark: tuple[str, ...]) -> bool:
    name, *arguments = benchmark
    print(f"\n== {name} {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--save"]
    return subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode == 0


if __name__ == "__main__":
    main()
