"""Writes report.html of a fine-tuning run: scores, curves and mistakes.

The page loads no script, font or picture (its Content-Security-Policy forbids them), and fits phones, and light and dark screens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.disk import write_text
from bert_jax.report.charts import COLOURS, MOST_POINTS, Line, chart, draw_chart, finite
from bert_jax.report.html import Html, draw_matrix, joined, table, tag, whole_page
from bert_jax.tasks.figures import Chart, Figure, Matrix
from bert_jax.training import writer

Results = Mapping[str, Any]  # the content of results.json, or a run in it


def write_report(workdir: Path, results: Results, mistakes: Mapping[str, Sequence[Figure]]) -> Path:
    """Writes WORKDIR/report.html, whole or not at all; returns its path.

    Args:
      workdir: the folder with the runs' metrics.jsonl.
      results: the content of results.json.
      mistakes: tables and charts of each split that is shown (`Kind.mistakes`).
    """
    runs = results["runs"]
    parts = [tag("h1", results["task"]), tag("p", results["model"])]
    parts += [tag("h2", "Scores"), _kept(results), *_runs(results)]
    parts += _curves(workdir, runs) if runs else []
    for split, figures in mistakes.items():
        total, labelled = results["data"][split], results["data"].get(f"{split}_labelled")
        have = f"{total:,} examples" if labelled is None else f"{labelled:,} of {total:,} examples have a label"
        parts += [tag("h2", f"{split}: {have}"), *map(_draw, figures)]
    data = [[name if name == "hash" else f"{name} examples", value] for name, value in results["data"].items()]
    parts += [tag("h2", "Command, data and versions"), tag("pre", results["command"])]
    parts.append(table("", [], [*data, *results["versions"].items()]))
    return write_text(workdir / "report.html", whole_page(f"{results['task']}: {results['model']}", parts))


def _draw(figure: Figure) -> Html:
    if isinstance(figure, Chart):
        return draw_chart(figure)
    return draw_matrix(figure) if isinstance(figure, Matrix) else table(figure.caption, figure.header, figure.rows)


def _kept(results: Results) -> Html:
    best = results["best"]
    kept = f"learning rate {best['learning_rate']:g}, seed {best['seed']}, step {best['step']}" if best else "nothing was trained"
    rows = [[split, name, value] for split, scores in results["exported"].items() for name, value in scores.items()]
    return table(f"The model that is kept: {kept}", ["split", "metric", "value"], rows)


def _runs(results: Results) -> list[Html]:
    """Returns tables of the scores of each run, and of their mean and median over the seeds of each learning rate."""
    runs = results["runs"]
    if not runs:
        return []
    scored = [run["scores"] for run in runs if run["scores"]]
    names = [
        (split, metric)
        for split in (scored[0] if scored else {})
        for metric in scored[0][split]
        if all(metric in scores[split] for scores in scored)  # runs of earlier versions may lack some
    ]
    header = [" ".join(name) for name in names]
    rows = [
        [
            f"{run['learning_rate']:g}",
            run["seed"],
            tag("strong", f"failed: {run['failed']}") if run["failed"] else "",
            *(run["scores"][split][metric] if run["scores"] else "–" for split, metric in names),
            run["best_step"],
            run["steps"],
            f"{run['seconds']:.0f}",
        ]
        for run in runs
    ]
    own = table("Runs", ["learning rate", "seed", "", *header, "step kept", "steps", "seconds"], rows)
    if len(runs) == 1:
        return [own]
    over = [
        [rate, each["runs"], len(each["failed"]), name, *(form.format_map(each["metrics"]["/".join(n)]) for n in names)]
        for rate, each in results["summary"].items()
        for name, form in (("mean ± sd", "{mean:.4f}\u00a0±\u00a0{sd:.4f}"), ("median", "{median:.4f}"))
        if each["runs"]
    ]
    caption = "Over the seeds; failed runs that have a score count too"
    note = "The model that is kept was chosen by its dev score, which is partly luck; mean and median are not."
    return [table(caption, ["learning rate", "runs", "failed", "", *header], over), tag("p", note), own]


def _losses(workdir: Path, run: Results, alone: bool, read: Callable[[Path], list[dict]]) -> np.ndarray:
    """Returns the steps and training losses [2, N] of a run, from its metrics.jsonl."""
    name = run["name"]
    path, key, last = workdir / "metrics.jsonl" if alone else workdir / "runs" / name / "metrics.jsonl", "train/loss", math.inf
    if not alone and not path.exists():  # trained with others in one program
        path, key = workdir / "runs" / "metrics.jsonl", f"train/{name}/loss"
        last = math.inf if run["failed"] else run["steps"]  # the log goes on after a run that stopped early
    found = [(line["step"], line[key]) for line in read(path) if key in line and line["step"] <= last]
    return np.array(found, np.float64).reshape(-1, 2).T


def _curves(workdir: Path, runs: Sequence[Results]) -> list[Html]:
    """Returns charts of training loss and dev score. Colours distinguish learning rates or, if there is one, seeds."""
    rates = sorted({run["learning_rate"] for run in runs})
    losses, scores, colours, read = [], [], dict[str, int](), cache(writer.read)
    for run in runs:
        name = f"learning rate {run['learning_rate']:g}"
        colour = colours.setdefault(name if len(rates) > 1 else f"seed {run['seed']}", len(colours))
        name, failed = f"{name}, seed {run['seed']}", bool(run["failed"])
        raw = finite(_losses(workdir, run, len(runs) == 1, read))
        half, every = raw.shape[1] // 40, max(1, len(runs) * raw.shape[1] // MOST_POINTS)
        means = [raw[1, max(0, i - half) : i + half + 1].mean() for i in range(raw.shape[1])]
        losses.append(Line(name, np.array([raw[0], means])[:, ::every], raw[:, ::every], colour, failed))
        at = np.array([(each["step"], each["score"]) for each in run["history"]], np.float64).reshape(-1, 2).T
        scores.append(Line(name, at, at, colour, failed))
    legend = [tag("span", name, style=f"--own: var(--colour{colour})") for name, colour in colours.items()]
    legend = legend if 1 < len(legend) <= COLOURS else []
    legend += [tag("em", "dashed: failed")] if any(run["failed"] for run in runs) else []
    about = "Points of the loss are single batches, its line is the mean over a twentieth of the run."
    return [
        tag("h2", "Curves"),
        tag("p", joined(legend), _class="legend"),
        tag("div", joined([chart(losses, "step", "training loss"), chart(scores, "step", "dev score")]), _class="charts"),
        tag("p", f"{about} Checkpoints are compared by the dev score."),
    ]
