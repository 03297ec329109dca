"""Compares our recipe over equal wall time with transformers' run_mlm logic, with BERT-mini and with a ModernBERT of our shape.

    python tests/benchmarks/recipe_comparison.py --text 'text/*/*.txt' --minutes 32 --out comparison

Each run has a core of --cores to itself, on a machine that does nothing else; all cores are busy at any time, so that the runs
compare: ours (--config, --seeds), BERT-mini with AdamW 5e-4, and transformers' ModernBertForMaskedLM of our shape with the
best of --rates, chosen in runs of a quarter of the time. It takes (seeds + 3) * minutes / cores. Only training counts, and in
ours compilation. All read the same documents, hold out the same ones and have one vocabulary; all final models are evaluated
by transformers on the same fixed 15 % masks (`peer_run_mlm.evaluate`).

OUT/comparison.json holds the curves (minutes, loss) and final losses, which are also printed; OUT/curves.svg draws them. A run
that is there already is not repeated. Needs PyTorch, transformers >= 5 and bert_jax.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import transformers
from peer_run_mlm import evaluate
from side_by_side import Cores

from bert_jax.commands.compare import read
from bert_jax.config import TrainConfig, from_dict
from bert_jax.data import heldout
from bert_jax.data.pretraining import load_data
from bert_jax.report.charts import Line, chart
from bert_jax.training import writer

PROBE_STEPS = 120
COLOURS = {"BERT-mini": "#d55e00", "ModernBERT": "#b07d00", "ours": "#0072b2"}
STYLE = """<style>svg { background: white; font: 13px system-ui, sans-serif } text { fill: #555; text-anchor: middle }
text.y { text-anchor: end } path { fill: none; stroke: #ddd } .line { stroke-width: 2 }</style>"""
Curve = list[tuple[float, float]]


def train(args: argparse.Namespace, cores: Cores, folder: Path, steps: int, *more: str) -> None:
    """Runs ours for a number of steps, unless that is done."""
    every = str(steps if steps == PROBE_STEPS else max(1, steps // 64))
    if not (folder / "export" / "config.json").exists():
        cores.call(
            "-m", "bert_jax", "train", args.config, "--workdir", str(folder), "--data.source", *args.text, "--num-steps",
            str(steps), "--data.documents", "file", "--data.eval-fraction", "0.01", "--data.cache-dir", str(args.out / "cache"),
            "--optim.warmup-steps", str(max(1, steps // 20)), "--checkpoint-every", str(steps), "--eval-every", every,
            *args.options, *more,
        )  # fmt: skip


def timing(folder: Path) -> tuple[float, float]:
    """Returns the seconds of a run's compilation, and of a step: the median over its later half."""
    lines = list(writer.read(folder / "metrics.jsonl"))
    compilation = next(float(line["compile_seconds"]) for line in lines if "compile_seconds" in line)
    times = [float(line["step_seconds"]) for line in lines if "step_seconds" in line]
    return compilation, statistics.median(times[len(times) // 2 :])


def write_evaluation(folder: Path, path: Path) -> None:
    """Writes the held-out rows of a run of ours with their masks."""
    cfg = from_dict(TrainConfig, json.loads((folder / "config.json").read_text())).replace(workdir=str(folder))
    batches = heldout.load(cfg, load_data(cfg, lambda items, *_: items), lambda items, *_: items)[0].batches
    np.savez(path, **{name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})


def our_curve(folder: Path) -> Curve:
    """Minutes of compilation and training, and held-out loss, at each evaluation."""
    run, compilation = read(str(folder)), timing(folder)[0]
    return [
        ((compilation + run.seconds * float(line["step"]) / run.step) / 60, float(line["eval/masked_lm_loss"]))
        for line in writer.read(folder / "metrics.jsonl") if "eval/masked_lm_loss" in line
    ]  # fmt: skip


def peer(args: argparse.Namespace, cores: Cores, name: str, minutes: float, *more: str) -> Curve:
    """Runs run_mlm's logic, unless that is done; minutes of training and held-out loss at each evaluation."""
    out, model = args.out / f"{name}.jsonl", args.out / name
    if not (model / "config.json").exists():
        cores.call(
            str(Path(__file__).with_name("peer_run_mlm.py")), "--text", *args.text, "--minutes", str(minutes),
            "--tokenizer", str(args.out / "probe" / "tokenizer"), "--eval-file", str(args.out / "eval.npz"),
            "--eval-every-minutes", str(minutes / 16), "--threads", "1", "--out", str(out), "--out-dir", str(model), *more,
        )  # fmt: skip
    return [(line["minutes"], line["eval_loss"]) for line in map(json.loads, out.read_text().splitlines())]


def final_loss(args: argparse.Namespace, folder: Path) -> float:
    """Evaluates a saved model by transformers."""
    with np.load(args.out / "eval.npz") as file:
        return evaluate(transformers.AutoModelForMaskedLM.from_pretrained(folder), dict(file))


def draw(curves: dict[str, Curve]) -> str:
    """Returns a picture of the curves after their first minute as SVG."""
    groups = {name: next(group for group in COLOURS if name.startswith(group)) for name in curves}
    none = np.zeros((2, 0))
    lines = [
        Line(name, np.array([point for point in curve if point[0] >= 1]).T, none, list(COLOURS).index(groups[name]))
        for name, curve in curves.items()
    ]
    picture = str(chart(lines, "minutes", "held-out loss, nats a masked token"))
    for number, colour in enumerate(COLOURS.values()):
        picture = picture.replace(f"var(--colour{number})", colour)
    legend = "".join(
        f'<text x="90" y="{205 + 18 * number}" style="fill: {colour}; text-anchor: start">{name}</text>'
        for number, (name, colour) in enumerate(COLOURS.items())
    )
    opened, inside = picture.split(">", 1)
    return f'{opened} xmlns="http://www.w3.org/2000/svg">{STYLE}{inside.removesuffix("</svg>")}{legend}</svg>\n'


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="files or globs; a file is a document")
    parser.add_argument("--minutes", type=float, default=32.0, help="training of each run")
    parser.add_argument("--config", default="modern_tiny", help="of our run")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of our run beside its config; comes last")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of our runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3], help="of ModernBERT's AdamW")
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="each runs one participant at a time")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def probe(args: argparse.Namespace, cores: Cores) -> int:
    """Returns the number of our steps that fill the time while all cores are busy; prepares the text for all runs."""
    first = args.out / "probe"
    train(args, cores, first, PROBE_STEPS)
    write_evaluation(first, args.out / "eval.npz")
    folders = [args.out / f"probe-{core}" for core in args.cores]
    for job in [cores.submit(train, args, cores, folder, PROBE_STEPS, *shared(args)) for folder in folders]:
        job.result()
    compilation, step = map(max, zip(*map(timing, folders), strict=True))
    return int((args.minutes * 60 - compilation) / step)


def shared(args: argparse.Namespace) -> tuple[str, ...]:
    """The options by which our runs have one vocabulary."""
    return "--data.tokenizer", str(args.out / "probe" / "tokenizer")


def run(args: argparse.Namespace, cores: Cores, steps: int) -> tuple[dict[str, Curve], dict[float, float]]:
    """Runs all participants; returns their curves, and the loss of each of ModernBERT's rates."""
    shape = ("--config", str(args.out / "probe" / "export"))

    def ours(seed: int) -> Curve:
        folder = args.out / f"ours-{seed}"
        train(args, cores, folder, steps, "--seed", str(seed), *shared(args))
        return our_curve(folder)

    def best() -> Curve:
        rate = min(rates, key=lambda rate: rates[rate].result()[-1][1])
        return peer(args, cores, "modernbert", args.minutes, *shape, "--learning-rate", str(rate))

    def tried(rate: float) -> Curve:
        return peer(args, cores, f"modernbert-{rate:g}", args.minutes / 4, *shape, "--learning-rate", str(rate))

    jobs = {"BERT-mini": cores.submit(peer, args, cores, "bert-mini", args.minutes)}
    rates = {rate: cores.submit(tried, rate) for rate in args.rates}
    jobs |= {f"ours, seed {seed}": cores.submit(ours, seed) for seed in args.seeds}
    jobs["ModernBERT"] = cores.submit(best)  # last: it waits for the rates
    return {name: job.result() for name, job in jobs.items()}, {rate: job.result()[-1][1] for rate, job in rates.items()}


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    with Cores(args.cores) as cores:
        steps = probe(args, cores)
        curves, rates = run(args, cores, steps)
    folders = {"BERT-mini": "bert-mini", "ModernBERT": "modernbert"} | {
        f"ours, seed {seed}": f"ours-{seed}/export" for seed in args.seeds
    }
    finals = {name: final_loss(args, args.out / folder) for name, folder in folders.items()}
    arrived = {name: min((at for at, loss in curve if loss <= finals["BERT-mini"]), default=None)
               for name, curve in curves.items() if name.startswith("ours")}  # fmt: skip
    result = {"steps of ours": steps, "minutes": {name: curve[-1][0] for name, curve in curves.items()}, "final": finals,
              "rates of ModernBERT": rates, "minutes of ours to BERT-mini's loss": arrived, "curves": curves}  # fmt: skip
    (args.out / "comparison.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "curves.svg").write_text(draw(curves))
    print(json.dumps({name: value for name, value in result.items() if name != "curves"}, indent=1))


if __name__ == "__main__":
    main()
