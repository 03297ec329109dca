"""sentence-transformers' side of retrieval_quality.py: trains one retriever or cross-encoder and saves it.

    python tests/benchmarks/peer_retrieval_quality.py --form dense --table pairs.jsonl --model DIR --out OUT --steps 60

The models and losses are sentence-transformers': MultipleNegativesRankingLoss, SpladeLoss with the schedule of its weights,
MultiVectorMultipleNegativesRankingLoss and BinaryCrossEntropyLoss. The loop is that of its trainers, which need `datasets` and
`accelerate`: AdamW without decay of biases and norms, a linear warm-up and decay, clipped gradients, and for in-batch negatives
no text twice in a batch (BatchSamplers.NO_DUPLICATES).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peer_retrieval
import protocol
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sparse_encoder import SparseEncoder
from sentence_transformers.sparse_encoder.callbacks.splade_callbacks import SpladeRegularizerWeightSchedulerCallback
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

EPS, WEIGHT_DECAY, WARMUP_SHARE = 1e-6, 0.01, 0.1
QUERY_WEIGHT, DOCUMENT_WEIGHT = 5e-5, 3e-5  # finetune's defaults, which are those of sentence-transformers' guide
Rows = Sequence[dict[str, str]]


def splade(model: SparseEncoder) -> SpladeLoss:
    return SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), DOCUMENT_WEIGHT, QUERY_WEIGHT)


FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # the class of the model and its loss
    "dense": (SentenceTransformer, MultipleNegativesRankingLoss),
    "multi_vector": (MultiVectorEncoder, MultiVectorMultipleNegativesRankingLoss),
    "sparse": (SparseEncoder, splade),
    "cross": (CrossEncoder, BinaryCrossEntropyLoss),
}


def load(args: argparse.Namespace) -> Any:
    """Returns the model, which reads texts of at most --length tokens."""
    model = FORMS[args.form][0](str(args.model), device="cpu")
    model.max_seq_length = args.length
    if args.form == "multi_vector":
        model[0].document_length = args.length
    return model


def without_copies(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Yields batches of one epoch in which no text occurs twice; the last ones may be smaller."""
    left = [rows[i] for i in rng.permutation(len(rows))]
    while left:
        batch, later, seen = list[dict[str, str]](), list[dict[str, str]](), set[str]()
        for row in left:
            fits = len(batch) < size and seen.isdisjoint(row.values())
            (batch if fits else later).append(row)
            seen |= set(row.values()) if fits else set()
        yield batch
        left = later


def in_order(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Yields batches of one epoch."""
    order = rng.permutation(len(rows))
    yield from ([rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size))


def batches(args: argparse.Namespace) -> Iterator[Rows]:
    """Yields a batch for each step."""
    rows, rng, count = protocol.read_lines(args.table), np.random.default_rng(args.seed), 0
    while count < args.steps:
        for batch in (in_order if args.form == "cross" else without_copies)(rows, args.batch_size, rng):
            if count < args.steps:
                yield batch
            count += 1


def inputs(model: Any, form: str, rows: Rows) -> tuple[list[Any], torch.Tensor | None]:
    """Returns what the loss reads of some rows: the features of their queries and documents, or pairs with labels."""
    if form == "cross":
        return peer_retrieval.labelled(rows)
    columns = {name: [row[column] for row in rows] for name, column in (("query", "query"), ("document", "positive"))}
    roles = {name: {"task": name} if form == "multi_vector" else {} for name in columns}
    return [model.preprocess(texts, **roles[name]) for name, texts in columns.items()], None


def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Returns the parameters that decay, and those that do not: biases and the weights of norms."""
    kept = [p for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name.lower()]
    own = {id(p) for p in kept}
    return [
        {"params": [p for p in model.parameters() if id(p) not in own], "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]


def train(args: argparse.Namespace) -> None:
    """Trains the model and saves it; says how long the steps took."""
    transformers.set_seed(args.seed)
    model = load(args)
    loss = FORMS[args.form][1](model)
    optimizer = torch.optim.AdamW(groups(model), lr=args.rate, eps=EPS)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(WARMUP_SHARE * args.steps), args.steps)
    weights = SpladeRegularizerWeightSchedulerCallback(loss) if args.form == "sparse" else None
    state = SimpleNamespace(max_steps=args.steps, global_step=0)
    if weights is not None:
        weights.on_train_begin(None, state, None)
    start = time.perf_counter()
    for step, rows in enumerate(batches(args)):
        state.global_step = step
        if weights is not None:
            weights.on_step_begin(None, state, None)
        given = inputs(model, args.form, rows)

        def total(given: tuple[list[Any], torch.Tensor | None] = given) -> torch.Tensor:
            value = loss(*given)
            return sum(value.values()) if isinstance(value, dict) else value

        peer_retrieval.optimize(model, total, optimizer)
        schedule.step()
    seconds = time.perf_counter() - start
    model.save(str(args.out))
    protocol.say(seconds=seconds, versions=peer_retrieval.versions())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--table", type=Path, required=True, help="query, positive; cross: and negative_1, ...")
    parser.add_argument("--model", type=Path, required=True, help="directory of the model to start from")
    parser.add_argument("--out", type=Path, required=True, help="directory to save the trained model in")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=16, help="rows")
    parser.add_argument("--rate", type=float, default=5e-5, help="peak learning rate")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text, or of a pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)
