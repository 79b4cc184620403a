"""Freed memory stays with the process while it works, and goes back when that is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TAKE_AND_FREE = """
import ctypes, json, os
from pipelines.heap import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def take_and_free():
    blocks = [bytearray(os.urandom(1)) * (16 * 2**20) for _ in range(12)]
    small = bytes(4096)
    del blocks
    return small

if {keep}:
    keep_freed_memory()
before = resident()
take_and_free()
kept = resident() - before
give_back_freed_memory()
print(json.dumps([kept, resident() - before]))
"""


def kept_and_left(*, keep: bool) -> tuple[int, int]:
    """Bytes that stay resident after 192 MiB were used and freed, and after freed memory was given back."""
    program = TAKE_AND_FREE.replace("{keep}", str(keep))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, left = json.loads(done.stdout)
    return kept, left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    kept, left = kept_and_left(keep=True)
    assert kept > 150 * 2**20
    assert left < 40 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_without_it_large_blocks_go_back_at_once() -> None:
    kept, _ = kept_and_left(keep=False)
    assert kept < 40 * 2**20
