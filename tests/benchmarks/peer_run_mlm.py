"""Pretraining as transformers' run_mlm.py does it in PyTorch, for a comparison over equal wall time on equal masks.

    python tests/benchmarks/peer_run_mlm.py --text 'text/*/*.txt' --tokenizer DIR --warmup-share 0.05 \
        --learning-rate 5e-4 --minutes 30 --eval-file eval.npz --out peer.jsonl --out-dir peer

Samples are tokenised with special tokens, concatenated and cut into blocks of --length, the remainder dropped;
DataCollatorForLanguageModeling masks 15 % in shuffled epochs; BertForMaskedLM in float32, Trainer's AdamW (fused, no
decay on biases and LayerNorms), clipping to 1, linear warm-up and decay, which by wall time end exactly with the
budget, however fast the machine is. --config DIR trains a model of another config.json, such as a ModernBERT's, from
fresh weights. Documents are read, and some held out, by bert_jax: --documents and --heldout-hash must be those of its
run. A sample is a document or, as run_mlm.py has it with plain text files, a line.

Only training counts against --minutes: not tokenisation, not evaluation. The evaluation file holds int32 input_ids,
token_type_ids, position_ids and sequence_ids [N, L], masked_positions and masked_ids [N, P], float32 masked_weights
[N, P]; tokens of equal sequence id attend to each other. Needs PyTorch, transformers >= 5 and bert_jax.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

Arrays = dict[str, np.ndarray]
SIZES = dict(hidden=256, layers=4, heads=4, intermediate=1024, length=128, batch=32)
RUN = dict(threads=2, seed=0)
RATES = dict(warmup_share=0.05, learning_rate=5e-4, weight_decay=0.01, heldout_hash=0.01, eval_every_minutes=3.0)


def read_documents(patterns: Sequence[str], documents: str, held_out: float) -> list[str]:
    """The documents that bert_jax trains on: those that it holds out are left out."""
    from bert_jax.config import DataConfig
    from bert_jax.data.corpus import read_texts

    cfg = DataConfig(source=tuple(patterns), documents=documents, eval_fraction=held_out)
    return list(read_texts(cfg, lambda items, *_: items))


class Blocks(torch.utils.data.Dataset):
    """Samples -> blocks [n, length] of each of the tokenizer's columns, concatenated a thousand samples at a time."""

    def __init__(self, samples: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, length: int):
        parts: dict[str, list[np.ndarray]] = {}
        for first in range(0, len(samples), 1000):
            for name, rows in tokenizer(samples[first : first + 1000], return_special_tokens_mask=True).items():
                flat = np.concatenate([np.array(row, np.int32) for row in rows])
                parts.setdefault(name, []).append(flat[: len(flat) // length * length].reshape(-1, length))
        self.columns = {name: np.concatenate(blocks) for name, blocks in parts.items()}

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {name: rows[index].tolist() for name, rows in self.columns.items()}


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Trainer's default optimizer: fused, no decay on biases and LayerNorms."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    options = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(options, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


@torch.inference_mode()
def evaluate(model: transformers.PreTrainedModel, arrays: Arrays, batch_size: int = 64) -> float:
    """Nats a masked token of a BERT or ModernBERT on the fixed masks, weighted; the model is left in train mode."""
    model.eval()
    total = weight = 0.0
    for first in range(0, len(arrays["input_ids"]), batch_size):
        batch = {name: torch.from_numpy(rows[first : first + batch_size]) for name, rows in arrays.items()}
        inputs = {name: batch[name].long() for name in ("input_ids", "position_ids")}
        attend = (batch["sequence_ids"][:, :, None] == batch["sequence_ids"][:, None, :])[:, None]
        if model.config.model_type == "modernbert":
            place = torch.arange(attend.shape[-1])
            near = (place[:, None] - place[None, :]).abs() <= model.config.local_attention // 2
            hidden = model.model(**inputs, attention_mask={"full_attention": attend, "sliding_attention": attend & near})
            head = torch.nn.Sequential(model.head, model.decoder)
        else:
            hidden = model.bert(**inputs, token_type_ids=batch["token_type_ids"].long(), attention_mask=attend)
            head = model.cls
        picked = torch.take_along_dim(hidden.last_hidden_state, batch["masked_positions"].long()[:, :, None], dim=1)
        logits, labels = head(picked).flatten(0, 1), batch["masked_ids"].long().flatten()
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        total += float((losses * batch["masked_weights"].flatten()).double().sum())
        weight += float(batch["masked_weights"].double().sum())
    model.train()
    return total / weight


def make_model(args: argparse.Namespace, tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedModel:
    """A fresh model: of --config, or BERT of the given sizes."""
    if args.config:
        return transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.from_pretrained(args.config)).train()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.intermediate,
        max_position_embeddings=max(512, args.length),
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.BertForMaskedLM(config).train()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="files or globs, as bert_jax takes them")
    parser.add_argument("--tokenizer", required=True, help="directory with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--config", help="directory with a config.json; replaces the sizes of the model")
    parser.add_argument("--documents", choices=["file", "blank_line", "line"], default="file", help="as data.documents")
    parser.add_argument("--sample-by", choices=["document", "line"], default="document")
    for name, default in (SIZES | RUN | RATES).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--minutes", type=float, required=True, help="wall time of training")
    parser.add_argument("--eval-file", required=True, help="NPZ")
    parser.add_argument("--out", type=Path, required=True, help="JSONL of minutes, step, eval_loss")
    parser.add_argument("--out-dir", default=None, help="where the final model is saved")
    return parser.parse_args()


def main() -> None:
    args = parse()
    load = os.getloadavg()[0]  # other work costs threads that wait for each other more than its share: run alone
    torch.set_num_threads(args.threads)
    transformers.set_seed(args.seed)
    with np.load(args.eval_file) as file:
        evaluation = dict(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    samples = read_documents(args.text, args.documents, args.heldout_hash)
    if args.sample_by == "line":
        samples = [line for text in samples for line in text.splitlines()]
    start = time.perf_counter()
    blocks = Blocks(samples, tokenizer, args.length)
    seconds = time.perf_counter() - start
    print(f"load before {load:.2f}; {len(samples)} samples in {len(blocks)} blocks; {seconds:.1f} s (not counted)")

    model = make_model(args, tokenizer)
    optimizer = adamw(model, args.learning_rate, args.weight_decay)

    def share_of_peak(_: int) -> float:
        progress = trained / budget
        return min(progress / args.warmup_share, max(0.0, (1 - progress) / (1 - args.warmup_share)))

    budget, trained, next_evaluation, step = args.minutes * 60, 0.0, 0.0, 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    loader = torch.utils.data.DataLoader(blocks, batch_size=args.batch, shuffle=True, collate_fn=collate)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # shuffled anew each epoch

    args.out.write_text("")
    while True:
        ended = trained >= budget
        if ended or trained >= next_evaluation:
            line = json.dumps({"minutes": trained / 60, "step": step, "eval_loss": evaluate(model, evaluation)})
            print(line, flush=True)
            with args.out.open("a") as file:
                file.write(line + "\n")
            next_evaluation += args.eval_every_minutes * 60
        if ended:
            break
        start = time.perf_counter()
        batch = next(batches)
        if model.config.model_type == "modernbert":
            batch.pop("token_type_ids", None)  # it has none
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step, trained = step + 1, trained + time.perf_counter() - start
    rows = step * args.batch
    print(f"{step} steps, {rows / len(blocks):.2f} epochs, {rows * args.length / trained:.0f} tokens/s")
    if args.out_dir:
        model.save_pretrained(args.out_dir)
        tokenizer.save_pretrained(args.out_dir)


if __name__ == "__main__":
    main()
