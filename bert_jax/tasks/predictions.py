"""Writes files of predictions: a line for each record, with tabs between fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bert_jax.disk import write_text
from bert_jax.tasks.metrics import softmax
from bert_jax.tasks.split import Predicted

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def tab_line(fields: Iterable[object]) -> str:
    r"""Returns a line; `\t`, `\n`, `\r` and `\\` stand for tabs, ends of lines and backslashes in a field."""
    return "\t".join(str(field).translate(_ESCAPES) for field in fields) + "\n"


def write_table(
    folder: Path, predicted: Predicted, rows: Iterable[tuple[object, Sequence[float]]], columns: Sequence[str] = ()
) -> Path:
    """Writes NAME.tsv, whole or not at all: `id`, `prediction`, `label` where some rows have one, and `columns`.

    `rows` has for each record the prediction and the values of `columns`, such as the probability of each class.
    """

    def lines() -> Iterator[str]:
        labelled = bool(predicted.split.labelled)
        yield tab_line(["id", "prediction", *["label"] * labelled, *columns])
        for record, (prediction, values) in zip(predicted.records, rows, strict=True):
            label = ",".join(record.label) if isinstance(record.label, tuple) else "" if record.label is None else record.label
            yield tab_line([record.id, prediction, *[label] * labelled, *(f"{value:.6g}" for value in values)])

    return write_text(folder / f"{predicted.split.name}.tsv", lines())


def write_choices(folder: Path, predicted: Predicted, names: Sequence[str]) -> Path:
    """Writes NAME.tsv from logits: the most probable class of each record, and the probability of each class."""
    each = (softmax(logits) for logits in predicted.values)
    return write_table(folder, predicted, ((names[int(row.argmax())], row.tolist()) for row in each), names)
