"""Starts a pretraining run from a pretrained model (`--init-from`)."""

from __future__ import annotations

from pathlib import Path

from bert_jax import directory as directories
from bert_jax.config import TrainConfig, differences, from_dict, to_dict, upgrade
from bert_jax.data.tokenizer import has_tokenizer
from bert_jax.disk import read_json
from bert_jax.errors import InputError
from bert_jax.formats.tensors import has_weights
from bert_jax.hub import find
from bert_jax.model import convert
from bert_jax.model.config import CHOSEN_BY_RUN, BertConfig
from bert_jax.model.convert import Params
from bert_jax.model.families import Head
from bert_jax.pretrained import report


def architecture(path: str | Path) -> BertConfig:
    """Returns the model of the config.json of a pretrained directory or of a run, without touching a device."""
    directory = find(path)
    if has_weights(directory) or not (directory / "checkpoints").is_dir():
        return directories.read(directory).config
    file = directory / "config.json"
    return from_dict(TrainConfig, upgrade(read_json(file, dict) or {}), str(file)).model


def vocabulary(path: str | Path | None) -> Path | None:
    """Returns the folder of a pretrained directory's tokenizer; None if it has none, or there is no `path`."""
    directory = find(path) if path else None
    homes = [directory, directory / "export", directory / "tokenizer"] if directory else []
    return next((home for home in homes if has_tokenizer(home)), None)


def check_start(path: str | Path, cfg: BertConfig) -> BertConfig:
    """Returns the model of a pretrained directory. Raises InputError if it is another one than `cfg`."""
    theirs = architecture(path)
    if different := [d for d in differences(to_dict(theirs), to_dict(cfg)) if d[0] not in CHOSEN_BY_RUN]:
        listing = "\n".join(f"  model.{name}: {a!r} there, {b!r} in this run" for name, a, b in different)
        raise InputError(f"--init-from {path} is another model:\n{listing}")
    return theirs


def generator_beside(path: str | Path) -> Path | None:
    """Returns the folder of the generator in a pretrained directory, where the export of a run has it; None if there is none."""
    folder = find(path) / "generator"
    return folder if has_weights(folder) else None


def start_from(path: str | Path, cfg: BertConfig, head: Head, fresh: Params) -> Params:
    """Returns the parameters of a pretrained directory for a new run; heads that it lacks stay as in `fresh`, with a warning."""
    theirs, files = check_start(path, cfg), directories.read(find(path))
    flat = convert.flatten(fresh)
    converted = convert.from_hugging_face(
        files.tensors, fresh, theirs, head, files.where, lambda paths: {path: flat[path] for path in paths}
    )
    report(converted, files.where)
    return converted.params
