"""What fine-tuning came to, as one HTML page for a person: scores, curves, and what the model gets wrong.

The page needs nothing but itself: no script, no font, no picture from elsewhere (its Content-Security-Policy forbids them). It is
for phones too, and for light and dark screens. Whatever is not `_Html` is escaped where it enters the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

from bert_jax.data.records import Record
from bert_jax.disk import write_text
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.finetuning.results import cosine
from bert_jax.finetuning.runs import Member
from bert_jax.tasks import metrics as task_metrics
from bert_jax.tasks.classification import has_labels
from bert_jax.tasks.question_answering import Candidates, answers
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.task import Kind
from bert_jax.training import writer
from bert_jax.tuned import Tuned

MOST_ROWS = 20  # of a table of examples
MOST_CLASSES = 20  # that a confusion matrix can be read with
LONGEST = 300  # characters shown of a text
_NEAR, _MOST_WORDS = 8, 100  # words shown on each side of one with a wrong tag, and in all
_MOST_POINTS = 4000  # of a chart
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 480, 300, 74, 44, 10  # of a chart, and what its axes take of it
_COLOURS = 6


class _Html(str):
    """A text that is HTML already."""


def write_report(
    workdir: Path,
    results: Mapping[str, Any],
    evaluator: Evaluator,
    splits: Sequence[Split],
    predicted: Mapping[str, Sequence[Any]],
    tuned: Tuned,
) -> Path:
    """Writes WORKDIR/report.html, whole or not at all; its path.

    Args:
      workdir: where the runs left their metrics.jsonl.
      results: what `results.results` gave: the content of results.json.
      evaluator: knows the task and its classes.
      splits: whose mistakes are shown; of one without labels only similarity has something to show.
      predicted: by name of the split what `evaluator.predict` gave, an entry a record.
      tuned: has the thresholds that labels and answers are given by.

    Raises:
      InputError: a metrics.jsonl is missing or damaged, or the page cannot be written.
    """
    parts = [
        _tag("h2", "Scores"),
        _kept(results),
        *_runs(results),
        *(_curves(workdir, results["runs"]) if results["runs"] else []),
    ]
    for split in splits:
        if split.labelled or evaluator.task.kind == "similarity":
            own = Predicted(split, predicted[split.name], evaluator.labels, tuned).labelled()
            scored, of_scored = own.split, own.values
            among = f" of {len(split.records):,}" * (len(scored.records) < len(split.records))
            parts.append(_tag("h2", f"{split.name}: {len(scored.records):,}{among} examples{' have a label' * bool(among)}"))
            parts += _details(results["details"].get(split.name, {}), evaluator.task.kind)
            parts += _MISTAKES[evaluator.task.kind](scored, of_scored, evaluator.labels, tuned)
    title, heading = _tag("title", f"{results['task']}: {results['model']}"), _tag("h1", results["task"])
    body = _tag("body", _joined([heading, _tag("p", results["model"]), *parts, *_origin(results)], "\n"))
    page = f"{_HEAD}{title}</head>\n{body}</html>\n"
    return write_text(workdir / "report.html", page.encode("utf-8", "replace").decode("utf-8"))  # half a surrogate pair: ?


# ---- HTML


def _tag(name: str, content: object, **attributes: object) -> _Html:
    """An element; `_class` is class."""
    inner = content if isinstance(content, _Html) else escape(str(content))
    given = "".join(f' {key.lstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return _Html(f"<{name}{given}>{inner}</{name}>")


def _joined(parts: Iterable[_Html], between: str = "") -> _Html:
    return _Html(between.join(parts))


def _text(text: str, around: int = 0) -> _Html:
    """A text in its own direction; of a long one what is around a character, with all of it as the title."""
    start = max(0, around - LONGEST // 2) if len(text) > LONGEST else 0
    cut = "…" * (start > 0) + text[start : start + LONGEST] + "…" * (start + LONGEST < len(text))
    return _tag("div", cut, dir="auto", **({} if cut == text else {"title": text}))


def _example(record: Record, texts: Sequence[str]) -> list[_Html]:
    """The first cells of an example's row: its id (with its place as the title) and its texts."""
    return [_tag("div", record.id, _class="id", title=record.place), _joined(map(_text, texts))]


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> _Html:
    """One that is wider than the screen scrolls by itself. Floats have four digits."""

    def cell(value: object) -> _Html:
        return _tag("td", value if not isinstance(value, float) else f"{value:.4f}" if math.isfinite(value) else "–")

    head = [_tag("tr", _joined(_tag("th", name) for name in header))] if header else []
    body = [_tag("tr", _joined(map(cell, row))) for row in rows]
    table = _tag("div", _tag("table", _joined([*head, *body])), _class="wide")
    return _joined([_tag("h3", caption), table]) if caption else table


