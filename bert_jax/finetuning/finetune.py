"""Fine-tunes a model on a task, from files to results."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bert_jax import disk, hugepages, pretrained
from bert_jax.errors import InputError
from bert_jax.finetuning import results, stages
from bert_jax.finetuning.config import FinetuneConfig, claim_workdir
from bert_jax.finetuning.runs import Outcome, Scored
from bert_jax.finetuning.trainer import Trainer
from bert_jax.report.page import write_report
from bert_jax.tasks.figures import Figure
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.splits import Splits, load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import Task, TaskData
from bert_jax.training import loop, multihost
from bert_jax.workdir import Reached


def finetune(cfg: FinetuneConfig, command: str = "bert_jax.finetune") -> Reached:
    """Fine-tunes a model on a task, after the task of `cfg.via` if there is one, or continues the run that `cfg.workdir` holds.

    Args:
        cfg: The run: model, task, data, and a run for each seed and learning rate.
        command: The command that results.json records.

    Returns:
        The scores of the best run by `SPLIT/METRIC`, such as `dev/accuracy`, and the folder of its model; or the signal that
        stopped the run.

    Raises:
        InputError: The config, the data, the model or the work directory does not allow the run.
    """
    multihost.connect(cfg.parallel)
    task = find_task(cfg.task, cfg.form)
    if cfg.num_epochs == 0 and cfg.max_seq_length is None:  # the length of the model's training
        there = pretrained.describe(cfg.model)
        cfg = cfg.replace(max_seq_length=there.max_length if there.tuned.task else None)
    cfg = cfg.resolved(task)
    multihost.first_then_others(lambda: claim_workdir(cfg, multihost.is_first()))
    if cfg.via is not None:
        before = _config_of_via(cfg, cfg.via)
        say(f"first {before.task}, then {cfg.task}")
        reached = finetune(before, command)
        if reached.signal is not None:
            return reached
        cfg = cfg.replace(model=str(Path(before.workdir or "") / "export"))
    return run(cfg, task, command)


def _config_of_via(cfg: FinetuneConfig, via: str) -> FinetuneConfig:
    """Returns the config of the task that comes first."""
    task, data = via.split("=", 1)
    task_data = TaskData(data=data, text_column=cfg.via_text_column, label_column=cfg.via_label_column)
    return FinetuneConfig(
        model=cfg.model, task=task, task_data=task_data, workdir=str(Path(cfg.workdir or "") / "via"),
        special_tokens=cfg.special_tokens, dtype=cfg.dtype, parallel=cfg.parallel,
    )  # fmt: skip


def say(line: str) -> None:
    """Prints a line to stderr, on the first host only."""
    if multihost.is_first():
        print(line, file=sys.stderr)


def run(cfg: FinetuneConfig, task: Task, command: str) -> Reached:
    """Reads the data, trains the runs, and predicts with the best."""
    folder = Path(cfg.workdir or "")
    splits = load_splits(task, cfg.task_data)
    multihost.check_equal("the data", splits.data_hash)
    for note in splits.notes:
        say(note)
    trainer, test = stages.prepare(cfg, task, splits, say)
    outcomes, scored = list[Outcome](), None
    if trainer.batches is not None:
        say("; ".join(filter(None, [f"on {trainer.devices.describe()}", trainer.kernel, hugepages.describe()])))
        with loop.StopRequest(multihost.stop_agreed()) as stop:
            outcomes, scored = stages.fit_all(trainer, folder, stop)
        if stop.signal is not None:
            say("stopped and saved; the same command continues")
            return Reached({}, None, stop.signal)
    scores = finish(trainer, splits, test, outcomes, command, scored) if multihost.is_first() else {}
    multihost.barrier("all is written")
    metrics = {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}
    return Reached(metrics, folder / "export" if outcomes else None)


# --- the end ---


def finish(
    trainer: Trainer, splits: Splits, test: Sequence[Split], outcomes: Sequence[Outcome], command: str,
    scored: Scored | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Predicts with the best run (without runs, with the model itself), and writes and prints the results.

    Writes export/ (of the best run), predictions/, results.json and report.html into the work directory. Returns the scores of
    each split. Raises InputError if all runs diverged, or a file cannot be written.
    """
    workdir, best = Path(trainer.cfg.workdir or ""), stages.best_of(outcomes)
    if trainer.batches is not None and best is None:
        raise InputError(f"all runs diverged: {outcomes[0].failed}; give lower --learning-rates")
    if best is not None:
        _keep_best(workdir, stages.export_folder(workdir, outcomes, best))
    scores, predicted = stages.predict_all(trainer, test, workdir, scored)
    publish(workdir, trainer.task, trainer.cfg.model, splits, scores, predicted, command, outcomes)
    return scores


def publish(
    workdir: Path, task: Task, model: str, splits: Splits, scores: dict[str, dict[str, float]],
    predicted: Mapping[str, Predicted], command: str, outcomes: Sequence[Outcome] = (),
) -> None:  # fmt: skip
    """Writes results.json and report.html into the work directory, and prints the scores. Raises InputError if it cannot."""
    best = stages.best_of(outcomes)
    details, mistakes = judge(task.kind, predicted)
    data = _sizes(splits, predicted)
    content = results.results(task.name, model, command, outcomes, best, data, scores, details)
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
