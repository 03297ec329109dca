"""Makes the content of results.json, and prints the table of runs."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table

from bert_jax.finetuning.runs import Outcome
from bert_jax.tasks.metrics import Details, Scores, summary

_LIBRARIES = ("bert_jax", "jax", "flax", "optax", "numpy", "scikit-learn", "scipy", "tokenizers")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def shared_metrics(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Returns (split, metric) of the scores that all runs have; runs of earlier versions have fewer."""
    first, *others = [outcome.scores for outcome in outcomes if outcome.scores] or [{}]
    return [(split, name) for split in first for name in first[split] if all(name in scores[split] for scores in others)]


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns mean, sd, median, min and max of the score and of each metric over the seeds of each learning rate.

    Failed runs are listed, and count if they have a score.
    """
    summaries = {}
    for rate in sorted({outcome.learning_rate for outcome in outcomes}):
        own = [outcome for outcome in outcomes if outcome.learning_rate == rate and outcome.history]
        summaries[f"{rate:g}"] = {
            "runs": len(own),
            "failed": [outcome.seed for outcome in outcomes if outcome.learning_rate == rate and outcome.failed],
            "score": summary([outcome.score for outcome in own]) if own else None,
            "metrics": {
                f"{split}/{metric}": summary([outcome.scores[split][metric] for outcome in own])
                for split, metric in shared_metrics(own)
            },
        }
    return summaries


def results(
    task: str, model: str, command: str, outcomes: Sequence[Outcome], best: Outcome | None, data: Mapping[str, str | int],
    exported: dict[str, Scores], details: Mapping[str, Details] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of results.json.

    Args:
      task: the name of the task.
      model: the model that was fine-tuned.
      command: the command line.
      outcomes: all runs.
      best: the run whose model is kept; None where nothing was trained.
      data: the hash of the files, and the number of rows of each split.
      exported: the scores of the exported model on every split that has labels.
      details: for these splits the scores of each class and the calibration.
    """
    return {
        "task": task,
        "model": model,
        "metrics": best.scores if best else {},
        "score": best.score if best else None,
        "best": {"seed": best.seed, "learning_rate": best.learning_rate, "step": best.best_step} if best else None,
        "exported": exported,
        "details": details or {},
        "runs": [dataclasses.asdict(outcome) | {"name": outcome.member.name} for outcome in outcomes],
        "summary": summarize(outcomes),
        "data": data,
        "command": command,
        "versions": versions(),
    }


def show(outcomes: Sequence[Outcome], best: Outcome, console: Console) -> None:
    """Prints a table with a line for each run, and mean and median for each learning rate."""
    names = shared_metrics([best, *outcomes])
    several = len(best.scores) > 1
    table = Table(title="scores of the kept weights on the dev set")
    marked = len(outcomes) > 1 or outcomes[0].failed
    measured = (f"{s} {m}" if several else m for s, m in names)
    for column in ("learning rate", "seed", "step", *measured, "seconds", *[""] * bool(marked)):
        table.add_column(column, justify="right", overflow="fold")  # wraps long names, also inside a word
    for outcome in outcomes:
        values = [f"{outcome.scores[s][m]:.4f}" if outcome.scores else "-" for s, m in names]
        mark = f"failed: {outcome.failed}" if outcome.failed else "best" if outcome is best and len(outcomes) > 1 else ""
        row = (f"{outcome.learning_rate:g}", str(outcome.seed), str(outcome.best_step), *values, f"{outcome.seconds:.0f}")
        table.add_row(*row, *[mark] * bool(marked))
    for rate, each in summarize(outcomes).items():
        if each["runs"] > 1:
            for name, form in (("mean ± sd", "{mean:.4f} ± {sd:.4f}"), ("median", "{median:.4f}")):
                table.add_row(rate, name, "", *(form.format_map(each["metrics"][f"{s}/{m}"]) for s, m in names), style="bold")
    console.print(table)
