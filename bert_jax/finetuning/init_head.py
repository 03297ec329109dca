"""The model that a fine-tuning run starts from: its encoder, and what `--init-head` makes of its head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bert_jax import directory as directories
from bert_jax.data.tokenizer import SpecialTokens, Tokenizer, has_tokenizer
from bert_jax.directory import LABELLED_HEADS, Directory
from bert_jax.errors import InputError
from bert_jax.hub import find
from bert_jax.model import convert
from bert_jax.model.families import FAMILIES, Head
from bert_jax.model.heads import Bert, initial_values, parameter_shapes
from bert_jax.pooling import ACTIVATIONS, Pooling, read_pooling
from bert_jax.pretrained import Model, ProblemType, put_on_device, report
from bert_jax.tuned import Tuned, read_tuned

_CLASSIFIER: dict[Head, str] = {  # the layer of a head that is of one task
    "sequence_classification": "sequence_classifier", "token_classification": "token_classifier",
    "question_answering": "span_classifier", "multiple_choice": "choice_classifier",
}  # fmt: skip
InitHead = Literal["auto", "fresh", "keep", "match"]


@dataclass(frozen=True)
class StartingModel:
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
        drawn = initial_values(self.model.module, self.fresh, seed)
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
) -> StartingModel:  # fmt: skip
    """Reads the model that a fine-tuning run starts from.

    Args:
      path_or_name: see `load`.
      head: the head of the task.
      labels: the task's classes.
      problem_type: see `Model`.
      init_head: see `FinetuneConfig`.
      special_tokens: see `FinetuneConfig`; None: as the tokenizer's files say.

    Raises:
      InputError: as `load` does; or the head is to be kept or matched, but is of another task.
    """
    directory, labels = find(path_or_name), tuple(labels)
    files = directories.read(directory)
    ours = _CLASSIFIER.get(head, "")
    layer = FAMILIES[files.config.model_type].head(head).get(ours, "")
    has = _has_head(files, head, layer)
    theirs = directories.labels_of(files, str(directory)) if has and head in LABELLED_HEADS else ()
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
        parameter_shapes(module), files.config, head, files.where, partial(initial_values, module), put_on_device,
    )  # fmt: skip
    report(replace(converted, fresh=[path for path in converted.fresh if not path.startswith(f"{ours}/")]), files.where)
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
    return StartingModel(model, tuple(converted.fresh), matched, f"{of}: {fate}" if there_is_one else "")


def _has_head(files: Directory, head: Head, layer: str) -> bool:
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
