"""Embeddings of texts: the settings in sentence-transformers' files, read and written. No JAX here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np

from bert_jax.data.layout import Layout
from bert_jax.disk import put, read_json
from bert_jax.errors import InputError, did_you_mean
from bert_jax.formats.tensors import read_directory, write_safetensors
from bert_jax.model.config import BertConfig

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
_LEGACY: dict[str, PoolingMode] = {  # in the order that their vectors are concatenated in
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
ENCODERS = ("Transformer", "MLMTransformer")  # modules of sentence-transformers that hold the encoder
_TRANSFORMERS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # as its files are called
# Names in sentence_bert_config.json that do not change a vector, or change it only if their value differs.
_HARMLESS = {"max_seq_length", "do_lower_case", "unpad_inputs"}
_UNSET: dict[str, object] = {
    "query_length": None, "document_length": None, "query_expansion": None, "processing_kwargs": {},
    "tokenizer_name_or_path": None,
}  # fmt: skip
_TASKS = {  # model type -> (transformer_task, module_output_name, what the encoder is asked for)
    "SentenceTransformer": ("feature-extraction", "token_embeddings", "last_hidden_state"),
    "CrossEncoder": ("sequence-classification", "scores", "logits"),
    "SparseEncoder": ("fill-mask", "token_embeddings", "logits"),
}
_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_HARMLESS_ARGUMENTS = {"trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "use_cache"}
# Classes of torch.nn, by the last part of their names, and where torch has them.
ACTIVATIONS = {
    "Identity": "torch.nn.modules.linear.Identity",
    **{name: f"torch.nn.modules.activation.{name}" for name in ("Tanh", "Sigmoid", "ReLU", "GELU", "SiLU")},
}


def activation_name(named: object, where: str) -> str:
    """Returns the key of ACTIVATIONS for a class such as torch.nn.modules.activation.Tanh. Raises InputError for any other."""
    package, _, name = str(named).rpartition(".")
    if name not in ACTIVATIONS or package.partition(".")[0] not in ("", "torch"):
        raise InputError(f"{where}: the activation {named!r} is not supported; known: {', '.join(ACTIVATIONS.values())}")
    return name


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer after the pooling: activation(x @ kernel + bias), in float32.

    Attributes:
      kernel: float32 [in, out].
      bias: float32 [out], or None.
      activation: a key of `ACTIVATIONS`, a class of torch.nn.
    """

    kernel: np.ndarray
    bias: np.ndarray | None = None
    activation: str = "Tanh"

    def __post_init__(self) -> None:
        activation_name(self.activation, "Dense")
        if self.kernel.ndim != 2 or (self.bias is not None and self.bias.shape != self.kernel.shape[1:]):
            biased = "" if self.bias is None else f" and a bias {self.bias.shape}"
            raise InputError(f"Dense: a kernel {self.kernel.shape}{biased}; expected [in, out] and [out]")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dense) and self.activation == other.activation and all(
            np.array_equal(a, b) if a is not None and b is not None else a is b
            for a, b in ((self.kernel, other.kernel), (self.bias, other.bias))
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.kernel.shape, self.activation))

    def __repr__(self) -> str:
        return f"Dense({self.kernel.shape[0]} -> {self.kernel.shape[1]}, {self.activation})"


class Module(NamedTuple):
    """A module of sentence-transformers: its class, the content of its config.json, and its tensors; both may be empty."""

    type: str
    config: Mapping[str, object] = {}
    tensors: Mapping[str, np.ndarray] = {}


