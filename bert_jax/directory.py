"""Reads the config, weights, head and labels of a pretrained directory or a work directory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
from bert_jax.model.families import FAMILIES, HEADS, Family, Head
from bert_jax.modules import encoder_folder
from bert_jax.static import is_static
from bert_jax.token_vectors import read_projection

LABELLED_HEADS = ("sequence_classification", "token_classification")  # heads whose classes have names
_MOST_LABELS = 100_000  # classes without names
_CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight")  # [classes, ...]


@dataclass(frozen=True)
class Directory:
    """The content of a directory, before a model is made of it.

    Attributes:
      path: the directory.
      values: the content of config.json.
      config: the encoder that config.json describes.
      tensors: tensors by their names in the Hugging Face layout, read lazily.
      where: the file of the tensors, for messages.
      home: the folder of the tokenizer's files.
      library: the folder of sentence-transformers' files.
    """

    path: Path
    values: dict[str, Any]
    config: BertConfig
    tensors: Mapping[str, np.ndarray]
    where: str
    home: Path
    library: Path

    @property
    def family(self) -> Family:
        """The row of the model's family."""
        return FAMILIES[self.config.model_type]

    def head(self, wanted: Head | None) -> Head:
        """Returns the head that is wanted, or that of config.json's `architectures`, or the one that the tensors belong to."""
        if wanted is not None:
            if wanted not in HEADS:
                raise InputError(f"no head {wanted!r}{did_you_mean(str(wanted), HEADS)}; known: {', '.join(HEADS)}")
            self.family.head(wanted)
            return wanted
        architectures = self.values.get("architectures") or []
        if not isinstance(architectures, list):
            said = f"architectures is {str(architectures)[:80]!r}, not a list of class names"
            raise InputError(f"{self.path}/config.json: {said}")
        if not architectures:
            guessed = convert.guess_head(self.tensors, self.family)
            if guessed == "encoder" and any(name.startswith("classifier.") for name in self.tensors):
                heads = " or ".join(f"head={name!r}" for name in LABELLED_HEADS)
                print(f"{self.where}: has a classifier, but config.json does not say its kind: give {heads}", file=sys.stderr)
            return guessed
        head = self.family.head_of(str(architectures[0]))
        if head is None:
            known = ", ".join(self.family.architecture(head) for head in self.family.heads)
            raise InputError(
                f"{self.path}: architectures {architectures[0]!r} is not known; known: {known}. "
                f"To read its encoder with another head, say which: load(..., head='encoder')"
            )
        return head

    def labels(self) -> tuple[str, ...]:
        """Returns the names of the classes by id."""
        named, count = self.values.get("id2label"), self.values.get("num_labels")
        if not (count is None or (isinstance(count, int) and 0 < count <= _MOST_LABELS)):
            raise InputError(f"{self.path}: num_labels={count!r}; expected a number of classes, at most {_MOST_LABELS}")
        if named is None:
            rows = next((len(self.tensors[name]) for name in _CLASSIFIERS if name in self.tensors), 2)
            return tuple(f"LABEL_{i}" for i in range(rows if count is None else count))
        try:
            by_id = {int(i): str(name) for i, name in named.items()}
        except (AttributeError, ValueError):
            raise InputError(f"{self.path}: id2label is {named!r}; expected an object of ids and names") from None
        if not by_id or sorted(by_id) != list(range(len(by_id))):
            raise InputError(f"{self.path}: id2label has the ids {sorted(by_id)}; expected 0 to {max(1, len(by_id)) - 1}")
        if count is not None and count != len(by_id):
            names = ", ".join(by_id.values())
            raise InputError(f"{self.path}: num_labels={count}, but id2label names {len(by_id)}: {names}; correct one")
        return tuple(by_id[i] for i in range(len(by_id)))


