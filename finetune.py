"""Fine-tune a pretrained model on a task: `python finetune.py MODEL --task sst2 --data DIR`; the same command continues.

This is the only place where fine-tuning's pieces meet: parse, read, fit, predict. Everything but the config is imported where
it is used, so that errors in the command line come at once.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import InputError
from bert_jax.finetune_config import FinetuneConfig, claim_workdir, load_finetune_config


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status: 0, or 128 + the signal that ended the run early."""
    cfg = load_finetune_config(argv)
    return finetune(cfg, "python finetune.py " + shlex.join(argv))


def finetune(cfg: FinetuneConfig, command: str) -> int:
    """One task, after the one of `--via` if there is one."""
    from bert_jax.data.tasks import find_task

    task = find_task(cfg.task)
    cfg = cfg.resolved(task)
    assert cfg.workdir is not None
    claim_workdir(cfg)
    if cfg.via is not None:
        first, data = cfg.via.split("=", 1)
        before = FinetuneConfig(
            model=cfg.model, task=first, task_data=dataclasses.replace(type(cfg.task_data)(), data=data),
            workdir=str(Path(cfg.workdir) / "via"), dtype=cfg.dtype, num_devices=cfg.num_devices,
        )  # fmt: skip
        print(f"first {first}, then {cfg.task}", file=sys.stderr)
        status = finetune(before, command)
        if status:
            return status
        cfg = cfg.replace(model=str(Path(before.workdir or "") / "export"))
    return run(cfg, task, command)


def run(cfg: FinetuneConfig, task: Any, command: str) -> int:
    """Reads the data, trains the runs, picks the best, predicts with it and writes what came of it."""
    from rich.console import Console

    from bert_jax import files, finetuning, report, results, runs
    from bert_jax.data.splits import load_splits
    from bert_jax.training import loop

    splits = load_splits(task, cfg.task_data)
    cfg = cfg.for_data(task, splits.train)
    for note in splits.notes:
        print(note, file=sys.stderr)
    setting, test = finetuning.prepare(cfg, task, splits, lambda line: print(line, file=sys.stderr))
    workdir = Path(cfg.workdir or "")
    outcomes: list[runs.Outcome] = []
    if setting.batches is not None:
        with loop.StopRequest() as stop:
            outcomes = finetuning.fit_all(setting, workdir, stop)
        if stop.signal is not None:
            print("stopped and saved; the same command continues", file=sys.stderr)
            return 128 + stop.signal
    scored = [outcome for outcome in outcomes if outcome.history]
    if setting.batches is not None and not scored:
        raise InputError(f"all runs diverged: {outcomes[0].failed}. Give a lower --learning-rates")
    best = max(scored, key=lambda outcome: outcome.score, default=None)
    if best is not None:
        _keep_best(workdir, finetuning.export_folder(workdir, outcomes, best))
    scores, predicted = finetuning.predict_all(setting, test, workdir)
    data = {"hash": splits.data_hash, "train": len(splits.train)} | {
        name: len(records) for name, records in [*splits.dev.items(), *splits.test.items()]
    }
    found = results.results(task.name, cfg.model, command, outcomes, best, data, scores)
    files.write_json(workdir / "results.json", found)
    page = report.write_report(workdir, found, setting.evaluator, setting.dev or test, predicted)
    screen = Console(stderr=True)
    if best is not None:
        results.show(outcomes, best, screen)
        print(f"The best is in {workdir}/export: bert_jax.load reads it, transformers too. Scores: {workdir}/results.json")
    for name, values in scores.items():
        if name in splits.test or best is None:
            print(f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
    print(f"Predictions: {workdir}/predictions; curves and the worst errors: {page}")
    return 0


def _keep_best(workdir: Path, export: Path) -> None:
    """Copies the best run's model to WORKDIR/export."""
    if export != workdir / "export":
        shutil.rmtree(workdir / "export", ignore_errors=True)
        shutil.copytree(export, workdir / "export")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
