"""Compares our recipe over equal wall time with transformers' run_mlm logic, with BERT-mini and with a ModernBERT of our shape.

    python tests/benchmarks/recipe_comparison.py --text 'text/*/*.txt' --minutes 32 --out comparison

Runs one after the other, each on --core alone, on a machine that does nothing else: ours (--config, --seeds), BERT-mini with
AdamW 5e-4, and transformers' ModernBertForMaskedLM of our shape with the best of --rates, chosen in runs of a quarter of the
time. It takes (seeds + 3) * minutes. Only training counts. All read the same documents, hold out the same ones and have one
vocabulary; all final models are evaluated by transformers on the same fixed 15 % masks (`peer_run_mlm.evaluate`).

OUT/comparison.json holds the curves (minutes, loss) and final losses, which are also printed. A run that is there already is
not repeated. Needs PyTorch, transformers >= 5 and bert_jax.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import transformers
from peer_run_mlm import evaluate

from bert_jax.commands.compare import read
from bert_jax.config import TrainConfig, from_dict
from bert_jax.data import heldout
from bert_jax.data.pretraining import load_data
from bert_jax.training import writer

ROOT = Path(__file__).parent.parent.parent
PROBE_STEPS = 60
Curve = list[tuple[float, float]]


def call(args: argparse.Namespace, *command: str) -> None:
    """Runs Python on one core, with one thread."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    print("$", *command, flush=True)
    subprocess.run(["taskset", "-c", str(args.core), sys.executable, *command], check=True, env=env)


def train(args: argparse.Namespace, folder: Path, steps: int, *more: str) -> None:
    """Runs ours for a number of steps, unless that is done."""
    if not (folder / "export" / "config.json").exists():
        call(
            args, "-m", "bert_jax", "train", args.config, "--workdir", str(folder), "--data.source", *args.text, "--num-steps",
            str(steps), "--data.documents", "file", "--data.eval-fraction", "0.01", "--data.cache-dir", str(args.out / "cache"),
            "--optim.warmup-steps", str(max(1, steps // 20)), "--checkpoint-every", str(steps), "--eval-every",
            str(max(PROBE_STEPS, steps // 32)), *more,
        )  # fmt: skip


def seconds_per_step(folder: Path) -> float:
    """The median over the later half of a run."""
    times = [float(line["step_seconds"]) for line in writer.read(folder / "metrics.jsonl") if "step_seconds" in line]
    return statistics.median(times[len(times) // 2 :])


def write_evaluation(folder: Path, path: Path) -> None:
    """Writes the held-out rows of a run of ours with their masks."""
    cfg = from_dict(TrainConfig, json.loads((folder / "config.json").read_text())).replace(workdir=str(folder))
    batches = heldout.load(cfg, load_data(cfg, lambda items, *_: items), lambda items, *_: items)[0].batches
    np.savez(path, **{name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})


def our_curve(folder: Path) -> Curve:
    """Minutes of training and held-out loss at each evaluation."""
    run, lines = read(str(folder)), writer.read(folder / "metrics.jsonl")
    return [
        (run.seconds / 60 * float(line["step"]) / run.step, float(line["eval/masked_lm_loss"]))
        for line in lines if "eval/masked_lm_loss" in line
    ]  # fmt: skip


def peer(args: argparse.Namespace, name: str, tokenizer: Path, minutes: float, *more: str) -> Curve:
    """Runs run_mlm's logic, unless that is done; minutes of training and held-out loss at each evaluation."""
    out, model = args.out / f"{name}.jsonl", args.out / name
    if not (model / "config.json").exists():
        call(
            args, str(Path(__file__).with_name("peer_run_mlm.py")), "--text", *args.text, "--tokenizer", str(tokenizer),
            "--minutes", str(minutes), "--eval-every-minutes", str(minutes / 16), "--eval-file", str(args.out / "eval.npz"),
            "--threads", "1", "--out", str(out), "--out-dir", str(model), *more,
        )  # fmt: skip
    return [(line["minutes"], line["eval_loss"]) for line in map(json.loads, out.read_text().splitlines())]


def final_loss(args: argparse.Namespace, folder: Path) -> float:
    """Evaluates a saved model by transformers."""
    with np.load(args.out / "eval.npz") as file:
        return evaluate(transformers.AutoModelForMaskedLM.from_pretrained(folder), dict(file))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="files or globs; a file is a document")
    parser.add_argument("--minutes", type=float, default=32.0, help="training of each run")
    parser.add_argument("--config", default="modern_mini", help="of our run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of our runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3], help="of ModernBERT's AdamW")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    probe = args.out / "probe"
    train(args, probe, PROBE_STEPS)
    write_evaluation(probe, args.out / "eval.npz")
    steps = round(args.minutes * 60 / seconds_per_step(probe))
    curves: dict[str, Curve] = {}
    for seed in args.seeds:
        folder = args.out / f"ours-{seed}"
        train(args, folder, steps, "--seed", str(seed), "--data.tokenizer", str(probe / "tokenizer"))
        curves[f"ours, seed {seed}"] = our_curve(folder)
    finals = {f"ours, seed {seed}": final_loss(args, args.out / f"ours-{seed}" / "export") for seed in args.seeds}

    tokenizer, shape = probe / "tokenizer", ("--config", str(probe / "export"))
    curves["BERT-mini"] = peer(args, "bert-mini", tokenizer, args.minutes)
    tried = {
        rate: peer(args, f"modernbert-{rate:g}", tokenizer, args.minutes / 4, *shape, "--learning-rate", str(rate))[-1][1]
        for rate in args.rates
    }
    best = min(tried, key=tried.__getitem__)
    curves["ModernBERT"] = peer(args, "modernbert", tokenizer, args.minutes, *shape, "--learning-rate", str(best))
    finals |= {"BERT-mini": final_loss(args, args.out / "bert-mini"), "ModernBERT": final_loss(args, args.out / "modernbert")}

    arrived = [min((at for at, loss in curve if loss <= finals["BERT-mini"]), default=None)
               for name, curve in curves.items() if name.startswith("ours")]  # fmt: skip
    result = {"steps of ours": steps, "rates of ModernBERT": tried, "final": finals, "curves": curves,
              "minutes of ours to BERT-mini's loss": arrived}  # fmt: skip
    (args.out / "comparison.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "curves"}, indent=1))


if __name__ == "__main__":
    main()
