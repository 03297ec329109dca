"""The kind for sentences, as lists of words, with a tag for each word: entities, or classes of words."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.data import files, tags
from bert_jax.data.batching import PackedBatch
from bert_jax.data.files import Row, Table
from bert_jax.data.finetuning import IGNORED, Encoded, Item, per_token, portions
from bert_jax.data.layout import Layout, Window, cut_windows, most_context
from bert_jax.data.records import Record, labels_of, texts_of
from bert_jax.data.tokenizer import Encoding
from bert_jax.disk import write_text
from bert_jax.errors import InputError, did_you_mean
from bert_jax.inference import Predictor
from bert_jax.pretrained import Model
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.common import class_loss
from bert_jax.tasks.figures import Cell, Figure, Listing, RecordId, TaggedWords, class_figures, highest
from bert_jax.tasks.kind import Kind, Predict
from bert_jax.tasks.labels import LabelReader, are_numbers, count_classes, tokens, whole_number
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import Classes, Columns, File, Noted, checked_text, value_in
from bert_jax.tasks.predictions import tab_line
from bert_jax.tasks.spans import Spans, checked_spans, read_spans
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task, TaskData
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch

_NOWHERE = np.zeros(0, np.int32)


class Tagging(Kind[tuple[str, ...], list[str]]):
    """A tag for each word. A prediction is a list of tags."""

    name = "tagging"
    head = "token_classification"
    options = frozenset(["label_smoothing", "class_weights"])
    has_classes = True

    num_texts = (1, 1)
    usual_texts = (("words",), ("tokens",), ("word",), ("token",), ("text",), ("sentence",))
    first_usual = True  # the words are read, not the text that they come from
    usual_labels = ("tags", "ner_tags", "tag", "labels", "entities", "spans", "ents")
    label_marks: frozenset[str] = frozenset()  # "-" may be a tag

    def classes_of(self, label: tuple[str, ...] | None) -> tuple[str, ...]:
        return label or ()

    def usual_ids(self, task: Task, columns: Sequence[str]) -> Sequence[str]:
        return [name for name in columns if name.lower() in _SENTENCE_COLUMNS]

    def open(self, path: str, task: Task, data: TaskData, hasher: files.Hasher) -> tuple[Table, TaskData]:
        if files.suffix_of(path) not in files.CONLL_SUFFIXES or _has_sentence_column(path, data):
            return super().open(path, task, data, hasher)
        label = whole_number(" ".join(data.label_column) or "-1", "--label-column")
        word = whole_number(" ".join(data.text_column) or "0", "--text-column")
        table = files.read_conll(path, label, word, hasher, skip_bad=data.on_error == "skip")
        return table, data.replace(label_column=(), text_column=())

    def rows(self, table: Table, columns: Columns) -> Iterator[Row]:
        if columns.id is None:
            return table.rows
        return files.sentences_of_words(table.rows, columns.id, (*columns.texts, *columns.labels))

    def read_label(self, reader: LabelReader, value: object, place: str) -> tuple[str, ...] | None:
        """Returns tags, or entities by characters; `read_row` decides which of the two an empty list is."""
        if (spans := read_spans(value, f"{place}: the label")) is not None:
            return spans  # type: ignore[return-value]  # which `read_row` turns into tags
        names = [reader.name(tag, place) for tag in tokens(value, f"{place}: the label") or ()]
        if not any(names):
            return None
        if None in names:
            at = names.index(None)
            raise InputError(f"{place}: the label is {reprlib.repr(value)}, not a list of tags: word {at} has none")
        return tuple(name for name in names if name is not None)

    def is_blank(self, row: Row, columns: Columns) -> bool:
        value = value_in(row, columns.texts[0])
        return not value.strip() if isinstance(value, str) else value is None or value == []

    def read_row(
        self, row: Row, columns: Columns, label: tuple[str, ...] | Spans | None, noted: Noted
    ) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Returns the words of a sentence and their tags."""
        (column,) = columns.texts
        value = row.values[column]
        if _is_word(row, columns):
            noted["one word"].append(row.place)
        if isinstance(value, str) and value.lstrip()[:1] != "[" and (label is None or isinstance(label, Spans)):
            text = checked_text(row, column, value)
            spans = checked_spans(row, text, label or ())
            kept = tags.without_overlaps(spans)
            noted["overlapping"] += [row.place] * (len(spans) - len(kept))
            cut, found = tags.tagged_words(text, kept)
            words, label = list[object](cut), None if label is None else tuple(found)
        else:
            words = list(tokens(value, f"{row.place}: {column!r}") or ())
        if isinstance(label, Spans) and label:
            raise InputError(f"{row.place}: the label has entities by characters, but {column!r} is a list of words, not a text")
        if isinstance(label, Spans):  # an empty list of tags, for words
            noted["no tags"].append(row.place)
            label = None
        if not words:
            raise InputError(f"{row.place}: {column!r} has no words")
        return tuple([checked_text(row, column, word) for word in words]), label

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        overlapping = noted.get("overlapping", [])
        file.reader.unlabelled["empty"] += len(noted.get("no tags", []))
        if 1 < len(file.records) == len(noted.get("one word", [])):
            found = f"{file.columns.texts[0]!r} has one word in every row, but a row must be a sentence"
            raise InputError(f"{file.path}: {found}; name the column that numbers the sentences: --id-column NAME")
        note = f"warning: {split}: {len(overlapping)} entities that overlap longer ones left out"
        return file.records, [note] * bool(overlapping)

    def whole_texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return ("".join(texts),)

    def classes(self, task: Task, train: Sequence[Record], others: Sequence[Sequence[Record]]) -> Classes:
        """Returns the tags of the model if it has some, else all tags, also those of dev and test, with "O" first."""
        for records in [train, *others]:
            for i, (texts, label) in enumerate(zip(texts_of(records), labels_of(records), strict=True)):
                if label is not None and len(label) != len(texts):
                    raise InputError(f"{records[i].place}: {len(texts)} words, but {len(label)} tags")
        found = {tag for label in labels_of(train) for tag in label or ()}
        fresh = Counter(tag for records in others for label in labels_of(records) for tag in label or () if tag not in found)
        if task.labels:
            if odd := sorted(fresh.keys() - set(task.labels)):
                near = did_you_mean(odd[0], task.labels)
                raise InputError(f"tag {odd[0]!r} is not among the tags of the model: {', '.join(task.labels)}{near}")
            return task.labels, []
        notes = [f"warning: tag {tag!r} occurs {n} times in dev or test, but not in training" for tag, n in sorted(fresh.items())]
        return tuple(sorted(found | set(fresh), key=lambda tag: (tag != "O", tag))), notes

    def look_at_labels(self, task: Task, train: Sequence[Record], labels: Sequence[str]) -> list[str]:
        _, notes = count_classes(task, train, labels, least=2)
        if tags.entity_tags(labels) is None:
            more = ". They are numbers; to find entities, give the tags by name" if are_numbers(labels) else ""
            notes.append(f"tags are classes of words, not entities (no B-, I- or O): scored by accuracy{more}")
        elif tags.are_types(labels):
            notes.append("tags are types of entities, some without B- or I-: adjacent words of a type are one entity")
        return notes

    def content(self, texts: tuple[str, ...]) -> Hashable:
        return texts

    def parts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def values(self, label: tuple[str, ...]) -> tuple[Hashable, ...]:
        return label

    def encode(self, records: Sequence[Record], labels: Sequence[str], layout: Layout) -> Encoded:
        """Tokenizes sentences; long ones in windows that overlap by half, each word labelled in one of them."""
        before, after = map(len, layout.template(1).ids)
        room = layout.longest - before - after
        items, found, firsts = list[Item](), list[Window](), list[np.ndarray]()
        for portion in portions(records, layout.read):
            encodings = layout.tokenizer.encode_with_offsets([" ".join(words) for words, _ in portion])
            for (words, label), encoding in zip(portion, encodings, strict=True):
                first = _first_tokens(words, encoding)
                target = np.full(len(encoding.ids), IGNORED, np.int32)
                if label is not None:
                    ids = np.array([labels.index(tag) for tag in label], np.int32)
                    target[first[first >= 0]] = ids[first >= 0]
                windows = cut_windows(len(firsts), len(encoding.ids), room, max(1, room // 2))
                home = most_context(windows, len(encoding.ids))
                for i, window in enumerate(windows):
                    inside = slice(window.start, window.stop)
                    own = np.where(home[inside] == i, target[inside], IGNORED)
                    sequence = layout.example([encoding.ids[inside]], _NOWHERE)
                    items.append(Item((sequence,), np.pad(own, (before, after), constant_values=IGNORED).astype(np.int32)))
                found += windows
                firsts.append(first)
        return Encoded(items, windows=found, first_tokens=firsts)

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        return per_token(items, packed, count)

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        return class_loss(outputs["logits"], batch, options)

    def predictor(self, model: Model, limit: int) -> Predict[list[str]]:
        tokens, before = _TokenLogits(model), len(model.need_tokenizer().single.ids[0])

        def predict(split: Split, params: PyTree) -> Predictions[list[str]]:
            logits = [result["logits"] for result in tokens.run(split.encoded.sequences, params)]
            return Predictions(_tags(split, [each[before:] for each in logits], model.labels), _loss(split, logits))

        return predict

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[list[str]]:
        return Predictions(labels_of(records), loss=0.0)

    def scores(self, predicted: Predicted[list[str]], metrics: Sequence[str]) -> dict[str, float]:
        """Scores entities; classes of words have only `tag_accuracy`, and types without prefix have both."""
        accuracy = {"tag_accuracy": scoring.tag_accuracy(predicted.values, predicted.right)}
        both = _entity_tags(predicted)
        if both is None:
            return accuracy
        scores = {name: scoring.METRICS[name](*both) for name in (*metrics, "entity_precision", "entity_recall")}
        return scores | (accuracy if tags.are_types(predicted.labels) else {})

    def details(self, predicted: Predicted[list[str]]) -> Details:
        """Returns the scores of each type of entity, or of each tag where tags are classes; the most frequent first."""
        both = _entity_tags(predicted)
        each = _each_tag(predicted) if both is None else scoring.entity_report(*both)
        return {"classes": dict(sorted(each.items(), key=lambda item: -item[1]["support"]))}

    def baseline(self, splits: Splits, metrics: Sequence[str]) -> float | None:
        """Returns the score of predicting no entity or, where tags are classes, the most frequent tag for every word."""
        if tags.entity_tags(splits.labels) is not None:
            return 0.0
        every = (splits.train, *splits.dev.values())
        words, *asked = ([tag for label in labels_of(records) for tag in label] for records in every)
        commonest = Counter(words).most_common(1)[0][0] if words else None
        return float(np.mean([np.mean([tag == commonest for tag in each]) for each in asked]))

    def write(self, folder: Path, predicted: Predicted[list[str]]) -> Path:
        """Writes NAME.conll, a line for each word: the word, the right tag where some rows have one (else _), the predicted."""

        def lines() -> Iterator[str]:
            labelled = predicted.split.labelled
            for record, given in zip(predicted.records, predicted.values, strict=True):
                right = ["_"] * len(given) if record.label is None else record.label
                columns = [record.texts, right, given] if labelled else [record.texts, given]
                yield from map(tab_line, zip(*columns, strict=True))
                yield "\n"

        return write_text(folder / f"{predicted.split.name}.conll", lines())

    def mistakes(self, predicted: Predicted[list[str]], details: Details) -> list[Figure]:
        right, given = predicted.right, predicted.values
        wrong = np.array([sum(a != b for a, b in zip(*both, strict=True)) for both in zip(right, given, strict=True)])
        rows: list[list[Cell]] = []
        for i in highest(wrong > 0, wrong):
            record = predicted.records[i]
            words = TaggedWords(record.texts, right[i], given[i])
            rows.append([RecordId(record.id, record.place), f"{wrong[i]} of {len(right[i])}", words])
        caption = f"Sentences with the most wrong words, of {np.sum(wrong > 0):,}. Over a word: its tag; wrong tags struck out"
        return [*class_figures(details), Listing(caption, ["id", "wrong", "words"], rows)]


class _TokenLogits(Predictor):
    """The logits of the head for each token."""

    per_token = frozenset(["logits"])

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        del batch["places"]
        return {"logits": self.model.apply(params, batch)["logits"]}


def _entity_tags(predicted: Predicted[list[str]]) -> list[list[list[str]]] | None:
    """Returns the predicted and the right tags with B-, I- and O; None where tags are not entities."""
    read = tags.entity_tags(predicted.labels)
    if read is None:
        return None
    return [[[read[tag] for tag in sentence] for sentence in side] for side in (predicted.values, predicted.right)]


def _each_tag(predicted: Predicted[list[str]]) -> dict[str, dict[str, float]]:
    """Returns precision, recall, F1 and support of each tag."""
    pairs = Counter(pair for both in zip(predicted.values, predicted.right, strict=True) for pair in zip(*both, strict=True))
    ours, theirs = Counter[str](), Counter[str]()
    for (guessed, tag), count in pairs.items():
        ours[guessed] += count
        theirs[tag] += count
    there = [tag for tag in predicted.labels if ours[tag] or theirs[tag]]
    return {tag: scoring.rates(pairs[tag, tag], ours[tag], theirs[tag]) for tag in there}


def _first_tokens(words: Sequence[str], encoding: Encoding) -> np.ndarray:
    """Returns the first token of each word, int64; -1 for a word without tokens."""
    ends = np.cumsum([len(word) + 1 for word in words])
    real = encoding.offsets[:, 0] < encoding.offsets[:, 1]
    word_of = np.where(real, np.searchsorted(ends, encoding.offsets[:, 0], side="right"), -1)
    first = np.full(len(words), -1, np.int64)
    for token in range(len(word_of) - 1, -1, -1):
        if word_of[token] >= 0:
            first[word_of[token]] = token
    return first


def _tags(split: Split, logits: Sequence[np.ndarray], labels: Sequence[str]) -> list[list[str]]:
    """Returns the tag of the first token of each word, from the window with the most context; O for words without tokens.

    The logits of a window begin at the first token of its text, and continue after its text.
    """
    windows, found = split.encoded.windows, []
    outside = "O" if "O" in labels else labels[0]
    of_text: list[list[int]] = [[] for _ in split.records]
    for number, window in enumerate(windows):
        of_text[window.text].append(number)
    for numbers, first in zip(of_text, split.encoded.first_tokens, strict=True):
        home = most_context([windows[n] for n in numbers], windows[numbers[-1]].stop)
        best = [logits[n].argmax(axis=-1) for n in numbers]
        picked = [
            outside if token < 0 else labels[best[w := int(home[token])][token - windows[numbers[w]].start]] for token in first
        ]
        found.append(picked)
    return found


def _loss(split: Split, logits: Sequence[np.ndarray]) -> float | None:
    """Returns the mean loss of the labelled words; None where there are none."""
    each = [
        scoring.nats(own[item.target != IGNORED], item.target[item.target != IGNORED])
        for own, item in zip(logits, split.encoded.items, strict=True)
    ]
    return float(np.mean(np.concatenate(each))) if any(map(np.size, each)) else None


_SENTENCE_COLUMNS = ("sentence #", "sentence_id", "sentence id", "sent_id", "sentence_idx", "sentence_number")


def _has_sentence_column(path: str, data: TaskData) -> bool:
    """Returns True where the first line of a table names a column of sentences: each row is a word."""
    if files.suffix_of(path) not in files.DELIMITED_SUFFIXES:
        return False
    return any(name.strip().lower() in _SENTENCE_COLUMNS or name.strip() == data.id_column for name in files.first_fields(path))


def _is_word(row: Row, columns: Columns) -> bool:
    """Returns True for a row that looks like a word with its tag, not like a sentence."""
    cells = [row.values.get(column) for column in (*columns.texts, *columns.labels)]
    return len(cells) == 2 and all(isinstance(c, str) and len(c.split()) == 1 and c.lstrip()[0] != "[" for c in cells)
