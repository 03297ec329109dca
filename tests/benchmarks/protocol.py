"""What the timed processes of pretraining_step.py share: standard library and NumPy only, each has its own interpreter.

A timed process prints one JSON line when it has warmed up, then one for every line `step` that it reads, until `quit`:

    < {"ready": true, "warmup_seconds": 3.1, ...}
    > step
    < {"seconds": 0.41, "peak_rss_mb": 812.0}
    > quit
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 30522
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0


def arguments(doc: str | None) -> argparse.Namespace:
    """The shapes from the command line; limits this process to `--threads` cores, so call it before importing jax."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(layers=4, hidden=256, heads=4, intermediate=1024, batch=16, length=128).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--predictions", type=int, default=20, help="masked positions a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="run this many steps and leave; 0: read `step` from stdin")
    args = parser.parse_args()
    limit_cores(args.threads)
    return args


def limit_cores(count: int) -> None:
    """Keep this process on `count` cores: the one limit that XLA, OpenMP and OpenBLAS all respect."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def random_batch(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Random ids [B, L] without padding; `labels` are -100 but at P positions a row, also given as [B, P] arrays."""
    rng = np.random.default_rng(0)
    input_ids = rng.integers(1000, VOCAB_SIZE, (args.batch, args.length), dtype=np.int32)
    scores = rng.random((args.batch, args.length))
    masked_positions = np.sort(np.argsort(scores, axis=1)[:, : args.predictions], axis=1).astype(np.int32)
    masked_ids = np.take_along_axis(input_ids, masked_positions, axis=1)
    labels = np.full_like(input_ids, -100)
    np.put_along_axis(labels, masked_positions, masked_ids, axis=1)
    np.put_along_axis(input_ids, masked_positions, 103, axis=1)
    return dict(input_ids=input_ids, labels=labels, masked_positions=masked_positions, masked_ids=masked_ids)


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (1e6 bytes)."""
    status = Path("/proc/self/status")  # ru_maxrss would also count the parent before exec
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def serve(step: Callable[[], Any], steps: int = 0, warmups: int = 2, **facts: Any) -> None:
    """Warm up, then time one `step()`, which must wait for its result, a request. `facts` join the ready line."""

    def timed() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    warmup_seconds = [timed() for _ in range(warmups)]
    print(json.dumps({"ready": True, "warmup_seconds": sum(warmup_seconds), **facts}), flush=True)
    for request in ["step"] * steps if steps else sys.stdin:
        if request.strip() == "quit":
            return
        if request.strip() == "step":
            print(json.dumps({"seconds": timed(), "peak_rss_mb": peak_rss_mb()}), flush=True)
