"""The modules of sentence-transformers: which files they have, how they are read and written. No JAX here."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from bert_jax.data.layout import Layout
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.disk import put, read_json
from bert_jax.errors import InputError, did_you_mean
from bert_jax.formats.tensors import read_directory, write_safetensors
from bert_jax.model.config import BertConfig

MODELS = "sentence_transformers.models"  # the package of modules, in the files of all versions
PYLATE_DENSE = "pylate.models.Dense.Dense"
ENCODERS = ("Transformer", "MLMTransformer")  # modules of sentence-transformers that hold the encoder
STATIC = "StaticEmbedding"  # its module that holds a table of token vectors
QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query",), ("document", "passage", "corpus")  # names of prompts, the first that there is
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
    "MultiVectorEncoder": ("feature-extraction", "token_embeddings", "last_hidden_state"),
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


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """A weight for each token of a vocabulary.

    Attributes:
      values: float32 [V].
    """

    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise InputError(f"TokenWeights: values of the shape {self.values.shape}; expected [vocabulary]")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenWeights) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.shape)

    def __repr__(self) -> str:
        return f"TokenWeights({len(self.values)} tokens)"


class Module(NamedTuple):
    """A module of sentence-transformers. All but the class may be empty.

    Attributes:
      type: its class.
      config: the content of its config.json.
      tensors: its tensors.
      routes: the modules of each route of a Router.
    """

    type: str
    config: Mapping[str, object] = {}
    tensors: Mapping[str, np.ndarray] = {}
    routes: Mapping[str, Sequence[Module]] = {}

    @property
    def kind(self) -> str:
        """The name of the class, without its package."""
        return self.type.rpartition(".")[2]


class Embedding(ABC):
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

    def layout(self, tokenizer: Tokenizer, cfg: BertConfig, limit: int | None = None) -> Layout:
        """Returns the layout of texts of at most `limit` tokens, with a role for each of the prompts."""
        roles = {role: self.with_prompt(role).read for role in self.prompts}
        return Layout(tokenizer, cfg, limit, self.read, roles)

    @abstractmethod
    def modules(self, cfg: BertConfig, params: Mapping[str, Any]) -> list[Module]:
        """Returns the modules of sentence-transformers for a model with these parameters, the one with the encoder first."""

    @abstractmethod
    def library(self) -> dict[str, object]:
        """Returns the keys of config_sentence_transformers.json besides the prompts."""


def json_object(path: Path) -> dict[str, Any]:
    """Returns the content of a file; empty without the file."""
    return read_json(path, dict) or {}


def typed(config: Mapping[str, object], name: str, kind: type | tuple[type, ...], default: Any, path: Path) -> Any:
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
            found.append(_located(module["type"], module["path"], path))
        except (TypeError, LookupError, AttributeError):
            raise InputError(f"{path}: {module!r} is not a module with a type and a path") from None
    return found


def _located(named: str, folder: str, path: Path) -> tuple[str, Path]:
    """Returns (kind, folder) of a module of the class `named` that a file names. Raises InputError as `read_modules`."""
    package, _, kind = named.rpartition(".")
    inside = Path(folder)
    if package.partition(".")[0] != "sentence_transformers" and named != PYLATE_DENSE:
        raise InputError(f"{path}: {named} modules are not supported: their code is not sentence-transformers'")
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{path}: the folder {folder!r} is not inside {path.parent}")
    return kind, path.parent / inside


def read_routes(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Returns (kind, folder) of each module of each route of a Router.

    Raises InputError as `read_modules`, and unless routes are chosen by their names alone, documents by default.
    """
    path = folder / "router_config.json"
    config = json_object(path)
    types, structure, chosen = (typed(config, name, dict, {}, path) for name in ("types", "structure", "parameters"))
    for name, known in (("default_route", (None, "document")), ("route_mappings", (None, {}))):
        if chosen.get(name) not in known:
            raise InputError(f"{path}: {name}={chosen[name]!r} is not supported")
    try:
        return {route: [_located(types[name], name, path) for name in names] for route, names in structure.items()}
    except (TypeError, LookupError, AttributeError):
        raise InputError(f"{path}: it does not name the class of each module of its routes") from None


