"""Models on disk: any published BERT in, a directory that transformers and sentence-transformers read out."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from bert_jax.config import (
    COMPUTED,
    OF_A_RUN,
    BertConfig,
    InputError,
    TrainConfig,
    did_you_mean,
    differences,
    from_dict,
    printable,
    to_dict,
)
from bert_jax.data.tokenizer import SpecialTokens, Tokenizer, has_tokenizer
from bert_jax.disk import put, read_json
from bert_jax.formats.tensors import has_weights, read_directory, say_not_read, write_safetensors
from bert_jax.formats.tf1 import find_tf1, read_tf1
from bert_jax.model import convert
from bert_jax.model.families import FAMILIES, HEADS, Head
from bert_jax.model.heads import Bert
from bert_jax.pooling import ACTIVATIONS, Pooling, encoder_folder, read_activation, read_modules, read_pooling, write_pooling
from bert_jax.tuned import Tuned, read_tuned

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
_LABELLED = ("sequence_classification", "token_classification")
_MOST_LABELS = 100_000  # without names
_CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight")  # [classes, ...]


@dataclass(frozen=True, eq=False)
class Untrained:
    """A head, or a part of it, that the weights' file lacked.

    Attributes:
      where: the file.
      initial: our path -> the value that stands for the missing parameter.
      unused: names of the tensors that were there and are not read.
    """

    where: str
    initial: dict[str, np.ndarray]
    unused: tuple[str, ...]

    def warning(self, params: Any) -> str | None:
        """What a user must know before `params` predict; None where each of these parameters has been trained."""
        flat = convert.flatten(params)
        same = {path.rpartition("/")[0] for path, x in self.initial.items() if path in flat and np.array_equal(flat[path], x)}
        if not same:
            return None
        modules = list(dict.fromkeys(f"{name.rpartition('.')[0]}.*" for name in self.unused))
        there = f" (there, and not used: {', '.join(modules[:8])}{', ...' * (len(modules) > 8)})" if modules else ""
        random = ", ".join(sorted(same))
        said = f"{self.where} has no weights for {random}: they are random, and predictions too, until they are trained{there}"
        return printable(said)


@dataclass(frozen=True, eq=False)
class Model:
    """A pretrained model: how it is configured, its parameters (a plain nested dict) and its tokenizer.

    A model equals itself alone, since arrays have no one truth value: compare `config`, `head` and the leaves of `params`.

    Attributes:
      config: the encoder.
      params: {encoder, pooler?, <head>}, float32.
      tokenizer: None where the directory had none that is read; predictions need one.
      head: what stands on the encoder.
      labels: names of the classes, where the head has classes.
      problem_type: what a sequence classifier's logits mean; None: single_label_classification, or regression if there is one.
      pooling: how sentence-transformers makes embeddings of it, where its files say so; a str says why they cannot be followed.
      no_tokenizer: why the tokenizer's files were not read, where there are any.
      activation: the class of torch.nn that sentence-transformers' CrossEncoder puts behind the logits, where its files say so.
      untrained: what of the head the file lacked; predictors that read it warn.
      tuned: how long texts were in fine-tuning, and thresholds: predictors follow it.
    """

    config: BertConfig
    params: dict[str, Any] = field(repr=False)
    tokenizer: Tokenizer | None
    head: Head = "masked_lm"
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    pooling: Pooling | str | None = None
    activation: str | None = None
    untrained: Untrained | None = field(default=None, repr=False)
    tuned: Tuned = field(default_factory=Tuned)
    no_tokenizer: str | None = None

    @property
    def max_length(self) -> int:
        """Tokens of a sequence that predictors read by default: what it was trained on, at most what it takes."""
        return min(self.tuned.max_length or self.config.max_length, self.config.max_length)

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError where there is none, with the reason."""
        if self.tokenizer is None:
            nothing_there = "this model has no tokenizer: put its tokenizer.json or vocab.txt beside its config.json"
            raise InputError(self.no_tokenizer or nothing_there)
        return self.tokenizer

    @property
    def window(self) -> int:
        """Tokens of a question and a stretch of its context that are read at once: as in fine-tuning, of other models 384."""
        return self.max_length if self.tuned.task else min(384, self.max_length)

    @property
    def module(self) -> Bert:
        """The Flax module that `params` belong to."""
        return Bert(self.config, self.head, max(1, len(self.labels)))

    def apply(self, params: Any, batch: Mapping[str, Any], **flags: Any) -> dict[str, Any]:
        """Hidden states and the head's outputs (see `Bert`), a pure function of `params` and `batch`: jit, vmap, grad, pmap it.

        Args:
          params: a tree as `self.params`.
          batch: int arrays; `input_ids` [B, L] suffices where nothing is padded, `attention_mask` says what is.
          **flags: `output_hidden_states=True`, `output_attentions=True`; `deterministic=False` with `rngs={"dropout": key}`.
        """
        rngs = flags.pop("rngs", None)
        return self.module.apply({"params": params}, batch, rngs=rngs, **flags)

    def encode(
        self, params: Any, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None
    ) -> jax.Array:
        """Hidden states [B, L, D] of token ids [B, L], a pure function; outputs at padding are finite and mean nothing.

        `attention_mask` [B, L] is 1 (or True) at tokens and 0 at padding; default: all are tokens.
        """
        given = dict(attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids)
        batch = {"input_ids": input_ids} | {name: value for name, value in given.items() if value is not None}
        return self.module.apply({"params": params}, batch, method="hidden_states")


