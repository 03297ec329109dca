"""Records of a task -> items of token ids with their targets -> training batches: packed or padded, few shapes, any order twice.

    encode(task, records, ...)       Items: the sequences of each item, and its target             host, ragged
    Batches(items, ...).train([seed], step)
                                     int32 input_ids, token_type_ids, position_ids, sequence_ids [B, L], cls_positions [B, S],
                                     and the targets: float32 or int32 labels, float32 weights      host, few shapes

Where the targets stand: classification, regression, question_answering [B, S] (multi_label [B, S, C]), a value a sequence;
tagging [B, L], a value a token; multiple_choice and similarity [N], with `slots` [N, k]: which of the B x S sequences item n
is made of. similarity has int32 `text_ids` [N, k] too: equal texts have equal ids.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, overload

import grain
import numpy as np

from bert_jax.config import InputError
from bert_jax.data.batching import Example, PackedBatch, fill_rows, pack_rows
from bert_jax.data.layout import AT_FIRST, Layout, Reading, Window, cut_windows, most_context, read_windows
from bert_jax.data.records import Record, labels_of, numbered, texts_of
from bert_jax.data.tokenizer import Encoding, Tokenizer, in_portions
from bert_jax.tasks.task import Kind

IGNORED = -100  # label of a token that is not trained on
_LOOKED_AT = 512  # batches that shapes are chosen by
_LEAST_LENGTH = 64  # of a packed row: attention over 64 tokens costs little more than over 16
_PLANNED = 2**62  # a seed that no run has: shapes are chosen by its order
_PORTION = 1 << 17  # characters that are encoded at once, which takes 200 bytes each
_NO_PLACES = np.zeros(0, np.int32)


class Item(NamedTuple):
    """What is trained on as one: its sequences (one; multiple_choice and similarity: more) and its target."""

    sequences: tuple[Example, ...]
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Items(Sequence[Item]):
    """Many items in few arrays, which take 2 or 4 bytes a token; an Item is made when one is asked for.

    Attributes:
      input_ids: uint16 or int32 [T], of all sequences.
      token_type_ids: uint8, likewise, but for zeros at the end.
      ends: int64 [S + 1]: where each sequence begins in these, and the last one ends.
      firsts: of each item its first sequence; behind the last one S.
      targets: [N, ...].
      place: where the head runs in each sequence (the last token, if it is shorter).
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    ends: np.ndarray
    firsts: range | np.ndarray
    targets: np.ndarray
    place: int = 0

    def __len__(self) -> int:
        return len(self.firsts) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return Item(tuple(map(self._sequence, range(self.firsts[index], self.firsts[index + 1]))), self.targets[index, ...])

    def _sequence(self, number: int) -> Example:
        own = slice(self.ends[number], self.ends[number + 1])
        ids, kept = self.input_ids[own].astype(np.int32, copy=False), self.token_type_ids[own]
        types = np.zeros(len(ids), np.int32)
        types[: len(kept)] = kept
        return Example(ids, types, AT_FIRST).read_from(self.place)

    @property
    def lengths(self) -> np.ndarray:
        """int32 [N]: tokens of each item's longest sequence."""
        sizes = np.diff(self.ends).astype(np.int32)
        if isinstance(self.firsts, range):
            return np.max(sizes.reshape(len(self), self.firsts.step), axis=1)
        return np.maximum.reduceat(sizes, self.firsts[:-1])

    @property
    def sequences(self) -> Sequence[Example]:
        """Those of all items, one behind the other."""
        return _Sequences(self)


