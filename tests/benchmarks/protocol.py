"""What the processes of these benchmarks share: each has its own interpreter, so NumPy is all it needs.

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
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
VOCAB_SIZE = 30522
MODERN_VOCAB_SIZE = 50368
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0
SETTLE_SECONDS = 0.2  # idle OpenMP threads spin for a while after a step
SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen."  # the first prediction of a process

Encode = Callable[[list[str]], np.ndarray]


def arguments(doc: str | None) -> argparse.Namespace:
    """The shapes from the command line; limits this process to `--threads` cores, so call it before importing jax."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(layers=4, hidden=256, heads=4, intermediate=1024, batch=16, length=128).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--family", choices=("bert", "modernbert"), default="bert")
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


def pooled_sd(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the standard deviation of two samples of equal size, each around its own mean."""
    return ((stdev(a) ** 2 + stdev(b) ** 2) / 2) ** 0.5


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


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of `step()`, which must wait for its result, and the result."""
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def serve(step: Callable[[], Any], steps: int = 0, warmups: int = 2, at_work: int = 0, **facts: Any) -> None:
    """Warm up, then time one `step()`, which must wait for its result, a request. `facts` join the ready line.

    `at_work`: that many steps come before the timed one, as in training, which else begins with what others have done to caches
    and memory in their turns.
    """
    warmup_seconds = [timed(step)[0] for _ in range(warmups)]
    say(ready=True, warmup_seconds=sum(warmup_seconds), **facts)
    for request in ["step"] * steps if steps else sys.stdin:
        if request.strip() == "quit":
            return
        if request.strip() == "step":
            for _ in range(at_work):
                step()
            say(seconds=timed(step)[0], peak_rss_mb=peak_rss_mb())


def say(**facts: Any) -> None:
    """One JSON line to whoever started this process."""
    print(json.dumps(facts), flush=True)


def training_flops(
    layers: int, hidden: int, intermediate: int, batch: int, length: int, scored: int, vocab_size: int = VOCAB_SIZE,
    modern: bool = False,
) -> float:  # fmt: skip
    """Matrix-product FLOPs of a step with `scored` positions a row in the last layer and the head; backward = 2 forwards.

    `modern`: gated layers, and two in three see 129 tokens.
    """
    keys = 2 * hidden * hidden  # and values
    head = hidden * hidden + hidden * vocab_size
    total = scored * head
    for i in range(layers):  # multiply-adds a row
        seen = min(length, 129) if modern and i % 3 else length
        asking = 2 * hidden * hidden + (2 + modern) * hidden * intermediate + 2 * seen * hidden
        total += length * keys + (scored if i == layers - 1 else length) * asking
    return 3 * 2 * batch * total


class Participant:
    """A timed process: started, warmed up, asked for steps. `facts` is its first JSON line and the seconds until that came.

    With `wait=False` it is asked for what it is to prepare, by `send`, and its first line comes after that.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str], wait: bool = True):
        self.name = name
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        if wait:
            self.facts = self.answer()
            self.facts["start_seconds"] = time.perf_counter() - start

    def send(self, line: str) -> None:
        """Writes a line to the process."""
        print(line, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Its next JSON line."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name}'s process ended with code {self.process.wait()}")

    def step(self) -> dict[str, float]:
        """One step: seconds and peak_rss_mb."""
        time.sleep(SETTLE_SECONDS)
        self.send("step")
        return self.answer()

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.communicate("quit\n")


# --- the participants of encoding.py ---

ENCODERS = {  # of random weights: family, layers, hidden size, heads, intermediate size
    "base": ("bert", 12, 768, 12, 3072),
    "modern-minilm": ("modernbert", 6, 384, 6, 576),  # MiniLM's size in the form of Ettin's 32M
    "mpnet-base": ("mpnet", 12, 768, 12, 3072),  # all-mpnet-base's
}


def encoding_arguments(doc: str | None, add: Callable[[argparse.ArgumentParser], Any]) -> argparse.Namespace:
    """What to encode with what, and what `add` adds; limits this process to `--threads` cores, so call it before imports."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory")
    parser.add_argument("--texts", type=Path, help="text file, one text a line")
    parser.add_argument("--vectors", type=Path, help="write the vectors to this .npy file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="run this many passes and leave; 0: read `step` from stdin")
    parser.add_argument("--first", action="store_true", help="encode one sentence, say so and leave")
    add(parser)
    args = parser.parse_args()
    limit_cores(args.threads)
    return args


def serve_encoding(encode: Encode, args: argparse.Namespace, **facts: Any) -> None:
    """Times passes over --texts: the process's first and second one for the ready line, then one a request."""
    if args.first:
        encode([SENTENCE])
        say(ready=True)
        return
    texts = args.texts.read_text(encoding="utf-8").splitlines()
    cold_seconds, _ = timed(lambda: encode(texts))
    second_seconds, vectors = timed(lambda: encode(texts))
    if args.vectors:
        np.save(args.vectors, vectors)
    serve(lambda: encode(texts), args.steps, 0, cold_seconds=cold_seconds, second_seconds=second_seconds, **facts)


# --- the participants of retrieval.py ---


def retrieval_arguments(
    doc: str | None, cases: Iterable[str], add: Callable[[argparse.ArgumentParser], Any] = lambda parser: None
) -> argparse.Namespace:
    """What a request does, and what `add` adds; limits this process to `--threads` cores."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=cases, required=True)
    parser.add_argument("--tables", type=Path, required=True, help="folder with pairs.jsonl and candidates.jsonl")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--headed", type=Path, help="cross, rerank: directory of the model with a head of one value")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--requests", type=int, default=0, help="time this many and leave; 0: read `step` from stdin")
    add(parser)
    args = parser.parse_args()
    limit_cores(args.threads)
    return args


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes objects as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs_of(row: dict[str, str]) -> list[tuple[str, str]]:
    """Returns a row's query with its document and with each of its negatives, in this order, without empty ones."""
    return [(row["query"], text) for name, text in row.items() if name.startswith(("positive", "negative")) and text]
