"""`python -m bert_jax COMMAND ...`: the commands that are neither train nor finetune."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bert_jax import workdir
from bert_jax.commands import evaluate, glue, plan, predictors
from bert_jax.config import BertConfig, DataConfig, InputError, TextFormat, TrainConfig, did_you_mean, load_train_config


def tokenizer(
    source: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")],
    out: str,
    vocab_size: int = 30522,
    kind: Literal["unigram", "bpe", "wordpiece"] = "unigram",
    lowercase: bool = True,
    documents: Literal["blank_line", "line", "file"] = "blank_line",
    text_column: str = "text",
    format: TextFormat = "auto",
    sample_mb: int | None = 200,
) -> None:
    """Train a vocabulary on text and write tokenizer.json.

    Args:
        source: Files, globs, tfds:NAME, or stdlib: (text every Python carries).
        out: Directory to write.
        vocab_size: Number of pieces, special tokens included.
        kind: unigram and bpe (SentencePiece) give the same vocabulary each time; wordpiece may break ties differently.
        lowercase: Make it uncased.
        documents: What ends a document in a .txt file.
        text_column: Field of .jsonl, .csv, .tsv, .parquet and TFDS records that holds the text.
        format: What the files are, whatever their names; auto: what their suffixes say.
        sample_mb: Megabytes of text that are used at most, lines from all over it; training takes about 20 times as much memory.
            None uses all.
    """
    from bert_jax.console import track
    from bert_jax.data.corpus import read_texts
    from bert_jax.data.tokenizer import Tokenizer

    text = dict(source=source, documents=documents, text_column=text_column, format=format, tokenizer_sample_mb=sample_mb)
    cfg = DataConfig(**text, eval_fraction=0.0)  # type: ignore[arg-type]
    made = Tokenizer.train(read_texts(cfg, track), vocab_size, kind, lowercase)
    made.save(out)
    print(f"{made.vocab_size} pieces in {Path(out) / 'tokenizer.json'}; use it with --data.tokenizer {out}")


def _architecture(init_from: str, folder: str) -> BertConfig:
    from bert_jax import pretraining

    return pretraining.architecture(init_from, folder)


def _vocabulary(init_from: str | None) -> Path | None:
    if init_from is None:
        return None
    from bert_jax.warm_start import vocabulary

    return vocabulary(init_from)


def prepare(argv: list[str]) -> None:
    """Tokenize a run's text into its cache, and show what was counted: CONFIG.py [--field value ...]."""
    _examine(load_train_config(argv, "python -m bert_jax prepare", _architecture))


def prepare_beam(argv: list[str]) -> None:
    """Tokenize a run's text as prepare does, by Apache Beam's workers: CONFIG.py [--field value ...] [-- Beam's own flags]."""
    from bert_jax import beam
    from bert_jax.console import track
    from bert_jax.data.pretraining import cache_place, load_tokenizer, texts, tokenizer_folder

    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    cfg = load_train_config(own, "python -m bert_jax prepare-beam", _architecture)
    beam.check(cache_place(cfg), flags)
    workdir.claim(cfg)
    load_tokenizer(cfg, track, workdir.recorded(cfg.checkpoints), _vocabulary(cfg.init_from))
    for data in texts(cfg.data):
        print(f"the token cache is {beam.make(data, tokenizer_folder(cfg), cache_place(cfg), flags)}")


def doctor(argv: list[str]) -> None:
    """Say what is odd about a run's text, vocabulary and masks: CONFIG.py [--field value ...]. Exit status 1: something is."""
    if _examine(load_train_config(argv, "python -m bert_jax doctor", _architecture)):
        sys.exit(1)


def _examine(cfg: TrainConfig) -> list[str]:
    """Prepares and shows; returns the warnings."""
    from bert_jax.console import show_table, track
    from bert_jax.data import doctor
    from bert_jax.data.pretraining import BatchSource, load_data

    workdir.claim(cfg)
    data = load_data(cfg, track, workdir.recorded(cfg.checkpoints), _vocabulary(cfg.init_from))
    diagnosis = doctor.examine(data, cfg, BatchSource.of(cfg, data.tokenizer, data.training.train))
    show_table("the text", diagnosis.facts, diagnosis.warnings)
    return diagnosis.warnings


def convert(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IN")],
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")],
    head: str | None = None,
    verbose: bool = False,
) -> None:
    """Write a model that bert_jax reads (see docs/library.md) in the Hugging Face layout.

    Args:
        source: Pretrained directory, TF1 checkpoint's directory, work directory of train.py, or name on the hub.
        out: Directory to write.
        head: Head to write; default: the one that it has.
        verbose: Show where each tensor came from and went to.
    """
    from bert_jax import pretrained

    for line in pretrained.convert_directory(source, out, head, verbose):  # type: ignore[arg-type]
        print(line)


def _cli(function: Callable[..., None]) -> Callable[[list[str]], None]:
    """A command whose options are the function's parameters."""
    prog = f"python -m bert_jax {function.__name__.replace('_', '-')}"
    return lambda argv: tyro.cli(function, args=argv, prog=prog, config=(tyro.conf.OmitArgPrefixes,))


COMMANDS: dict[str, tuple[Callable[[list[str]], None], Callable[..., None]]] = {  # name: (runs argv, documented by)
    "tokenizer": (_cli(tokenizer), tokenizer),
    "prepare": (prepare, prepare),
    "prepare-beam": (prepare_beam, prepare_beam),
    "doctor": (doctor, doctor),
    "convert": (_cli(convert), convert),
    "plan": (plan.plan, plan.plan),
    "fill-mask": (_cli(predictors.fill_mask), predictors.fill_mask),
    "classify": (_cli(predictors.classify), predictors.classify),
    "tag": (_cli(predictors.tag), predictors.tag),
    "answer": (_cli(predictors.answer), predictors.answer),
    "embed": (_cli(predictors.embed), predictors.embed),
    "evaluate": (_cli(evaluate.evaluate), evaluate.evaluate),
    "glue-zip": (_cli(glue.glue_zip), glue.glue_zip),
    "glue-check": (_cli(glue.glue_check), glue.glue_check),
}


def main(argv: list[str]) -> None:
    """Runs one command line."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {(function.__doc__ or '').splitlines()[0]}" for name, (_, function) in COMMANDS.items()]
        print("usage: python -m bert_jax COMMAND ... (COMMAND --help says more)\n\n" + "\n".join(lines))
        return
    if argv[0] not in COMMANDS:
        raise InputError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; known: {', '.join(COMMANDS)}")
    COMMANDS[argv[0]][0](argv[1:])


if __name__ == "__main__":
    from bert_jax import console

    console.run(main, sys.argv[1:])
