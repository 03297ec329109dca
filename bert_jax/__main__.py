"""The command `bert_jax COMMAND ...`, which is also `python -m bert_jax`: a table of names and functions."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import tyro

import bert_jax
from bert_jax.commands import (
    compare,
    convert,
    evaluate,
    finetune,
    glue,
    mine,
    nearest,
    plan,
    predictors,
    prepare,
    rerank,
    score,
    static,
    titles,
    tokenizer,
    train,
)
from bert_jax.config import InputError, did_you_mean

Command = Callable[[list[str], str], int | None]  # (arguments, what the user typed before them) -> exit status


def _cli(function: Callable[..., None]) -> Command:
    """Makes a command of a function, with the function's parameters as its options."""

    @functools.wraps(function)
    def run(argv: list[str], prog: str) -> None:
        tyro.cli(function, args=argv, prog=prog, config=(tyro.conf.OmitArgPrefixes,))

    return run


COMMANDS: dict[str, Command] = {
    "train": train.train,
    "compare": _cli(compare.compare),
    "finetune": finetune.finetune,
    "evaluate": _cli(evaluate.evaluate),
    "tokenizer": _cli(tokenizer.tokenizer),
    "prepare": prepare.prepare,
    "prepare-beam": prepare.prepare_beam,
    "doctor": prepare.doctor,
    "convert": _cli(convert.convert),
    "plan": plan.plan,
    "fill-mask": _cli(predictors.fill_mask),
    "classify": _cli(predictors.classify),
    "tag": _cli(predictors.tag),
    "answer": _cli(predictors.answer),
    "embed": _cli(predictors.embed),
    "static": _cli(static.static),
    "quantize": _cli(nearest.quantize),
    "nearest": _cli(nearest.nearest),
    "titles": _cli(titles.titles),
    "mine": _cli(mine.mine),
    "rerank": _cli(rerank.rerank),
    "score": _cli(score.score),
    "glue-zip": _cli(glue.glue_zip),
    "glue-check": _cli(glue.glue_check),
}


def main(argv: list[str], prog: str = "bert_jax") -> int | None:
    """Runs one command line; returns the exit status, None for 0."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print(f"usage: {prog} COMMAND ... (COMMAND --help says more)\n\n" + "\n".join(lines))
        return None
    if argv[0] == "--version":
        print(f"bert_jax {bert_jax.__version__}")
        return None
    if argv[0] not in COMMANDS:
        raise InputError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; known: {', '.join(COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:], f"{prog} {argv[0]}")


def run() -> None:
    """Runs the command line of this process and ends it."""
    from bert_jax import console

    program, *argv = sys.argv
    continues = argv[:1] in (["train"], ["finetune"])
    prog = "python -m bert_jax" if Path(program).name == "__main__.py" else "bert_jax"
    console.run(lambda argv: main(argv, prog), argv, "the same command continues" if continues else "")


if __name__ == "__main__":
    run()
