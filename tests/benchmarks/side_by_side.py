"""Runs of programs side by side, each on a core of its own: for comparisons of what runs reach, in few or in equal minutes."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Cores(ThreadPoolExecutor):
    """Runs jobs in the order of their submission, each on a core of its own."""

    def __init__(self, cores: Sequence[int]):
        super().__init__(len(cores))
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for core in cores:
            self.free.put(core)

    def call(self, *command: str) -> None:
        """Runs Python on one core, with one thread."""
        core = self.free.get()
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        print("$", f"[core {core}]", *command, flush=True)
        try:
            subprocess.run(["taskset", "-c", str(core), sys.executable, *command], check=True, env=env)
        finally:
            self.free.put(core)
