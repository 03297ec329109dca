"""Encodes the records of a task, and makes training batches of few shapes, packed or padded.

    encode_texts(records, ...)       Items: the sequences of each item, and its target             ragged
    Batches(items, ...).train([seed], step)
                                     int32 input_ids, token_type_ids, position_ids, sequence_ids [B, L], cls_positions [B, S],
                                     and the targets: float32 or int32 labels, float32 weights      few shapes

The kind of a task decides the layout of the targets: `per_sequence` [B, S, ...], `per_token` [B, L] or `per_item` [N], with
`slots` [N, k], the numbers of the sequences (of B x S) of each item.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, overload

import grain
import numpy as np

from bert_jax.data.batching import Example, PackedBatch, fill_rows, pack_rows
from bert_jax.data.layout import AT_FIRST, Layout, Reading, Text, Window
from bert_jax.data.records import Label, Record, labels_of, texts_of
from bert_jax.data.tokenizer import Tokenizer, in_portions

IGNORED = -100  # the label of a token that is not trained on
_LOOKED_AT = 512  # batches that decide the shapes
_LEAST_LENGTH = 64  # tokens of a packed row: attention over 64 tokens costs little more than over 16
_PLANNED = 2**62  # a seed that no run has, whose order decides the shapes
_PORTION = 1 << 17  # characters that are encoded at a time, in 200 bytes each


class Item(NamedTuple):
    """The unit of training: its sequences (several for choices and pairs of embeddings) and its target."""

    sequences: tuple[Example, ...]
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Items(Sequence[Item]):
    """Many items in few arrays, which take 2 or 4 bytes a token. An Item is made on access.

    Attributes:
      input_ids: uint16 or int32 [T], the tokens of all sequences.
      token_type_ids: uint8 [at most T]; zeros at the end are left out.
      ends: int64 [S + 1], the starts of the sequences, and the end of the last one.
      firsts: the first sequence of each item, and S.
      targets: [N, ...].
      place: the token of each sequence that the head reads (the last one of a shorter sequence).
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
        """The tokens of each item's longest sequence, int32 [N]."""
        sizes = np.diff(self.ends).astype(np.int32)
        if isinstance(self.firsts, range):
            return np.max(sizes.reshape(len(self), self.firsts.step), axis=1)
        return np.maximum.reduceat(sizes, self.firsts[:-1])

    @property
    def sequences(self) -> Sequence[Example]:
        """The sequences of all items, in order."""
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


@dataclass(frozen=True)
class Encoded:
    """The items of a split, in the order of the records, one for each window of a text that is read in windows.

    Attributes:
      items: the sequences and targets.
      lost: the number of sequences (for questions, of records) that were cut.
      windows: the window of each item, if texts are read in windows.
      reading: the windows of questions, for predictions.
      first_tokens: the first token of each word of each record, -1 for a word without tokens.
    """

    items: Sequence[Item]
    lost: int = 0
    windows: Sequence[Window] = ()
    reading: Reading | None = None
    first_tokens: Sequence[np.ndarray] = ()

    @property
    def sequences(self) -> Sequence[Example]:
        """The sequences of all items, in order."""
        return self.items.sequences if isinstance(self.items, Items) else [x for item in self.items for x in item.sequences]

    def read_from(self, place: int) -> Encoded:
        """Returns the same with the head at this place of each sequence; see `Example.read_from`."""
        if isinstance(self.items, Items):
            return replace(self, items=replace(self.items, place=place))
        moved = [item._replace(sequences=tuple(each.read_from(place) for each in item.sequences)) for item in self.items]
        return replace(self, items=moved)


def portions(records: Sequence[Record], read: Callable[[str], str]) -> Iterator[list[tuple[tuple[str, ...], Label]]]:
    """Yields (texts, each passed through `read`, and label) of as many records as are encoded together."""
    rows = ((tuple(map(read, texts)), label) for texts, label in zip(texts_of(records), labels_of(records), strict=True))
    return in_portions(rows, lambda row: sum(map(len, row[0])), _PORTION)


