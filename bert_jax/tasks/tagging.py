"""Sentences, as lists of words -> a tag for each word: entities, or classes of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np

from bert_jax.data import tags
from bert_jax.data.batching import PackedBatch
from bert_jax.data.finetuning import IGNORED, Encoded, Item, per_token, portions
from bert_jax.data.layout import Layout, Window, cut_windows, most_context
from bert_jax.data.records import Record, labels_of
from bert_jax.data.tokenizer import Encoding
from bert_jax.inference import Predictor
from bert_jax.pretrained import Model
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.common import balanced_weights, class_loss
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.task import Options
from bert_jax.training.losses import Sum

_NOWHERE = np.zeros(0, np.int32)


class Tagging(Kind):
    """A tag for each word. A prediction is a list of tags."""

    name = "tagging"
    head = "token_classification"
    options = frozenset(["label_smoothing", "class_weights"])
    has_classes = True

    def classes_of(self, label: Any) -> tuple[str, ...]:
        return tuple(label or ())

    # ---- training

    def encode(
        self, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, read: Callable[[str], str] = str
    ) -> Encoded:
        """Tokenizes sentences; a long one is read in windows that overlap by half, and each word is labelled in one of them."""
        limit = min(limit, layout.cfg.max_length)
        before, after = map(len, layout.template(1).ids)
        room = limit - before - after
        items, found, firsts = list[Item](), list[Window](), list[np.ndarray]()
        for portion in portions(records, read):
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

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        return balanced_weights(Counter(chain.from_iterable(map(self.classes_of, labels_of(train)))), labels)

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], options: Options, model: Model) -> dict[str, Sum]:
        return class_loss(outputs["logits"], batch, options)

    # ---- evaluation

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        tokens, before = _TokenLogits(model), len(model.need_tokenizer().single.ids[0])

        def predict(split: Split, params: Any) -> Predictions:
            logits = [result["logits"] for result in tokens.run(split.encoded.sequences, params)]
            return Predictions(_tags(split, [each[before:] for each in logits], model.labels), _loss(split, logits))

        return predict

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions:
        return Predictions(labels_of(records), loss=0.0)

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        """Scores entities; tags that are none (see `tags.entity_tags`) have `tag_accuracy` alone, bare types have both."""
        accuracy = {"tag_accuracy": scoring.tag_accuracy(predicted.values, predicted.right)}
        both = _entity_tags(predicted)
        if both is None:
            return accuracy
        scores = {name: scoring.METRICS[name](*both) for name in (*metrics, "entity_precision", "entity_recall")}
        return scores | (accuracy if tags.are_types(predicted.labels) else {})

    def details(self, predicted: Predicted) -> dict[str, Any]:
        """Returns the scores of each type of entity, or of each tag where tags are classes, the most frequent first."""
        both = _entity_tags(predicted)
        each = _each_tag(predicted) if both is None else scoring.entity_report(*both)
        return {"classes": dict(sorted(each.items(), key=lambda item: -item[1]["support"]))}

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        """Returns the score of no entity or, where tags are classes, of giving every word the most frequent tag."""
        if tags.entity_tags(labels) is not None:
            return 0.0
        words, *asked = ([tag for label in labels_of(records) for tag in label] for records in (train, *dev))
        commonest = Counter(words).most_common(1)[0][0] if words else None
        return float(np.mean([np.mean([tag == commonest for tag in each]) for each in asked]))


class _TokenLogits(Predictor):
    """The logits of the head for each token."""

    per_token = frozenset(["logits"])

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        del batch["places"]
        return {"logits": self.model.apply(params, batch)["logits"]}


def _entity_tags(predicted: Predicted) -> list[list[list[str]]] | None:
    """Returns the predicted and the right tags in the form that entities are read from; None where tags are no entities."""
    read = tags.entity_tags(predicted.labels)
    if read is None:
        return None
    return [[[read[tag] for tag in sentence] for sentence in side] for side in (predicted.values, predicted.right)]


def _each_tag(predicted: Predicted) -> dict[str, dict[str, float]]:
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
    """Returns the tag of each word's first token, from the window with most context; O for words without tokens.

    The logits of a window start at its first token, and go on after its text.
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
    """Returns the mean loss of a word, in the window that it is labelled in; None without any labelled word."""
    each = [
        scoring.nats(own[item.target != IGNORED], item.target[item.target != IGNORED])
        for own, item in zip(logits, split.encoded.items, strict=True)
    ]
    return float(np.mean(np.concatenate(each))) if any(map(np.size, each)) else None
