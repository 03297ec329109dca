r"""Retrievers and cross-encoders by bert_jax beside sentence-transformers, on Cranfield, in turns on the same cores.

    python tests/benchmarks/retrieval.py --data DATA/retrieval/cranfield --model MINILM --json retrieval.json
    python tests/benchmarks/retrieval.py --data DATA/retrieval/cranfield --model MINILM --cases train rerank --rounds 3

Cases, and what a request of each does:

  train   a step on each of some batches of 128 pairs of a query and a relevant document; MultipleNegativesRankingLoss
  cached  a step on a batch of 1,024 pairs; --chunk-size, CachedMultipleNegativesRankingLoss (mini-batches of 32, its default)
  cross   a step on each of some batches of 16 queries, each with a relevant and 7 other documents; BinaryCrossEntropyLoss
  rerank  the scores of some pairs; Reranker, CrossEncoder.predict
  chunks  ours alone: a step in chunks and one without, and the temporary memory of compiled steps from 256 to 8,192 rows

All train in float32 with AdamW and dropout on texts of at most 256 tokens. The bi-encoder peer's batches are tokenized before the
clock starts, its cross-encoder tokenizes in its loss; ours are packed while it runs. Medians over rounds; ratios round by round,
then their median. `rerank` also compares the scores of both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import protocol
from protocol import ENVIRONMENT

HERE = Path(__file__).parent
CASES = ("train", "cached", "cross", "rerank", "chunks")
UNITS = {"train": "pairs", "cached": "pairs", "cross": "pairs", "rerank": "pairs"}
NEGATIVES = 7
TOLERANCE = 1e-4


def records(path: Path) -> Iterator[dict[str, str]]:
    """The fields of each record of a file of the SMART system."""
    for record in re.split(r"^\.I .*\n", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)[1:]:
        fields = re.split(r"^\.([A-Z])\s*\n", record, flags=re.MULTILINE)
        yield {name: " ".join(text.split()) for name, text in zip(fields[1::2], fields[2::2], strict=True)}


def write_tables(data: Path, folder: Path) -> None:
    """Writes pairs.jsonl (a query and a relevant document) and candidates.jsonl (with other documents) in an order of seed 0."""
    documents = [record["W"] for record in records(data / "cran.all.1400")]
    queries = [record["W"] for record in records(data / "cran.qry")]
    rng, relevant = random.Random(0), dict[int, list[int]]()
    for line in (data / "cranqrel").read_text().splitlines():
        query, document, code = map(int, line.split())
        if code > 0 and documents[document - 1]:
            relevant.setdefault(query - 1, []).append(document - 1)
    pairs = [(query, document) for query, own in relevant.items() for document in own]
    rng.shuffle(pairs)
    rows = []
    for query, document in pairs:
        others = [i for i in rng.sample(range(len(documents)), 3 * NEGATIVES) if i not in relevant[query] and documents[i]]
        row = {"query": queries[query], "positive": documents[document]}
        rows.append(row | {f"negative_{i}": documents[j] for i, j in enumerate(others[:NEGATIVES], 1)})
    for name, columns in (("pairs", 2), ("candidates", 2 + NEGATIVES)):
        protocol.write_lines(folder / f"{name}.jsonl", (dict(list(row.items())[:columns]) for row in rows))


def command(who: str, case: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of a participant."""
    python = sys.executable if who == "ours" else args.peer_python
    words = [python, HERE / f"{who}_retrieval.py", "--case", case, "--tables", folder, "--model", args.model]
    words += ["--headed", folder / "headed", "--threads", args.threads, "--batches", args.batches, "--pairs", args.pairs]
    words += ["--batch-size", args.batch_size[case]] if case in args.batch_size else []
    if who == "ours":
        words += ["--chunk-size", args.chunk_size, "--rows", *args.rows, "--timed-rows", args.timed_rows, "--rounds", args.rounds]
    return list(map(str, words))


def compare(case: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prints a line for each participant."""
    people = [protocol.Participant(who, command(who, case, args, folder), ENVIRONMENT) for who in ("ours", "peer")]
    try:
        answers = [{person.name: person.step() for person in people} for _ in range(args.rounds)]
    finally:
        for person in people:
            person.stop()
    each = {person.name: [answer[person.name]["seconds"] for answer in answers] for person in people}
    count = {person.name: person.facts["examples"] for person in people}
    rates = {name: [count[name] / seconds for seconds in own] for name, own in each.items()}
    found = {
        "case": case, "ours_is_faster": median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)),
        "rates": {name: median(own) for name, own in rates.items()}, "seconds": each,
        "peak_rss_mb": {name: answers[-1][name]["peak_rss_mb"] for name in each},
        "facts": {person.name: person.facts for person in people},
    }  # fmt: skip
    for person in people:
        name = person.name
        print(f"{case:7} {name:5} {found['rates'][name]:8.1f} {UNITS[case]}/s  {count[name]} a request, first "
              f"{person.facts['warmup_seconds']:.1f} s, peak {found['peak_rss_mb'][name]:.0f} MB", flush=True)  # fmt: skip
    said = f"{case:7} ours is {found['ours_is_faster']:.2f} times as fast"
    if case == "rerank":
        scores = [np.load(folder / f"{name}.npy") for name in each]
        found["difference"] = float(np.abs(scores[0] - scores[1]).max())
        said += f", scores differ by at most {found['difference']:.1e}"
    print(said, flush=True)
    return found


def chunks(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prints the times and the memory of ours in chunks."""
    done = subprocess.run(command("ours", "chunks", args, folder), env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"chunks  {found['time_ratio']:.2f} times the seconds of a step of {found['time_rows']} rows without chunks", flush=True
    )
    for rows, size in found["temporary_mb"].items():
        print(f"chunks  {rows:>5} rows  {size:8.1f} MB of temporary memory", flush=True)
    sizes = list(found["temporary_mb"].values())
    print(f"chunks  {sizes[-1] / sizes[0]:.2f} times the memory, from the first to the last", flush=True)
    return {"case": "chunks"} | found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2, help="train, cross: batches a request")
    parser.add_argument("--pairs", type=int, default=400, help="rerank: pairs a request")
    parser.add_argument("--train-batch", type=int, default=128)
    parser.add_argument("--cached-batch", type=int, default=1024)
    parser.add_argument("--cross-batch", type=int, default=16, help="queries")
    parser.add_argument("--chunk-size", type=int, default=8, help="cached, chunks: rows of ours at a time")
    parser.add_argument("--timed-rows", type=int, default=128, help="chunks: rows of the steps that are timed")
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024, 8192], help="chunks: rows of compiled steps")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--peer-python", default=sys.executable)
    args = parser.parse_args()
    args.batch_size = {"train": args.train_batch, "cached": args.cached_batch, "cross": args.cross_batch}
    return args


def main() -> None:
    load = os.getloadavg()[0]  # of other work: near 0 where the numbers are worth keeping
    args = parse()
    print(f"{args.model}: {args.threads} cores, {args.rounds} rounds; load before {load:.2f}", flush=True)
    found, wrong = list[dict[str, Any]](), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(args.data, folder)
        if {"cross", "rerank"} & set(args.cases):
            subprocess.run(command("ours", "head", args, folder), env=ENVIRONMENT, check=True)
        for case in args.cases:
            found.append(chunks(args, folder) if case == "chunks" else compare(case, args, folder))
            wrong |= found[-1].get("difference", 0.0) > TOLERANCE
    if args.json:
        args.json.write_text(json.dumps({"load_before": load, "threads": args.threads, "cases": found}, indent=1) + "\n")
    if wrong:
        raise SystemExit(f"scores differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
