"""The commands `prepare`, `prepare-beam` and `doctor`, which read the text of a run before training."""

from __future__ import annotations

from pathlib import Path

from bert_jax import workdir
from bert_jax.commands.train import read_config
from bert_jax.config import Json, TrainConfig


def prepare(argv: list[str], prog: str = "bert_jax prepare") -> None:
    """Tokenize the text of a run into its cache and print statistics: CONFIG [--field value ...]."""
    _examine(read_config(argv, prog))


def doctor(argv: list[str], prog: str = "bert_jax doctor") -> int:
    """Check the text, vocabulary and masks of a run: CONFIG [--field value ...]. Exit status 1 means warnings."""
    return int(bool(_examine(read_config(argv, prog))))


def prepare_beam(argv: list[str], prog: str = "bert_jax prepare-beam") -> None:
    """Tokenize the text of a run on Apache Beam: CONFIG [--field value ...] [-- flags of Beam]."""
    from bert_jax import beam
    from bert_jax.console import track
    from bert_jax.data.pretraining import cache_place, load_tokenizer, texts, tokenizer_folder

    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    cfg = read_config(own, prog)
    beam.check(cache_place(cfg), flags)
    beginning = _beginning(cfg)
    workdir.claim(cfg)
    load_tokenizer(cfg, track, *beginning)
    for data in texts(cfg):
        print(f"the token cache is {beam.make(data, tokenizer_folder(cfg), cache_place(cfg), flags)}")


def _examine(cfg: TrainConfig) -> list[str]:
    """Prepares the text of a run and prints facts about it; returns the warnings."""
    from bert_jax.console import show_table, track
    from bert_jax.data import doctor, heldout
    from bert_jax.data.pretraining import load_data

    heldout.check(cfg)
    beginning = _beginning(cfg)
    workdir.claim(cfg)
    data = load_data(cfg, track, *beginning)
    diagnosis = doctor.examine(data, cfg, heldout.corpora(cfg, track))
    show_table("the text", diagnosis.facts, diagnosis.warnings)
    return diagnosis.warnings


def _beginning(cfg: TrainConfig) -> tuple[Json | None, Path | None]:
    """Returns the record of the checkpoint that a run goes on from, and the tokenizer of the run or model that it starts from."""
    begun, branch = workdir.begun(cfg)
    if branch is not None:
        return begun, branch.tokenizer
    if cfg.init_from is None:
        return begun, None
    from bert_jax.warm_start import vocabulary

    return begun, vocabulary(cfg.init_from)