def _matrix(caption: str, names: Sequence[str], counts: np.ndarray) -> _Html:
    """Counts [C, C] of the right class (row) and the predicted one (column), shaded by their share of the row."""

    def cell(row: int, column: int) -> _Html:
        share = counts[row, column] / max(1, counts[row].sum())
        shade = f"background: rgba(var(--{'right' if row == column else 'wrong'}), {0.6 * share:.3f})"
        title = f"right: {names[row]}, predicted: {names[column]}, {share:.1%} of the row"
        return _tag("div", counts[row, column], _class="shade", style=shade, title=title)

    size = range(len(names))
    return _table(caption, ["right ↓ predicted →", *names], [[_tag("b", names[i]), *(cell(i, j) for j in size)] for i in size])


# ---- charts


class _Line(NamedTuple):
    """One line of a chart, and its points, which may be others: x and y [2, N]."""

    name: str
    line: np.ndarray
    points: np.ndarray
    colour: int = 0
    dashed: bool = False


def _ticks(low: float, high: float) -> list[float]:
    """Five round numbers, or some more or less, from `low` to `high`."""
    least = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(many * power for many in (1, 2, 5, 10) if many * power >= 0.999 * least)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _chart(lines: Sequence[_Line], x_name: str, y_name: str, diagonal: bool = False) -> _Html:
    """As SVG; `diagonal`: a line where both are equal. Points that are not finite are left out."""
    lines = [line._replace(line=_finite(line.line), points=_finite(line.points)) for line in lines]
    points = np.concatenate([part for line in lines for part in (line.line, line.points)], axis=1)
    if not points.size:
        return _tag("p", f"There is no finite {y_name} to show.")
    low, high = points.min(axis=1), points.max(axis=1)
    room = np.where(high > low, 0.04 * (high - low), np.maximum(1e-3, 0.1 * abs(high)))
    low, high = low - room, high + room
    sides = np.array([_WIDTH - _LEFT - _EDGE, _HEIGHT - _BOTTOM - _EDGE])

    def path(points: Any, between: str) -> str:
        x, y = (np.asarray(points, np.float64).T - low).T * (sides / (high - low))[:, None]
        return between.join(f"{_LEFT + a:.1f},{_EDGE + sides[1] - b:.1f}" for a, b in zip(x, y, strict=True))

    drawn = []
    for x in _ticks(low[0], high[0]):
        drawn.append(f'<path class="grid" d="M{path([[x, x], [low[1], high[1]]], "L")}"/>')
        left = path([[x], [low[1]]], "").split(",")[0]
        drawn.append(f'<text x="{left}" y="{_HEIGHT - _BOTTOM + 18}">{x:g}</text>')
    for y in _ticks(low[1], high[1]):
        drawn.append(f'<path class="grid" d="M{path([[low[0], high[0]], [y, y]], "L")}"/>')
        top = path([[low[0]], [y]], "").split(",")[1]
        drawn.append(f'<text class="y" x="{_LEFT - 6}" y="{float(top) + 4:.1f}">{y:g}</text>')
    ends = [low.max(), high.min()]
    if diagonal and ends[0] < ends[1]:
        drawn.append(f'<path class="grid" stroke-dasharray="5 4" d="M{path([ends, ends], "L")}"/>')
    for line in lines:
        style = f'style="stroke: var(--colour{line.colour % _COLOURS})"'
        if line.points.size:  # a stroke of no length with round ends is a dot
            drawn.append(f'<path class="points" {style} d="M{path(line.points, "h0M")}h0"/>')
        if line.line.size:
            dashes = 'stroke-dasharray="5 4"' if line.dashed else ""
            title = _tag("title", line.name)
            drawn.append(f'<path class="line" {style} {dashes} d="M{path(line.line, "L")}">{title}</path>')
    drawn.append(f'<text x="{_LEFT + sides[0] / 2}" y="{_HEIGHT - 6}">{escape(x_name)}</text>')
    drawn.append(f'<text transform="translate(14 {_EDGE + sides[1] / 2}) rotate(-90)">{escape(y_name)}</text>')
    label = f"{y_name} against {x_name}"
    return _tag("svg", _Html("".join(drawn)), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", **{"aria-label": label})


def _finite(points: np.ndarray) -> np.ndarray:
    return points[:, np.isfinite(points).all(axis=0)]


def _scatter(right: np.ndarray, guessed: np.ndarray, name: str, diagonal: bool) -> _Html:
    points = np.array([right, guessed])[:, :: -(-len(right) // _MOST_POINTS)]
    return _chart([_Line("", points[:, :0], points)], "right", name, diagonal)


def _losses(workdir: Path, run: dict[str, Any], alone: bool, read: Callable[[Path], list[dict]]) -> np.ndarray:
    """Steps and training losses [2, N] of a run, from where it logged."""
    name = Member(run["seed"], run["learning_rate"]).name
    path, key, last = workdir / "metrics.jsonl" if alone else workdir / "runs" / name / "metrics.jsonl", "train/loss", math.inf
    if not alone and not path.exists():  # trained with others in one program
        path, key = workdir / "runs" / "metrics.jsonl", f"train/{name}/loss"
        last = math.inf if run["failed"] else run["steps"]  # one that has stopped early is in the others' lines still
    found = [(line["step"], line[key]) for line in read(path) if key in line and line["step"] <= last]
    return np.array(found, np.float64).reshape(-1, 2).T


def _curves(workdir: Path, runs: Sequence[dict[str, Any]]) -> list[_Html]:
    """Training loss and dev score of each run. Colours tell learning rates apart or, where there is one, seeds."""
    rates = sorted({run["learning_rate"] for run in runs})
    losses, scores, colours, read = [], [], dict[str, int](), cache(writer.read)
    for run in runs:
        name = f"learning rate {run['learning_rate']:g}"
        colour = colours.setdefault(name if len(rates) > 1 else f"seed {run['seed']}", len(colours))
        name, failed = f"{name}, seed {run['seed']}", bool(run["failed"])
        raw = _finite(_losses(workdir, run, len(runs) == 1, read))
        half, every = raw.shape[1] // 40, max(1, len(runs) * raw.shape[1] // _MOST_POINTS)
        means = [raw[1, max(0, i - half) : i + half + 1].mean() for i in range(raw.shape[1])]
        losses.append(_Line(name, np.array([raw[0], means])[:, ::every], raw[:, ::every], colour, failed))
        at = np.array([(each["step"], each["score"]) for each in run["history"]], np.float64).reshape(-1, 2).T
        scores.append(_Line(name, at, at, colour, failed))
    legend = [_tag("span", name, style=f"--own: var(--colour{colour})") for name, colour in colours.items()]
    legend = legend if 1 < len(legend) <= _COLOURS else []
    legend += [_tag("em", "dashed: failed")] if any(run["failed"] for run in runs) else []
    about = "Points of the loss are single batches, its line is the mean over a twentieth of the run."
    return [
        _tag("h2", "Curves"),
        _tag("p", _joined(legend), _class="legend"),
        _tag("div", _joined([_chart(losses, "step", "training loss"), _chart(scores, "step", "dev score")]), _class="charts"),
        _tag("p", f"{about} By the dev score checkpoints are compared."),
    ]


# ---- scores


def _kept(results: Mapping[str, Any]) -> _Html:
    """Scores of the model that is kept, on all splits."""
    best = results["best"]
    kept = f"learning rate {best['learning_rate']:g}, seed {best['seed']}, step {best['step']}" if best else "nothing was trained"
    rows = [[split, name, value] for split, scores in results["exported"].items() for name, value in scores.items()]
    return _table(f"The model that is kept: {kept}", ["split", "metric", "value"], rows)


def _runs(results: Mapping[str, Any]) -> list[_Html]:
    """What the seeds of each learning rate come to, and every run."""
    runs = results["runs"]
    if not runs:
        return []
    scored = [run["scores"] for run in runs if run["scores"]]
    names = [
        (split, metric) for split in (scored[0] if scored else {}) for metric in scored[0][split]
        if all(metric in scores[split] for scores in scored)  # runs of earlier versions may lack some
    ]  # fmt: skip
    header = [" ".join(name) for name in names]
    over = [
        [rate, each["runs"], len(each["failed"]), name, *(form.format_map(each["metrics"]["/".join(n)]) for n in names)]
        for rate, each in results["summary"].items()
        for name, form in (("mean ± sd", "{mean:.4f}\u00a0±\u00a0{sd:.4f}"), ("median", "{median:.4f}"))
        if each["runs"]
    ]
    rows = [
        [f"{run['learning_rate']:g}", run["seed"], _tag("strong", f"failed: {run['failed']}") if run["failed"] else "",
         *(run["scores"][split][metric] if run["scores"] else "–" for split, metric in names),
         run["best_step"], run["steps"], f"{run['seconds']:.0f}"]
        for run in runs
    ]  # fmt: skip
    note = "The model that is kept was chosen by its dev score, which is partly luck; mean and median are not."
    own = _table("Runs", ["learning rate", "seed", "", *header, "step kept", "steps", "seconds"], rows)
    summary = _table(
        "Over the seeds; failed runs that have a score count too", ["learning rate", "runs", "failed", "", *header], over
    )
    return [summary, _tag("p", note), own] if len(runs) > 1 else [own]


def _origin(results: Mapping[str, Any]) -> list[_Html]:
    """What it takes to get the same again."""
    data = [[name if name == "hash" else f"{name} examples", value] for name, value in results["data"].items()]
    command = _tag("pre", results["command"])
    return [_tag("h2", "Command, data and versions"), command, _table("", [], [*data, *results["versions"].items()])]


# ---- mistakes, by the kind of the task: (split, what was predicted, classes, thresholds) -> parts of the page


def _shares(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def _most(wrong: np.ndarray, by: np.ndarray) -> list[int]:
    """The places where `wrong` [N] holds, by `by` [N], the highest first."""
    places = np.flatnonzero(wrong)
    return places[np.argsort(-by[places], kind="stable")][:MOST_ROWS].tolist()


def _surest(
    split: Split, logits: np.ndarray, right: np.ndarray, name: Callable[[Record, int], object], texts: slice = slice(None)
) -> _Html:
    """The examples whose class is wrong and of high probability; `name`: what a class of a record is called."""
    guessed, sure = logits.argmax(axis=-1), _shares(logits).max(axis=-1)
    rows = []
    for i in _most(guessed != right, sure):
        record = split.records[i]
        rows.append([*_example(record, record.texts[texts]), name(record, right[i]), name(record, guessed[i]), float(sure[i])])
    caption = f"Surest mistakes, of {np.sum(guessed != right):,}"
    return _table(caption, ["id", "text", "right", "predicted", "probability"], rows)


def _classes(split: Split, predicted: Sequence[Any], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    logits, right = np.array(predicted), np.array([labels.index(record.label) for record in split.records])
    counts = task_metrics.confusion_matrix(logits.argmax(axis=-1), right, len(labels))
    if len(labels) <= MOST_CLASSES:
        table = _matrix("Confusion matrix", labels, counts)
    else:
        size, off = len(labels), counts * (1 - np.eye(len(labels), dtype=int))
        places = [divmod(place, size) for place in _most(off.ravel() > 0, off.ravel())]
        rows = [[labels[i], labels[j], int(off[i, j]), f"{off[i, j] / counts[i].sum():.1%}"] for i, j in places]
        table = _table("Most confused classes", ["right", "predicted", "examples", "of the right class"], rows)
    return [table, _surest(split, logits, right, lambda _, label: labels[label])]


def _choices(split: Split, predicted: Sequence[Any], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    right = np.array([record.label for record in split.records])
    return [_surest(split, np.array(predicted), right, lambda record, choice: _text(record.texts[1 + choice]), slice(1))]


def _per_label(each: Mapping[str, Mapping[str, float]]) -> _Html:
    columns = list(dict.fromkeys(column for of in each.values() for column in of))
    rows = [[name, *(of.get(column, "–") for column in columns)] for name, of in each.items()]
    return _table("By label", ["label", *columns], rows)


def _details(details: Mapping[str, Any], kind: Kind) -> list[_Html]:
    """Scores of each class, and how far probabilities are what they say."""
    parts = [_per_label(details["classes"])] if "classes" in details else []
    if "calibration" in details:
        found = details["calibration"]
        points = np.array([(each["confidence"], each["accuracy"]) for each in found["bins"]]).T
        of_labels = ("probability of a label", "share that has it")
        names = of_labels if kind == "multi_label" else ("probability", "share that is right")
        error = f"Calibration: expected calibration error {found['expected_calibration_error']:.4f}"
        parts += [_tag("h3", error), _chart([_Line("", points, points)], *names, diagonal=True)]
    return parts


def _multi_label(split: Split, predicted: Sequence[Any], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    logits, right = np.array(predicted), np.array([[name in record.label for name in labels] for record in split.records])
    guessed = has_labels(logits, tuned)
    rows = []
    limits = np.clip(np.array(tuned.label_thresholds or 0.5), 1e-6, 1 - 1e-6)
    sure = abs(logits - np.log(limits / (1 - limits)))
    for place in _most((guessed != right).ravel(), sure.ravel()):
        i, j = divmod(place, len(labels))
        own = [labels[j], "yes" if right[i, j] else "no", "yes" if guessed[i, j] else "no"]
        rows.append([*_example(split.records[i], split.records[i].texts), *own, float(1 / (1 + np.exp(-logits[i, j])))])
    table = _table("Surest mistakes", ["id", "text", "label", "right", "predicted", "probability of the label"], rows)
    return [table]


def _furthest(caption: str, split: Split, right: np.ndarray, guessed: np.ndarray, off: np.ndarray) -> _Html:
    rows = [
        [*_example(record := split.records[i], record.texts), *(float(values[i]) for values in (right, guessed, off))]
        for i in _most(off != 0, abs(off))
    ]
    return _table(caption, ["id", "text", "right", "predicted", "difference"], rows)


def _numbers(split: Split, predicted: Sequence[Any], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    guessed, right = np.array(predicted, np.float64), np.array([record.label for record in split.records], np.float64)
    table = _furthest("Largest differences", split, right, guessed, guessed - right)
    return [_scatter(right, guessed, "predicted", diagonal=True), table]


def _pairs(split: Split, predicted: Sequence[Any], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    cosines = np.array([cosine(vectors[0], vectors[1]) for vectors in predicted])
    if not split.labelled:
        rows = [
            [*_example(record := split.records[i], record.texts[:2]), float(cosines[i])] for i in _most(cosines < 1, -cosines)
        ]
        return [_table("Pairs that belong together and are least alike", ["id", "text", "cosine"], rows)]
    right = np.array([record.label for record in split.records], np.float64)
    off = (rankdata(cosines) - rankdata(right)) / len(right)
    table = _furthest("Largest differences of ranks, as shares of all pairs", split, right, cosines, off)
    return [_scatter(right, cosines, "cosine", diagonal=False), table]


def _tags(split: Split, predicted: Sequence[Any], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    right = [record.label for record in split.records]
    wrong = np.array([sum(a != b for a, b in zip(*both, strict=True)) for both in zip(right, predicted, strict=True)])
    rows = [
        [*_example(split.records[i], [])[:1], f"{wrong[i]} of {len(right[i])}",
         _sentence(split.records[i].texts, right[i], predicted[i])]
        for i in _most(wrong > 0, wrong)
    ]  # fmt: skip
    caption = f"Sentences with most wrong words, of {np.sum(wrong > 0):,}. Over a word: its tag, and a wrong one struck out"
    return [_table(caption, ["id", "wrong", "words"], rows)]


def _sentence(words: Sequence[str], right: Sequence[str], predicted: Sequence[str]) -> _Html:
    """The words around the wrong ones, with their tags over them."""
    wrong = [i for i in range(len(words)) if right[i] != predicted[i]]
    near = sorted({i for at in wrong for i in range(max(0, at - _NEAR), min(len(words), at + _NEAR + 1))})[:_MOST_WORDS]
    parts = []
    for before, i in pairwise([-1, *near]):
        parts += [_tag("span", "…")] * (i != before + 1)
        struck = [_tag("s", predicted[i])] if right[i] != predicted[i] else []
        tags = _tag("rt", _joined([_tag("span", right[i]), *struck], " "), dir="ltr")
        tagged = struck or right[i] != "O"
        parts.append(_tag("ruby", _joined([_tag("span", words[i]), tags]), _class="bad" if struck else "good") if tagged
                     else _tag("span", words[i]))  # fmt: skip
    parts += [_tag("span", "…")] * (near[-1] != len(words) - 1)
    return _tag("div", _joined(parts, " "), dir="auto", title=" ".join(words))


def _answers(split: Split, predicted: Sequence[Candidates], labels: Sequence[str], tuned: Tuned) -> list[_Html]:
    answered, _ = answers(Predicted(split, predicted, (), tuned))
    none = _tag("em", "none")
    counts, rows = np.zeros((2, 2), int), []
    for record, (found, null) in zip(split.records, predicted, strict=True):
        given = answered[record.id]
        golds = list(dict.fromkeys(text for text, _ in record.label))
        counts[int(not golds), int(not given)] += 1
        f1 = task_metrics.squad_f1([given], [golds])
        sure = float(_shares(np.array([*(answer.logit for answer in found), null]))[0 if given else -1])
        start = record.label[0][1] if golds else found[0].start if found else 0
        id, question = _example(record, record.texts[:1])
        text = _joined([_tag("b", question), _text(record.texts[1], start)])
        rows.append((f1, sure, [id, text, *(_joined(map(_text, texts)) or none for texts in (golds, [given] * bool(given)))]))
    worst = sorted(rows, key=lambda row: (row[0], -row[1]))
    table = _table(
        f"Worst answers, the surest first; F1 is 0 for {sum(not f1 for f1, _, _ in rows):,} questions",
        ["id", "question and context", "right", "predicted", "F1", "probability"],
        [[*cells, f1, sure] for f1, sure, cells in worst[:MOST_ROWS] if f1 < 1],
    )
    return [_matrix("Whether there is an answer", ["answer", "none"], counts), table] if counts[1].any() else [table]


_MISTAKES: dict[Kind, Callable[..., list[_Html]]] = {
    "classification": _classes, "multi_label": _multi_label, "regression": _numbers, "tagging": _tags,
    "question_answering": _answers, "multiple_choice": _choices, "similarity": _pairs,
}  # fmt: skip

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { --ink: #1c1c1a; --soft: #6b6a64; --grid: #dddcd6; --page: #fdfdfc; --bad: #b3261e;
  --right: 42, 120, 214; --wrong: 213, 94, 0;
  --colour0: #0072b2; --colour1: #d55e00; --colour2: #009e73; --colour3: #b4569a; --colour4: #b07d00; --colour5: #6a5acd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceae4; --soft: #a3a199; --grid: #3b3a37; --page: #191918; --bad: #ff8a80;
    --right: 74, 144, 226; --wrong: 230, 110, 30;
    --colour0: #56b4e9; --colour1: #ff8c42; --colour2: #2fcf9f; --colour3: #e08fc8; --colour4: #e6b422; --colour5: #a79bff; } }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; } p, h3 { color: var(--soft); } h2 { margin: 2.5rem 0 0.5rem; } h3 { margin: 1.5rem 0 0.3rem; font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); } td { font-variant-numeric: tabular-nums; }
td div[dir] { min-width: 8rem; overflow-wrap: anywhere; } td:nth-child(2) div[dir] { min-width: 16rem; }
.id { max-width: 7rem; overflow-wrap: break-word; }
.shade { padding: 0.2rem 0.5rem; border-radius: 0.2rem; text-align: center; }
pre { white-space: pre-wrap; } strong, s { color: var(--bad); }
ruby { white-space: nowrap; line-height: 2; } ruby.bad { color: var(--bad); font-weight: 600; }
rt { font-size: 0.65rem; font-weight: 400; } rt span { color: var(--soft); }
svg { display: block; width: 100%; max-width: 40rem; font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
svg text { fill: var(--soft); text-anchor: middle; } svg text.y { text-anchor: end; }
svg path { fill: none; stroke: var(--grid); stroke-linecap: round; stroke-linejoin: round; } svg .line { stroke-width: 2; }
svg .points { stroke-width: 5; opacity: 0.35; } svg + svg .points { opacity: 1; }
.legend span { margin-right: 1rem; } .legend span::before { content: "● "; color: var(--own); }
</style>
"""
