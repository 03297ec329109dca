"""Fine-tunes a model on a task, from files to results."""

from __future__ import annotations

import sys
from pathlib import Path

from bert_jax import hugepages, pretrained
from bert_jax.finetuning import runs, stages
from bert_jax.finetuning.config import FinetuneConfig, claim_workdir
from bert_jax.finetuning.finish import finish
from bert_jax.tasks.splits import load_splits
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
    task = find_task(cfg.task)
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
    outcomes, scored = list[runs.Outcome](), None
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