def as_one(texts: tuple[str, ...]) -> list[Text]:
    """Returns a text or a pair of texts as the only sequence of an item."""
    return [texts if len(texts) > 1 else texts[0]]


def encode_texts(
    records: Sequence[Record], layout: Layout, target: Callable[[Label], np.ndarray | np.generic],
    sequences: Callable[[tuple[str, ...]], list[Text]] = as_one,
) -> Encoded:  # fmt: skip
    """Tokenizes records, and cuts texts that are too long.

    Args:
      records: the records.
      layout: the layout of the tokenizer and the model.
      target: label -> target of the item.
      sequences: texts of a record -> the texts, or pairs of texts, that become the sequences of its item.
    """
    ids, types = array("H" if layout.cfg.vocab_size <= 1 << 16 else "i"), bytearray()
    ends, counts, targets, lost = array("q", [0]), list[np.ndarray](), list[np.ndarray](), 0
    for portion in portions(records, layout.read):
        groups = [sequences(texts) for texts, _ in portion]
        examples, cut = layout.examples([text for group in groups for text in group])
        own = np.concatenate([example.token_type_ids for example in examples]).astype(np.uint8)
        if own.any():  # the types of single texts, which are 0, are not stored
            types += bytes(len(ids) - len(types)) + own.tobytes()
        ends.frombytes((len(ids) + np.cumsum([len(example.input_ids) for example in examples])).tobytes())
        ids.frombytes(np.concatenate([example.input_ids for example in examples]).astype(ids.typecode).tobytes())
        counts.append(np.array([len(group) for group in groups], np.int32))
        targets.append(np.array([target(label) for _, label in portion]))
        lost += cut
    each = int(counts[0][0]) if counts else 1
    firsts: range | np.ndarray = range(0, len(ends) + each - 1, each)  # takes no memory
    if any((own != each).any() for own in counts):
        firsts = np.cumsum(np.concatenate([np.zeros(1, np.int32), *counts]))
    stacked = np.concatenate(targets) if targets else np.zeros(0, np.int32)
    flat = [np.frombuffer(*both) for both in ((ids, ids.typecode), (types, np.uint8), (ends, np.int64))]
    return Encoded(Items(flat[0], flat[1], flat[2], firsts, stacked), lost)


def special_tokens_in(records: Sequence[Record], tokenizer: Tokenizer) -> dict[str, int]:
    """Returns {special token: records whose texts have its characters} for the three most frequent.

    The dict is empty where the tokenizer reads them as special tokens.
    """
    names = [name for name in tokenizer.tokens(tokenizer.special_ids) if len(name) > 1]
    if tokenizer.special_tokens == "read" or not names:
        return {}
    pattern = re.compile("|".join(map(re.escape, names)))
    found = Counter(name for texts in texts_of(records) for name in {name for text in texts for name in pattern.findall(text)})
    return dict(found.most_common(3))


# --- targets of a batch: (its items, the places of their sequences, the items of a full batch) -> arrays ---

Targets = Callable[[Sequence[Item], PackedBatch, int], dict[str, np.ndarray]]


def per_sequence(items: Sequence[Item], packed: PackedBatch, count: int, shifted: bool = False) -> dict[str, np.ndarray]:
    """Returns `labels` [B, S, ...] and `weights` [B, S]; with `shifted`, targets are tokens, counted from the row's start."""
    slots, target = packed.positions.shape, items[0].target
    labels, weights = np.zeros((*slots, *target.shape), target.dtype), np.zeros(slots, np.float32)
    for place in packed.places:
        offset = place.tokens.start if shifted else 0
        labels[place.row, place.slots] = items[place.example].target + np.array(offset, target.dtype)
        weights[place.row, place.slots] = 1
    return {"labels": labels, "weights": weights}


