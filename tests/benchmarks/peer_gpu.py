"""PyTorch's side of gpu.py: reads a case as a JSON line, prepares it, says so, then times it on request (protocol.py).

    python tests/benchmarks/peer_gpu.py pretraining cpu --tiny

transformers' models in bfloat16 (autocast in training) with scaled_dot_product_attention, by torch.compile where that works and
this is a GPU, `torch.optim.AdamW(fused=True)`, gradients clipped to norm 1; sentence-transformers for embeddings. A row of
packed sequences is one sequence to them: they attend across, which costs them no mask. Sentences are padded to the longest of a
batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gpu
import numpy as np
import protocol
import torch
import transformers
from peer_torch_step import training_step

Prepared = tuple[Callable[[], Any], dict[str, Any]]


def bert(cls: Any, size: str, attention_dropout: float = 0.1) -> Any:
    """A model of transformers with random weights, on the device."""
    layers, hidden, heads, intermediate = gpu.SIZES["tiny" if args.tiny else size]
    shape = dict(
        vocab_size=gpu.vocab_size(args.tiny), num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        intermediate_size=intermediate, attn_implementation="sdpa",
    )  # fmt: skip
    if size == "modernbert":  # without dropout; its own ids of special tokens are past a small vocabulary
        ids = dict(pad_token_id=0, bos_token_id=101, eos_token_id=102, cls_token_id=101, sep_token_id=102)
        return cls(transformers.ModernBertConfig(**shape, **ids)).to(device)
    return cls(transformers.BertConfig(**shape, attention_probs_dropout_prob=attention_dropout)).to(device)


def timed_training(model: Any, batch: dict[str, Any], **facts: Any) -> Prepared:
    """A turn of training steps; compiled if that works, else as it is."""
    batch = {name: value.to(device) for name, value in batch.items()}
    half = device == "cuda"
    began, how = time.perf_counter(), "eager"
    step = training_step(model, batch, half)
    if half:
        with contextlib.suppress(Exception):
            compiled = training_step(torch.compile(model), batch, half)
            compiled().item()
            step, how = compiled, "torch.compile"
    step().item()
    facts |= dict(compile_seconds=time.perf_counter() - began, how=f"{'bfloat16' if half else 'float32'}, sdpa, {how}")

    def run() -> float:
        for _ in range(1 if args.tiny else gpu.STEPS):
            loss = step()
        return loss.item()  # waits

    run()
    return run, facts


def pretraining(case: str, _: Any) -> Prepared:
    """A masked language model with logits at every position."""
    size, rows, length, dropout, _, rate = gpu.cases(gpu.PRETRAINING, args.tiny)[case]
    arrays = gpu.pretraining_batch(rows, length, gpu.vocab_size(args.tiny), rate=rate)
    labels = np.full((rows, length), -100)
    row, slot = np.nonzero(arrays["masked_weights"])
    labels[row, arrays["masked_positions"][row, slot]] = arrays["masked_ids"][row, slot]
    batch = {"input_ids": torch.from_numpy(arrays["input_ids"]).long(), "labels": torch.from_numpy(labels)}
    if size == "modernbert":  # its products are not those of the formula below
        return timed_training(bert(transformers.ModernBertForMaskedLM, size), batch)
    layers, hidden, _, intermediate = gpu.SIZES["tiny" if args.tiny else size]
    products = protocol.training_flops(layers, hidden, intermediate, rows, length, length, gpu.vocab_size(args.tiny))
    model = bert(transformers.BertForMaskedLM, size, dropout)
    return timed_training(model, batch, flops=products * (1 if args.tiny else gpu.STEPS))


def finetuning(case: str, _: Any) -> Prepared:
    """BertForSequenceClassification, the batch padded to its longest sentence."""
    size, count = gpu.cases(gpu.FINETUNING, args.tiny)[case]
    examples, labels = gpu.labelled(count, gpu.vocab_size(args.tiny))
    longest = max(len(example.input_ids) for example in examples)
    input_ids = np.zeros((count, longest), np.int64)
    for i, example in enumerate(examples):
        input_ids[i, : len(example.input_ids)] = example.input_ids
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy((input_ids > 0).astype(np.int64))}
    return timed_training(
        bert(transformers.BertForSequenceClassification, size), batch | {"labels": torch.from_numpy(labels).long()}
    )


def embedding(case: str, directory: str) -> Prepared:
    """SentenceTransformer.encode from text, or its model on full rows of ids; vectors must be near ours."""
    import sentence_transformers

    _, count, words, from_text = gpu.cases(gpu.EMBEDDING, args.tiny)[case]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = sentence_transformers.SentenceTransformer(directory, device=device, model_kwargs={"dtype": dtype})
    texts = gpu.sentences(count, words, gpu.vocab_size(args.tiny))
    size = 8 if args.tiny else 256 if from_text else 64
    tokenize = getattr(model, "preprocess", None) or model.tokenize  # its name in newer versions, and in older ones
    batches = [tokenize(texts[i : i + size]) for i in range(0, count, size)] if not from_text else []

    @torch.inference_mode()
    def run() -> np.ndarray:
        if from_text:
            return model.encode(texts, batch_size=size, show_progress_bar=False)
        on_device = ({k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()} for batch in batches)
        return torch.cat([model(batch)["sentence_embedding"].float().cpu() for batch in on_device]).numpy()

    seconds, _ = protocol.timed(run)
    return run, dict(compile_seconds=seconds, how=f"{dtype}, batches of {size}")


SECTIONS: dict[str, Callable[[str, Any], Prepared]] = {
    "pretraining": pretraining, "embedding": embedding, "finetuning": finetuning,
}  # fmt: skip


def answer(case: str, options: Any) -> Callable[[], Any] | None:
    """Prepares a case and says its facts; None, and the reason, where that fails."""
    try:
        run, facts = SECTIONS[args.section](case, options)
    except Exception as error:
        protocol.say(failed=f"{type(error).__name__}: {str(error)[:300]}")
        return None
    if device == "cuda":
        facts["peak_bytes"] = torch.cuda.max_memory_allocated()
    protocol.say(**facts, torch=torch.__version__)
    return run


def main() -> None:
    run = None
    for request in sys.stdin:
        if request.strip() == "quit":
            return
        if request.strip() == "step" and run:
            protocol.say(seconds=protocol.timed(run)[0])
        elif request.startswith("{"):
            run = None  # frees the last case's memory
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            run = answer(**json.loads(request))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("device", choices=("gpu", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = "cuda" if args.device == "gpu" else "cpu"
    torch.manual_seed(0)
    main()
