"""Parameters in and out of the Hugging Face layout: config.json, model.safetensors, by one table of names."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bert_jax.config import BertConfig, InputError

Params = dict[str, Any]

# (their name, our path); `{i}` is the layer. A kernel is their weight transposed; all else is the same array.
_ENCODER = [
    ("bert.embeddings.word_embeddings.weight", "encoder/embeddings/word_embeddings/embedding"),
    ("bert.embeddings.position_embeddings.weight", "encoder/embeddings/position_embeddings/embedding"),
    ("bert.embeddings.token_type_embeddings.weight", "encoder/embeddings/token_type_embeddings/embedding"),
    ("bert.embeddings.LayerNorm", "encoder/embeddings/norm"),
]
_LAYER = [
    ("bert.encoder.layer.{i}.attention.self.query", "encoder/layer_{i}/attention/query"),
    ("bert.encoder.layer.{i}.attention.self.key", "encoder/layer_{i}/attention/key"),
    ("bert.encoder.layer.{i}.attention.self.value", "encoder/layer_{i}/attention/value"),
    ("bert.encoder.layer.{i}.attention.output.dense", "encoder/layer_{i}/attention/output"),
    ("bert.encoder.layer.{i}.attention.output.LayerNorm", "encoder/layer_{i}/attention_norm"),
    ("bert.encoder.layer.{i}.intermediate.dense", "encoder/layer_{i}/mlp/intermediate"),
    ("bert.encoder.layer.{i}.output.dense", "encoder/layer_{i}/mlp/output"),
    ("bert.encoder.layer.{i}.output.LayerNorm", "encoder/layer_{i}/mlp_norm"),
]
_HEADS = [
    ("bert.pooler.dense", "pooler/dense"),
    ("cls.predictions.transform.dense", "masked_lm/dense"),
    ("cls.predictions.transform.LayerNorm", "masked_lm/norm"),
    ("cls.predictions.bias", "masked_lm/bias"),
    ("cls.seq_relationship", "next_sentence"),
]
_TIED = [  # (their name, the tensor that it must equal): older files have it twice
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
]
_ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}  # of their config.json
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _names(num_layers: int) -> Iterator[tuple[str, str]]:
    """(their name, our path) of every module or array."""
    yield from _ENCODER
    for i in range(num_layers):
        for theirs, ours in _LAYER:
            yield theirs.format(i=i), ours.format(i=i)
    yield from _HEADS


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """{"a/b/c": leaf} of a nested dict."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    params: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        at = params
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = value
    return params


def _their_name(path: str, names: dict[str, str]) -> str:
    """Their name of our leaf."""
    if path in names:
        return names[path]
    module, leaf = path.rsplit("/", 1)
    return f"{names[module]}.{_LEAVES[leaf]}"


def to_hugging_face(params: Params, cfg: BertConfig) -> dict[str, np.ndarray]:
    """Our parameters under their names; kernels transposed to [out, in]."""
    names = {ours: theirs for theirs, ours in _names(cfg.num_hidden_layers)}
    return {
        _their_name(path, names): np.ascontiguousarray(leaf.T if path.endswith("/kernel") else leaf)
        for path, leaf in ((p, np.asarray(x)) for p, x in flatten(params).items())
    }


def from_hugging_face(tensors: dict[str, np.ndarray], like: Params, cfg: BertConfig, where: str) -> tuple[Params, list[str]]:
    """Tensors under their names -> parameters of the tree `like`, and our paths that the tensors lack.

    Missing paths keep the value in `like`; that is for the caller to allow. Raises InputError, naming both sides, where a
    shape differs, a tensor of the encoder is missing, there are more layers, or the output layer is not the embedding table.
    """
    names = {ours: theirs for theirs, ours in _names(cfg.num_hidden_layers)}
    flat, missing, wrong = dict(flatten(like)), [], []
    for path, old in flat.items():
        theirs = _their_name(path, names)
        if theirs not in tensors:
            missing.append(path)
            continue
        tensor = tensors[theirs].T if path.endswith("/kernel") else tensors[theirs]
        if tensor.shape != old.shape:
            wrong.append(f"{theirs} is {list(tensors[theirs].shape)}, which does not fit {path} {list(old.shape)}")
        flat[path] = np.ascontiguousarray(tensor, dtype=np.float32)
    for theirs, tied in _TIED:
        if theirs in tensors and tied in tensors and not np.array_equal(tensors[theirs], tensors[tied]):
            wrong.append(f"{theirs} differs from {tied}, to which this model ties it")
    layers = {int(found[1]) for found in map(re.compile(r"bert\.encoder\.layer\.(\d+)\.").match, tensors) if found}
    if layers and max(layers) >= cfg.num_hidden_layers:
        wrong.append(f"there are tensors of {max(layers) + 1} layers, but num_hidden_layers={cfg.num_hidden_layers}")
    lost = [path for path in missing if path.startswith("encoder/")]
    if wrong or lost:
        lines = [*wrong, *(f"no tensor {_their_name(path, names)} for {path}" for path in lost)]
        raise InputError(f"{where} does not hold this model:\n  " + "\n  ".join(lines[:12]) + f"\n({len(lines)} in all)")
    return unflatten(flat), missing


def save_pretrained(directory: str | Path, cfg: BertConfig, params: Params, architecture: str, pad_id: int) -> None:
    """Writes config.json and model.safetensors; each file appears whole or not at all."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    computed = {"dtype", "remat", "scan_layers"}  # how, not what: no part of the model
    config = {
        "architectures": [architecture],
        "model_type": "bert",
        **{k: v for k, v in dataclasses.asdict(cfg).items() if k not in computed},
        "pad_token_id": pad_id,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    temporary = directory / f"model.safetensors.{os.getpid()}.tmp"
    try:
        save_file(to_hugging_face(params, cfg), temporary, metadata={"format": "pt"})
        os.replace(temporary, directory / "model.safetensors")
        temporary.write_text(json.dumps(config, indent=2) + "\n")
        os.replace(temporary, directory / "config.json")
    except (OSError, SafetensorError) as e:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write the model to {directory}: {e}") from None


def load_config(directory: str | Path) -> tuple[BertConfig, str]:
    """(model, architecture) of a directory's config.json. Raises InputError where there is none or it is not BERT's."""
    path = Path(directory) / "config.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no {path}: a pretrained directory holds config.json, model.safetensors and tokenizer.json") from None
    except ValueError as e:
        raise InputError(f"{path} is not JSON: {e}") from None
    if values.get("model_type") != "bert":
        raise InputError(f"{path}: model_type {values.get('model_type')!r} is not known; known: 'bert'")
    for name, only in _ONLY.items():
        if values.get(name, only) != only:
            raise InputError(f"{path}: {name}={values[name]!r} is not supported, only {only!r}")
    fields = {f.name for f in dataclasses.fields(BertConfig)} - {"dtype", "remat", "scan_layers"}
    cfg = BertConfig(**{name: value for name, value in values.items() if name in fields})
    return cfg, (values.get("architectures") or ["BertForMaskedLM"])[0]


def load_tensors(directory: str | Path) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors. Raises InputError where the file is missing or damaged."""
    path = Path(directory) / "model.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"no {path}") from None
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path} is damaged: {e}") from None
