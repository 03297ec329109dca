"""Loads any published BERT, and saves a directory that transformers and sentence-transformers read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from bert_jax.data.tokenizer import SpecialTokens, Tokenizer, has_tokenizer
from bert_jax.directory import LABELLED_HEADS, Directory, check_labels, read
from bert_jax.disk import put
from bert_jax.errors import InputError, printable
from bert_jax.formats.tensors import write_safetensors
from bert_jax.hub import find
from bert_jax.model import convert
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.model.convert import Params
from bert_jax.model.families import FAMILIES, Head
from bert_jax.model.heads import Bert, initial_values, parameter_shapes
from bert_jax.pooling import Embedding, TokenVectors, read_activation, read_pooling, write_pooling
from bert_jax.tuned import Tuned, read_tuned

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Array = np.ndarray | jax.Array


@dataclass(frozen=True, eq=False)
class Untrained:
    """A head, or a part of one, that the file of the weights lacked.

    Attributes:
      where: the file.
      initial: {path: initial value} of the missing parameters.
      unused: names of the tensors in the file that were not read.
    """

    where: str
    initial: dict[str, np.ndarray]
    unused: tuple[str, ...]

    def warning(self, params: Params) -> str | None:
        """Returns a warning for predictions by `params`, or None once all missing parameters have been trained."""
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
    """A pretrained model: its config, its parameters (a plain nested dict) and its tokenizer.

    Two models are equal only if they are the same object: compare `config`, `head` and the leaves of `params` instead.

    Attributes:
      config: the encoder.
      params: {encoder, pooler?, <head>}, float32.
      tokenizer: the tokenizer, which predictions need; None if the directory had none that could be read.
      head: the head on the encoder.
      labels: names of the classes, if the head has classes.
      problem_type: the meaning of a sequence classifier's logits; None: single_label_classification, or regression if there is
        one logit.
      pooling: sentence-transformers' settings for embeddings (`Pooling`, `SparsePooling` of a sparse retriever, `TokenVectors` of
        one with vectors of tokens), if there are any; a str is the reason why they are not supported.
      activation: the class of torch.nn that sentence-transformers' CrossEncoder applies to the logits, if its files name one.
      untrained: the parameters of the head that the file lacked; predictors that use the head warn.
      tuned: lengths and thresholds from fine-tuning, which predictors follow.
      no_tokenizer: the reason why the tokenizer's files were not read, if there are any.
      compute: settings of the computation; to change them: `dataclasses.replace(model, compute=ComputeConfig(dtype="bfloat16"))`.
    """

    config: BertConfig
    params: Params = field(repr=False)
    tokenizer: Tokenizer | None
    head: Head = "masked_lm"
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    pooling: Embedding | str | None = None
    activation: str | None = None
    untrained: Untrained | None = field(default=None, repr=False)
    tuned: Tuned = field(default_factory=Tuned)
    no_tokenizer: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @property
    def max_length(self) -> int:
        """Maximum tokens per text in predictors: the length in fine-tuning, at most the limit of the model."""
        return min(self.tuned.max_length or self.config.max_length, self.config.max_length)

    def need_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. Raises InputError, with the reason, if there is none."""
        if self.tokenizer is None:
            fix = "put its tokenizer.json or vocab.txt beside its config.json"
            raise InputError(self.no_tokenizer or f"this model has no tokenizer: {fix}")
        return self.tokenizer

    @property
    def window(self) -> int:
        """Tokens of a question and a window of its context: as in fine-tuning, or 384."""
        return self.max_length if self.tuned.task else min(384, self.max_length)

    @property
    def outputs(self) -> int:
        """The number of values that the head gives for a text or a token: its classes, or the width of a token's vector."""
        return outputs_of(self.head, self.labels, self.pooling)

    @property
    def module(self) -> Bert:
        """The Flax module that `params` belong to."""
        return Bert(self.config, self.head, self.outputs, self.compute)

    def apply(
        self, params: Params, batch: Mapping[str, Array], rngs: dict[str, jax.Array] | None = None, **flags: Any
    ) -> dict[str, Any]:
        """Returns hidden states and the head's outputs (see `Bert`): a pure function of `params` and `batch`.

        Args:
          params: a tree like `self.params`.
          batch: integer arrays: `input_ids` [B, L] and, if rows are padded, `attention_mask`.
          rngs: `{"dropout": key}`, with `deterministic=False`.
          **flags: `output_hidden_states=True`, `output_attentions=True`, `deterministic=False`.
        """
        return cast(dict[str, Any], self.module.apply({"params": params}, batch, rngs=rngs, **flags))

    def encode(
        self, params: Params, input_ids: Array, attention_mask: Array | None = None, token_type_ids: Array | None = None,
        position_ids: Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Returns the hidden states [B, L, D] of token ids [B, L]: a pure function.

        Hidden states at padding are finite and mean nothing. `attention_mask` [B, L] is 1 (or True) at tokens and 0 at padding;
        default: all are tokens.
        """
        given = dict(attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids)
        batch = {"input_ids": input_ids} | {name: value for name, value in given.items() if value is not None}
        return cast(jax.Array, self.module.apply({"params": params}, batch, method="hidden_states"))


def outputs_of(head: Head, labels: Sequence[str], pooling: Embedding | str | None) -> int:
    """Returns `Model.outputs`."""
    if head == "token_vectors":
        return pooling.width if isinstance(pooling, TokenVectors) else TokenVectors.width
    return max(1, len(labels))


def load(
    path_or_name: str | Path, head: Head | None = None, labels: Sequence[str] | None = None,
    special_tokens: SpecialTokens | None = None,
) -> Model:  # fmt: skip
    """Reads a pretrained model.

    Args:
      path_or_name: a directory in the Hugging Face layout (model.safetensors, pytorch_model.bin or flax_model.msgpack, whole or
        in shards), one of Google's TF1 checkpoints (bert_config.json, bert_model.ckpt.*, vocab.txt), a work directory of
        `train.py` (its newest checkpoint) or of `finetune.py`, or a name on the Hugging Face hub.
      head: the head; default: that of config.json's `architectures`, else the one that the tensors belong to. A head that the
        file lacks is initialised, with a line on stderr.
      labels: names of the classes of a new classification head, instead of config.json's.
      special_tokens: read the characters `[SEP]` in a text as that token ("read") or as ordinary text ("text"). Default:
        as the tokenizer's files say, which is "read" except for models that were fine-tuned with "text".

    Returns:
      A model whose parameters are float32 jax arrays on the default device.

    Raises:
      InputError: a file is missing or damaged, the family is not known, or the tensors are not those of the model that
        config.json describes.
    """
    return _load(path_or_name, head, labels, special_tokens)[0]


def _load(
    path_or_name: str | Path, head: Head | None, labels: Sequence[str] | None, special_tokens: SpecialTokens | None = None
) -> tuple[Model, convert.Converted]:
    files = read(find(path_or_name))
    head = files.head(head)
    known = files.labels() if labels is None and head in LABELLED_HEADS else None
    if labels is not None:
        check_labels(labels, head)
    names = tuple(labels or known or ())
    pooling, activation = _read_library(files)
    converted = convert_tensors(files, files.tensors, head, outputs_of(head, names, pooling))
    report(converted, files.where)
    tuned = read_tuned(files.home, files.values, None if known is None else len(known))
    tokenizer, no_tokenizer = _read_tokenizer(files, special_tokens)
    problem_type = files.values.get("problem_type") if head == "sequence_classification" else None
    if problem_type not in (None, *get_args(ProblemType)):
        raise InputError(f"{files.path}: {problem_type=} is not known; known: {', '.join(get_args(ProblemType))}")
    flat, untrained = convert.flatten(converted.params), None
    if converted.fresh:  # copies, because the arrays may be donated
        initial = {path: np.array(flat[path]) for path in converted.fresh}
        untrained = Untrained(files.where, initial, tuple(converted.left_out + converted.unused))
    model = Model(
        files.config, converted.params, tokenizer, head, names, problem_type, pooling, activation, untrained, tuned, no_tokenizer
    )
    return model, converted


def describe(path_or_name: str | Path) -> Model:
    """Returns the model of `load` without parameters and tokenizer, and without touching a device."""
    files = read(find(path_or_name))
    head = files.head(None)
    labels = files.labels() if head in LABELLED_HEADS else ()
    problem_type, activation = None, None
    if head == "sequence_classification":
        problem_type, activation = files.values.get("problem_type"), read_activation(files.library, files.values)
    tuned = read_tuned(files.home, files.values, len(labels) or None)
    return Model(files.config, {}, None, head, labels, problem_type, _read_library(files)[0], activation, tuned=tuned)


def convert_tensors(files: Directory, tensors: Mapping[str, np.ndarray], head: Head, outputs: int) -> convert.Converted:
    """Makes parameters from `tensors` on the default device; those that a head lacks have their initial values."""
    module = Bert(files.config, head, outputs)

    def put(array: np.ndarray) -> jax.Array:
        return jax.block_until_ready(jax.device_put(array))  # one copy at a time, to bound memory

    return convert.from_hugging_face(
        tensors, parameter_shapes(module), files.config, head, files.where, partial(initial_values, module), put
    )


def report(converted: convert.Converted, where: str) -> None:
    """Prints to stderr the tensors that the file lacked, those that are not used, and those with weights that are not finite."""
    for note in converted.notes:
        print(printable(f"{where}: {note}"), file=sys.stderr)
    if converted.fresh:
        print(printable(f"{where} has no weights for {', '.join(converted.fresh)}: freshly initialised"), file=sys.stderr)
    for names, what in ((converted.unused, "not used by this model"), (converted.broken, "NaN or infinite weights in")):
        if names:
            print(printable(f"{where}: {what}: {', '.join(names[:8])} ({len(names)} tensors)"), file=sys.stderr)


def _read_tokenizer(files: Directory, special_tokens: SpecialTokens | None) -> tuple[Tokenizer | None, str | None]:
    """Returns the tokenizer, or None and the reason why its files were not read."""
    if not has_tokenizer(files.home):
        return None, None
    try:
        return Tokenizer.load(files.home, model_type=files.config.model_type, special_tokens=special_tokens), None
    except InputError as error:  # the weights can still be used
        print(f"no tokenizer, and so no predictions from texts: {error}", file=sys.stderr)
        return None, str(error)


def _read_library(files: Directory) -> tuple[Embedding | str | None, str | None]:
    try:
        return read_pooling(files.library), read_activation(files.library, files.values)
    except InputError as error:
        return str(error), None


# --- writing ---


def convert_directory(source: str | Path, out: str | Path, head: Head | None, tensor_by_tensor: bool) -> list[str]:
    """Loads a model, saves it, and returns lines about it, with `tensor_by_tensor` one for each tensor."""
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


def check_padding(cfg: BertConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError unless padding has the id from which the model counts positions."""
    if cfg.position_offset and tokenizer.pad_id != cfg.position_offset - 1:
        free = "pad_token_id" in FAMILIES[cfg.model_type].optional  # MPNet's is a constant
        other = f", or give a new model pad_token_id={tokenizer.pad_id}" * free
        raise InputError(
            f"model_type={cfg.model_type!r} needs a tokenizer whose padding has id {cfg.position_offset - 1}; "
            f"this one's has {tokenizer.pad_id}: give the family's own tokenizer{other}"
        )


def save(model: Model, directory: str | Path) -> None:
    """Writes a directory that `load`, transformers and, if the model has a pooling, sentence-transformers read.

    The directory holds config.json, model.safetensors, the tokenizer's and sentence-transformers' files. Each file appears whole
    or not at all.

    Raises:
      InputError: the directory cannot be written, the parameters are not those of the model's config and head, or the model has
        modules of sentence-transformers that are not supported and would be lost.
    """
    if isinstance(model.pooling, str):
        raise InputError(f"{model.pooling}; to write the model without it: dataclasses.replace(model, pooling=None)")
    _check_params(model)
    if model.untrained and (warning := model.untrained.warning(model.params)):
        print(f"{directory}: {warning}; the files there do not say so", file=sys.stderr)
    directory = Path(directory)
    pad_id = max(0, model.config.position_offset - 1)
    if model.tokenizer:
        check_padding(model.config, model.tokenizer)
        pad_id = model.tokenizer.pad_id
    head, params = model.head, model.params
    if isinstance(model.pooling, TokenVectors) and head == "token_vectors":  # the projection is a module of its own there
        head, params = "encoder", {name: tree for name, tree in params.items() if name != "token_projection"}
    config = convert.config_to_hugging_face(model.config, head, pad_id)
    if model.tokenizer:
        config |= {key: getattr(model.tokenizer, of) for key, of in FAMILIES[model.config.model_type].special_ids.items()}
    labels = model.labels or (("LABEL_0",) if model.head in LABELLED_HEADS else ())
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
        tensors = convert.to_hugging_face(params, model.config, head)
        write_safetensors(directory / "model.safetensors", tensors)
        put(directory / "config.json", json.dumps(config, indent=2) + "\n")
        tokenizer = model.tokenizer
        if tokenizer:
            no_types = model.config.form.token_types == "never"  # transformers' class refuses them
            tokenizer = tokenizer.without_token_types() if no_types else tokenizer
            tokenizer.save(directory, model_max_length=model.max_length)
        if isinstance(model.pooling, Embedding):
            read = model.pooling.max_length or model.max_length
            write_pooling(directory, model.pooling.replace(max_length=read), model.config, model.params, tokenizer)
        else:
            (directory / "modules.json").unlink(missing_ok=True)  # an earlier model's
    except (OSError, SafetensorError) as e:
        raise InputError(f"cannot write the model to {directory}: {e}") from None


def _check_params(model: Model) -> None:
    wanted = {path: leaf.shape for path, leaf in convert.flatten(parameter_shapes(model.module)).items()}
    there = {path: jnp.shape(leaf) for path, leaf in convert.flatten(model.params).items()}
    wrong = [
        f"{path}: {there.get(path, 'missing')}, expected {wanted.get(path, 'no such parameter')}"
        for path in [*wanted, *(path for path in there if path not in wanted)]
        if there.get(path) != wanted.get(path)
    ]
    if wrong:
        more = [f"and {len(wrong) - 8} more"] * (len(wrong) > 8)
        raise InputError("params do not fit the config and head of this model:\n  " + "\n  ".join([*wrong[:8], *more]))
