"""Fine-tune a pretrained model on a task: `python finetune.py MODEL --task sst2 --data DIR`; the same command continues.

This is the only place where fine-tuning's pieces meet: parse, read, fit, predict. Everything but the config is imported where
it is used, so that errors in the command line come at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.finetuning.config import FinetuneConfig, claim_workdir, load_finetune_config


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status: 0, or 128 + the signal that ended the run early."""
    cfg = load_finetune_config(argv)
    from bert_jax.training import multihost

    multihost.connect(cfg.parallel)
    return finetune(cfg, "python finetune.py " + shlex.join(argv))


def finetune(cfg: FinetuneConfig, command: str) -> int:
    """One task, after the one of `--via` if there is one."""
    from bert_jax.tasks.table import find_task
    from bert_jax.training import multihost

    task = find_task(cfg.task)
    if cfg.num_epochs == 0 and cfg.max_seq_length is None:  # what the model reads, as nothing is trained
        from bert_jax import pretrained

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
        status = finetune(before, command)
        if status:
            return status
        cfg = cfg.replace(model=str(Path(before.workdir or "") / "export"))
    return run(cfg, task, command)


def run(cfg: FinetuneConfig, task: Any, command: str) -> int:
    """Reads the data, trains the runs, picks the best, predicts with it and writes what came of it."""
    from bert_jax.finetuning import runs, stages
    from bert_jax.finetuning.finish import finish
    from bert_jax.tasks.splits import load_splits
    from bert_jax.training import loop, multihost

    def say(line: str) -> None:
        if multihost.is_first():
            print(line, file=sys.stderr)

    splits = load_splits(task, cfg.task_data)
    multihost.check_equal("the data", splits.data_hash)
    cfg = cfg.for_data(task, splits.train)
    for note in splits.notes:
        say(note)
    setting, test = stages.prepare(cfg, task, splits, say)
    outcomes: list[runs.Outcome] = []
    if setting.batches is not None:
        say(f"on {setting.devices.describe()}; {setting.kernel}")
        with loop.StopRequest(multihost.stop_agreed()) as stop:
            outcomes = stages.fit_all(setting, Path(cfg.workdir or ""), stop)
        if stop.signal is not None:
            say("stopped and saved; the same command continues")
            return 128 + stop.signal
    if multihost.is_first():
        finish(setting, splits, test, outcomes, command)
    multihost.barrier("all is written")
    return 0


if __name__ == "__main__":
    from bert_jax import console

    console.run(main, sys.argv[1:], "the same command continues")
