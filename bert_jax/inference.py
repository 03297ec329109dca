"""Load a pretrained directory and predict."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import BertConfig, InputError, differences, to_dict
from bert_jax.data.packing import describe
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.model import convert
from bert_jax.model.heads import BertForPreTraining


@dataclass(frozen=True)
class Model:
    """A pretrained model: its configuration, parameters (a plain nested dict) and tokenizer."""

    config: BertConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    architecture: str

    @property
    def module(self) -> BertForPreTraining:
        """The Flax module that `params` belong to."""
        return BertForPreTraining(self.config, next_sentence=self.architecture == "BertForPreTraining")


def architecture_of(next_sentence: bool) -> str:
    """The Hugging Face class that a pretrained model is exported for."""
    return "BertForPreTraining" if next_sentence else "BertForMaskedLM"


def load(path: str | Path) -> Model:
    """Reads a pretrained directory: config.json, model.safetensors, tokenizer.json.

    Raises InputError where a file is missing or damaged, or the tensors are not those of the model that config.json describes.
    """
    cfg, architecture = convert.load_config(path)
    module = BertForPreTraining(cfg, next_sentence=architecture == "BertForPreTraining")
    like = jax.eval_shape(partial(initialize, module), 0)
    params, missing = convert.from_hugging_face(convert.load_tensors(path), like, cfg, str(path))
    if missing:
        raise InputError(f"{path} has no tensors for {', '.join(missing)}, which {architecture} needs")
    return Model(cfg, params, Tokenizer.load(path), architecture)


def save(model: Model, directory: str | Path) -> None:
    """Writes a directory that `load` and transformers read."""
    convert.save_pretrained(directory, model.config, model.params, model.architecture, model.tokenizer.pad_id)
    model.tokenizer.save(directory, model_max_length=model.config.max_position_embeddings)


def initialize(module: BertForPreTraining, seed: int) -> dict[str, Any]:
    """Fresh parameters. Pure: jit it, eval_shape it."""
    ids = jnp.zeros((1, 8), jnp.int32)
    batch = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "sequence_ids", "masked_positions"), ids)
    return module.init(jax.random.key(seed), batch)["params"]


def start_from(path: str | Path, module: BertForPreTraining, fresh: dict[str, Any]) -> dict[str, Any]:
    """The weights of a pretrained directory for a new pretraining run; heads that it lacks stay as in `fresh`, and are said.

    Raises InputError where its config.json describes another model than `module`'s.
    """
    theirs, _ = convert.load_config(path)
    computed = dict(dtype=module.cfg.dtype, remat=module.cfg.remat, scan_layers=module.cfg.scan_layers)
    different = differences(to_dict(theirs.replace(**computed)), to_dict(module.cfg))
    different = [d for d in different if "dropout" not in d[0] and d[0] != "initializer_range"]
    if different:
        listing = "\n".join(f"  model.{name}: {a!r} there, {b!r} in this run" for name, a, b in different)
        raise InputError(f"--init-from {path} is another model:\n{listing}")
    params, missing = convert.from_hugging_face(convert.load_tensors(path), fresh, theirs, str(path))
    if missing:
        print(f"{path} has no weights for {', '.join(missing)}: freshly initialised", file=sys.stderr)
    return params


@dataclass(frozen=True)
class Filling:
    """One candidate for a [MASK]: the token, its probability, and the text with it in place."""

    token: str
    score: float
    text: str


class FillMask:
    """The likeliest tokens for the [MASK] of each text."""

    def __init__(self, model: Model, top_k: int = 5) -> None:
        self.model, self.top_k = model, top_k
        self._apply = jax.jit(lambda params, batch: model.module.apply({"params": params}, batch)["masked_lm_logits"])

    def __call__(self, texts: list[str]) -> list[list[Filling]]:
        """For each text with one [MASK], its `top_k` fillings, the best first. Raises InputError for other texts."""
        return [self._fill(text) for text in texts]

    def _fill(self, text: str) -> list[Filling]:
        parts = text.split("[MASK]")
        if len(parts) != 2:
            raise InputError(f"{text!r} has {len(parts) - 1} [MASK]; fill-mask takes one")
        tokenizer, limit = self.model.tokenizer, self.model.config.max_position_embeddings
        left, right = tokenizer.encode_batch(parts)
        ids = [tokenizer.cls_id, *left.tolist(), tokenizer.mask_id, *right.tolist(), tokenizer.sep_id]
        if len(ids) > limit:
            raise InputError(f"{text[:60]!r}... has {len(ids)} tokens; the model takes {limit}")
        row = np.full((1, min(limit, -(-len(ids) // 32) * 32)), tokenizer.pad_id, np.int32)  # few shapes, few compilations
        row[0, : len(ids)] = ids
        batch = {"input_ids": row, **describe(row, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)}
        batch["masked_positions"] = np.array([[len(left) + 1]], np.int32)
        scores = np.array(jax.nn.softmax(self._apply(self.model.params, batch)[0, 0]))
        best = np.argsort(-scores)[: self.top_k]
        return [
            Filling(tokenizer.decode([i]).strip(), float(scores[i]), tokenizer.decode([*left, i, *right])) for i in best.tolist()
        ]
