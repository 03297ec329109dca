"""Fine-tuning of one model on one task, from files to results."""

from __future__ import annotations

import sys
from pathlib import Path

from bert_jax import pretrained
from bert_jax.finetuning import runs, stages
from bert_jax.finetuning.config import FinetuneConfig, claim_workdir
from bert_jax.finetuning.finish import finish
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import Task
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
    if cfg.num_epochs == 0 and cfg.max_seq_length is None:  # what the model reads, as nothing is trained
        there = pretrained.describe(cfg.model)
        cfg = cfg.replace(max_seq_length=there.max_length if there.tuned.task else None)
    cfg = cfg.resolved(task)
    assert cfg.workdir is not None
    multihost.first_then_others(lambda: claim_workdir(cfg, multihost.is_first()))
    if cfg.via is not None:
        first, data = cfg.via.split("=", 1)
        before = FinetuneConfig(
            model=cfg.model, task=first,
            task_data=type(cfg.task_data)(data=data, text_column=cfg.via_text_column, label_column=cfg.via_label_column),
            workdir=str(Path(cfg.workdir) / "via"), special_tokens=cfg.special_tokens, dtype=cfg.dtype, parallel=cfg.parallel,
        )  # fmt: skip
        if multihost.is_first():
            print(f"first {first}, then {cfg.task}", file=sys.stderr)
        reached = finetune(before, command)
        if reached.signal is not None:
            return reached
        cfg = cfg.replace(model=str(Path(before.workdir or "") / "export"))
    return run(cfg, task, command)


def run(cfg: FinetuneConfig, task: Task, command: str) -> Reached:
    """Reads the data, trains the runs, picks the best, predicts with it and writes what came of it."""
    folder = Path(cfg.workdir or "")

    def say(line: str) -> None:
        if multihost.is_first():
            print(line, file=sys.stderr)

    splits = load_splits(task, cfg.task_data)
    multihost.check_equal("the data", splits.data_hash)
    for note in splits.notes:
        say(note)
    trainer, test = stages.prepare(cfg, task, splits, say)
    outcomes: list[runs.Outcome] = []
    if trainer.batches is not None:
        say(f"on {trainer.devices.describe()}; {trainer.kernel}")
        with loop.StopRequest(multihost.stop_agreed()) as stop:
            outcomes = stages.fit_all(trainer, folder, stop)
        if stop.signal is not None:
            say("stopped and saved; the same command continues")
            return Reached({}, None, stop.signal)
    scores = finish(trainer, splits, test, outcomes, command) if multihost.is_first() else {}
    multihost.barrier("all is written")
    metrics = {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}
    return Reached(metrics, folder / "export" if outcomes else None)
