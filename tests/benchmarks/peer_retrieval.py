"""sentence-transformers' side of retrieval.py: training and reranking timed on request (protocol.py).

python tests/benchmarks/peer_retrieval.py --case train --tables FOLDER --model DIR --batches 2 --requests 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import sentence_transformers
import torch
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer import losses

LENGTH = 256
CLIP_NORM, LEARNING_RATE = 1.0, 2e-5


def optimize(model: torch.nn.Module, loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One update, as transformers' Trainer makes it."""
    model.train()
    loss().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad()


def read(args: argparse.Namespace, table: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (args.tables / f"{table}.jsonl").read_text().splitlines()]


def train(args: argparse.Namespace) -> None:
    """A request trains on all batches once."""
    model = sentence_transformers.SentenceTransformer(str(args.model), device="cpu")
    model.max_seq_length = LENGTH
    count, size = 1 if args.case == "cached" else args.batches, args.batch_size
    rows = read(args, "pairs")[: count * size]
    kind = losses.CachedMultipleNegativesRankingLoss if args.case == "cached" else losses.MultipleNegativesRankingLoss
    loss, optimizer = kind(model), torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    batches = [
        [model.preprocess([row[column] for row in rows[start : start + size]]) for column in ("query", "positive")]
        for start in range(0, len(rows), size)
    ]

    def request() -> None:
        for batch in batches:
            columns = [dict(features) for features in batch]  # the model adds its outputs to them
            optimize(model, lambda columns=columns: loss(columns, None), optimizer)

    tokens = sum(int(features["attention_mask"].sum()) for batch in batches for features in batch)
    positions = sum(features["attention_mask"].numel() for batch in batches for features in batch)
    protocol.serve(request, args.requests, 1, examples=len(rows), tokens=tokens, positions=positions, versions=versions())


def cross(args: argparse.Namespace) -> None:
    """A request trains on all batches once."""
    model = CrossEncoder(str(args.headed), num_labels=1, max_length=LENGTH, device="cpu")
    loss, optimizer = BinaryCrossEntropyLoss(model), torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    rows = read(args, "candidates")[: args.batches * args.batch_size]
    batches = []
    for start in range(0, len(rows), args.batch_size):
        some = [(row["query"], text, float(name == "positive")) for row in rows[start : start + args.batch_size]
                for name, text in row.items() if name != "query"]  # fmt: skip
        queries, documents, labels = map(list, zip(*some, strict=True))
        batches.append(([queries, documents], torch.tensor(labels)))

    def request() -> None:
        for inputs, labels in batches:
            optimize(model, lambda inputs=inputs, labels=labels: loss(inputs, labels), optimizer)

    examples = sum(len(labels) for _, labels in batches)
    protocol.serve(request, args.requests, 1, examples=examples, versions=versions())


def rerank(args: argparse.Namespace) -> None:
    """A request scores all pairs."""
    model = CrossEncoder(str(args.headed), num_labels=1, max_length=LENGTH, device="cpu")
    pairs = [(row["query"], text) for row in read(args, "candidates") for name, text in row.items() if name != "query"]
    pairs = pairs[: args.pairs]

    def request() -> np.ndarray:
        return model.predict(pairs, show_progress_bar=False)

    np.save(args.tables / "peer.npy", request())
    protocol.serve(request, args.requests, 1, examples=len(pairs), versions=versions())


def versions() -> dict[str, Any]:
    return {"torch": torch.__version__, "sentence_transformers": sentence_transformers.__version__}


RUN = {"train": train, "cached": train, "cross": cross, "rerank": rerank}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=RUN, required=True)
    parser.add_argument("--tables", type=Path, required=True, help="folder with pairs.jsonl and candidates.jsonl")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--headed", type=Path, help="cross, rerank: directory of the model with a head of one value")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--requests", type=int, default=0, help="time this many and leave; 0: read `step` from stdin")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    protocol.limit_cores(args.threads)
    torch.set_num_threads(args.threads)
    RUN[args.case](args)
