"""A task (its columns, classes and metrics), and what the command line says about its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from bert_jax.config import Checked

if TYPE_CHECKING:  # a kind takes jax, which a command line can do without
    from bert_jax.tasks.kind import Kind


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
      name: its name on the command line.
      kind: what depends on what is predicted: columns, head, loss, scores.
      texts: columns of the texts; empty: the command line or the format names them.
      label: column of the label.
      labels: the classes by id; empty: those of the training data, sorted.
      words: the spelling of a class in the files -> its name in `labels`, where they differ ("1" -> "positive").
      metrics: names in `metrics.METRICS`; their mean picks the best checkpoint.
      defaults: fields of FinetuneConfig in which the task's usual setting differs from the general one.
      header: columns of files without a header line; "..." at the end: more may follow.
      files: names of files for each split, beside train.*, dev.* and test.*.
      stem: multiple_choice: the column whose text every choice starts with.
      skip_ragged: leave out and count lines with another number of fields than the header; otherwise they are an error.
      test_only: there is nothing to train on.
    """

    name: str
    kind: Kind
    texts: tuple[str, ...] = ()
    label: str = "label"
    labels: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)
    defaults: Mapping[str, object] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stem: str | None = None
    skip_ragged: bool = False
    test_only: bool = False


@dataclass(frozen=True)
class TaskData(Checked):
    """The files of a task, and the columns in them."""

    data: str = ""
    (
        "GLUE's folder of the task, a folder with train.*, dev.* (validation.*) and test.*, a file to train on (.csv .tsv "
        ".jsonl .parquet; .conll or .txt for tagging; .json in SQuAD's layout), or `tfds:NAME`."
    )
    dev: str | None = None
    """A file to evaluate on, instead of the one in `data`."""
    test: str | None = None
    """A file to predict at the end, instead of the one in `data`."""
    text_column: tuple[str, ...] = ()
    """Columns of the text, or of the two texts; similarity: two or three; multiple_choice: the context, then the choices."""
    label_column: tuple[str, ...] = ()
    (
        "Column of the label; CoNLL files: the number of the column, counted from 0, or from the end as -1; multi_label: also "
        "several columns of 0 and 1, one for each class."
    )
    id_column: str | None = None
    """Column of the ids that name examples in the predictions; default: their numbers."""
    label_separator: str = ","
    """multi_label in .csv and .tsv: the text between two labels."""
    unlabelled_mark: tuple[str, ...] | None = None
    (
        "Label cells that mean 'no label', beside empty ones and null. Default: what pandas reads as missing (NA, NaN, None, "
        "null, ...), - and ?, and -1 beside 0, 1, ...; an empty text: none of these."
    )
    quotes: Literal["auto", "csv", "none"] = "auto"
    """Double quotes enclose fields (csv) or are text (none); auto: csv in .csv, and in .tsv if the whole file fits that."""
    on_error: Literal["raise", "skip"] = "raise"
    """Lines that cannot be read (another number of columns, no JSON, not UTF-8): stop, or leave them out and count them."""
    dev_size: float = 0.1
    """Without a file to evaluate on: the share (below 1) or number of training rows that are held out, drawn by seed 0."""
    group_column: str | None = None
    """Column whose rows of one value (a speaker, a document, a product) are held out together."""
    max_train_rows: int | None = None
    """Train on this many rows, drawn by seed 0."""

    def __post_init__(self) -> None:
        for name in ("label_column", "unlabelled_mark"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        super().__post_init__()
        share_or_number = 0 < self.dev_size < 1 or (self.dev_size >= 1 and self.dev_size % 1 == 0)
        self._require(share_or_number, f"dev_size={self.dev_size} is neither a share below 1 nor a number of rows")
        self._require(self.max_train_rows is None or self.max_train_rows >= 1, f"max_train_rows={self.max_train_rows} is below 1")
        self._require(self.label_separator != "", "label_separator is empty")


@dataclass(frozen=True)
class Options:
    """The fields of FinetuneConfig that only some kinds read; `class_weights` are float32 [C]."""

    loss: str = "auto"
    temperature: float = 0.05
    label_smoothing: float = 0.0
    class_weights: np.ndarray | None = None
    null_threshold: float | None = None
    label_threshold: float | None = None