def check_labels(labels: Sequence[str], head: Head) -> None:
    """Raises InputError unless `labels` are names of classes, all different, for a head that has classes."""
    if head not in LABELLED_HEADS:
        raise InputError(f"{labels=} are for the heads {' and '.join(LABELLED_HEADS)}, not for {head!r}")
    if isinstance(labels, str) or not labels:
        raise InputError(f"{labels=}; expected a list of names")
    if twice := [name for i, name in enumerate(labels) if name in labels[:i]]:
        raise InputError(f"{labels=} name {twice[0]!r} twice; each class needs a name of its own")


def read(path: Path) -> Directory:
    """Reads a directory in the Hugging Face layout, one of Google's TF1 checkpoints, or a work directory."""
    if not path.is_dir():
        raise InputError(f"no directory {path}{nearest(path)}")
    if is_static(path):
        raise InputError(f"{path} has a table of token vectors and no encoder: bert_jax.StaticEmbedder.load reads it")
    directory = path
    if (path / "results.json").is_file() and (path / "export").is_dir():  # a work directory of fine-tuning
        directory = path / "export"
    elif not has_weights(path) and any((path / name).is_dir() for name in ("checkpoints", "tokenizer")):
        return _read_workdir(path)
    library, directory = directory, encoder_folder(directory)
    prefix = None if has_weights(directory) else find_tf1(directory)  # `save` may have written beside a checkpoint
    values, config = _read_config(directory, ("config.json", "bert_config.json")[:: 1 if prefix is None else -1])
    tensors: Mapping[str, np.ndarray]
    if prefix is not None:
        tensors, file = convert.from_tf1(read_tf1(prefix)), prefix
    else:
        tensors, file = read_directory(directory)
        tensors = convert.from_flax(tensors)
    tensors = convert.as_named(tensors, FAMILIES[config.model_type])
    convert.check_size(tensors, config, str(file))
    if projection := read_projection(library):  # then the head of Stanford's files
        tensors = {name: tensors[name] for name in tensors} | projection
        values = values | {"architectures": [FAMILIES[config.model_type].architecture("token_vectors")]}
    return Directory(path, values, config, tensors, str(file), home=directory, library=library)


def _read_config(directory: Path, names: Sequence[str]) -> tuple[dict[str, Any], BertConfig]:
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        raise InputError(
            f"{directory} has no config.json (or bert_config.json): a pretrained directory holds that, "
            f"model.safetensors, pytorch_model.bin or bert_model.ckpt.*, and the tokenizer's files{say_not_read(directory)}"
        )
    values = read_json(path, dict) or {}
    return values, convert.config_from_hugging_face(values, str(path))


def _read_workdir(workdir: Path) -> Directory:
    """Returns the model of the newest checkpoint of a pretraining run."""
    from bert_jax.training import checkpoint, objectives, optim, steps

    path = workdir / "config.json"
    if (values := read_json(path, dict)) is None:
        raise InputError(f"{workdir} has checkpoints but no config.json: restore that file, or give an exported model")
    cfg = from_dict(TrainConfig, upgrade(values), str(path))
    objective = objectives.objective_of(cfg)
    like = jax.eval_shape(lambda: steps.init_state(objective.initialize(0), optim.make_optimizer(cfg.optim)))
    saved = checkpoint.Checkpointer(cfg.checkpoint_dir or workdir / "checkpoints", read_only=True)  # it may have been moved
    restored = saved.restore_latest(like)
    saved.close()
    if restored is None:
        raise InputError(f"{workdir} has no checkpoint yet")
    state, _, step = restored
    model, *_ = objective.parts(optim.averaged(state.params, state.opt_state))
    print(f"step {step} of {workdir}", file=sys.stderr)
    family = FAMILIES[cfg.model.model_type]
    values = {"architectures": [family.architecture(model.head)]}
    tensors = convert.as_named(convert.to_hugging_face(model.params, cfg.model, model.head), family)
    tokenizer = workdir / "tokenizer"
    return Directory(workdir, values, cfg.model, tensors, str(workdir), home=tokenizer, library=tokenizer)
