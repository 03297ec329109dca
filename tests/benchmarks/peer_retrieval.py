"""sentence-transformers' side of retrieval.py: training and reranking timed on request (protocol.py).

python tests/benchmarks/peer_retrieval.py --case train --tables FOLDER --model DIR --batches 2 --requests 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
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


def train(args: argparse.Namespace) -> None:
    """A request trains on all batches once."""
    model = sentence_transformers.SentenceTransformer(str(args.model), device="cpu")
    model.max_seq_length = LENGTH
    count, size = 1 if args.case == "cached" else args.batches, args.batch_size
    rows = protocol.read_lines(args.tables / "pairs.jsonl")[: count * size]
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


def labelled(rows: Sequence[dict[str, str]]) -> tuple[list[list[str]], torch.Tensor]:
    """Returns the queries and documents of all candidates of some rows, and 1 for each row's document, 0 for the others."""
    each = [protocol.pairs_of(row) for row in rows]
    queries, documents = map(list, zip(*(pair for own in each for pair in own), strict=True))
    return [queries, documents], torch.tensor([float(place == 0) for own in each for place in range(len(own))])


def cross(args: argparse.Namespace) -> None:
    """A request trains on all batches once."""
    model = CrossEncoder(str(args.headed), num_labels=1, max_length=LENGTH, device="cpu")
    loss, optimizer = BinaryCrossEntropyLoss(model), torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    rows = protocol.read_lines(args.tables / "candidates.jsonl")[: args.batches * args.batch_size]
    batches = []
    for start in range(0, len(rows), args.batch_size):
        batches.append(labelled(rows[start : start + args.batch_size]))

    def request() -> None:
        for inputs, labels in batches:
            optimize(model, lambda inputs=inputs, labels=labels: loss(inputs, labels), optimizer)

    examples = sum(len(labels) for _, labels in batches)
    protocol.serve(request, args.requests, 1, examples=examples, versions=versions())


def rerank(args: argparse.Namespace) -> None:
    """A request scores all pairs."""
    model = CrossEncoder(str(args.headed), num_labels=1, max_length=LENGTH, device="cpu")
    pairs = [pair for row in protocol.read_lines(args.tables / "candidates.jsonl") for pair in protocol.pairs_of(row)]
    pairs = pairs[: args.pairs]

    def request() -> np.ndarray:
        return model.predict(pairs, show_progress_bar=False)

    np.save(args.tables / "peer.npy", request())
    protocol.serve(request, args.requests, 1, examples=len(pairs), versions=versions())


def versions() -> dict[str, Any]:
    return {"torch": torch.__version__, "sentence_transformers": sentence_transformers.__version__}


RUN = {"train": train, "cached": train, "cross": cross, "rerank": rerank}


if __name__ == "__main__":
    args = protocol.retrieval_arguments(__doc__, RUN)
    torch.set_num_threads(args.threads)
    RUN[args.case](args)
