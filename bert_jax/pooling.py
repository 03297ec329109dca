"""Embeddings of texts: the settings in sentence-transformers' files, read and written. No JAX here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import InputError
from bert_jax.model.config import BertConfig
from bert_jax.modules import ACTIVATIONS as ACTIVATIONS
from bert_jax.modules import (
    ENCODERS,
    MODELS,
    Module,
    check_names,
    json_object,
    read_dense,
    read_library,
    read_modules,
    read_routes,
    read_token_weights,
    read_transformer,
    typed,
)
from bert_jax.modules import Dense as Dense
from bert_jax.modules import Embedding as Embedding
from bert_jax.modules import TokenWeights as TokenWeights
from bert_jax.modules import encoder_folder as encoder_folder
from bert_jax.modules import write_pooling as write_pooling
from bert_jax.token_vectors import TokenVectors as TokenVectors
from bert_jax.token_vectors import is_late, read_late

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
_LEGACY: dict[str, PoolingMode] = {  # in the order that their vectors are concatenated in
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_SPARSE_MODELS = "sentence_transformers.sparse_encoder.models"
SparseActivation = Literal["relu", "log1p_relu"]


@dataclass(frozen=True)
class Pooling(Embedding):
    """Settings of an embedding: hidden states [L, D] are pooled, passed through the dense layers, normalised, then truncated.

    Attributes:
      mode: the pooled vector, over all tokens with the special ones: the hidden state of the first token (`cls`) or of the last
        (`lasttoken`), the maximum (`max`), the mean (`mean`), the sum divided by the square root of the number of tokens
        (`mean_sqrt_len_tokens`), or the mean weighted by position, from 1 (`weightedmean`). A tuple concatenates several.
      normalize: scale the embedding to length 1.
      max_length: maximum tokens per text, special ones included; the rest is cut. None: as many as the model takes.
      lowercase: lowercase texts before they are tokenized.
      prompt: text to put before each text.
      prompts: further prompts by name, for `Embedder(...)(texts, prompt_name=...)`.
      include_prompt: pool the tokens of the prompt, and the special token before them, too.
      dense: layers between pooling and normalisation.
      truncate_dim: number of leading values of an embedding to keep; None: all. They are not normalised again.
      similarity_fn_name: how sentence-transformers compares embeddings; only kept for `save`.
    """

    kind: ClassVar[str] = "dense"
    mode: PoolingMode | tuple[PoolingMode, ...] = "mean"
    normalize: bool = True
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    truncate_dim: int | None = None
    similarity_fn_name: str | None = None

    def __post_init__(self) -> None:
        if not self.modes or any(mode not in _MODES for mode in self.modes):
            raise InputError(f"Pooling: mode={self.mode!r} is not supported; known: {', '.join(_MODES)}, or a tuple of some")
        if self.max_length is not None and self.max_length < 3:
            raise InputError(f"Pooling: max_length={self.max_length} leaves no token of a text between the two special ones")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise InputError(f"Pooling: truncate_dim={self.truncate_dim} is below 1")

    @property
    def modes(self) -> tuple[PoolingMode, ...]:
        """`mode` as a tuple."""
        return (self.mode,) if isinstance(self.mode, str) else self.mode

    @property
    def arrays(self) -> list[list[np.ndarray]]:
        """The kernel, and the bias where there is one, of each dense layer."""
        return [[layer.kernel] if layer.bias is None else [layer.kernel, layer.bias] for layer in self.dense]

    def width(self, hidden_size: int) -> int:
        """Returns the number of values of an embedding. Raises InputError if a dense layer does not take its input."""
        width = hidden_size * len(self.modes)
        for i, layer in enumerate(self.dense):
            if layer.kernel.shape[0] != width:
                raise InputError(f"Pooling: dense[{i}] takes {layer.kernel.shape[0]} values, and {width} come before it")
            width = layer.kernel.shape[1]
        return min(width, self.truncate_dim or width)

    def modules(self, cfg: BertConfig, params: Mapping[str, Any]) -> list[Module]:
        """Returns the modules of sentence-transformers: Transformer, Pooling, Dense layers, Normalize."""
        dense = []
        for layer in self.dense:
            tensors = {"linear.weight": layer.kernel.T} | ({} if layer.bias is None else {"linear.bias": layer.bias})
            config = {
                "in_features": layer.kernel.shape[0],
                "out_features": layer.kernel.shape[1],
                "bias": layer.bias is not None,
                "activation_function": ACTIVATIONS[layer.activation],
            }
            dense.append(Module(f"{MODELS}.Dense", config, tensors))
        pooling = {"word_embedding_dimension": cfg.hidden_size, **_mode_keys(self)}
        normalize = [Module(f"{MODELS}.Normalize")] * self.normalize
        return [Module(f"{MODELS}.Transformer"), Module(f"{MODELS}.Pooling", pooling), *dense, *normalize]

    def library(self) -> dict[str, object]:
        """Returns `similarity_fn_name`, and `truncate_dim` where it is set."""
        cut = {} if self.truncate_dim is None else {"truncate_dim": self.truncate_dim}
        return {"similarity_fn_name": self.similarity_fn_name, **cut}


@dataclass(frozen=True)
class SparsePooling(Embedding):
    """Settings of a sparse embedding, which has a weight for each token of the vocabulary (SPLADE v2, Formal et al., 2021).

    The weight of a token is the maximum of log(1 + relu(logit)) over the text, special tokens included, with the logits of the
    masked-LM head. Embeddings are compared by their inner product.

    Attributes:
      max_length: as in `Pooling`, like the fields after it.
      query_weights: the weight of each token of the vocabulary in queries that have it, in place of those of the model; None:
        queries are embedded as documents are.
      activation: "log1p_relu" takes the logarithm of 1 and a weight once more, as OpenSearch's models do.
    """

    kind: ClassVar[str] = "sparse"
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    query_weights: TokenWeights | None = None
    activation: SparseActivation = "relu"

    def __post_init__(self) -> None:
        if self.activation not in (known := get_args(SparseActivation)):
            raise InputError(f"SparsePooling: activation={self.activation!r} is not supported; known: {', '.join(known)}")
        if self.lowercase and self.query_weights is not None:
            said = "SparsePooling: query_weights and lowercase=True exclude each other"
            raise InputError(f"{said}: sentence-transformers does not lowercase queries that it looks up")

    def query_table(self, tokenizer: Tokenizer, cfg: BertConfig) -> np.ndarray | None:
        """Returns `query_weights`, 0 for the tokens around each text; None without them.

        Raises InputError unless there is one for each token of the model's vocabulary.
        """
        if self.query_weights is None:
            return None
        table = np.array(self.query_weights.values, np.float32)
        if len(table) != cfg.vocab_size:
            raise InputError(f"query_weights has {len(table)} tokens, but the vocabulary of the model {cfg.vocab_size}")
        table[[id for ids in tokenizer.single.ids for id in ids]] = 0
        return table

    def modules(self, cfg: BertConfig, params: Mapping[str, Any]) -> list[Module]:
        """Returns the modules of sentence-transformers: MLMTransformer and SpladePooling, for documents alone behind a Router."""
        splade = {
            "pooling_strategy": "max",
            "activation_function": self.activation,
            "word_embedding_dimension": cfg.vocab_size,
        }
        encoder = [Module(f"{_SPARSE_MODELS}.MLMTransformer"), Module(f"{_SPARSE_MODELS}.SpladePooling", splade)]
        if self.query_weights is None:
            return encoder
        tensors = {"weight": self.query_weights.values}
        lookup = Module(f"{_SPARSE_MODELS}.SparseStaticEmbedding", {"frozen": True}, tensors)
        return [Module(f"{MODELS}.Router", routes={"query": [lookup], "document": encoder})]

    def library(self) -> dict[str, object]:
        """Returns the class of the model and `similarity_fn_name`."""
        return {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}


def read_pooling(directory: Path) -> Pooling | SparsePooling | TokenVectors | None:
    """Returns the settings in modules.json and the files that it names; None where there is no modules.json, or no pooling in it.

    Raises InputError for what is not supported: embeddings without it would be other ones.
    """
    modules = read_modules(directory)
    kinds, known = [kind for kind, _ in modules], ("Transformer", "Pooling", "Dense", "Normalize")
    if "SpladePooling" in kinds:
        return _read_sparse(directory, modules)
    if kinds == ["Router"]:
        return _read_routed(directory, modules[0][1])
    if is_late(directory, kinds):
        return read_late(directory, modules)
    for kind in kinds:
        if kind not in known:
            raise InputError(f"{directory}/modules.json: {kind} modules are not supported; known: {', '.join(known)}")
    of, library = read_library(directory / "config_sentence_transformers.json", ["SentenceTransformer", "CrossEncoder"])
    if "Pooling" not in kinds and "Dense" not in kinds:
        for folder in (folder for kind, folder in modules if of == "CrossEncoder" and kind == "Transformer"):
            _, lowercase = read_transformer(folder, of)
            if lowercase:
                raise InputError(f"{folder}: do_lower_case of a CrossEncoder is not supported")
        return None
    order = [known.index(kind) for kind in kinds]
    if order != sorted(order) or order.count(0) != 1 or order.count(1) != 1:
        raise InputError(
            f"{directory}/modules.json: {', '.join(kinds)} are not supported together; expected a Transformer, a Pooling, then "
            "any number of Dense, then Normalize"
        )
    for kind, folder in modules:
        if kind == "Normalize":
            check_names(json_object(folder / "config.json"), folder / "config.json")
    folders = dict(modules)
    mode, include_prompt = _read_mode(folders["Pooling"] / "config.json")
    length, lowercase = read_transformer(folders["Transformer"], of)
    dense = tuple(read_dense(folder) for kind, folder in modules if kind == "Dense")
    return Pooling(
        mode, "Normalize" in kinds, length, lowercase, include_prompt=include_prompt, dense=dense, **library
    )  # fmt: skip


def _read_sparse(directory: Path, modules: list[tuple[str, Path]]) -> SparsePooling:
    """Returns the settings of a SparseEncoder."""
    kinds = [kind for kind, _ in modules]
    if len(kinds) != 2 or kinds[0] not in ENCODERS:
        expected = "expected a Transformer or MLMTransformer, then a SpladePooling"
        raise InputError(f"{directory}/modules.json: {', '.join(kinds)} are not supported together; {expected}")
    path = modules[1][1] / "config.json"
    config = json_object(path)
    chosen = {"pooling_strategy": "max", "activation_function": "relu"} | config
    for name, values in (("pooling_strategy", ("max",)), ("activation_function", get_args(SparseActivation))):
        if chosen[name] not in values:
            raise InputError(f"{path}: {name}={chosen[name]!r} is not supported, only {' and '.join(map(repr, values))}")
    _, library = read_library(directory / "config_sentence_transformers.json", ["SparseEncoder"])
    if library["similarity_fn_name"] not in (None, "dot"):
        said = f"similarity_fn_name={library['similarity_fn_name']!r} is not supported, only 'dot'"
        raise InputError(f"{directory}/config_sentence_transformers.json: {said}")
    length, lowercase = read_transformer(modules[0][1], "SparseEncoder")
    prompts = library["prompt"], library["prompts"]
    return SparsePooling(length, lowercase, *prompts, activation=chosen["activation_function"])


def _read_routed(directory: Path, folder: Path) -> SparsePooling:
    """Returns the settings of a SparseEncoder whose queries are looked up."""
    routes = read_routes(folder)
    kinds = {route: [kind for kind, _ in own] for route, own in routes.items()}
    first = (kinds.get("document") or [""])[0]
    if kinds != {"query": ["SparseStaticEmbedding"], "document": [first, "SpladePooling"]}:
        said = "; ".join(f"{route}: {', '.join(own)}" for route, own in kinds.items())
        expected = "expected query: SparseStaticEmbedding; document: a Transformer or MLMTransformer, then a SpladePooling"
        raise InputError(f"{folder}/router_config.json: the routes {said} are not supported; {expected}")
    return _read_sparse(directory, routes["document"]).replace(query_weights=read_token_weights(routes["query"][0][1]))


def read_activation(directory: Path, config: Mapping[str, Any]) -> Any:
    """Returns the activation on a CrossEncoder's logits, by config_sentence_transformers.json, else config.json, else None."""
    library = json_object(directory / "config_sentence_transformers.json")
    followed = library.get("model_type") == "CrossEncoder" and (directory / "modules.json").is_file()
    of_library = config.get("sentence_transformers")
    said = [
        library.get("activation_fn") if followed else None,
        of_library.get("activation_fn") if isinstance(of_library, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    ]
    return next((named for named in said if named is not None), None)


def _read_mode(path: Path) -> tuple[PoolingMode | tuple[PoolingMode, ...], bool]:
    """(mode, include_prompt) of a Pooling module."""
    config = json_object(path)
    named = config.get("pooling_mode")
    if named is None:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        named = [mode for key, mode in _LEGACY.items() if key in on] + [key for key in on if key not in _LEGACY] or ["mean"]
    modes = named if isinstance(named, list) else [named]
    for mode in modes:
        if mode not in _MODES:
            raise InputError(f"{path}: pooling mode {mode!r} is not supported; known: {', '.join(_MODES)}")
    if not modes:
        raise InputError(f"{path}: pooling_mode names none; known: {', '.join(_MODES)}")
    return modes[0] if len(modes) == 1 else tuple(modes), typed(config, "include_prompt", bool, True, path)


def _mode_keys(pooling: Pooling) -> Mapping[str, object]:
    """Returns the keys that all versions know, if they express the order; keys that the first versions lack, if not default."""
    order = [mode for mode in _LEGACY.values() if mode in pooling.modes]
    prompt = {} if pooling.include_prompt else {"include_prompt": False}
    if order != list(pooling.modes):
        return {"pooling_mode": list(pooling.modes), **prompt}
    return {key: mode in order for key, mode in _LEGACY.items() if mode in order or mode in ("cls", "mean", "max")} | prompt
