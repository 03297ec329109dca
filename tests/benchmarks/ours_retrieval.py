"""bert_jax's side of retrieval.py: training and reranking timed on request (protocol.py), and chunks on its own.

python tests/benchmarks/ours_retrieval.py --case train --tables FOLDER --model DIR --batches 2 --requests 3
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import protocol

LENGTH = 256
CHUNKED_LENGTH = 64  # chunks: tokens of a row


def prepare(args: argparse.Namespace, task: str, table: str, *more: str) -> Any:
    """The setting of finetune.py's runs, without dev."""
    from bert_jax.finetuning import stages
    from bert_jax.finetuning.config import load_finetune_config
    from bert_jax.tasks.splits import load_splits
    from bert_jax.tasks.table import find_task

    words = ["--task", task, "--data", str(args.tables / f"{table}.jsonl"), "--dev-size", "1", "--num-devices", "1"]
    words += ["--max-seq-length", str(LENGTH), "--batch-size", str(args.batch_size)]
    row = find_task(task)
    model = str(args.headed if task == "reranking" else args.model)
    cfg = load_finetune_config([model, *words, *more]).resolved(row)
    splits = dataclasses.replace(load_splits(row, cfg.task_data), dev={}, test={})
    return stages.prepare(cfg, row, splits, lambda line: print(line, file=sys.stderr))[0]


def head(args: argparse.Namespace) -> None:
    """Writes the encoder with a head of one value to --headed."""
    from ours_retrieval_quality import write_start

    write_start("cross", args.model, args.headed)


def train(args: argparse.Namespace) -> None:
    """A request trains on all batches once, and waits for the last update."""
    import jax

    from bert_jax.finetuning import runs

    if args.case == "cross":
        setting = prepare(args, "reranking", "candidates", "--loss", "pointwise")
    else:
        chunked = ["--chunk-size", str(args.chunk_size)] if args.case == "cached" else []
        setting = prepare(args, "retrieval", "pairs", *chunked)
    run = runs.Runs(setting, [runs.Member(0, setting.cfg.learning_rates[0])], Path("unused"))
    batches, state, step = setting.batches, run.initial(), run.train_step()
    count = 1 if args.case == "cached" else args.batches

    def request() -> None:
        nonlocal state
        metrics = None
        for batch in batches.stream([0], 0, count):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    made = [batches.train([0], number) for number in range(count)]
    if args.case == "cross":
        examples = sum(int(batch["weights"].sum()) for batch in made)
    else:
        examples = sum(len(batches.order(0, number)) for number in range(count))
    tokens, positions = sum(int((b["sequence_ids"] > 0).sum()) for b in made), sum(b["input_ids"].size for b in made)
    facts = dict(examples=examples, tokens=tokens, positions=positions, versions={"jax": jax.__version__})
    protocol.serve(request, args.requests, 1, **facts)


def rerank(args: argparse.Namespace) -> None:
    """A request scores all pairs."""
    import jax

    import bert_jax

    reranker = bert_jax.Reranker(bert_jax.load(args.headed), max_length=LENGTH)
    pairs = [pair for row in protocol.read_lines(args.tables / "candidates.jsonl") for pair in protocol.pairs_of(row)]
    pairs = pairs[: args.pairs]
    np.save(args.tables / "ours.npy", reranker(pairs))
    protocol.serve(lambda: reranker(pairs), args.requests, 1, examples=len(pairs), versions={"jax": jax.__version__})


def chunks(args: argparse.Namespace) -> None:
    """Prints the seconds of steps with and without chunks, in turns, and the temporary memory of compiled steps."""
    import jax
    import jax.numpy as jnp

    from bert_jax.finetuning.trainer import make_sums

    setting = prepare(args, "retrieval", "pairs", "--batching", "padded")
    kind, module, model = setting.evaluator.kind, setting.module, setting.start.model

    def batch_of(rows: int) -> dict[str, np.ndarray]:
        """Random tokens; each row is a query or a document."""
        ids = np.random.default_rng(0).integers(1000, 20000, (rows, CHUNKED_LENGTH), dtype=np.int32)
        places, zeros, numbers = np.zeros((rows, 1), np.int32), np.zeros_like(ids), np.arange(rows, dtype=np.int32).reshape(-1, 2)
        return {
            "input_ids": ids, "token_type_ids": zeros, "position_ids": zeros + np.arange(CHUNKED_LENGTH, dtype=np.int32)[None],
            "sequence_ids": zeros + 1, "cls_positions": places, "slots": numbers, "weights": np.ones(rows // 2, np.float32),
            "query_ids": numbers[:, 0], "document_ids": numbers[:, 1:], "positive_ids": numbers[:, 1:],
        }  # fmt: skip

    def compiled(rows: int, chunk: int | None) -> Any:
        sums = make_sums(kind, module, model, setting.options, chunk)

        def loss(params: Any, batch: Any) -> jax.Array:
            return sum((own.mean() for own in sums(params, batch, jax.random.key(0)).values()), jnp.float32(0))

        return jax.jit(jax.value_and_grad(loss)).lower(model.params, batch_of(rows)).compile()

    params, batch = jax.device_put((model.params, batch_of(args.timed_rows)))
    both = {chunk: compiled(args.timed_rows, chunk) for chunk in (None, args.chunk_size)}
    seconds: dict[int | None, list[float]] = {chunk: [] for chunk in both}
    for round_ in range(args.rounds + 1):
        for chunk, step in both.items():
            taken, _ = protocol.timed(lambda step=step: jax.block_until_ready(step(params, batch)))
            seconds[chunk] += [taken] * bool(round_)
    memory = {rows: compiled(rows, args.chunk_size).memory_analysis().temp_size_in_bytes / 1e6 for rows in args.rows}
    ratio = median(a / b for a, b in zip(seconds[args.chunk_size], seconds[None], strict=True))
    protocol.say(time_ratio=ratio, time_rows=args.timed_rows, seconds=[*seconds.values()], temporary_mb=memory)


RUN = {"train": train, "cached": train, "cross": train, "rerank": rerank, "chunks": chunks, "head": head}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunk-size", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--timed-rows", type=int, default=128, help="chunks: rows of the steps that are timed")
    parser.add_argument("--rounds", type=int, default=5, help="chunks")


if __name__ == "__main__":
    sys.path.insert(0, str(protocol.ROOT))
    from bert_jax import hugepages

    hugepages.use()  # as finetune.py does
    args = protocol.retrieval_arguments(__doc__, RUN, add)
    RUN[args.case](args)
