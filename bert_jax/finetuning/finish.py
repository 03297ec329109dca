"""Ends a fine-tuning: keeps the best model, and writes its predictions, its scores and report.html."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bert_jax import disk
from bert_jax.errors import InputError
from bert_jax.finetuning import results, stages
from bert_jax.finetuning.runs import Outcome, Scored
from bert_jax.finetuning.trainer import Trainer
from bert_jax.report.page import write_report
from bert_jax.tasks.figures import Figure
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.splits import Splits


def finish(
    trainer: Trainer, splits: Splits, test: Sequence[Split], outcomes: Sequence[Outcome], command: str,
    scored: Scored | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Predicts with the best run (without runs, with the model itself), and writes and prints the results.

    Writes export/ (of the best run), predictions/, results.json and report.html into the work directory. Returns the scores of
    each split. Raises InputError where all runs diverged, or a file cannot be written.
    """
    workdir, kind = Path(trainer.cfg.workdir or ""), trainer.task.kind
    best = stages.best_of(outcomes)
    if trainer.batches is not None and best is None:
        raise InputError(f"all runs diverged: {outcomes[0].failed}; give lower --learning-rates")
    if best is not None:
        _keep_best(workdir, stages.export_folder(workdir, outcomes, best))
    scores, predicted = stages.predict_all(trainer, test, workdir, scored)
    details, mistakes = judge(kind, predicted)
    data = _sizes(splits, predicted)
    content = results.results(trainer.task.name, trainer.cfg.model, command, outcomes, best, data, scores, details)
    disk.write_json(workdir / "results.json", content)
    page = write_report(workdir, content, mistakes)
    if best is not None:
        results.show(outcomes, best, Console(stderr=True))
        print(f"The best model is in {workdir}/export, for bert_jax.load and transformers. Scores: {workdir}/results.json")
    for name, values in scores.items():
        if name in splits.test or best is None:
            part = data.get(f"{name}_labelled")
            rows = "" if part is None else f" ({part} of {data[name]} rows have a label)"
            print(f"{name}{rows}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
    print(f"Predictions: {workdir}/predictions. Curves and mistakes: {page}")
    return scores


def judge(kind: Kind, predicted: Mapping[str, Predicted]) -> tuple[dict[str, Details], dict[str, list[Figure]]]:
    """Returns `Kind.details` and `Kind.mistakes` of each split that is scored."""
    shown = {name: each.labelled() for name, each in predicted.items() if each.split.labelled or kind.scores_unlabelled}
    details = {name: found for name, each in shown.items() if each.split.labelled and (found := kind.details(each))}
    return details, {name: kind.mistakes(each, details.get(name, {})) for name, each in shown.items()}


def _sizes(splits: Splits, predicted: Mapping[str, Predicted]) -> dict[str, str | int]:
    """Returns the hash of the files, the rows of each split and, where only some have a label, the number of these."""
    rows = {name: len(records) for name, records in {"train": splits.train, **splits.dev, **splits.test}.items()}
    labelled = {name: each.split.labelled for name, each in predicted.items()}
    partly = {f"{name}_labelled": count for name, count in labelled.items() if 0 < count < rows[name]}
    return {"hash": splits.data_hash, **rows, **partly}


def _keep_best(workdir: Path, export: Path) -> None:
    """Copies the model of the best run to WORKDIR/export."""
    if export != workdir / "export":
        shutil.rmtree(workdir / "export", ignore_errors=True)
        shutil.copytree(export, workdir / "export", ignore=shutil.ignore_patterns("*.tmp"))
