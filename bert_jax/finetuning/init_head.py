"""Reads the model that a fine-tuning run starts from, with the head that `--init-head` asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import PyTree

from bert_jax.data.tokenizer import SpecialTokens, Tokenizer, has_tokenizer
from bert_jax.directory import LABELLED_HEADS, Directory, read
from bert_jax.errors import InputError
from bert_jax.hub import find
from bert_jax.model import convert
from bert_jax.model.families import Head
from bert_jax.model.heads import initial_values
from bert_jax.pooling import ACTIVATIONS, Embedding, Pooling, read_pooling
from bert_jax.pretrained import Model, ProblemType, convert_tensors, outputs_of, report
from bert_jax.tuned import Tuned, read_tuned

CLASSIFIER: dict[Head, str] = {  # the layer of a head that belongs to one task
    "sequence_classification": "sequence_classifier", "token_classification": "token_classifier",
    "question_answering": "span_classifier", "multiple_choice": "choice_classifier",
}  # fmt: skip
InitHead = Literal["auto", "fresh", "keep", "match"]


@dataclass(frozen=True)
class StartingModel:
    """A model to fine-tune."""

    model: Model
    fresh: tuple[str, ...]  # paths of the parameters that each run draws by its own seed
    # rows of these that come from a head of other classes: path -> (classes here, their values [C, ...])
    matched: dict[str, tuple[list[int], np.ndarray]]
    note: str  # a line about the head in the file

    def params(self, seed: int) -> PyTree:
        """Returns the initial parameters of a run."""
        if not self.fresh:
            return self.model.params
        drawn = initial_values(self.model.module, self.fresh, seed)
        # The normal is not truncated, as in transformers, with whose scores ours are compared. Truncated heads are 12 % smaller,
        # which short runs do not make up for: 252 steps of transformers on WNUT-17 end at a loss of 0.13 to 0.14, not 0.12.
        for number, path in enumerate(path for path in self.fresh if path.endswith("/kernel")):
            normal = np.random.default_rng([seed, number]).standard_normal(drawn[path].shape, np.float32)
            drawn[path] = normal * np.float32(self.model.config.initializer_range)
        for path, (classes, values) in self.matched.items():
            drawn[path] = drawn[path].copy()
            drawn[path].T[classes] = values
        return convert.unflatten(convert.flatten(self.model.params) | drawn)


def load_for_task(
    path_or_name: str | Path, head: Head, labels: Sequence[str], problem_type: ProblemType | None, init_head: InitHead,
    special_tokens: SpecialTokens | None = "text", embedding: Embedding | None = None,
) -> StartingModel:  # fmt: skip
    """Reads the model that a fine-tuning run starts from.

    Args:
      path_or_name: as for `load`.
      head: the head of the task.
      labels: the classes of the task.
      problem_type: as in `Model`.
      init_head: as in `FinetuneConfig`.
      special_tokens: as in `FinetuneConfig`; None: as the files of the tokenizer say.
      embedding: settings of the embeddings that are trained, where the files have none; default: with the head "encoder", the
        normalized mean.

    Raises:
      InputError: as `load` does, where a head of another task is to be kept or matched, and where the model has embeddings of
        another form.
    """
    labels = tuple(labels)
    files = read(find(path_or_name))
    ours = CLASSIFIER.get(head, "")
    layer = files.family.head(head).get(ours, "")
    found = _found_head(files, head, layer, labels, problem_type)
    _check_init_head(init_head, found, labels, str(files.path))
    kept = found.same and init_head != "fresh"
    matched = _matched_rows(files, ours, layer, found, labels) if init_head == "match" and not kept else {}
    tensors = files.tensors if kept or not layer else _Without(files.tensors, f"{layer}.")
    pooling = _embedding(files, embedding or (Pooling() if head == "encoder" else None))
    converted = convert_tensors(files, tensors, head, outputs_of(head, labels, pooling))
    report(replace(converted, fresh=[path for path in converted.fresh if not path.startswith(f"{ours}/")]), files.where)
    if not has_tokenizer(files.home):
        raise InputError(f"{files.path} has no tokenizer: put its tokenizer.json or vocab.txt beside its config.json")
    model = Model(
        files.config, converted.params,
        Tokenizer.load(files.home, model_type=files.config.model_type, special_tokens=special_tokens),
        head, labels, problem_type,
        pooling=pooling,
        activation=ACTIVATIONS["Identity"] if problem_type == "regression" else None,  # that of CrossEncoder is a sigmoid
        tuned=read_tuned(files.home, files.values, len(found.labels) or None) if kept else Tuned(),
    )  # fmt: skip
    fate = "is kept" if kept else "is replaced by a fresh one"
    if matched:
        fate = f"the rows of {', '.join(found.shared)} are kept, the others are fresh"
    classes = f" ({', '.join(found.labels)})" if found.labels else ""
    note = f"{layer} of {files.path}{classes}: {fate}" if f"{layer}.weight" in files.tensors else ""
    return StartingModel(model, tuple(converted.fresh), matched, note)


def _embedding(files: Directory, wanted: Embedding | None) -> Embedding | None:
    """Returns the settings of embeddings in the files; those that are wanted, with the files' prompts, where they are dense."""
    if wanted is None:
        return None
    there = read_pooling(files.library)
    if there is None or there.kind == wanted.kind:
        return there or wanted
    if not isinstance(there, Pooling):
        raise InputError(
            f"{files.path} has {there.kind} embeddings, not {wanted.kind} ones: give --task retrieval --form {there.kind}"
        )
    names = ("max_length", "lowercase", "prompt", "prompts")
    return wanted.replace(**{name: getattr(there, name) for name in names})


