"""What a fine-tuning run leaves: predictions in the forms that scorers read, results.json, and the table on the screen."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bert_jax.disk import write_json, write_text
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.finetuning.runs import Outcome
from bert_jax.tasks.classification import has_labels
from bert_jax.tasks.metrics import logistic, summary
from bert_jax.tasks.question_answering import answers as best_answers
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tuned import Tuned

_LIBRARIES = ("bert_jax", "jax", "flax", "optax", "numpy", "scikit-learn", "scipy", "tokenizers")
N_BEST = 20


def write_predictions(folder: Path, split: Split, predicted: Sequence[Any], evaluator: Evaluator, tuned: Tuned) -> Path:
    """Writes the predictions of a split; the path of the file.

    classification, multi_label, regression, multiple_choice, similarity: NAME.tsv with `id`, `prediction` (similarity: the
    cosine), the right `label` where some have one (empty for the others), and a column for each class's probability. tagging:
    NAME.conll, a line a word: the word, the right tag where some have one (_ for the others), the predicted tag. In both, `\\t`,
    `\\n`, `\\r` and `\\\\` stand for tabs, ends of lines and backslashes inside of a field.

    question_answering: NAME.json (id -> answer), NAME.null_odds.json and NAME.nbest.json, as SQuAD's scripts read them. Which
    labels and answers are given follows the thresholds of `tuned`, as the predictors do.
    """
    if evaluator.task.kind == "question_answering":
        return _write_answers(folder, split, predicted, tuned.null_threshold)
    if evaluator.task.kind == "tagging":
        return write_text(folder / f"{split.name}.conll", _words(split, predicted))
    return write_text(folder / f"{split.name}.tsv", _rows(split, *_columns(evaluator, predicted, tuned)))


def _words(split: Split, predicted: Sequence[Any]) -> Iterator[str]:
    labelled = split.labelled
    for record, tags in zip(split.records, predicted, strict=True):
        right = ["_"] * len(tags) if record.label is None else record.label
        columns = [record.texts, right, tags] if labelled else [record.texts, tags]
        yield from map(_line, zip(*columns, strict=True))
        yield "\n"


def _rows(split: Split, header: Sequence[str], rows: Iterable[tuple[Any, Sequence[float]]]) -> Iterator[str]:
    labelled = split.labelled
    yield _line(["id", "prediction", *(["label"] if labelled else []), *header])
    for record, (prediction, values) in zip(split.records, rows, strict=True):
        label = ",".join(record.label) if isinstance(record.label, tuple) else "" if record.label is None else record.label
        yield _line([record.id, prediction, *([label] if labelled else []), *(f"{value:.6g}" for value in values)])


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _line(fields: Sequence[Any]) -> str:
    return "\t".join(str(field).translate(_ESCAPES) for field in fields) + "\n"


def _columns(
    evaluator: Evaluator, predicted: Sequence[Any], tuned: Tuned
) -> tuple[list[str], Iterator[tuple[Any, Sequence[float]]]]:
    """(names of the columns behind the prediction, a row each)."""
    kind, labels = evaluator.task.kind, list(evaluator.labels)
    if kind == "regression":
        return [], ((f"{value:.6g}", []) for value in predicted)
    if kind == "similarity":
        return [], ((f"{cosine(vectors[0], vectors[1]):.6g}", []) for vectors in predicted)
    if kind == "multi_label":
        logits = np.array(predicted).reshape(-1, len(labels))
        both = zip(has_labels(logits, tuned), logistic(logits), strict=True)
        named = ((",".join(n for n, has in zip(labels, given, strict=True) if has), shares.tolist()) for given, shares in both)
        return labels, named
    names = labels if kind == "classification" else [str(i) for i in range(max(map(len, predicted), default=0))]
    each = (np.exp(logits - np.logaddexp.reduce(logits)) for logits in predicted)
    return names, ((names[int(row.argmax())], row.tolist()) for row in each)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors [D]."""
    return float(a @ b / max(1e-12, float(np.linalg.norm(a) * np.linalg.norm(b))))


