"""The command `compare`: a table of pretraining runs."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bert_jax import workdir
from bert_jax.config import Json, TrainConfig, differences, from_dict, spans, to_dict, upgrade
from bert_jax.disk import read_json
from bert_jax.errors import InputError

SAME_MASKS = 1e-6  # unigram losses are equal where held-out tokens, masks and the counts of the training text are
FREE = workdir.FREE_FIELDS | {"seed"}  # runs that differ in nothing else are seeds of one recipe


@dataclass(frozen=True)
class Run:
    """A pretraining run, as its work directory records it.

    Attributes:
      folder: The work directory.
      config: The `to_dict` of its config.
      data: The name of its rows; empty before the first checkpoint.
      tokenizer: The fingerprint of its tokenizer; empty before the first checkpoint.
      evaluations: The metrics of each evaluation by the name of the held-out text, which is empty for the run's own.
      step: The last step with a line.
      tokens: Tokens trained on, padding aside.
      seconds: Time of training, without compilation, evaluation and checkpoints.
    """

    folder: str
    config: Json
    data: str
    tokenizer: str
    evaluations: dict[str, list[dict[str, float]]]
    step: int
    tokens: float
    seconds: float

    @property
    def recipe(self) -> str:
        """Equal for seeds of one recipe."""
        return repr([change for change in differences(to_dict(TrainConfig()), self.config) if not free(change[0])])


def free(name: str) -> bool:
    """Returns True for fields in which the seeds of a recipe may differ."""
    return name in FREE or name.startswith("parallel.")


def compare(runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")], each: bool = False) -> None:
    """Print a table of pretraining runs: held-out loss, accuracy, bits per byte, steps, tokens and time of training.

    Runs that differ in their seed only are one row, with the mean and the sample standard deviation. A warning says which runs
    do not compare, since their vocabulary or their held-out text differs.

    Args:
        runs: Work directories of pretraining runs; they may still be training.
        each: Give each run a row of its own.
    """
    if not runs:
        raise InputError("no runs: bert_jax compare RUN..., where a RUN is the work directory of a pretraining run; see --help")
    once: dict[Path, str] = {}
    for folder in runs:
        once.setdefault(Path(folder).resolve(), folder)
    found = [read(folder) for folder in once.values()]
    recipes: dict[str, list[Run]] = defaultdict(list)
    for run in found:
        recipes[run.folder if each else run.recipe].append(run)
    print("\n".join(table([row for members in recipes.values() for row in rows(members)])))
    for line in settings([members[0] for members in recipes.values()], list(recipes.values())):
        print(line)
    for warning in [*repeated(recipes.values()), *incomparable(found)]:
        print(f"warning: {warning}", file=sys.stderr)


def read(folder: str) -> Run:
    """Returns the run in a work directory. Raises InputError if there is none, or none that was evaluated."""
    from bert_jax.training import writer  # not above: it imports TensorBoard's writer

    path = Path(folder)
    config = read_json(path / "config.json", dict)
    if config is None or not (path / "metrics.jsonl").exists():
        raise InputError(f"{folder} is not the work directory of a pretraining run: it has no config.json and metrics.jsonl")
    cfg = from_dict(TrainConfig, upgrade(config), f"{path / 'config.json'}")
    record = workdir.recorded(cfg.replace(workdir=folder).checkpoints) or {}
    evaluations: dict[str, list[dict[str, float]]] = defaultdict(list)
    before, tokens, seconds, step = 0, 0.0, 0.0, 0
    for line in writer.read(path / "metrics.jsonl"):
        step = max(step, int(line["step"]))
        if "compile_seconds" in line and not seconds:
            before = step  # where a branch begins
        if "step_seconds" in line:
            spent = float(line["step_seconds"]) * (step - before)
            seconds, tokens, before = seconds + spent, tokens + spent * float(line["tokens_per_second"]), step
        for name in (key.split("/")[1:-1] for key in line if key.startswith("eval/") and key.endswith("/masked_lm_loss")):
            prefix = "/".join(["eval", *name, ""])
            values = {key.removeprefix(prefix): float(value) for key, value in line.items() if key.startswith(prefix)}
            evaluations["".join(name)].append(values)
    if not evaluations:
        first = min(cfg.eval_every, spans(cfg)[0].until)
        raise InputError(
            f"{folder} has no evaluation yet: the first is at step {first}"
            if step < first
            else f"{folder} has no evaluation, since it has no held-out text (data.eval_fraction, data.eval_source, eval_sources)"
        )
    return Run(folder, to_dict(cfg), record.get("data", ""), record.get("tokenizer", ""), evaluations, step, tokens, seconds)


HEAD = ["run", "seeds", "text", "loss", "best loss", "below unigram", "accuracy", "bits/byte", "steps", "tokens", "time"]


def rows(members: Sequence[Run]) -> list[list[str]]:
    """Returns a row of the table for each held-out text of the runs of one recipe."""
    first, found = members[0], []
    name = first.folder + (f" + {len(members) - 1}" if members[1:] else "")
    texts = [text for text in first.evaluations if all(text in run.evaluations for run in members)]
    for text in texts:
        last = [run.evaluations[text][-1] for run in members]
        best = [min(values["masked_lm_loss"] for values in run.evaluations[text]) for run in members]
        seeds = ",".join(str(run.config["seed"]) for run in members)
        found.append([
            name, seeds, text or "held out", mean([v["masked_lm_loss"] for v in last]), mean(best),
            mean([v["unigram_loss"] - v["masked_lm_loss"] for v in last]),
            mean([100 * v["masked_lm_accuracy"] for v in last], "{:.1f}") + " %",
            mean([v["bits_per_byte"] for v in last]) if all("bits_per_byte" in v for v in last) else "-",
            "/".join(sorted({f"{run.step:,} of {run.config['num_steps']:,}" for run in members})),
            mean([run.tokens / 1e6 for run in members], "{:,.1f}") + " M",
            mean([run.seconds / 60 for run in members], "{:,.1f}") + " min",
        ])  # fmt: skip
        name = seeds = ""
    return found


def mean(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Returns the mean, with the sample standard deviation if there are several values.

    >>> mean([1.0]), mean([1.0, 2.0, 3.0], "{:.1f}")
    ('1.000', '2.0 ± 1.0')
    """
    shown = form.format(statistics.fmean(values))
    if len(values) == 1:
        return shown
    deviation = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return f"{shown} ± {form.format(deviation)}"