def every_module(directory: Path) -> list[tuple[str, Path]]:
    """Returns (kind, folder) of the modules of `read_modules` and of their routes, those of documents first."""
    modules = read_modules(directory)
    routers = [read_routes(folder) for kind, folder in modules if kind == "Router"]
    return modules + [module for routes in routers for route in sorted(routes) for module in routes[route]]


def encoder_folder(directory: Path) -> Path:
    """Returns the folder of the encoder's files, such as 0_Transformer, if modules.json names one, else the directory."""
    try:
        folders = [folder for kind, folder in every_module(directory) if kind in ENCODERS]
    except InputError:  # read_pooling tells
        return directory
    return folders[0] if folders and (folders[0] / "config.json").is_file() else directory


def read_library(path: Path, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(model type, the first of those `known` by default; arguments of Pooling) that config_sentence_transformers.json says."""
    config = json_object(path)
    named, prompts = typed(config, "default_prompt_name", str, None, path), typed(config, "prompts", dict, {}, path)
    prompts = {name: typed(prompts, name, str, "", path) for name in prompts}
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
        "truncate_dim": typed(config, "truncate_dim", int, None, path),
        "similarity_fn_name": typed(config, "similarity_fn_name", str, None, path),
    }


def read_transformer(folder: Path, of: str, others: Collection[str] = ()) -> tuple[int | None, bool]:
    """(max_length, lowercase) of the Transformer module of a model of type `of`; the caller reads `others`."""
    task, output, asked = _TASKS[of]
    expected = _UNSET | {"transformer_task": task, "module_output_name": output}
    paths = [folder / f"sentence_{name}_config.json" for name in _TRANSFORMERS]
    path, config = next(((path, config) for path in paths if (config := json_object(path))), (paths[0], {}))
    arguments: dict[str, Any] = {}
    for name, value in config.items():
        if name in _ARGUMENTS:
            arguments |= typed(config, name, dict, {}, path)
        elif name == "modality_config":
            text = typed(config, name, dict, {}, path).get("text")
            if text not in (None, {"method": "forward", "method_output_name": asked}):
                raise InputError(f"{path}: modality_config reads texts by {text!r}, which is not supported")
        elif name not in _HARMLESS and name not in others and (name not in expected or value not in (None, expected[name])):
            raise InputError(f"{path}: {name}={value!r} is not supported")
    for name, value in arguments.items():
        if name not in (*_HARMLESS_ARGUMENTS, "model_max_length"):
            raise InputError(f"{path}: {name}={value!r} is not supported")
    tokenizer = folder / "tokenizer_config.json"
    length = typed(config, "max_seq_length", int, None, path) or typed(arguments, "model_max_length", int, None, path)
    length = length or typed(json_object(tokenizer), "model_max_length", (int, float), None, tokenizer)
    length = int(length) if length is not None and math.isfinite(length) else None
    return length, typed(config, "do_lower_case", bool, False, path)


def check_names(config: Mapping[str, object], path: Path, known: str = "sentence_embedding") -> None:
    """Raises InputError if a module reads or writes anything else than the embedding."""
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, known):
            raise InputError(f"{path}: {name}={config[name]!r} is not supported, only {known!r}")


def read_dense(folder: Path, read: str = "sentence_embedding", activation: str = "Tanh") -> Dense:
    """Returns a Dense module that reads the feature `read`; `activation` is its default."""
    path = folder / "config.json"
    config = json_object(path)
    check_names(config, path, read)
    if config.get("use_residual"):
        raise InputError(f"{path}: use_residual is not supported")
    activation = activation_name(config.get("activation_function") or ACTIVATIONS[activation], str(path))
    tensors, where = read_directory(folder)
    wanted: dict[str, tuple[object, ...]] = {"linear.weight": (config.get("out_features"), config.get("in_features"))}
    if typed(config, "bias", bool, True, path):
        wanted["linear.bias"] = (config.get("out_features"),)
    there = {name: tensor.shape for name, tensor in tensors.items()}
    if there != wanted:
        raise InputError(f"{where} holds {there}; {path} says {wanted}")
    weights = {name: np.array(tensor, np.float32) for name, tensor in tensors.items()}
    return Dense(np.ascontiguousarray(weights["linear.weight"].T), weights.get("linear.bias"), activation)


def first_of(prompts: Mapping[str, object], names: Sequence[str]) -> str | None:
    """Returns the first of `names` that is among the prompts; None without one."""
    return next((name for name in names if name in prompts), None)


def library_prompts(prompt: str, prompts: Mapping[str, str]) -> dict[str, object]:
    """Returns the keys of config_sentence_transformers.json for a default prompt and further prompts by name."""
    named = dict(prompts)
    if prompt and prompt not in named.values():
        named["default" if "default" not in named else f"default {len(named)}"] = prompt
    default = next(name for name in named if named[name] == prompt) if prompt else None
    return {"prompts": named, "default_prompt_name": default}


def read_token_weights(folder: Path) -> TokenWeights:
    """Returns the weights of a SparseStaticEmbedding module."""
    path = folder / "config.json"
    if (file := json_object(path).get("path")) is not None:
        raise InputError(f"{path}: path={file!r} is not supported, only weights in model.safetensors")
    tensors, where = read_directory(folder)
    there = {name: tensor.shape for name, tensor in tensors.items()}
    if [*there] != ["weight"] or len(there["weight"]) != 1:
        raise InputError(f"{where} holds {there}; expected weight, a number for each token of the vocabulary")
    return TokenWeights(np.array(tensors["weight"], np.float32))


def write_pooling(
    directory: Path, pooling: Embedding, cfg: BertConfig, params: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:  # fmt: skip
    """Writes the files that sentence-transformers reads, in the form that all its versions do.

    modules.json, which names the others, comes last; each file appears whole or not at all. Modules that tokenize texts by
    themselves get the files of the tokenizer. Raises OSError where it cannot.
    """
    library = {**library_prompts(pooling.prompt, pooling.prompts), **pooling.library()}
    length = min(pooling.max_length or cfg.max_length, cfg.max_length)
    files: dict[str, object] = {
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": pooling.lowercase},
        "config_sentence_transformers.json": library,
    }
    listed, modules = list[object](), dict[str, Module]()  # by folder; the encoder's is the directory
    for i, module in enumerate(pooling.modules(cfg, params or {})):
        folder = f"{i}_{module.kind}" if i else ""
        listed.append({"idx": i, "name": str(i), "path": folder, "type": module.type})
        modules[folder] = module
        if module.routes:
            parts, files["router_config.json"] = _routed(module.routes)
            modules |= parts
    for folder, module in modules.items():
        if module.config:
            files[f"{folder}/config.json"] = module.config
        if module.tensors:
            (directory / folder).mkdir(exist_ok=True)
            as_saved = {name: np.ascontiguousarray(array, np.float32) for name, array in module.tensors.items()}
            write_safetensors(directory / folder / "model.safetensors", as_saved)
        if module.kind == "SparseStaticEmbedding" and tokenizer is not None:  # it adds no special tokens
            tokenizer.save(directory / folder, model_max_length=length - len(tokenizer.single))
    for name, content in {**files, "modules.json": listed}.items():
        put(directory / name, json.dumps(content, indent=2) + "\n")


def _routed(routes: Mapping[str, Sequence[Module]]) -> tuple[dict[str, Module], dict[str, object]]:
    """Returns the modules of a Router by folder, and the content of its router_config.json."""
    modules, structure = dict[str, Module](), dict[str, list[str]]()
    for route, own in routes.items():
        structure[route] = ["" if module.kind in ENCODERS else f"{route}_{i}_{module.kind}" for i, module in enumerate(own)]
        modules |= dict(zip(structure[route], own, strict=True))
    types = {folder: module.type for folder, module in modules.items()}
    parameters = {"default_route": "document", "allow_empty_key": True}
    return modules, {"types": types, "structure": structure, "parameters": parameters}
