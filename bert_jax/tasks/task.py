"""A task: its columns, classes and metrics, and the options for its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from bert_jax.config import Checked

if TYPE_CHECKING:  # a kind imports jax, which a command line does not need
    from bert_jax.data.passages import PassageSize
    from bert_jax.tasks.kind import Kind

LEAST_TEMPERATURE = 0.01  # CLIP's bound on a learnt one (Radford et al., 2021, section 2.5)


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    name: str
    kind: Kind  # the kind, which has the columns, head, loss and scores
    texts: tuple[str, ...] = ()  # the columns of the texts; empty where the user or the format names them
    label: str = "label"
    labels: tuple[str, ...] = ()  # the classes by id; empty: the sorted classes of the training data
    # maps the spelling of a class in the files to its name in `labels`, where they differ ("1" -> "positive")
    words: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)  # names in `metrics.METRICS`, whose mean chooses the best checkpoint
    # fields of FinetuneConfig whose usual value for this task differs from the general one
    defaults: Mapping[str, object] = field(default_factory=dict)
    header: tuple[str, ...] = ()  # the columns of files without a header line; with "..." at the end, more may follow
    # names of files for each split, in addition to train.*, dev.* and test.*
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stem: str | None = None  # for multiple_choice, the column whose text begins every choice
    skip_ragged: bool = False  # leave out and count lines whose number of fields differs from the header's, instead of an error
    test_only: bool = False  # the task has no training data
    split: str = "test"  # the split that is the test, where there is no training data


@dataclass(frozen=True)
class TaskData(Checked):
    """The files of a task, and the columns in them."""

    data: str = ""
    (
        "GLUE folder of the task, folder with train.*, dev.* (validation.*) and test.*, file to train on (.csv .tsv .jsonl "
        ".parquet; .conll or .txt for tagging; .json in SQuAD's layout), or `tfds:NAME`. retrieval: also a folder in BEIR's "
        "layout (docs/retrieval.md)."
    )
    dev: str | None = None
    """File to evaluate on, instead of the one in `data`; retrieval: also a folder in BEIR's layout, whose corpus is searched."""
    test: str | None = None
    """File to predict at the end, instead of the one in `data`; retrieval: also a folder in BEIR's layout."""
    text_column: tuple[str, ...] = ()
    """Columns of the text or the two texts; similarity: two or three texts; multiple_choice: the context, then the choices."""
    label_column: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--score-column"])] = ()
    (
        "Column of the label. In CoNLL files, its number: from 0, or from the end as -1. For multi_label, also several columns "
        "of 0 and 1, one for each class. retrieval: a teacher's scores of the documents of a row, a list."
    )
    id_column: str | None = None
    """Column of the ids of examples in the predictions. Default: their numbers."""
    label_separator: str = ","
    """multi_label in .csv and .tsv: the separator of the labels in a cell."""
    unlabelled_mark: tuple[str, ...] | None = None
    (
        "Label cells that mean 'no label', in addition to empty cells and nulls. Default: the missing values of pandas (NA, NaN, "
        "None, null, ...), - and ?, and -1 among 0, 1, ...; give an empty text to turn all of these off."
    )
    quotes: Literal["auto", "csv", "none"] = "auto"
    """Double quotes enclose fields (csv) or are text (none). auto: csv in .csv, and in .tsv if the whole file agrees with it."""
    on_error: Literal["raise", "skip"] = "raise"
    """On a line that cannot be read (wrong number of columns, no JSON, not UTF-8, an unknown id): stop, or skip and count it."""
    dev_size: float = 0.1
    """Share (below 1) or number of training rows held out if there is no file to evaluate on, drawn with seed 0."""
    group_column: str | None = None
    """Column of a group (a speaker, a document, a product); the rows of a group are held out together."""
    max_train_rows: int | None = None
    """Number of training rows to use, drawn with seed 0. Default: all."""
    chunk_documents: str | None = None
    (
        "retrieval, folders: TOKENS or TOKENS,OVERLAP. The corpus is searched in passages of so many tokens; a document has the "
        "score of its best passage. Default: the start of each document is searched."
    )

    def __post_init__(self) -> None:
        for name in ("label_column", "unlabelled_mark"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        super().__post_init__()
        share_or_number = 0 < self.dev_size < 1 or (self.dev_size >= 1 and self.dev_size % 1 == 0)
        self._require(share_or_number, f"dev_size={self.dev_size} is neither a share below 1 nor a number of rows")
        self._require(self.max_train_rows is None or self.max_train_rows >= 1, f"max_train_rows={self.max_train_rows} is below 1")
        self._require(self.label_separator != "", "label_separator is empty")
        expected = f"chunk_documents={self.chunk_documents!r}: expected TOKENS or TOKENS,OVERLAP, such as 256,32"
        self._require(re.fullmatch(r"[1-9]\d*(,\d+)?", self.chunk_documents or "1") is not None, expected)

    @property
    def passage_size(self) -> PassageSize | None:
        """The size of passages, if documents are searched in such."""
        from bert_jax.data.passages import PassageSize

        return None if self.chunk_documents is None else PassageSize(*map(int, self.chunk_documents.split(",")))


@dataclass(frozen=True)
class Options:
    """The fields of FinetuneConfig that only some kinds read; `class_weights` is float32 [C]."""

    loss: str = "auto"
    temperature: float = 0.05
    learn_temperature: bool = False
    label_smoothing: float = 0.0
    class_weights: np.ndarray | None = None
    null_threshold: float | None = None
    label_threshold: float | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    dimensions: tuple[int, ...] = ()
    directions: str = "one"
    distillation: Literal["kl", "margin_mse"] | None = None
    query_regularizer_weight: float = 5e-5
    document_regularizer_weight: float = 3e-5
    query_weights: Literal["encoder", "idf", "ones"] | None = None
    markers: tuple[str, ...] | None = None
    query_length: int | None = None
    expand_queries: bool | None = None
    skip_punctuation: bool | None = None