def per_token(items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
    """Returns `labels` and `weights` [B, L]; the weight of an IGNORED token is 0."""
    labels = np.full(packed.arrays["input_ids"].shape, IGNORED, np.int32)
    for place in packed.places:
        labels[place.row, place.tokens] = items[place.example].target
    return {"labels": np.maximum(labels, 0), "weights": (labels != IGNORED).astype(np.float32)}


def per_item(items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
    """Returns `labels` and `weights` [count], and `slots` [count, k] of each item's sequences; missing items weigh 0."""
    where = np.zeros(sum(len(item.sequences) for item in items), np.int32)
    for place in packed.places:
        where[place.example] = place.row * packed.positions.shape[1] + place.slots.start
    missing = count - len(items)
    return {
        "slots": np.pad(where.reshape(len(items), -1), ((0, missing), (0, 0))),
        "labels": np.pad(np.array([item.target for item in items]), (0, missing)),
        "weights": np.pad(np.ones(len(items), np.float32), (0, missing)),
    }


# --- batches ---

Batching = Literal["packed", "padded", "by_length"]


class Shape(NamedTuple):
    """The rows of a batch and the tokens of a row."""

    rows: int
    length: int


def _ladder(longest: int, step: int, packed: bool) -> list[int]:
    """Returns row lengths, ascending, up to one that holds `longest` tokens; few for packed rows, which are full anyway.

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
    """Returns at most `most` shapes that hold all batches with little padding.

    Args:
      needs: for each batch {row length: rows that it takes}, without lengths that are too short for it.
      hidden_size: the encoder's; with attention, a token of a row of L tokens costs 1 + L / (6 hidden_size).
      most: the most shapes; each is compiled.
      granule: the number of devices that share the rows, which are a multiple of it.

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
        """Returns the cost of all batches with the best candidate added, infinite if a batch fits no shape, and its index."""
        there = price[:, others].min(axis=1, initial=np.inf)
        totals = (np.minimum(price, there[:, None]) * counts[:, None]).sum(axis=0)
        return float(totals.min()), int(totals.argmin())

    kept: list[int] = []
    total = np.inf
    while len(kept) < most and (found := best_beside(kept))[0] < total:
        total, kept = found[0], [*kept, found[1]]
    improved = True
    while improved:  # replace one by a better candidate
        improved = False
        for i in range(len(kept)):
            found = best_beside(kept[:i] + kept[i + 1 :])
            if found[0] < total * (1 - 1e-9):
                total, kept[i], improved = *found, True
    return [candidates[i] for i in sorted(kept)]


class Batches:
    """Training batches, as a function of seed and step, of few shapes that are the same for every seed.

    A batch has `batch_size` items; the last one of an epoch may have fewer.

    Args:
      items: the training set.
      batch_size: items of a batch.
      batching: packed: several sequences in a row; padded: one; by_length: one, with items of similar length together.
      hidden_size: the encoder's, which decides the cost of a shape.
      pad_id: the token after the last sequence of a row.
      granule: the number of devices that share the rows, which are a multiple of it.
      length_step: row lengths are a multiple of it, or 64.
      most_shapes: the most shapes; each is compiled.
      targets: makes the targets of a batch.
    """

    def __init__(
        self, items: Sequence[Item], batch_size: int, batching: Batching, hidden_size: int, pad_id: int, granule: int = 1,
        length_step: int = 16, most_shapes: int = 6, targets: Targets = per_sequence,
    ) -> None:  # fmt: skip
        self.items, self.batch_size = items, batch_size
        self.batching, self._pad_id = batching, pad_id
        each = items.lengths if isinstance(items, Items) else [max(len(e.input_ids) for e in i.sequences) for i in items]
        self._lengths = np.array(each, np.int32)
        self.ladder = _ladder(int(self._lengths.max()), length_step, batching == "packed")
        self._granule, self._targets = granule, targets
        self.steps_per_epoch = -(-len(items) // batch_size)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # seed -> (epoch, its order)
        looked_at = [self._rows(self.order(_PLANNED, step), self.ladder) for step in range(_LOOKED_AT)]
        needs = [{length: len(rows) for length, rows in each.items()} for each in looked_at]
        self.shapes = choose_shapes(needs, hidden_size, most_shapes, granule)

    def order(self, seed: int, step: int) -> list[int]:
        """Returns the indices of the items of batch `step`. Each epoch has all items in an order of its own."""
        epoch, number = divmod(step, self.steps_per_epoch)
        known = self._epochs.get(seed)
        if known is None or known[0] != epoch:
            known = self._epochs[seed] = epoch, self._epoch(seed, epoch)
        order: list[int] = known[1][number * self.batch_size : (number + 1) * self.batch_size].tolist()
        return order

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        order = rng.permutation(len(self.items))
        if self.batching == "by_length":  # sort by length within pools of 50 batches, then shuffle the full batches
            pool = 50 * self.batch_size
            pools = [order[i : i + pool] for i in range(0, len(order), pool)]
            order = np.concatenate([some[np.argsort(-self._lengths[some], kind="stable")] for some in pools])
            full = len(order) // self.batch_size
            head = order[: full * self.batch_size].reshape(full, -1)
            order = np.concatenate([head[rng.permutation(full)].reshape(-1), order[full * self.batch_size :]])
        return order.astype(np.int32)

    def _slots(self, length: int) -> int:
        return 1 if self.batching != "packed" else max(1, length // 8)  # the last layer runs only at these places

    def _sequences(self, indices: Sequence[int]) -> list[Example]:
        """Returns the sequences of a batch, with the head at the first token of each."""
        return [Example(e.input_ids, e.token_type_ids, AT_FIRST) for i in indices for e in self.items[i].sequences]

    def _rows(self, indices: Sequence[int], lengths: Iterable[int]) -> dict[int, list[list[int]]]:
        """Returns the sequences in each row of the batch, for each row length that holds the longest one."""
        sequences, longest = self._sequences(indices), self._lengths[indices].max()
        alone = [[i] for i in range(len(sequences))]
        return {
            length: alone if self.batching != "packed" else [row for _, row in pack_rows(sequences, [length], self._slots)]
            for length in lengths
            if length >= longest
        }

    def _shape(self, several: Sequence[dict[int, list[list[int]]]]) -> Shape:
        """Returns the cheapest shape that holds each of several batches, given their rows by length."""
        for shape in self.shapes:  # cheapest first
            if all(len(rows.get(shape.length, range(shape.rows + 1))) <= shape.rows for rows in several):
                return shape
        length, step = self.ladder[-1], 4 * self._granule  # rare: a batch is larger than those that decided the shapes
        return Shape(-(-max(len(rows[length]) for rows in several) // step) * step, length)

    def train(self, seeds: Sequence[int], step: int) -> dict[str, np.ndarray]:
        """Returns the batch of `step` (see the module's docstring); the batches of several seeds are stacked on a first axis."""
        orders = [self.order(seed, step) for seed in seeds]
        lengths = sorted({self.ladder[-1], *(shape.length for shape in self.shapes)})
        several = [self._rows(order, lengths) for order in orders]
        shape = self._shape(several)
        each = [self._batch(order, rows[shape.length], shape) for order, rows in zip(orders, several, strict=True)]
        return each[0] if len(each) == 1 else {name: np.stack([batch[name] for batch in each]) for name in each[0]}

    def _batch(self, indices: Sequence[int], rows: list[list[int]], shape: Shape) -> dict[str, np.ndarray]:
        sequences = self._sequences(indices)
        packed = fill_rows(sequences, rows, shape.rows, shape.length, self._slots(shape.length), self._pad_id)
        items, count = [self.items[i] for i in indices], -(-self.batch_size // self._granule) * self._granule
        return packed.arrays | {"cls_positions": packed.positions} | self._targets(items, packed, count)

    def stream(self, seeds: Sequence[int], start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Returns the batches of steps [start, stop), which a thread prepares ahead."""
        steps = grain.MapDataset.range(start, stop).map(partial(self.train, seeds))
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    @cached_property
    def padding(self) -> float:
        """The share of padding among the tokens of the first batches."""
        some = [self.train([_PLANNED], step) for step in range(64)]
        return 1 - sum((b["sequence_ids"] > 0).sum() for b in some) / sum(b["sequence_ids"].size for b in some)
