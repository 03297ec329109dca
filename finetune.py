"""Fine-tune a pretrained model on a task: `python finetune.py MODEL --task sst2 --data DIR`; the same command continues.

This is the only place where fine-tuning's pieces meet: parse, read, fit, predict. Everything but the config is imported where
it is used, so that errors in the command line come at once.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import InputError
from bert_jax.finetuning.config import FinetuneConfig, claim_workdir, load_finetune_config


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status: 0, or 128 + the signal that ended the run early."""
    cfg = load_finetune_config(argv)
    from bert_jax.training import multihost

    multihost.connect(cfg.parallel)
    return finetune(cfg, "python finetune.py " + shlex.join(argv))


def finetune(cfg: FinetuneConfig, command: str) -> int:
    """One task, after the one of `--via` if there is one."""
    from bert_jax.data.tasks import find_task
    from bert_jax.training import multihost

    task = find_task(cfg.task)
    cfg = cfg.resolved(task)
    assert cfg.workdir is not None
    multihost.first_then_others(lambda: claim_workdir(cfg, multihost.is_first()))
    if cfg.via is not None:
        first, data = cfg.via.split("=", 1)
        before = FinetuneConfig(
            model=cfg.model, task=first,
            task_data=type(cfg.task_data)(data=data, text_column=cfg.via_text_column, label_column=cfg.via_label_column),
            workdir=str(Path(cfg.workdir) / "via"), dtype=cfg.dtype, parallel=cfg.parallel,
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
    from bert_jax.data.splits import load_splits
    from bert_jax.finetuning import runs, stages
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
        tell(cfg, task, splits, setting, test, outcomes, command)
    multihost.barrier("all is written")
    return 0


def tell(cfg: FinetuneConfig, task: Any, splits: Any, setting: Any, test: Any, outcomes: Any, command: str) -> None:
    """Picks the best run, predicts with it and writes what came of it."""
    from rich.console import Console

    from bert_jax import files
    from bert_jax.finetuning import report, results, stages

    workdir = Path(cfg.workdir or "")
    scored = [outcome for outcome in outcomes if outcome.history]
    if setting.batches is not None and not scored:
        raise InputError(f"all runs diverged: {outcomes[0].failed}. Give a lower --learning-rates")
    best = max(scored, key=lambda outcome: outcome.score, default=None)
    if best is not None:
        _keep_best(workdir, stages.export_folder(workdir, outcomes, best))
    scores, predicted, tuned = stages.predict_all(setting, test, workdir)
    data = {"hash": splits.data_hash, "train": len(splits.train)} | {
        name: len(records) for name, records in [*splits.dev.items(), *splits.test.items()]
    }
    found = results.results(task.name, cfg.model, command, outcomes, best, data, scores)
    files.write_json(workdir / "results.json", found)
    page = report.write_report(workdir, found, setting.evaluator, [*setting.dev, *test], predicted, tuned)
    screen = Console(stderr=True)
    if best is not None:
        results.show(outcomes, best, screen)
        print(f"The best is in {workdir}/export: bert_jax.load reads it, transformers too. Scores: {workdir}/results.json")
    for name, values in scores.items():
        if name in splits.test or best is None:
            print(f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
    print(f"Predictions: {workdir}/predictions; curves and the worst errors: {page}")


def _keep_best(workdir: Path, export: Path) -> None:
    """Copies the best run's model to WORKDIR/export."""
    if export != workdir / "export":
        shutil.rmtree(workdir / "export", ignore_errors=True)
        shutil.copytree(export, workdir / "export", ignore=shutil.ignore_patterns("*.tmp"))


if __name__ == "__main__":
    from bert_jax import console

    console.run(main, sys.argv[1:], "the same command continues")
