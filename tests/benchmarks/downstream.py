"""Fine-tunes several models, such as those of recipe_comparison.py, on the same five tasks and compares their scores.

    python tests/benchmarks/downstream.py --data DATA --out downstream --cores 0 1 \\
        --models ours=comparison/ours-0/export bert-mini=comparison/bert-mini modernbert=comparison/modernbert

The tasks, their rows, batches and epochs are those of ours_finetuning.py: SST-2, CoLA, MRPC, WNUT-17 and questions. Each model
is trained with each of --learning-rates and --seeds seeds; its score on the dev set is that of its rate with the best mean.
Nothing else is chosen: the weights after the last step count. Prints a table of mean ± sd; OUT/downstream.json has all scores.
A run that is there already is not repeated. Runs go side by side, each on one of --cores. DATA is that of peer_finetuning.py.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from finetuning import MAIN
from ours_finetuning import command
from protocol import ROOT, pooled_sd
from side_by_side import Cores

TASKS = ("sst2", "cola", "mrpc", "wnut17", "qa")
Scores = dict[float, list[float]]  # those of the seeds, by learning rate


def finetune(args: argparse.Namespace, cores: Cores, model: str, task: str) -> Scores:
    """Fine-tunes a model on a task with all rates and seeds, unless that is done."""
    folder = args.out / f"{model}-{task}"
    if not (folder / "results.json").exists():
        words = command(task, args.data, Path(args.models[model]))
        words[words.index("--learning-rates") + 1 : words.index("--learning-rates") + 2] = args.learning_rates
        cores.call(ROOT / "finetune.py", *words, "--seeds", args.seeds, "--workdir", folder)
    found: Scores = defaultdict(list)
    for run in json.loads((folder / "results.json").read_text())["runs"]:
        found[run["learning_rate"]].append(run["scores"]["dev"][MAIN[task]])
    return found


def best(scores: Scores) -> list[float]:
    """Returns the scores of the rate with the best mean."""
    return max(scores.values(), key=mean)


def show(args: argparse.Namespace, found: dict[str, dict[str, Scores]]) -> None:
    """Prints a row a model, and how many pooled standard deviations the first model is above each of the others."""
    print("| | " + " | ".join(f"{task} {MAIN[task]}" for task in args.tasks) + " | mean |")
    print("|---" * (len(args.tasks) + 2) + "|")
    for model, tasks in found.items():
        scores = [best(tasks[task]) for task in args.tasks]
        cells = [f"{mean(own):.3f} ± {stdev(own):.3f}" for own in scores] + [f"{mean(map(mean, scores)):.3f}"]
        print(f"| {model} | " + " | ".join(cells) + " |")
    first, *others = found.values()
    for model, tasks in zip(list(found)[1:], others, strict=True):
        pairs = [(best(first[task]), best(tasks[task])) for task in args.tasks]
        above = [f"{(mean(a) - mean(b)) / max(pooled_sd(a, b), 1e-9):+.1f}" for a, b in pairs]
        print(f"pooled sd above {model}: " + ", ".join(f"{task} {by}" for task, by in zip(args.tasks, above, strict=True)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR", help="the first is compared with the others")
    parser.add_argument("--data", type=Path, required=True, help="directory with glue/, ner/ and qa/")
    parser.add_argument("--tasks", nargs="+", choices=MAIN, default=TASKS)
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, default=3)
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
    (args.out / "downstream.json").write_text(json.dumps(found, indent=1) + "\n")
    show(args, found)


if __name__ == "__main__":
    main()