class Embedding:
    """The settings that all embeddings have: which text is read, and how much of it.

    Attributes:
      kind: what the model is called in messages.
      max_length: maximum tokens per text, special ones included; the rest is cut. None: as many as the model takes.
      lowercase: lowercase texts before they are tokenized.
      prompt: text to put before each text.
      prompts: further prompts by name.
    """

    kind: ClassVar[str]
    max_length: int | None
    lowercase: bool
    prompt: str
    prompts: Mapping[str, str]

    @property
    def include_prompt(self) -> bool:
        """True if the tokens of the prompt, and the special token before them, are part of the embedding."""
        return True

    def read(self, text: str) -> str:
        """Returns the text that is tokenized: with the prompt, and in lower case if so set."""
        return (self.prompt + text).lower() if self.lowercase else self.prompt + text

    def with_prompt(self, name: str) -> Self:
        """Returns a copy with the prompt of that name. Raises InputError if there is none."""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InputError(f"no prompt {name!r}{did_you_mean(name, self.prompts)}; the model's prompts: {known}")
        return self.replace(prompt=self.prompts[name])

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with other values."""
        return replace(self, **changes)  # type: ignore[type-var]

    def first_place(self, layout: Layout) -> int:
        """Returns the place of the first token that counts: 0, or the number of tokens of the prompt, without [SEP]."""
        if self.include_prompt or not self.prompt:
            return 0
        (example,), _ = layout.examples([self.read("")], self.max_length)
        return len(example.input_ids) - (int(example.input_ids[-1]) in layout.tokenizer.special_ids)

    def modules(self, cfg: BertConfig) -> list[Module]:
        """Returns the modules of sentence-transformers, the one of the encoder first."""
        raise NotImplementedError

    def library(self) -> dict[str, object]:
        """Returns the keys of config_sentence_transformers.json besides the prompts."""
        raise NotImplementedError


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

    def modules(self, cfg: BertConfig) -> list[Module]:
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
            dense.append(Module(f"{_MODELS}.Dense", config, tensors))
        pooling = {"word_embedding_dimension": cfg.hidden_size, **_mode_keys(self)}
        normalize = [Module(f"{_MODELS}.Normalize")] * self.normalize
        return [Module(f"{_MODELS}.Transformer"), Module(f"{_MODELS}.Pooling", pooling), *dense, *normalize]

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
      max_length: as in `Pooling`, like the other fields.
    """

    kind: ClassVar[str] = "sparse"
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)

    def modules(self, cfg: BertConfig) -> list[Module]:
        """Returns the modules of sentence-transformers: MLMTransformer and SpladePooling."""
        splade = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": cfg.vocab_size}
        return [Module(f"{_SPARSE_MODELS}.MLMTransformer"), Module(f"{_SPARSE_MODELS}.SpladePooling", splade)]

    def library(self) -> dict[str, object]:
        """Returns the class of the model and `similarity_fn_name`."""
        return {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}


_MODELS, _SPARSE_MODELS = "sentence_transformers.models", "sentence_transformers.sparse_encoder.models"


# --- reading ---


def _object(path: Path) -> dict[str, Any]:
    """Returns the content of a file; empty without the file."""
    return read_json(path, dict) or {}


def _typed(config: Mapping[str, object], name: str, kind: type | tuple[type, ...], default: Any, path: Path) -> Any:
    """Returns config[name], or `default` if it is absent or null. Raises InputError if it has another type."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{path}: {name}={value!r} is not supported")
    return value


def read_modules(directory: Path) -> list[tuple[str, Path]]:
    """Returns (kind, folder) of each module that modules.json names, in order; nothing without the file.

    Raises InputError for a class that is not sentence-transformers' own, and for a folder outside the directory.
    """
    path, found = directory / "modules.json", []
    for module in read_json(path, list) or []:
        try:
            package, _, kind = module["type"].rpartition(".")
            folder = Path(module["path"])
        except (TypeError, LookupError, AttributeError):
            raise InputError(f"{path}: {module!r} is not a module with a type and a path") from None
        if package.partition(".")[0] != "sentence_transformers":
            raise InputError(f"{path}: {module['type']} modules are not supported: their code is not sentence-transformers'")
        if folder.is_absolute() or ".." in folder.parts:
            raise InputError(f"{path}: the folder {module['path']!r} is not inside {directory}")
        found.append((kind, directory / folder))
    return found


def encoder_folder(directory: Path) -> Path:
    """Returns the folder of the encoder's files, such as 0_Transformer, if modules.json names one, else the directory."""
    try:
        folders = [folder for kind, folder in read_modules(directory) if kind in ENCODERS]
    except InputError:  # read_pooling tells
        return directory
    return folders[0] if folders and (folders[0] / "config.json").is_file() else directory


