"""Masking and batching on one core: bert_jax beside transformers' DataCollatorForLanguageModeling.

    python tests/benchmarks/masking.py --rows 64 --length 512 --rounds 50 --json masking.json

The peer gets what its users give it: a list of dicts of Python lists (input_ids, token_type_ids, attention_mask,
special_tokens_mask), once for return_tensors="np", once for "pt". Ours gets the same ids as its users have them, rows
of an array (the cache is one), and pays for gathering them by index, describing and masking them; "ours, lists" starts
from the peer's Python lists instead. In turns; medians; ratios round by round. Needs PyTorch and transformers >= 5.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import protocol

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in dict(rows=64, length=512, rounds=50).items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--json", type=Path, default=None, help="write everything measured to this file")
args = parser.parse_args()
protocol.limit_cores(1)

import tokenizers  # noqa: E402  (these after the limit on cores)
import torch  # noqa: E402
import transformers  # noqa: E402

from bert_jax.config import MaskingConfig  # noqa: E402
from bert_jax.data import masking, packing  # noqa: E402

PAD, UNK, CLS, SEP, MASK, FIRST_WORD = range(6)
torch.set_num_threads(1)


def random_rows() -> np.ndarray:
    """int32 [rows, length]: full rows of two [CLS] x [SEP] sequences of random words."""
    ids = np.random.default_rng(0).integers(FIRST_WORD, protocol.VOCAB_SIZE, (args.rows, args.length), dtype=np.int32)
    half = args.length // 2
    ids[:, [0, half]], ids[:, [half - 1, -1]] = CLS, SEP
    return ids


def ours(gather: Callable[[], np.ndarray]) -> Callable[[int], Any]:
    """bert_jax: rows gathered, described, masked: all that training's batches hold."""
    starts_word = np.ones(protocol.VOCAB_SIZE, bool)
    vocabulary = masking.Vocabulary(protocol.VOCAB_SIZE, MASK, (PAD, UNK, CLS, SEP, MASK), starts_word)
    cfg = MaskingConfig()

    def make(step: int) -> dict[str, np.ndarray]:
        rows = gather()
        return packing.describe(rows, CLS, SEP, PAD) | masking.mask_rows(rows, vocabulary, cfg, 0, step, pad_id=PAD)

    return make


def as_examples(ids: np.ndarray) -> list[dict[str, list[int]]]:
    """The rows as transformers' tokenizers return them."""
    columns = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "attention_mask": np.ones_like(ids),
        "special_tokens_mask": ((ids == CLS) | (ids == SEP)).astype(np.int64),
    }
    return [{name: values[i].tolist() for name, values in columns.items()} for i in range(len(ids))]


def peer(examples: list[dict[str, list[int]]], return_tensors: str) -> Callable[[int], Any]:
    """transformers' collator."""
    special = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    words = {f"word{i}": i for i in range(FIRST_WORD, protocol.VOCAB_SIZE)}
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel(special | words, unk_token="[UNK]"))
    roles = {f"{name.strip('[]').lower()}_token": name for name in special}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **roles)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, return_tensors=return_tensors)
    return lambda step: collate(examples)


def seconds(make: Callable[[int], Any], step: int) -> float:
    start = time.perf_counter()
    make(step)
    return time.perf_counter() - start


def main() -> None:
    load = os.getloadavg()[0]  # of other work: near 0 where the numbers are worth keeping
    ids = random_rows()
    examples, order = as_examples(ids), np.random.default_rng(1).permutation(len(ids))
    makers = {
        "ours": ours(lambda: ids[order]),
        "ours, lists": ours(lambda: np.array([example["input_ids"] for example in examples], np.int32)),
        "collator np": peer(examples, "np"),
        "collator pt": peer(examples, "pt"),
    }
    for make in makers.values():
        make(0)
    times = {name: [] for name in makers}
    for step in range(args.rounds):
        for name, make in makers.items():
            times[name].append(seconds(make, step))
    results = {}
    print(f"{args.rows} x {args.length} tokens, one core, {args.rounds} rounds; load before {load:.2f}")
    print(f"{'':12}{'median ms':>10}{'Mtokens/s':>11}{'ns/token':>10}{'x ours':>8}")
    for name, own in times.items():
        ratio = median(a / b for a, b in zip(own, times["ours"], strict=True))
        rate = ids.size / median(own)
        results[name] = {"median_seconds": median(own), "tokens_per_second": rate, "ratio": ratio}
        print(f"{name:12}{median(own) * 1e3:10.2f}{rate / 1e6:11.2f}{1e9 / rate:10.1f}{ratio:8.1f}")
    if args.json:
        versions = {m.__name__: m.__version__ for m in (np, torch, transformers, tokenizers)}
        record = dict(rows=args.rows, length=args.length, load_before=load, versions=versions, results=results)
        args.json.write_text(json.dumps({**record, "seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    main()