def table(body: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table with columns of even width."""
    lines = [HEAD, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return [shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]]


def settings(firsts: Sequence[Run], recipes: Sequence[Sequence[Run]]) -> list[str]:
    """Returns a line for each setting that differs between recipes, with the value of each."""
    names = {name for a, b in itertools.pairwise(firsts) for name, *_ in differences(a.config, b.config) if not free(name)}
    if not names:
        return []
    values = (f"  {name}: " + " | ".join(str(_setting(run.config, name)) for run in firsts) for name in sorted(names))
    return ["", "Settings that differ, in the order of the rows:", *values]


def _setting(value: object, name: str) -> object:
    """Returns the setting with a name of `differences`, such as `phases[1].batch_size`; None if there is none."""
    for part in re.split(r"\.|(?=\[)", name):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.startswith("["):
            value = dict(enumerate(value)).get(int(part[1:-1]))
        else:
            return None
    return value


def repeated(recipes: Iterable[Sequence[Run]]) -> list[str]:
    """Returns warnings about runs of one recipe, text and seed, which say nothing about the deviation over seeds."""
    found = []
    for members in recipes:
        first: dict[tuple[int, str, str], Run] = {}
        for run in members:
            other = first.setdefault((run.config["seed"], run.data, run.tokenizer), run)
            if other is not run:
                found.append(f"{other.folder} and {run.folder} have one recipe and one seed, {run.config['seed']}: leave one out")
    return found


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Returns warnings about runs whose losses do not compare with those of the first."""
    first, *others = runs
    found = []
    for run in others:
        if run.config["objective"] != first.config["objective"]:
            reason = "different objectives: the loss of replaced_tokens is its generator's; compare fine-tuned models"
        elif first.tokenizer and run.tokenizer and run.tokenizer != first.tokenizer:
            reason = "different vocabularies: compare bits per byte, not losses"
        elif first.data and run.data and run.data.split("+")[1] != first.data.split("+")[1]:
            reason = "different held-out text, or text cut into different rows: losses do not compare"
        elif (here := _unigram(run)) is None or (there := _unigram(first)) is None or abs(here - there) < SAME_MASKS:
            continue
        else:
            reason = (
                f"different masks or training text (unigram losses {there:.4f} and {here:.4f}), as with another batch_size or "
                "eval_batches: losses compare roughly"
            )
        found.append(f"{first.folder} and {run.folder}: {reason}")
    return found


def _unigram(run: Run) -> float | None:
    """Returns the unigram loss of a run's own held-out text."""
    return run.evaluations[""][-1]["unigram_loss"] if "" in run.evaluations else None
