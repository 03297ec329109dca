"""Measures what each part of quickstart's recipe is worth: runs that differ in it, over seeds, with one budget of steps.

    python tests/benchmarks/recipe_ablation.py --cores 0 1 --out ablation
    python tests/benchmarks/recipe_ablation.py --tables widths --seeds 0 --cores 0 1 --out ablation

Each run has a core of its own. A run that is there already is not repeated. The text is quickstart's, so is the vocabulary, and
all runs are evaluated on the same held-out text and 15 % masks. Prints a Markdown table of held-out losses at half and at the
end of the budget, mean ± sd over the seeds; OUT/ablation.json holds them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from side_by_side import Cores

import bert_jax
from bert_jax.commands.compare import mean, read
from bert_jax.config import BertConfig, OptimConfig, TrainConfig, load_config_file

Changes = Mapping[str, Any]  # fields of TrainConfig; those of its groups are dictionaries
ADAMW: Changes = dict(optim=dict(name="adamw", learning_rate=1e-3))
MASKS_15: Changes = dict(masking=dict(rate=0.15))


def family(name: str, **size: int) -> BertConfig:
    """Returns a model of another family, of quickstart's size and without dropout."""
    sizes = dict(vocab_size=4096, hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768)
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertConfig.of_family(name, **sizes, **dropout, max_position_embeddings=128, **size)


def width(hidden: int, rate: float) -> Changes:
    """Returns quickstart at another width with another rate of Muon."""
    size = dict(hidden_size=hidden, num_attention_heads=hidden // 64, intermediate_size=hidden * 8 // 3 // 64 * 64)
    return dict(model=size, optim=dict(muon_learning_rate=rate))


TABLES: dict[str, dict[str, Changes]] = {
    "ingredients": {
        "BERT: post-norm, position table, biases; AdamW 1e-3, 15 % masks": dict(model=family("bert"), **ADAMW, **MASKS_15),
        "BERT, 30 % masks": dict(model=family("bert"), **ADAMW),
        "BERT, Muon": dict(model=family("bert"), **MASKS_15),
        "BERT, rotary positions (RoFormer)": dict(model=family("roformer"), **ADAMW, **MASKS_15),
        "quickstart": {},
        "quickstart without Muon: AdamW 1e-3": ADAMW,
        "quickstart with 15 % masks": MASKS_15,
        "quickstart with BERT's layers, rotary": dict(model=family("roformer")),
        "quickstart with BERT's layers and position table": dict(model=family("bert")),
    },
    "settings": {
        "quickstart": {},
        "AdamW 1e-3 beside Muon": dict(optim=dict(learning_rate=1e-3)),
        "StableAdamW 1e-3 in place of Muon": dict(optim=dict(name="stable_adamw", learning_rate=1e-3)),
        "Muon at 0.01": dict(optim=dict(muon_learning_rate=0.01)),
        "Muon at 0.04": dict(optim=dict(muon_learning_rate=0.04)),
        "five iterations": dict(optim=dict(muon_iterations=5, muon_coefficients="jordan")),
        "masks from 30 to 15 %": dict(masking=dict(final_rate=0.15)),
        "spans": dict(masking=dict(spans=True)),
        "1 row in 16 causal": dict(masking=dict(causal_share=1 / 16)),
        "dropout 0.1": dict(model=dict(hidden_dropout_prob=0.1, embedding_dropout_prob=0.1, mlp_dropout_prob=0.1)),
        "average ema:0.98": dict(optim=dict(average="ema:0.98")),
        "stable rate, the last fifth by 1 - sqrt": dict(
            optim=dict(schedule="warmup_stable_decay", decay_steps="fifth", decay_shape="1-sqrt")
        ),
        "batches of 8, twice the steps": dict(batch_size=8),
    },
    "widths": {
        f"width {hidden}, Muon at {rate}": width(hidden, rate) for hidden in (128, 192, 320) for rate in (0.01, 0.02, 0.04, 0.08)
    },
}


def config(changes: Changes, steps: int) -> TrainConfig:
    """Returns quickstart with changes, in a budget of `steps` steps of its batches."""
    cfg = load_config_file("quickstart")
    steps = steps * cfg.batch_size // changes.get("batch_size", cfg.batch_size)
    cfg = cfg.replace(num_steps=steps, eval_every=steps // 2, checkpoint_every=steps, fill_masks=())
    cfg = cfg.replace(optim=cfg.optim.replace(warmup_steps=steps // 11))
    for name, change in changes.items():
        if isinstance(change, dict):
            named = {field: steps // 5 if value == "fifth" else value for field, value in change.items()}
            if "name" in named:  # another optimizer, to which Muon's fields do not belong
                named |= {field: getattr(OptimConfig(), field) for field in vars(cfg.optim) if field.startswith("muon_")}
            change = getattr(cfg, name).replace(**named)
        cfg = cfg.replace(**{name: change})
    return cfg


def folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    words = "".join(letter if letter.isalnum() or letter == "." else " " for letter in name).split()
    return Path(args.out) / f"{'-'.join(words)}-{seed}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["ingredients", "settings"])
    parser.add_argument("--steps", type=int, default=275, help="of quickstart's batches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="each runs one run at a time")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # NAME SEED: train this run, in this process
    return parser.parse_args()


def train(args: argparse.Namespace, rows: Mapping[str, Changes], name: str, seed: int) -> None:
    """Trains one run in this process; the first run's vocabulary and rows are those of all."""
    cfg, first = config(rows[name], args.steps), folder(args, next(iter(rows)), args.seeds[0])
    data = cfg.data.replace(cache_dir=str(args.out / "cache"))
    if (first / "export").exists():
        data = data.replace(tokenizer=str(first / "tokenizer"))
    bert_jax.train(cfg.replace(workdir=str(folder(args, name, seed)), seed=seed, data=data))


def run(args: argparse.Namespace, rows: Mapping[str, Changes]) -> None:
    """Runs what is not there yet: the first run alone, then the others side by side."""
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = [str(seed) for seed in args.seeds]
    same = (__file__, "--tables", *args.tables, "--steps", str(args.steps), "--out", str(args.out), "--seeds", *seeds)
    missing = [
        (name, seed) for seed in args.seeds for name in rows
        if not (folder(args, name, seed) / "export" / "config.json").exists()
    ]  # fmt: skip
    with Cores(args.cores) as cores:
        jobs = []
        for number, (name, seed) in enumerate(missing):
            jobs.append(cores.submit(cores.call, *same, "--only", name, str(seed)))
            if number == 0:
                jobs[0].result()
    for job in jobs:
        job.result()


def show(args: argparse.Namespace, rows: Mapping[str, Changes]) -> None:
    """Writes the losses of all runs, and prints their table."""
    found: dict[str, list[list[float]]] = {}
    for name in rows:
        lines = [read(str(folder(args, name, seed))).evaluations[""] for seed in args.seeds]
        found[name] = [[line[at]["masked_lm_loss"] for line in lines] for at in (len(lines[0]) // 2 - 1, -1)]
    (args.out / "ablation.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"| | {args.steps // 2} steps | {args.steps} steps |\n|---|---|---|")
    for name, losses in found.items():
        print(f"| {name} | " + " | ".join(map(mean, losses)) + " |")


def main() -> None:
    args = parse()
    rows = {name: changes for table in args.tables for name, changes in TABLES[table].items()}
    if args.only:
        train(args, rows, args.only[0], int(args.only[1]))
    else:
        run(args, rows)
        show(args, rows)


if __name__ == "__main__":
    main()
