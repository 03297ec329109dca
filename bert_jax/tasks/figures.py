"""Tables and charts of report.html as data: kinds of tasks make them, and `bert_jax.report` draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.records import Record
from bert_jax.tasks.metrics import Details, softmax
from bert_jax.tasks.split import Predicted

MOST_ROWS = 20  # rows in a table of examples


@dataclass(frozen=True)
class Text:
    """A text of the data, shown in its own direction; a long one is cut to the part around the character at `around`."""

    text: str
    around: int = 0
    bold: bool = False


@dataclass(frozen=True)
class RecordId:
    """The id of a record; its place is shown as the title."""

    id: str
    place: str


@dataclass(frozen=True)
class TaggedWords:
    """The words of a sentence near those with a wrong tag: each with its right tag, and the wrong tag struck out."""

    words: Sequence[str]
    right: Sequence[str]
    predicted: Sequence[str]


@dataclass(frozen=True)
class Nothing:
    """A missing answer or label."""


Cell = str | int | float | Text | RecordId | TaggedWords | Nothing | tuple[Text, ...]


@dataclass(frozen=True)
class Listing:
    """A table below a heading; floats are shown with four digits."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Matrix:
    """Counts [C, C] of the right class (row) and the predicted one (column)."""

    caption: str
    names: Sequence[str]
    counts: np.ndarray


@dataclass(frozen=True)
class Chart:
    """Points [2, N] (x and y); `joined` draws a line through them, `diagonal` the line x = y."""

    points: np.ndarray
    x_name: str
    y_name: str
    caption: str = ""
    joined: bool = False
    diagonal: bool = False


Figure = Listing | Matrix | Chart


def example_cells(record: Record, texts: Iterable[str]) -> list[Cell]:
    """Returns the first two cells of a record's row: its id and its texts."""
    return [RecordId(record.id, record.place), tuple(map(Text, texts))]


def highest(chosen: np.ndarray, by: np.ndarray) -> list[int]:
    """Returns at most MOST_ROWS indices where `chosen` (bool [N]) is true, those of the highest `by` [N] first."""
    places = np.flatnonzero(chosen)
    return places[np.argsort(-by[places], kind="stable")][:MOST_ROWS].tolist()


def class_figures(details: Details, axes: tuple[str, str] = ("probability", "share that is right")) -> list[Figure]:
    """Returns the table of the scores of each class and the chart of the calibration, where `details` has them."""
    found: list[Figure] = []
    if each := details.get("classes"):
        columns = list(dict.fromkeys(column for scores in each.values() for column in scores))
        rows = [[name, *(scores.get(column, "–") for column in columns)] for name, scores in each.items()]
        found.append(Listing("By label", ["label", *columns], rows))
    if calibration := details.get("calibration"):
        points = np.array([(each["confidence"], each["accuracy"]) for each in calibration["bins"]]).T
        caption = f"Calibration: expected calibration error {calibration['expected_calibration_error']:.4f}"
        found.append(Chart(points, *axes, caption, joined=True, diagonal=True))
    return found


def furthest(caption: str, records: Sequence[Record], right: np.ndarray, guessed: np.ndarray, off: np.ndarray) -> Listing:
    """Returns a table of the records with the largest differences `off` [N] between prediction and label."""
    rows = [
        [*example_cells(records[i], records[i].texts), float(right[i]), float(guessed[i]), float(off[i])]
        for i in highest(off != 0, abs(off))
    ]
    return Listing(caption, ["id", "text", "right", "predicted", "difference"], rows)


def surest_mistakes(
    predicted: Predicted, logits: np.ndarray, right: np.ndarray, texts: Callable[[Record], Sequence[str]],
    name: Callable[[Record, int], Cell],
) -> Listing:  # fmt: skip
    """Returns a table of the records whose wrong class has the highest probability.

    Args:
      predicted: the split.
      logits: float [N, C].
      right: ids of the right classes, int [N].
      texts: returns the texts of a record that are shown.
      name: returns the cell that is shown for a class id of a record.
    """
    guessed, sure = logits.argmax(axis=-1), softmax(logits).max(axis=-1)
    rows = []
    for i in highest(guessed != right, sure):
        record = predicted.records[i]
        shown = (name(record, int(right[i])), name(record, int(guessed[i])), float(sure[i]))
        rows.append([*example_cells(record, texts(record)), *shown])
    caption = f"Surest mistakes, of {np.sum(guessed != right):,}"
    return Listing(caption, ["id", "text", "right", "predicted", "probability"], rows)
