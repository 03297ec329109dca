"""What a pretrained directory, or a work directory, holds: config, weights, head and labels."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.config import TrainConfig, from_dict, upgrade
from bert_jax.disk import read_json
from bert_jax.errors import InputError, did_you_mean
from bert_jax.formats.tensors import has_weights, read_directory, say_not_read
from bert_jax.formats.tf1 import find_tf1, read_tf1
from bert_jax.hub import nearest
from bert_jax.model import convert
from bert_jax.model.config import BertConfig
from bert_jax.model.families import FAMILIES, HEADS, Head
from bert_jax.model.heads import Bert, initialize
from bert_jax.pooling import encoder_folder

LABELLED_HEADS = ("sequence_classification", "token_classification")  # heads with names of classes
_MOST_LABELS = 100_000  # without names
_CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight")  # [classes, ...]


@dataclass(frozen=True)
class Directory:
    """What a directory holds, before a model is made of it."""

    values: dict[str, Any]  # of config.json
    config: BertConfig
    tensors: Mapping[str, np.ndarray]
    where: str  # the file of the tensors, for messages
    home: Path  # of the tokenizer's files
    library: Path  # of sentence-transformers' files


def read(directory: Path) -> Directory:
    """The files of a Hugging Face directory, of Google's TF1 checkpoints, or of a run. Raises InputError for any other."""
    if not directory.is_dir():
        raise InputError(f"no directory {directory}{nearest(directory)}")
    if (directory / "results.json").is_file() and (directory / "export").is_dir():
        directory = directory / "export"  # of a work directory of finetune.py
    elif not has_weights(directory) and any((directory / name).is_dir() for name in ("checkpoints", "tokenizer")):
        return _read_workdir(directory)
    library, directory = directory, encoder_folder(directory)
    prefix = None if has_weights(directory) else find_tf1(directory)  # `save` may have written beside a checkpoint
    names = ("config.json", "bert_config.json") if prefix is None else ("bert_config.json", "config.json")
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        raise InputError(
            f"{directory} has no config.json (or bert_config.json): a pretrained directory holds that, "
            f"model.safetensors, pytorch_model.bin or bert_model.ckpt.*, and the tokenizer's files{say_not_read(directory)}"
        )
    values = read_json(path, dict) or {}
    config = convert.config_from_hugging_face(values, str(path))
    tensors: Mapping[str, np.ndarray]
    if prefix is not None:
        tensors, file = convert.from_tf1(read_tf1(prefix)), prefix
    else:
        tensors, file = read_directory(directory)
        tensors = convert.from_flax(tensors)
    tensors = convert.without_wrapper(tensors, FAMILIES[config.model_type])
    convert.check_size(tensors, config, str(file))
    return Directory(values, config, tensors, str(file), directory, library)


def _read_workdir(workdir: Path) -> Directory:
    """The model of a work directory's newest checkpoint."""
    from bert_jax.training import checkpoint, optim, steps

    path = workdir / "config.json"
    if (values := read_json(path, dict)) is None:
        raise InputError(f"{workdir} has checkpoints but no config.json: it is no work directory of train.py")
    cfg = from_dict(TrainConfig, upgrade(values), str(path))
    head = cfg.head
    module = Bert(cfg.model, head)
    like = jax.eval_shape(lambda: steps.init_state(initialize(module, 0), optim.make_optimizer(cfg.optim)))
    saved = checkpoint.Checkpointer(cfg.checkpoint_dir or workdir / "checkpoints", read_only=True)  # it may have been moved
    restored = saved.restore_latest(like)
    saved.close()
    if restored is None:
        raise InputError(f"{workdir} has no checkpoint yet")
    print(f"step {restored[2]} of {workdir}", file=sys.stderr)
    values = {"architectures": [FAMILIES[cfg.model.model_type].architecture(head)]}
    tensors = convert.to_hugging_face(restored[0].params, cfg.model, head)
    return Directory(values, cfg.model, tensors, str(workdir), *[workdir / "tokenizer"] * 2)


def head_of(files: Directory, wanted: Head | None, directory: Path) -> Head:
    """The head asked for, or that of config.json's architectures, or what the tensors are of."""
    family = FAMILIES[files.config.model_type]
    if wanted is not None:
        if wanted not in HEADS:
            raise InputError(f"no head {wanted!r}{did_you_mean(str(wanted), HEADS)}; known: {', '.join(HEADS)}")
        family.head(wanted)
        return wanted
    architectures = files.values.get("architectures") or []
    if not isinstance(architectures, list):
        raise InputError(f"{directory}/config.json: architectures is {str(architectures)[:80]!r}, not a list of class names")
    if not architectures:
        guessed = convert.guess_head(files.tensors, family)
        if guessed == "encoder" and any(name.startswith("classifier.") for name in files.tensors):
            heads = " or ".join(f"head={name!r}" for name in LABELLED_HEADS)
            print(f"{files.where}: a classifier is there, but config.json does not say of what: give {heads}", file=sys.stderr)
        return guessed
    head = family.head_of(str(architectures[0]))
    if head is None:
        known = ", ".join(family.architecture(head) for head in family.heads)
        raise InputError(
            f"{directory}: architectures {architectures[0]!r} is not known; known: {known}. "
            f"To read its encoder with another head, say which: load(..., head='encoder')"
        )
    return head


def labels_of(files: Directory, where: str) -> tuple[str, ...]:
    """Names of the classes by id. Raises InputError where id2label is no list of them, or num_labels says another number."""
    named, count = files.values.get("id2label"), files.values.get("num_labels")
    if not (count is None or (isinstance(count, int) and 0 < count <= _MOST_LABELS)):
        raise InputError(f"{where}: num_labels={count!r}; expected a number of classes, at most {_MOST_LABELS}")
    if named is None:
        there = next((len(files.tensors[name]) for name in _CLASSIFIERS if name in files.tensors), 2)
        return tuple(f"LABEL_{i}" for i in range(there if count is None else count))
    try:
        by_id = {int(i): str(name) for i, name in named.items()}
    except (AttributeError, ValueError):
        raise InputError(f"{where}: id2label is {named!r}; expected an object of ids and names") from None
    if not by_id or sorted(by_id) != list(range(len(by_id))):
        raise InputError(f"{where}: id2label has the ids {sorted(by_id)}; expected 0 to {max(1, len(by_id)) - 1}")
    if count is not None and count != len(by_id):
        raise InputError(
            f"{where}: num_labels={count}, but id2label names {len(by_id)}: {', '.join(by_id.values())}; correct one"
        )
    return tuple(by_id[i] for i in range(len(by_id)))