def initialize(module: Bert, seed: Any) -> dict[str, Any]:
    """Fresh parameters. Pure: jit it, eval_shape it."""
    ids = jnp.zeros((1, 1, 1) if module.head == "multiple_choice" else (1, 1), jnp.int32)
    return module.init(jax.random.key(seed), {"input_ids": ids})["params"]


def _scanned(module: Bert) -> Bert:
    """The same parameters, traced in a time that does not depend on the number of layers."""
    return module.clone(cfg=module.cfg.replace(scan_layers=True))


def _shapes(module: Bert) -> dict[str, Any]:
    return jax.eval_shape(partial(initialize, _scanned(module)), 0)


def _initial(module: Bert, paths: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Initial values of some parameters; what is not asked for is not computed."""

    def pick(seed: Any) -> dict[str, Any]:
        flat = convert.flatten(initialize(_scanned(module), seed))
        return {path: flat[path] for path in paths}

    return jax.device_get(jax.jit(pick)(seed))


# --- reading ---


@dataclass(frozen=True)
class _Files:
    """What a directory holds, before a model is made of it."""

    values: dict[str, Any]  # of config.json
    config: BertConfig
    tensors: Mapping[str, np.ndarray]
    where: str  # the file of the tensors, for messages
    home: Path  # of the tokenizer's files
    library: Path  # of sentence-transformers' files


def _read(directory: Path) -> _Files:
    """The files of a Hugging Face directory, of Google's TF1 checkpoints, or of a run. Raises InputError for any other."""
    if not directory.is_dir():
        raise InputError(f"no directory {directory}{_nearest(directory)}")
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
    return _Files(values, config, tensors, str(file), directory, library)


def load(
    path_or_name: str | Path, head: Head | None = None, labels: Sequence[str] | None = None,
    special_tokens: SpecialTokens | None = None,
) -> Model:  # fmt: skip
    """Reads a pretrained model.

    Args:
      path_or_name: a directory in the Hugging Face layout (model.safetensors, pytorch_model.bin or flax_model.msgpack, whole or
        in shards; what `save` and `train.py` export), one of Google's TF1 checkpoints (bert_config.json, bert_model.ckpt.*,
        vocab.txt), a work directory of `train.py` (its newest checkpoint) or of `finetune.py`, or a name on the Hugging Face hub.
      head: the head wanted; default: the one that config.json's `architectures` says, else what the tensors are of. A head
        that the file lacks is initialised, and said on stderr.
      labels: names of the classes of a new classification head, instead of config.json's.
      special_tokens: what the characters `[SEP]` in a text are: that token ("read"), or text like any other ("text"). Default:
        what the tokenizer's files say; that is "read" but for models that were fine-tuned with "text".

    Returns a model whose parameters are jax arrays on the default device, in float32.

    Raises InputError where a file is missing or damaged, the family is not known, or the tensors are not those of the model
    that config.json describes.
    """
    return _load(path_or_name, head, labels, special_tokens)[0]


def describe(path_or_name: str | Path) -> Model:
    """What `load` would say of a model, without its parameters and its tokenizer; no device is touched."""
    directory = _find(path_or_name)
    files = _read(directory)
    head = _head(files, None, directory)
    labels = _labels(files, str(directory)) if head in _LABELLED else ()
    problem_type, activation = None, None
    if head == "sequence_classification":
        problem_type, activation = files.values.get("problem_type"), read_activation(files.library, files.values)
    tuned = read_tuned(files.home, files.values, len(labels) or None)
    return Model(files.config, {}, None, head, labels, problem_type, None, activation, tuned=tuned)


def _load(
    path_or_name: str | Path, head: Head | None, labels: Sequence[str] | None, special_tokens: SpecialTokens | None = None
) -> tuple[Model, convert.Converted]:
    directory = _find(path_or_name)
    files = _read(directory)
    head = _head(files, head, directory)
    num_labels = None
    if labels is not None:
        _check_labels(labels, head)
    elif head in _LABELLED:
        labels = _labels(files, str(directory))
        num_labels = len(labels)
    labels = tuple(labels or ())
    module = Bert(files.config, head, max(1, len(labels)))
    converted = convert.from_hugging_face(
        files.tensors, _shapes(module), files.config, head, files.where,
        partial(_initial, module), _put,
    )  # fmt: skip
    _say(converted, files.where)
    tokenizer, no_tokenizer = None, None
    if has_tokenizer(files.home):
        try:
            tokenizer = Tokenizer.load(files.home, model_type=files.config.model_type, special_tokens=special_tokens)
        except InputError as error:  # the weights are as good
            no_tokenizer = str(error)
            print(f"no tokenizer, and so no predictions from texts: {no_tokenizer}", file=sys.stderr)
    problem_type = files.values.get("problem_type") if head == "sequence_classification" else None
    if problem_type not in (None, *get_args(ProblemType)):
        raise InputError(f"{directory}: {problem_type=} is not known; known: {', '.join(get_args(ProblemType))}")
    pooling: Pooling | str | None
    try:
        pooling, activation = read_pooling(files.library), read_activation(files.library, files.values)
    except InputError as error:
        pooling, activation = str(error), None
    tuned = read_tuned(files.home, files.values, num_labels)
    untrained = _untrained(converted, files.where)
    model = Model(
        files.config, converted.params, tokenizer, head, labels, problem_type, pooling, activation, untrained, tuned, no_tokenizer
    )
    return model, converted


def _untrained(converted: convert.Converted, where: str) -> Untrained | None:
    if not converted.fresh:
        return None
    flat = convert.flatten(converted.params)
    initial = {path: np.array(flat[path]) for path in converted.fresh}  # copies: the arrays may be given away
    return Untrained(where, initial, tuple(converted.left_out + converted.unused))


def _put(array: np.ndarray) -> jax.Array:
    return jax.block_until_ready(jax.device_put(array))  # one copy under way at a time, however busy the machine


def _say(converted: convert.Converted, where: str) -> None:
    """Tells what the file lacked or had too much, and weights that are no numbers."""
    for note in converted.notes:
        print(printable(f"{where}: {note}"), file=sys.stderr)
    if converted.fresh:
        print(printable(f"{where} has no weights for {', '.join(converted.fresh)}: freshly initialised"), file=sys.stderr)
    for names, what in ((converted.unused, "of no use here"), (converted.broken, "NaN or infinite weights in")):
        if names:
            print(printable(f"{where}: {what}: {', '.join(names[:8])} ({len(names)} tensors)"), file=sys.stderr)


def _head(files: _Files, wanted: Head | None, directory: Path) -> Head:
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
            heads = " or ".join(f"head={name!r}" for name in _LABELLED)
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


def _check_labels(labels: Sequence[str], head: Head) -> None:
    if head not in _LABELLED:
        raise InputError(f"{labels=} are for the heads {' and '.join(_LABELLED)}, not for {head!r}")
    if isinstance(labels, str) or not labels:
        raise InputError(f"{labels=}; expected a list of names")
    if twice := [name for i, name in enumerate(labels) if name in labels[:i]]:
        raise InputError(f"{labels=} name {twice[0]!r} twice; each class needs a name of its own")


def _labels(files: _Files, where: str) -> tuple[str, ...]:
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


def _find(path_or_name: str | Path) -> Path:
    """The directory; a name that is none is looked for on the hub (offline: in its cache)."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_file() or Path(f"{path}.index").is_file():  # or the prefix of a TF1 checkpoint
        raise InputError(f"{path} is a file; give its directory, {path.parent}")
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"no directory {name}; if it is a name on the hub: pip install 'bert_jax[hub]'") from None

    def fetch(folder: str) -> Path:
        for weights in ("model*.safetensors", "pytorch_model*.bin", "flax_model*.msgpack"):
            patterns = ("*.json", "*.txt", "*.model", "*/config.json", weights)
            directory = Path(snapshot_download(name, allow_patterns=[folder + pattern for pattern in patterns]))
            if list((directory / folder).glob(weights)):
                break
        return directory

    try:
        directory = fetch("")
        for folder in _module_folders(directory):
            fetch(f"{folder}/")
    except Exception as error:  # of many kinds, the HTTP library's among them
        reason = str(error).strip().splitlines()
        raise InputError(
            f"no directory {name}, and the hub did not give it ({type(error).__name__}: {reason[0] if reason else ''})"
            f"{_nearest(path)}"
        ) from None
    return directory


def _module_folders(directory: Path) -> list[str]:
    """Folders of modules that have weights of their own."""
    with contextlib.suppress(InputError):  # read_pooling tells
        modules = read_modules(directory)
        return [
            str(path.relative_to(directory)) for kind, path in modules if kind in ("Transformer", "Dense") and path != directory
        ]
    return []


def _nearest(path: Path) -> str:
    """Did you mean the neighbour with almost this name?"""
    return did_you_mean(str(path), [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else [])


def _read_workdir(workdir: Path) -> _Files:
    """The model of a work directory's newest checkpoint."""
    from bert_jax.training import checkpoint, optim, steps

    path = workdir / "config.json"
    if (values := read_json(path, dict)) is None:
        raise InputError(f"{workdir} has checkpoints but no config.json: it is no work directory of train.py")
    cfg = from_dict(TrainConfig, values, str(path))
    head = pretraining_head(cfg)
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
    return _Files(values, cfg.model, tensors, str(workdir), *[workdir / "tokenizer"] * 2)


def pretraining_head(cfg: TrainConfig) -> Head:
    """What a pretraining run trains on the encoder: next-sentence prediction too where its examples are pairs."""
    return "pretraining" if cfg.data.examples == "sentence_pairs" else "masked_lm"


_CLASSIFIER: dict[Head, str] = {  # the layer of a head that is of one task
    "sequence_classification": "sequence_classifier", "token_classification": "token_classifier",
    "question_answering": "span_classifier", "multiple_choice": "choice_classifier",
}  # fmt: skip
InitHead = Literal["auto", "fresh", "keep", "match"]


@dataclass(frozen=True)
class Start:
    """A model to fine-tune: its parameters but for those at `fresh`, which each run draws by its own seed.

    `matched` is what those take over from a head of other classes: path -> (classes here, their values [C, ...]). `note` says
    what became of the head.
    """

    model: Model
    fresh: tuple[str, ...]
    matched: dict[str, tuple[list[int], np.ndarray]]
    note: str

    def params(self, seed: int) -> dict[str, Any]:
        """The parameters that a run begins with."""
        if not self.fresh:
            return self.model.params
        drawn = _initial(self.model.module, self.fresh, seed)
        # Not cut at two sigma: transformers' heads are not, with whose scores ours are compared. Cut ones are 12 % smaller, and
        # few steps do not make up for it: 252 of transformers end WNUT-17 at a loss of 0.13 to 0.14 from those, 0.12 from its own
        for number, path in enumerate(path for path in self.fresh if path.endswith("/kernel")):
            normal = np.random.default_rng([seed, number]).standard_normal(drawn[path].shape, np.float32)
            drawn[path] = normal * np.float32(self.model.config.initializer_range)
        for path, (classes, values) in self.matched.items():
            drawn[path] = drawn[path].copy()
            drawn[path].T[classes] = values
        return convert.unflatten(convert.flatten(self.model.params) | drawn)


def load_for_task(
    path_or_name: str | Path, head: Head, labels: Sequence[str], problem_type: ProblemType | None, init_head: InitHead,
    special_tokens: SpecialTokens | None = "text",
) -> Start:  # fmt: skip
    """Reads a pretrained or fine-tuned model to be fine-tuned with `head` and `labels`; the rest: see FinetuneConfig, but
    that `special_tokens` of None is what the tokenizer's files say.

    Raises InputError as `load` does, and where the head is to be kept, or its rows matched, but is of another task.
    """
    directory, labels = _find(path_or_name), tuple(labels)
    files = _read(directory)
    ours = _CLASSIFIER.get(head, "")
    layer = FAMILIES[files.config.model_type].head(head).get(ours, "")
    has = _has_head(files, head, layer)
    theirs = _labels(files, str(directory)) if has and head in _LABELLED else ()
    if theirs and len(theirs) != (rows := len(files.tensors[f"{layer}.weight"])):
        raise InputError(f"{files.where}: {layer}.weight is of {rows} classes; config.json names {', '.join(theirs)}: correct it")
    one_value = problem_type in (None, "regression") and max(len(theirs), len(labels)) <= 1  # whatever it is called
    same = has and (theirs == labels or one_value)
    shared = [name for name in labels if name in theirs]
    _check_init_head(init_head, has, same, theirs, labels, shared, str(directory))
    kept, matched = same and init_head != "fresh", {}
    if init_head == "match" and not kept:
        here, there = ([names.index(name) for name in shared] for names in (labels, theirs))
        values = {path: files.tensors[f"{layer}.{name}"][there] for path, name in (("kernel", "weight"), ("bias", "bias"))}
        matched = {f"{ours}/{path}": (here, value.astype(np.float32)) for path, value in values.items()}
    module = Bert(files.config, head, max(1, len(labels)))
    converted = convert.from_hugging_face(
        files.tensors if kept or not layer else _Without(files.tensors, f"{layer}."),
        _shapes(module), files.config, head, files.where, partial(_initial, module), _put,
    )  # fmt: skip
    _say(replace(converted, fresh=[path for path in converted.fresh if not path.startswith(f"{ours}/")]), files.where)
    if not has_tokenizer(files.home):
        raise InputError(f"{directory} has no tokenizer: put its tokenizer.json or vocab.txt beside its config.json")
    tokenizer = Tokenizer.load(files.home, model_type=files.config.model_type, special_tokens=special_tokens)
    pooling = read_pooling(files.library) or Pooling() if head == "encoder" else None
    activation = ACTIVATIONS["Identity"] if problem_type == "regression" else None  # CrossEncoder's would be a sigmoid
    tuned = read_tuned(files.home, files.values, len(theirs) or None) if kept else Tuned()
    model = Model(files.config, converted.params, tokenizer, head, labels, problem_type, pooling, activation, tuned=tuned)
    fate = "is kept" if kept else f"rows of {', '.join(shared)} are kept, the rest starts anew" if matched else "starts anew"
    of = f"{layer} of {directory}" + (f" ({', '.join(theirs)})" if theirs else "")
    there_is_one = f"{layer}.weight" in files.tensors
    return Start(model, tuple(converted.fresh), matched, f"{of}: {fate}" if there_is_one else "")


def _has_head(files: _Files, head: Head, layer: str) -> bool:
    """Whether `layer` is there, and of `head`: other heads may call theirs alike, which `architectures` tells."""
    said = files.values.get("architectures") or [""]
    said = said if isinstance(said, list) else [""]
    of = FAMILIES[files.config.model_type].head_of(str(said[0]))
    return of in (None, head) and all(f"{layer}.{name}" in files.tensors for name in ("weight", "bias"))


class _Without(Mapping[str, np.ndarray]):
    """Tensors but for those whose name begins with `prefix`; read when asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        self._tensors, self._names = tensors, [name for name in tensors if not name.startswith(prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_init_head(
    init_head: InitHead, has: bool, same: bool, theirs: Sequence[str], labels: Sequence[str], shared: Sequence[str], where: str
) -> None:
    there = "no such head" if not has else f"a head of the classes {', '.join(theirs)}" if theirs else "a head without classes"
    here = f"this task's classes are {', '.join(labels)}" if labels else "this task has no classes"
    if init_head == "keep" and not same:
        advice = ", or match to keep the classes that both have" if shared else ""
        raise InputError(f"--init-head keep: {where} has {there}; {here}. Use fresh{advice}")
    if init_head == "match" and not shared:
        raise InputError(f"--init-head match: {where} has {there}; {here}: there is none that both have. Use fresh")


def check_padding(cfg: BertConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError where positions, which these families count from the padding id, would be others elsewhere."""
    if cfg.position_offset and tokenizer.pad_id != cfg.position_offset - 1:
        raise InputError(
            f"model_type={cfg.model_type!r} needs a tokenizer whose padding has id {cfg.position_offset - 1}; "
            f"this one's has {tokenizer.pad_id}: give the family's own, or a new model pad_token_id={tokenizer.pad_id}"
        )


def architecture(path: str | Path) -> BertConfig:
    """What config.json of a pretrained directory, or of a run that is under way, describes; no device is touched."""
    directory = _find(path)
    if has_weights(directory) or not (directory / "checkpoints").is_dir():
        return _read(directory).config
    file = directory / "config.json"
    return from_dict(TrainConfig, read_json(file, dict) or {}, str(file)).model


def vocabulary(path: str | Path | None) -> Path | None:
    """The folder of a pretrained directory's tokenizer; None if it has none, or there is no `path`."""
    directory = _find(path) if path else None
    homes = [directory, directory / "export", directory / "tokenizer"] if directory else []
    return next((home for home in homes if has_tokenizer(home)), None)


def check_start(path: str | Path, cfg: BertConfig) -> BertConfig:
    """The architecture of a pretrained directory, computed as `cfg` says. Raises InputError where it is not that of `cfg`."""
    theirs = architecture(path).replace(**{name: getattr(cfg, name) for name in COMPUTED})
    if different := [d for d in differences(to_dict(theirs), to_dict(cfg)) if d[0] not in OF_A_RUN]:
        listing = "\n".join(f"  model.{name}: {a!r} there, {b!r} in this run" for name, a, b in different)
        raise InputError(f"--init-from {path} is another model:\n{listing}")
    return theirs


def start_from(path: str | Path, module: Bert, fresh: dict[str, Any]) -> dict[str, Any]:
    """The weights of a pretrained directory for a new run; heads that it lacks stay as in `fresh`, and are said.

    Raises InputError where its config.json describes another model than `module`'s.
    """
    theirs, files = check_start(path, module.cfg), _read(_find(path))
    flat = convert.flatten(fresh)
    converted = convert.from_hugging_face(
        files.tensors, fresh, theirs, module.head, files.where, lambda paths: {path: flat[path] for path in paths}
    )
    _say(converted, files.where)
    return converted.params


# --- writing ---


def convert_directory(source: str | Path, out: str | Path, head: Head | None, tensor_by_tensor: bool) -> list[str]:
    """Loads and saves; lines that say what was done and, where asked, where each tensor came from and went to."""
    model, converted = _load(source, head, None)
    save(model, out)
    cfg = model.config
    flat = convert.flatten(model.params)
    total = sum(leaf.size for leaf in flat.values())
    family = FAMILIES[cfg.model_type]
    lines = [
        f"{family.architecture(model.head)}: {cfg.num_hidden_layers} layers of {cfg.hidden_size}, "
        f"{cfg.vocab_size} tokens, {total:,} parameters in {len(flat)} tensors"
    ]
    if tensor_by_tensor:
        theirs = convert.saved_names(flat, cfg, model.head)
        lines += [
            f"  {converted.sources.get(path, 'fresh')} -> {theirs[path]} "
            f"{list(leaf.shape[::-1] if path.endswith('/kernel') else leaf.shape)}"
            for path, leaf in flat.items()
        ]
    if converted.left_out:
        lines.append(f"left out, as of other heads: {', '.join(converted.left_out)}")
    return [*lines, f"wrote {out}"]


def save(model: Model, directory: str | Path) -> None:
    """Writes a directory that `load` and transformers read, and sentence-transformers where the model has a pooling.

    config.json, model.safetensors, the tokenizer's files, sentence-transformers' files; each appears whole or not at all. Raises
    InputError where it cannot be written, where parameters are not those of the model's config and head, and where the model was
    read with modules of sentence-transformers that are not supported: they would be lost.
    """
    if isinstance(model.pooling, str):
        raise InputError(f"{model.pooling}; to write the model without it: dataclasses.replace(model, pooling=None)")
    _check_params(model)
    if model.untrained and (warning := model.untrained.warning(model.params)):
        print(f"{directory}: {warning}; whoever reads them from here is not told", file=sys.stderr)
    directory = Path(directory)
    pad_id = max(0, model.config.position_offset - 1)
    if model.tokenizer:
        check_padding(model.config, model.tokenizer)
        pad_id = model.tokenizer.pad_id
    config = convert.config_to_hugging_face(model.config, model.head, pad_id)
    labels = model.labels or (("LABEL_0",) if model.head in _LABELLED else ())
    if labels:
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
    if said := model.tuned.in_config():
        config["bert_jax"] = said
    if model.problem_type:
        config["problem_type"] = model.problem_type
    if model.activation:
        config["sentence_transformers"] = {"activation_fn": model.activation}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = convert.to_hugging_face(model.params, model.config, model.head)
        write_safetensors(directory / "model.safetensors", tensors)
        put(directory / "config.json", json.dumps(config, indent=2) + "\n")
        if model.tokenizer:
            model.tokenizer.save(directory, model_max_length=model.max_length)
        if isinstance(model.pooling, Pooling):
            read = model.pooling.max_length or model.max_length
            write_pooling(directory, replace(model.pooling, max_length=read), model.config)
        else:
            (directory / "modules.json").unlink(missing_ok=True)  # of the model that was there
    except (OSError, SafetensorError) as e:
        raise InputError(f"cannot write the model to {directory}: {e}") from None


def _check_params(model: Model) -> None:
    wanted = {path: leaf.shape for path, leaf in convert.flatten(_shapes(model.module)).items()}
    there = {path: jnp.shape(leaf) for path, leaf in convert.flatten(model.params).items()}
    wrong = [
        f"{path}: {there.get(path, 'missing')}, expected {wanted.get(path, 'no such parameter')}"
        for path in [*wanted, *(path for path in there if path not in wanted)]
        if there.get(path) != wanted.get(path)
    ]
    if wrong:
        more = [f"and {len(wrong) - 8} more"] * (len(wrong) > 8)
        raise InputError("params are not of this model's config and head:\n  " + "\n  ".join([*wrong[:8], *more]))
