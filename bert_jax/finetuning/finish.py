"""What a run came to: the best model kept, what it predicts, its scores and the page about them, written and told."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bert_jax import disk
from bert_jax.config import InputError
from bert_jax.finetuning import results, stages
from bert_jax.finetuning.runs import Outcome
from bert_jax.finetuning.trainer import Trainer
from bert_jax.report import page as report
from bert_jax.tasks.split import Split
from bert_jax.tasks.splits import Splits


def finish(
    trainer: Trainer, splits: Splits, test: Sequence[Split], outcomes: Sequence[Outcome], command: str
) -> dict[str, dict[str, float]]:
    """Picks the best of the runs, if any, predicts with it (else with the model itself), and writes what came of it.

    Returns the scores of each split. Writes into the config's workdir: export/ (the best run's), predictions/, results.json and
    report.html. Raises InputError where all runs diverged, and where a file cannot be written.
    """
    workdir = Path(trainer.cfg.workdir or "")
    scored = [outcome for outcome in outcomes if outcome.history]
    if trainer.batches is not None and not scored:
        raise InputError(f"all runs diverged: {outcomes[0].failed}. Give a lower --learning-rates")
    best = max(scored, key=lambda outcome: outcome.score, default=None)
    if best is not None:
        _keep_best(workdir, stages.export_folder(workdir, outcomes, best))
    scores, predicted = stages.predict_all(trainer, test, workdir)
    data = {"hash": splits.data_hash, "train": len(splits.train)} | {
        name: len(records) for name, records in [*splits.dev.items(), *splits.test.items()]
    }
    part = {split.name: split.labelled for split in test if 0 < split.labelled < len(split.records)}
    data |= {f"{name}_labelled": count for name, count in part.items()}
    details = {
        name: found
        for name, each in predicted.items()
        if each.split.labelled and (found := trainer.evaluator.kind.details(each.labelled()))
    }
    found = results.results(trainer.task.name, trainer.cfg.model, command, outcomes, best, data, scores, details)
    disk.write_json(workdir / "results.json", found)
    guesses, tuned = {name: each.values for name, each in predicted.items()}, next(iter(predicted.values())).tuned
    page = report.write_report(workdir, found, trainer.evaluator, [*trainer.dev, *test], guesses, tuned)
    if best is not None:
        results.show(outcomes, best, Console(stderr=True))
        print(f"The best is in {workdir}/export: bert_jax.load reads it, transformers too. Scores: {workdir}/results.json")
    for name, values in scores.items():
        if name in splits.test or best is None:
            rows = f" ({part[name]} rows of {data[name]} have a label)" if name in part else ""
            print(f"{name}{rows}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
    print(f"Predictions: {workdir}/predictions; curves and the worst errors: {page}")
    return scores


def _keep_best(workdir: Path, export: Path) -> None:
    """Copies the best run's model to WORKDIR/export."""
    if export != workdir / "export":
        shutil.rmtree(workdir / "export", ignore_errors=True)
        shutil.copytree(export, workdir / "export", ignore=shutil.ignore_patterns("*.tmp"))