def read_pooling(directory: Path) -> Pooling | SparsePooling | None:
    """Returns the settings in modules.json and the files that it names; None where there is no modules.json, or no pooling in it.

    Raises InputError for what is not supported: embeddings without it would be other ones.
    """
    modules = read_modules(directory)
    kinds, known = [kind for kind, _ in modules], ("Transformer", "Pooling", "Dense", "Normalize")
    if "SpladePooling" in kinds:
        return _read_sparse(directory, modules)
    for kind in kinds:
        if kind not in known:
            raise InputError(f"{directory}/modules.json: {kind} modules are not supported; known: {', '.join(known)}")
    of, library = _read_library(directory / "config_sentence_transformers.json", ["SentenceTransformer", "CrossEncoder"])
    if "Pooling" not in kinds and "Dense" not in kinds:
        for folder in (folder for kind, folder in modules if of == "CrossEncoder" and kind == "Transformer"):
            _, lowercase = _read_transformer(folder, of)
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
            _check_names(_object(folder / "config.json"), folder / "config.json")
    folders = dict(modules)
    mode, include_prompt = _read_mode(folders["Pooling"] / "config.json")
    length, lowercase = _read_transformer(folders["Transformer"], of)
    dense = tuple(_read_dense(folder) for kind, folder in modules if kind == "Dense")
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
    config = _object(path)
    for name, value in (("pooling_strategy", "max"), ("activation_function", "relu")):
        if config.get(name, value) != value:
            raise InputError(f"{path}: {name}={config[name]!r} is not supported, only {value!r}")
    _, library = _read_library(directory / "config_sentence_transformers.json", ["SparseEncoder"])
    if library["similarity_fn_name"] not in (None, "dot"):
        said = f"similarity_fn_name={library['similarity_fn_name']!r} is not supported, only 'dot'"
        raise InputError(f"{directory}/config_sentence_transformers.json: {said}")
    length, lowercase = _read_transformer(modules[0][1], "SparseEncoder")
    return SparsePooling(length, lowercase, library["prompt"], library["prompts"])


