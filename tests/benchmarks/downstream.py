"""Fine-tunes several models, such as those of recipe_comparison.py, on the same five tasks and compares their scores.

    python tests/benchmarks/downstream.py --data DATA --out downstream --cores 0 1 \\
        --models ours=comparison/ours-0/export bert-mini=comparison/bert-mini modernbert=comparison/modernbert

The tasks, their rows and batches are those of ours_finetuning.py: SST-2, CoLA, MRPC, WNUT-17 and questions. There are more
epochs, as models that were pretrained for minutes need them. For each model and task, seed 0 chooses among --learning-rates by
the score on the dev set, and the other seeds take that rate. Nothing else is chosen: the weights after the last step count.
Prints a table of mean ± sd; OUT/downstream.json has all scores. A run that is there already is not repeated. Runs go side by
side, each on one of --cores. DATA is that of peer_finetuning.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from finetuning import MAIN
from ours_finetuning import command
from protocol import ROOT, pooled_sd
from side_by_side import Cores

EPOCHS = {"sst2": 10, "cola": 10, "mrpc": 10, "wnut17": 15, "qa": 5}


class Scores(NamedTuple):
    """The scores of all seeds at the learning rate that seed 0 chose."""

    rate: float
    of_seeds: list[float]


def trained(cores: Cores, folder: Path, task: str, words: Sequence[str]) -> list[tuple[float, float]]:
    """Fine-tunes a model, unless that is done; returns the learning rate and the score of each run."""
    if not (folder / "results.json").exists():
        cores.call(ROOT / "finetune.py", *words, "--workdir", folder)
    runs = json.loads((folder / "results.json").read_text())["runs"]
    return [(run["learning_rate"], run["scores"]["dev"][MAIN[task]]) for run in runs]


def finetune(args: argparse.Namespace, cores: Cores, model: str, task: str) -> Scores:
    """Fine-tunes a model on a task with all rates and seed 0, then with the best rate and the other seeds."""

    def run(name: str, **options: Sequence[object]) -> list[tuple[float, float]]:
        words = command(task, args.data, Path(args.models[model]))
        for option, values in {"num_epochs": [EPOCHS[task]], **options}.items():
            word = f"--{option.replace('_', '-')}"
            at = words.index(word) if word in words else len(words)
            words[at : at + 2] = [word, *map(str, values)]
        return trained(cores, args.out / f"{model}-{task}-{name}", task, words)

    rate, score = max(run("rates", learning_rates=args.learning_rates), key=lambda one: one[1])
    return Scores(rate, [score, *(own for _, own in run("seeds", learning_rates=[rate], seed=[1], seeds=[args.seeds - 1]))])


def show(args: argparse.Namespace, found: dict[str, dict[str, Scores]]) -> None:
    """Prints a row a model, and how many pooled standard deviations the first model is above each of the others."""
    print("| | " + " | ".join(f"{task} {MAIN[task]}" for task in args.tasks) + " | mean |")
    print("|---" * (len(args.tasks) + 2) + "|")
    for model, tasks in found.items():
        scores = [tasks[task].of_seeds for task in args.tasks]
        cells = [f"{mean(own):.3f} ± {stdev(own):.3f}" for own in scores] + [f"{mean(map(mean, scores)):.3f}"]
        print(f"| {model} | " + " | ".join(cells) + " |")
    first, *others = found.values()
    for model, tasks in zip(list(found)[1:], others, strict=True):
        pairs = [(first[task].of_seeds, tasks[task].of_seeds) for task in args.tasks]
        above = [f"{(mean(a) - mean(b)) / max(pooled_sd(a, b), 1e-9):+.1f}" for a, b in pairs]
        print(f"pooled sd above {model}: " + ", ".join(f"{task} {by}" for task, by in zip(args.tasks, above, strict=True)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR", help="the first is compared with the others")
    parser.add_argument("--data", type=Path, required=True, help="directory with glue/, ner/ and qa/")
    parser.add_argument("--tasks", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="each runs one fine-tuning at a time")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.models = dict(model.split("=", 1) for model in args.models)
    return args


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    with Cores(args.cores) as cores:
        jobs = {model: {task: cores.submit(finetune, args, cores, model, task) for task in args.tasks} for model in args.models}
    found = {model: {task: job.result() for task, job in tasks.items()} for model, tasks in jobs.items()}
    (args.out / "downstream.json").write_text(json.dumps(found, indent=1) + "\n")  # a list of the rate and the scores
    show(args, found)


if __name__ == "__main__":
    main()