@dataclass(frozen=True)
class _FoundHead:
    """The head in a file, compared with the head of the task."""

    there: bool  # True if the file has a head of this kind
    labels: tuple[str, ...]  # the names of its classes
    shared: list[str]  # the classes of the task that it has too, in the order of the task
    same: bool  # True if it is a head for the classes of the task


def _found_head(
    files: Directory, head: Head, layer: str, labels: tuple[str, ...], problem_type: ProblemType | None
) -> _FoundHead:
    there = _has_head(files, head, layer)
    theirs = files.labels() if there and head in LABELLED_HEADS else ()
    if theirs and len(theirs) != (rows := len(files.tensors[f"{layer}.weight"])):
        said = f"{layer}.weight has {rows} classes, but config.json names {', '.join(theirs)}: correct config.json"
        raise InputError(f"{files.where}: {said}")
    one_value = problem_type in (None, "regression") and max(len(theirs), len(labels)) <= 1  # its name does not matter
    return _FoundHead(there, theirs, [name for name in labels if name in theirs], there and (theirs == labels or one_value))


def _matched_rows(
    files: Directory, ours: str, layer: str, found: _FoundHead, labels: tuple[str, ...]
) -> dict[str, tuple[list[int], np.ndarray]]:
    """Returns path -> (classes here, their values in the file) for the parameters of the classifier."""
    here, there = ([names.index(name) for name in found.shared] for names in (labels, found.labels))
    leaves = {"kernel": "weight", "bias": "bias"}
    return {f"{ours}/{path}": (here, files.tensors[f"{layer}.{name}"][there].astype(np.float32)) for path, name in leaves.items()}


def _has_head(files: Directory, head: Head, layer: str) -> bool:
    """Returns True if the file has `layer` and it belongs to `head`; `architectures` tells heads of one layer name apart."""
    said = files.values.get("architectures") or [""]
    said = said if isinstance(said, list) else [""]
    return files.family.head_of(str(said[0])) in (None, head) and all(
        f"{layer}.{name}" in files.tensors for name in ("weight", "bias")
    )


class _Without(Mapping[str, np.ndarray]):
    """The tensors whose names do not begin with `prefix`; values are read on access."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        self._tensors, self._names = tensors, [name for name in tensors if not name.startswith(prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_init_head(init_head: InitHead, found: _FoundHead, labels: Sequence[str], where: str) -> None:
    """Raises InputError if the head cannot be kept or matched."""
    there = "a head without classes" if found.there else "no head of this kind"
    if found.labels:
        there = f"a head for the classes {', '.join(found.labels)}"
    here = f"the classes of this task are {', '.join(labels)}" if labels else "this task has no classes"
    if init_head == "keep" and not found.same:
        advice = ", or match to keep the classes that they share" if found.shared else ""
        raise InputError(f"--init-head keep: {where} has {there}; {here}. Use --init-head fresh{advice}")
    if init_head == "match" and not found.shared:
        raise InputError(f"--init-head match: {where} has {there}; {here}: they share none. Use --init-head fresh")