def read_activation(directory: Path, config: Mapping[str, Any]) -> Any:
    """Returns the activation on a CrossEncoder's logits, by config_sentence_transformers.json, else config.json, else None."""
    library = _object(directory / "config_sentence_transformers.json")
    followed = library.get("model_type") == "CrossEncoder" and (directory / "modules.json").is_file()
    of_library = config.get("sentence_transformers")
    said = [
        library.get("activation_fn") if followed else None,
        of_library.get("activation_fn") if isinstance(of_library, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    ]
    return next((named for named in said if named is not None), None)


def _read_library(path: Path, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(model type, the first of those `known` by default; arguments of Pooling) that config_sentence_transformers.json says."""
    config = _object(path)
    named, prompts = _typed(config, "default_prompt_name", str, None, path), _typed(config, "prompts", dict, {}, path)
    prompts = {name: _typed(prompts, name, str, "", path) for name in prompts}
    if named and named not in prompts:
        raise InputError(f"{path}: default_prompt_name={named!r} is not among its prompts")
    of = config.get("model_type") or known[0]
    if of == "CrossEncoder" and named and prompts[named]:
        raise InputError(f"{path}: the default prompt {prompts[named]!r} of a CrossEncoder is not supported")
    if of not in known:
        raise InputError(f"{path}: {of} models are not supported with these modules; known: {', '.join(known)}")
    return of, {
        "prompt": prompts[named] if named else "",
        "prompts": prompts,
        "truncate_dim": _typed(config, "truncate_dim", int, None, path),
        "similarity_fn_name": _typed(config, "similarity_fn_name", str, None, path),
    }


def _read_mode(path: Path) -> tuple[PoolingMode | tuple[PoolingMode, ...], bool]:
    """(mode, include_prompt) of a Pooling module."""
    config = _object(path)
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
    return modes[0] if len(modes) == 1 else tuple(modes), _typed(config, "include_prompt", bool, True, path)


def _read_transformer(folder: Path, of: str) -> tuple[int | None, bool]:
    """(max_length, lowercase) of the Transformer module of a model of type `of`."""
    task, output, asked = _TASKS[of]
    expected = _UNSET | {"transformer_task": task, "module_output_name": output}
    paths = [folder / f"sentence_{name}_config.json" for name in _TRANSFORMERS]
    path, config = next(((path, config) for path in paths if (config := _object(path))), (paths[0], {}))
    arguments: dict[str, Any] = {}
    for name, value in config.items():
        if name in _ARGUMENTS:
            arguments |= _typed(config, name, dict, {}, path)
        elif name == "modality_config":
            text = _typed(config, name, dict, {}, path).get("text")
            if text not in (None, {"method": "forward", "method_output_name": asked}):
                raise InputError(f"{path}: modality_config reads texts by {text!r}, which is not supported")
        elif name not in _HARMLESS and (name not in expected or value not in (None, expected[name])):
            raise InputError(f"{path}: {name}={value!r} is not supported")
    for name, value in arguments.items():
        if name not in (*_HARMLESS_ARGUMENTS, "model_max_length"):
            raise InputError(f"{path}: {name}={value!r} is not supported")
    tokenizer = folder / "tokenizer_config.json"
    length = _typed(config, "max_seq_length", int, None, path) or _typed(arguments, "model_max_length", int, None, path)
    length = length or _typed(_object(tokenizer), "model_max_length", (int, float), None, tokenizer)
    length = int(length) if length is not None and math.isfinite(length) else None
    return length, _typed(config, "do_lower_case", bool, False, path)


def _check_names(config: Mapping[str, object], path: Path) -> None:
    """Raises InputError if a module reads or writes anything else than the embedding."""
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise InputError(f"{path}: {name}={config[name]!r} is not supported, only 'sentence_embedding'")


def _read_dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = _object(path)
    _check_names(config, path)
    if config.get("use_residual"):
        raise InputError(f"{path}: use_residual is not supported")
    activation = activation_name(config.get("activation_function") or ACTIVATIONS["Tanh"], str(path))
    tensors, where = read_directory(folder)
    wanted: dict[str, tuple[object, ...]] = {"linear.weight": (config.get("out_features"), config.get("in_features"))}
    if _typed(config, "bias", bool, True, path):
        wanted["linear.bias"] = (config.get("out_features"),)
    there = {name: tensor.shape for name, tensor in tensors.items()}
    if there != wanted:
        raise InputError(f"{where} holds {there}; {path} says {wanted}")
    weights = {name: np.array(tensor, np.float32) for name, tensor in tensors.items()}
    return Dense(np.ascontiguousarray(weights["linear.weight"].T), weights.get("linear.bias"), activation)


# --- writing ---


def _mode_keys(pooling: Pooling) -> Mapping[str, object]:
    """Returns the keys that all versions know, if they express the order; keys that the first versions lack, if not default."""
    order = [mode for mode in _LEGACY.values() if mode in pooling.modes]
    prompt = {} if pooling.include_prompt else {"include_prompt": False}
    if order != list(pooling.modes):
        return {"pooling_mode": list(pooling.modes), **prompt}
    return {key: mode in order for key, mode in _LEGACY.items() if mode in order or mode in ("cls", "mean", "max")} | prompt


def write_pooling(directory: Path, pooling: Embedding, cfg: BertConfig) -> None:
    """Writes the files that sentence-transformers reads, in the form that all its versions do.

    modules.json, which names the others, comes last; each file appears whole or not at all. Raises OSError where it cannot.
    """
    prompts = dict(pooling.prompts)
    if pooling.prompt and pooling.prompt not in prompts.values():
        prompts["default" if "default" not in prompts else f"default {len(prompts)}"] = pooling.prompt
    library = {
        "prompts": prompts,
        "default_prompt_name": next(name for name in prompts if prompts[name] == pooling.prompt) if pooling.prompt else None,
        **pooling.library(),
    }
    files: dict[str, object] = {
        "sentence_bert_config.json": {
            "max_seq_length": min(pooling.max_length or cfg.max_length, cfg.max_length),
            "do_lower_case": pooling.lowercase,
        },
        "config_sentence_transformers.json": library,
    }
    listed = []
    for i, module in enumerate(pooling.modules(cfg)):
        folder = f"{i}_{module.type.rpartition('.')[2]}" if i else ""
        listed.append({"idx": i, "name": str(i), "path": folder, "type": module.type})
        if module.config:
            files[f"{folder}/config.json"] = module.config
        if module.tensors:
            (directory / folder).mkdir(exist_ok=True)
            as_saved = {name: np.ascontiguousarray(array, np.float32) for name, array in module.tensors.items()}
            write_safetensors(directory / folder / "model.safetensors", as_saved)
    for name, content in {**files, "modules.json": listed}.items():
        put(directory / name, json.dumps(content, indent=2) + "\n")