@dataclass(frozen=True, eq=False)
class _Sequences(Sequence[Example]):
    items: Items

    def __len__(self) -> int:
        return len(self.items.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        numbers = range(len(self))[index]
        return self.items._sequence(numbers) if isinstance(numbers, int) else [self.items._sequence(i) for i in numbers]


def read_from(items: Sequence[Item], place: int) -> Sequence[Item]:
    """The items, with the head at this place of each sequence (see `Example.read_from`)."""
    if isinstance(items, Items):
        return replace(items, place=place)
    return [item._replace(sequences=tuple(each.read_from(place) for each in item.sequences)) for item in items]


@dataclass(frozen=True)
class Encoded:
    """Items of a split in the records' order; of long texts several (tagging, question_answering: `windows` says which).

    Attributes:
      lost: records of which something was cut off.
      reading: question_answering: the windows, for predictions.
      first_tokens: tagging: for each record the token that each word is labelled by, -1 for a word without any.
    """

    items: Sequence[Item]
    lost: int = 0
    windows: Sequence[Window] = ()
    reading: Reading | None = None
    first_tokens: Sequence[np.ndarray] = ()


def encode(
    kind: Kind, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, stride: int = 128,
    read: Callable[[str], str] = str,
) -> Encoded:  # fmt: skip
    """Tokenizes the records of a split, `limit` tokens a sequence at most; a label of None gives a target that means nothing.

    What is tokenized is `read(text)` of each text.
    """
    limit = min(limit, layout.cfg.max_length)
    rows = ((tuple(map(read, texts)), label) for texts, label in zip(texts_of(records), labels_of(records), strict=True))
    if kind == "tagging":
        return _encode_tagging(rows, labels, layout, limit)
    if kind == "question_answering":
        return _encode_questions(list(rows), layout, limit, stride)
    ids, types = array("H" if layout.cfg.vocab_size <= 1 << 16 else "i"), bytearray()
    ends, counts, targets, lost = array("q", [0]), list[np.ndarray](), list[np.ndarray](), 0
    for portion in in_portions(rows, lambda row: sum(map(len, row[0])), _PORTION):
        groups = [_groups(kind, texts) for texts, _ in portion]
        examples, cut = layout.examples([text for group in groups for text in group], limit)
        own = np.concatenate([example.token_type_ids for example in examples]).astype(np.uint8)
        if own.any():  # types of single texts, which are 0, are not kept
            types += bytes(len(ids) - len(types)) + own.tobytes()
        ends.frombytes((len(ids) + np.cumsum([len(example.input_ids) for example in examples])).tobytes())
        ids.frombytes(np.concatenate([example.input_ids for example in examples]).astype(ids.typecode).tobytes())
        counts.append(np.array([len(group) for group in groups], np.int32))
        targets.append(np.array([_target(kind, label, labels) for _, label in portion]))
        lost += cut
    each = int(counts[0][0]) if counts else 1
    firsts: range | np.ndarray = range(0, len(ends) + each - 1, each)  # which takes no memory
    if any((own != each).any() for own in counts):
        firsts = np.cumsum(np.concatenate([np.zeros(1, np.int32), *counts]))
    target = np.concatenate(targets) if targets else np.zeros(0, np.int32)
    flat = [np.frombuffer(*both) for both in ((ids, ids.typecode), (types, np.uint8), (ends, np.int64))]
    return Encoded(Items(flat[0], flat[1], flat[2], firsts, target), lost)


def special_tokens_in(records: Sequence[Record], tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens whose characters stand in texts, the commonest first, and in how many records; at most three.

    Empty where the tokenizer reads them as such.
    """
    names = [name for name in tokenizer.tokens(tokenizer.special_ids) if len(name) > 1]
    if tokenizer.special_tokens == "read" or not names:
        return {}
    pattern = re.compile("|".join(map(re.escape, names)))
    found = Counter(name for texts in texts_of(records) for name in {name for text in texts for name in pattern.findall(text)})
    return dict(found.most_common(3))


def _groups(kind: Kind, texts: tuple[str, ...]) -> list[Any]:
    """The texts, or pairs of texts, that become the sequences of an item."""
    if kind == "multiple_choice":
        return [(texts[0], choice) for choice in texts[1:]]
    if kind == "similarity":
        return list(texts)
    return [texts if len(texts) > 1 else texts[0]]


def _target(kind: Kind, label: Any, labels: Sequence[str]) -> np.ndarray:
    if kind == "multi_label":
        return np.array([name in (label or ()) for name in labels], np.float32)
    if kind in ("regression", "similarity"):
        return np.array(0 if label is None else label, np.float32)
    if kind == "multiple_choice":
        return np.array(label or 0, np.int32)
    return np.array(0 if label is None else labels.index(label), np.int32)


def _with_encodings(rows: Iterable[tuple[Any, Any]], tokenizer: Tokenizer) -> Iterator[tuple[Any, Any, Encoding]]:
    """(words, label, encoding of the sentence) of each row."""
    for portion in in_portions(rows, lambda row: sum(map(len, row[0])), _PORTION):
        encodings = tokenizer.encode_with_offsets([" ".join(words) for words, _ in portion])
        yield from ((*row, encoding) for row, encoding in zip(portion, encodings, strict=True))


def _encode_tagging(rows: Iterable[tuple[Any, Any]], labels: Sequence[str], layout: Layout, limit: int) -> Encoded:
    """Sentences that are too long are read in windows that overlap by half; each word is labelled in one of them."""
    before, behind = map(len, layout.template(1).ids)
    room = limit - before - behind
    items, found, firsts = [], [], []
    for number, (words, label, encoding) in enumerate(_with_encodings(rows, layout.tokenizer)):
        ends = np.cumsum([len(word) + 1 for word in words])
        real = encoding.offsets[:, 0] < encoding.offsets[:, 1]
        word_of = np.where(real, np.searchsorted(ends, encoding.offsets[:, 0], side="right"), -1)
        first = np.full(len(words), -1, np.int64)
        for token in range(len(word_of) - 1, -1, -1):
            if word_of[token] >= 0:
                first[word_of[token]] = token
        firsts.append(first)
        target = np.full(len(encoding.ids), IGNORED, np.int32)
        if label is not None:
            ids = np.array([labels.index(tag) for tag in label], np.int32)
            target[first[first >= 0]] = ids[first >= 0]
        windows = cut_windows(number, len(encoding.ids), room, max(1, room // 2))
        home = most_context(windows, len(encoding.ids))
        for i, window in enumerate(windows):
            inside = slice(window.start, window.stop)
            own = np.where(home[inside] == i, target[inside], IGNORED)
            sequence = layout.example([encoding.ids[inside]], _NO_PLACES)
            items.append(Item((sequence,), np.pad(own, (before, behind), constant_values=IGNORED).astype(np.int32)))
        found += windows
    return Encoded(items, windows=found, first_tokens=firsts)


def _encode_questions(rows: Sequence[tuple[Any, Any]], layout: Layout, limit: int, stride: int) -> Encoded:
    """Windows; the target is the (first, last) token of the first answer, or [CLS] twice where the window lacks it."""
    reading = read_windows(layout, [texts for texts, _ in rows], limit, stride, layout.longest_question(limit))
    spans = [_token_span(label, reading.contexts[i].offsets) for i, (_, label) in enumerate(rows)]
    items = []
    for window, example in zip(reading.windows, reading.examples, strict=True):
        first, last = spans[window.text]
        before = layout.before([reading.questions[window.text], reading.contexts[window.text].ids])
        inside = window.start <= first and last < window.stop
        target = np.array([first, last], np.int32) - window.start + before if inside else np.zeros(2, np.int32)
        items.append(Item((example,), target.astype(np.int32)))
    return Encoded(items, reading.long_questions, reading.windows, reading)


def _token_span(label: Any, offsets: np.ndarray) -> tuple[int, int]:
    """(first, last) token of the first answer; (-1, -1) if there is none."""
    if not label or not len(offsets):
        return -1, -1
    text, start = label[0]
    touching = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


# --- batches ---

Batching = Literal["packed", "padded", "by_length"]


class Shape(NamedTuple):
    """Rows of a batch and tokens of a row."""

    rows: int
    length: int


def _ladder(longest: int, step: int, packed: bool) -> list[int]:
    """Row lengths, ascending, the last of which holds `longest` tokens: few for packed rows, which are filled anyway.

    >>> _ladder(289, 16, True), _ladder(40, 16, True), _ladder(40, 16, False), _ladder(289, 128, False)
    ([64, 128, 256, 304], [64], [16, 32, 48], [64, 128, 256, 384])
    """
    top = -(-longest // step) * step
    if not packed:
        return sorted({min(step, _LEAST_LENGTH), *range(step, top + 1, step)})
    top, lengths = max(_LEAST_LENGTH, top), [_LEAST_LENGTH]
    while lengths[-1] * 2 < top:
        lengths.append(lengths[-1] * 2)
    return [n for n in lengths if n < top] + [top]


def choose_shapes(needs: Sequence[dict[int, int]], hidden_size: int, most: int, granule: int = 1) -> list[Shape]:
    """At most `most` shapes that hold all batches, chosen so that they compute little padding.

    Args:
      needs: of each batch: row length -> rows that it takes; lengths that are too short for it are left out.
      hidden_size: of the encoder: attention makes a token of a row of L tokens cost 1 + L / (6 hidden_size).
      granule: rows are multiples of it (of the devices).

    >>> choose_shapes([{64: 7}, {64: 8}, {64: 8}, {64: 12}], 384, most=2)
    [Shape(rows=8, length=64), Shape(rows=12, length=64)]
    """

    def cost(shape: Shape) -> float:
        return shape.rows * shape.length * (1 + shape.length / (6 * hidden_size))

    counted = Counter(tuple(sorted(need.items())) for need in needs)
    all_needs, counts = [dict(need) for need in counted], np.array(list(counted.values()), float)
    candidates = sorted(
        {Shape(-(-rows // granule) * granule, length) for need in all_needs for length, rows in need.items()}, key=cost
    )
    price = np.array(
        [[cost(s) if need.get(s.length, s.rows + 1) <= s.rows else np.inf for s in candidates] for need in all_needs]
    )

    def best_beside(others: list[int]) -> tuple[float, int]:
        """The candidate that goes best with others, behind the cost of all batches then: infinite where one fits nowhere."""
        there = price[:, others].min(axis=1, initial=np.inf)
        totals = (np.minimum(price, there[:, None]) * counts[:, None]).sum(axis=0)
        return float(totals.min()), int(totals.argmin())

    kept: list[int] = []
    total = np.inf
    while len(kept) < most and (found := best_beside(kept))[0] < total:
        total, kept = found[0], [*kept, found[1]]
    improved = True
    while improved:  # by another candidate in the place of one
        improved = False
        for i in range(len(kept)):
            found = best_beside(kept[:i] + kept[i + 1 :])
            if found[0] < total * (1 - 1e-9):
                total, kept[i], improved = *found, True
    return [candidates[i] for i in sorted(kept)]


class Batches:
    """Training batches of items: batch = f(seed, step).

    A batch has `batch_size` items, the last of an epoch fewer. Shapes are few, and the same whatever the seed.

    Args:
      kind: of the task.
      items: what is trained on.
      batch_size: items a batch.
      batching: see FinetuneConfig.
      hidden_size: of the encoder, to weigh shapes.
      pad_id: fills up rows.
      granule: rows are multiples of it (of the devices).
      length_step: row lengths are multiples of it, but for 64.
      most_shapes: each is compiled by itself.
    """

    def __init__(
        self, kind: Kind, items: Sequence[Item], batch_size: int, batching: Batching, hidden_size: int,
        pad_id: int, granule: int = 1, length_step: int = 16, most_shapes: int = 6,
    ) -> None:  # fmt: skip
        self.kind, self.items, self.batch_size = kind, items, batch_size
        self.batching, self._pad_id = batching, pad_id
        each = items.lengths if isinstance(items, Items) else [max(len(e.input_ids) for e in i.sequences) for i in items]
        self._lengths = np.array(each, np.int32)
        self.ladder = _ladder(int(self._lengths.max()), length_step, batching == "packed")
        self._granule = granule
        self._text_ids = _text_ids(items) if kind == "similarity" else None
        self.steps_per_epoch = -(-len(items) // batch_size)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # seed -> (epoch, its order)
        looked_at = [self._needs(self.order(_PLANNED, step)) for step in range(_LOOKED_AT)]
        self.shapes = choose_shapes(looked_at, hidden_size, most_shapes, granule)

    def order(self, seed: int, step: int) -> list[int]:
        """The items of batch `step`: each epoch has all of them, in an order of its own."""
        epoch, number = divmod(step, self.steps_per_epoch)
        known = self._epochs.get(seed)
        if known is None or known[0] != epoch:
            known = self._epochs[seed] = epoch, self._epoch(seed, epoch)
        order: list[int] = known[1][number * self.batch_size : (number + 1) * self.batch_size].tolist()
        return order

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        order = rng.permutation(len(self.items))
        if self.batching == "by_length":
            order = self._by_length(order, rng)
        return order.astype(np.int32)

    def _by_length(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sorted by length within pools of 50 batches, whose full batches are then shuffled."""
        pool = 50 * self.batch_size
        pools = [order[i : i + pool] for i in range(0, len(order), pool)]
        order = np.concatenate([some[np.argsort(-self._lengths[some], kind="stable")] for some in pools])
        full = len(order) // self.batch_size
        head = order[: full * self.batch_size].reshape(full, -1)
        return np.concatenate([head[rng.permutation(full)].reshape(-1), order[full * self.batch_size :]])

    def _slots(self, length: int) -> int:
        return 1 if self.batching != "packed" else max(1, length // 8)  # the last layer runs at these alone

    def _sequences(self, indices: Sequence[int]) -> list[Example]:
        """The sequences of a batch's items, each with the one place that the head runs at."""
        return [Example(e.input_ids, e.token_type_ids, AT_FIRST) for i in indices for e in self.items[i].sequences]

    def _rows(self, indices: Sequence[int], lengths: Iterable[int]) -> dict[int, list[list[int]]]:
        """For each row length that is not too short which sequences of the batch stand in which row."""
        sequences, longest = self._sequences(indices), self._lengths[indices].max()
        alone = [[i] for i in range(len(sequences))]
        return {
            length: alone if self.batching != "packed" else [row for _, row in pack_rows(sequences, [length], self._slots)]
            for length in lengths
            if length >= longest
        }

    def _needs(self, indices: Sequence[int]) -> dict[int, int]:
        return {length: len(rows) for length, rows in self._rows(indices, self.ladder).items()}

    def _shape(self, several: Sequence[dict[int, list[list[int]]]]) -> Shape:
        """The cheapest that holds each of several batches, whose rows by length are given."""
        for shape in self.shapes:  # cheapest first
            if all(len(rows.get(shape.length, range(shape.rows + 1))) <= shape.rows for rows in several):
                return shape
        length, step = self.ladder[-1], 4 * self._granule  # rare: a batch larger than all that were looked at
        return Shape(-(-max(len(rows[length]) for rows in several) // step) * step, length)

    def train(self, seeds: Sequence[int], step: int) -> dict[str, np.ndarray]:
        """The batch of `step`, see the module's docstring; of several seeds, their batches with one axis more in front."""
        orders = [self.order(seed, step) for seed in seeds]
        lengths = sorted({self.ladder[-1], *(shape.length for shape in self.shapes)})
        several = [self._rows(order, lengths) for order in orders]
        shape = self._shape(several)
        each = [self._batch(order, rows[shape.length], shape) for order, rows in zip(orders, several, strict=True)]
        return each[0] if len(each) == 1 else {name: np.stack([batch[name] for batch in each]) for name in each[0]}

    def _batch(self, indices: Sequence[int], rows: list[list[int]], shape: Shape) -> dict[str, np.ndarray]:
        sequences = self._sequences(indices)
        packed = fill_rows(sequences, rows, shape.rows, shape.length, self._slots(shape.length), self._pad_id)
        return packed.arrays | {"cls_positions": packed.positions} | self._targets(indices, packed)

    def _targets(self, indices: Sequence[int], packed: PackedBatch) -> dict[str, np.ndarray]:
        items, slots = [self.items[i] for i in indices], packed.positions.shape
        if self._text_ids is not None:
            targets = self._of_items(items, packed)
            missing = len(targets["slots"]) - len(items)
            return targets | {"text_ids": np.pad(self._text_ids[indices], ((0, missing), (0, 0)), constant_values=-1)}
        if self.kind == "multiple_choice":
            return self._of_items(items, packed)
        if self.kind == "tagging":
            labels = np.full(packed.arrays["input_ids"].shape, IGNORED, np.int32)
            for place in packed.places:
                labels[place.row, place.tokens] = items[place.example].target
            return {"labels": np.maximum(labels, 0), "weights": (labels != IGNORED).astype(np.float32)}
        target = items[0].target
        labels, weights = np.zeros((*slots, *target.shape), target.dtype), np.zeros(slots, np.float32)
        for place in packed.places:
            offset = place.tokens.start if self.kind == "question_answering" else 0
            labels[place.row, place.slots] = items[place.example].target + np.array(offset, target.dtype)
            weights[place.row, place.slots] = 1
        return {"labels": labels, "weights": weights}

    def _of_items(self, items: Sequence[Item], packed: PackedBatch) -> dict[str, np.ndarray]:
        """Targets of the items, and where their sequences stand; filled up to `batch_size` with weight 0."""
        where = np.zeros(sum(len(item.sequences) for item in items), np.int32)
        for place in packed.places:
            where[place.example] = place.row * packed.positions.shape[1] + place.slots.start
        missing = -(-self.batch_size // self._granule) * self._granule - len(items)
        each = len(items[0].sequences)
        return {
            "slots": np.pad(where.reshape(len(items), each), ((0, missing), (0, 0))),
            "labels": np.pad(np.array([item.target for item in items]), (0, missing)),
            "weights": np.pad(np.ones(len(items), np.float32), (0, missing)),
        }

    def stream(self, seeds: Sequence[int], start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches of steps [start, stop), made ahead in a thread."""
        steps = grain.MapDataset.range(start, stop).map(partial(self.train, seeds))
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    @cached_property
    def padding(self) -> float:
        """The share of computed tokens that are padding, in the first batches."""
        some = [self.train([_PLANNED], step) for step in range(64)]
        return 1 - sum((b["sequence_ids"] > 0).sum() for b in some) / sum(b["sequence_ids"].size for b in some)


def _text_ids(items: Sequence[Item]) -> np.ndarray:
    """int32 [items, k]: a number for each text, which equal texts share; equal is what the model reads, the tokens."""
    return numbered(text.input_ids.tobytes() for item in items for text in item.sequences).reshape(len(items), -1)


def check_choices(kind: Kind, records: Sequence[Record]) -> None:
    """Raises InputError unless all records of multiple_choice and similarity have the same number of texts."""
    if kind in ("multiple_choice", "similarity"):
        first = len(records[0].texts) if len(records) else 0
        for i, texts in enumerate(texts_of(records)):
            if len(texts) != first:
                raise InputError(f"{records[i].place} has {len(texts)} texts, where {records[0].place} has {first}")
