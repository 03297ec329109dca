"""Runs of programs side by side, each on a core of its own: for comparisons of what runs reach, in few or in equal minutes."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from protocol import ENVIRONMENT, ROOT


class Cores(ThreadPoolExecutor):
    """Runs jobs in the order of their submission, each on a core of its own."""

    def __init__(self, cores: Sequence[int]):
        super().__init__(len(cores))
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for core in cores:
            self.free.put(core)

    def call(self, *command: object, log: TextIO | None = None, **how: Any) -> subprocess.CompletedProcess:
        """Runs Python on one core, with one thread, and says so on stdout; with a log, there, as its errors go there.

        `how` goes to `subprocess.run`. Raises CalledProcessError where the program fails.
        """
        core, environment = self.free.get(), ENVIRONMENT | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = ["taskset", "-c", str(core), sys.executable, *map(str, command)]
        print("$", f"[core {core}]", *command, file=log, flush=True)
        try:
            return subprocess.run(words, check=True, env=environment, stderr=log, **how)
        finally:
            self.free.put(core)