def _write_answers(folder: Path, split: Split, predicted: Sequence[Any], threshold: float | None) -> Path:
    answers, odds = best_answers(Predicted(split, predicted, (), Tuned(null_threshold=threshold)))
    n_best = {}
    for record, (found, null) in zip(split.records, predicted, strict=True):
        logits = np.array([answer.logit for answer in found[:N_BEST]] + [null])
        shares = np.exp(logits - np.logaddexp.reduce(logits)).tolist()
        rows = [{"text": a.text, "start": a.start, "logit": a.logit} for a in found[:N_BEST]] + [{"text": "", "logit": null}]
        both = [row | {"probability": share} for row, share in zip(rows, shares, strict=True)]
        n_best[record.id] = sorted(both, key=lambda row: -row["logit"])
    write_json(folder / f"{split.name}.null_odds.json", odds)
    write_json(folder / f"{split.name}.nbest.json", n_best)
    write_json(folder / f"{split.name}.json", answers)
    return folder / f"{split.name}.json"


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For each learning rate the summary (mean, sd, median, min, max) of the score and of each metric over its seeds, and which
    runs failed; failed ones count too, except those that have no score."""
    rates = sorted({outcome.learning_rate for outcome in outcomes})
    summaries = {}
    for rate in rates:
        own = [outcome for outcome in outcomes if outcome.learning_rate == rate and outcome.history]
        names = [
            (split, metric) for split in (own[0].scores if own else {}) for metric in own[0].scores[split]
            if all(metric in outcome.scores[split] for outcome in own)  # runs of earlier versions may lack some
        ]  # fmt: skip
        summaries[f"{rate:g}"] = {
            "runs": len(own),
            "failed": [outcome.seed for outcome in outcomes if outcome.learning_rate == rate and outcome.failed],
            "score": summary([outcome.score for outcome in own]) if own else None,
            "metrics": {
                f"{split}/{metric}": summary([outcome.scores[split][metric] for outcome in own]) for split, metric in names
            },
        }
    return summaries


def results(
    task: str, model: str, command: str, outcomes: Sequence[Outcome], best: Outcome | None, data: dict[str, Any],
    exported: dict[str, dict[str, float]], details: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of results.json; `exported` are the exported model's scores on every split that has labels, and `details`
    what `evaluation.details` says of these: scores of each class, calibration."""
    return {
        "task": task,
        "model": model,
        "metrics": best.scores if best else {},
        "score": best.score if best else None,
        "best": {"seed": best.seed, "learning_rate": best.learning_rate, "step": best.best_step} if best else None,
        "exported": exported,
        "details": details or {},
        "runs": [dataclasses.asdict(outcome) for outcome in outcomes],
        "summary": summarize(outcomes),
        "data": data,
        "command": command,
        "versions": versions(),
    }


def show(outcomes: Sequence[Outcome], best: Outcome, console: Console) -> None:
    """A line a run, and the summary of each learning rate."""
    names = [
        (split, metric) for split in best.scores for metric in best.scores[split]
        if all(metric in outcome.scores[split] for outcome in outcomes if outcome.scores)
    ]  # fmt: skip
    several = len(best.scores) > 1
    table = Table(title="scores on the dev set, of the weights that are kept")
    marked = len(outcomes) > 1 or outcomes[0].failed
    measured = (f"{s} {m}" if several else m for s, m in names)
    for column in ("learning rate", "seed", "step", *measured, "seconds", *[""] * bool(marked)):
        table.add_column(column, justify="right", overflow="fold")  # a long name wraps, in its letters if need be
    for outcome in outcomes:
        values = [f"{outcome.scores[s][m]:.4f}" if outcome.scores else "-" for s, m in names]
        mark = f"failed: {outcome.failed}" if outcome.failed else "best" if outcome is best and len(outcomes) > 1 else ""
        row = (f"{outcome.learning_rate:g}", str(outcome.seed), str(outcome.best_step), *values, f"{outcome.seconds:.0f}")
        table.add_row(*row, *[mark] * bool(marked))
    for rate, each in summarize(outcomes).items():
        if each["runs"] > 1:
            rows = {
                "mean ± sd": lambda of: f"{of['mean']:.4f} ± {of['sd']:.4f}",
                "median": lambda of: f"{of['median']:.4f}",
            }
            for name, form in rows.items():
                table.add_row(rate, name, "", *(form(each["metrics"][f"{s}/{m}"]) for s, m in names), style="bold")
    console.print(table)
