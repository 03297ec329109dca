"""Packs examples of any lengths into batches with few shapes and little padding.

`exact_batches` instead puts each example alone in its row, in a shape that follows from its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

_SHORTEST = 16  # tokens of the shortest row; each longer row is twice as long
_PACKED = 64  # attention over 64 tokens costs little more than over 16, so only calls that cannot fill such rows use shorter ones
_MANY = 4  # full batches, after which a padded one costs less than the compilation of another shape
_LOOKED_AT = 16  # rows of the same room that are tried: many may have no free slot


@dataclass(frozen=True)
class Example:
    """A sequence: its ids and token types, int32 [n], and the places in it where the head runs, int32 [k]."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    places: np.ndarray

    def read_from(self, place: int) -> Example:
        """Returns the sequence with this place, or the last one of a shorter sequence, as its only place."""
        return self if place == 0 else replace(self, places=np.array([min(place, len(self.input_ids) - 1)], np.int32))


@dataclass(frozen=True)
class Placement:
    """The place of an example in a batch: its row, and its tokens and slots in that row."""

    example: int
    row: int
    tokens: slice
    slots: slice


@dataclass(frozen=True)
class PackedBatch:
    """Arrays int32 [B, L], `positions` int32 [B, S] for the head, and the place of each example."""

    arrays: dict[str, np.ndarray]
    positions: np.ndarray
    places: list[Placement]


def row_lengths(lengths: Sequence[int], longest: int) -> list[int]:
    """Returns the row lengths for examples of `lengths`, ascending; `longest` is the longest possible one.

    >>> row_lengths([9, 12, 100], 512), row_lengths([9], 512), row_lengths([9] * 100, 512)
    ([64, 128], [16], [64])
    """
    ladder = [longest]
    while (shorter := _SHORTEST << len(ladder) - 1) < longest:
        ladder.insert(-1, shorter)
    total, most = sum(lengths), max(lengths, default=1)
    least = next((n for n in ladder if n >= min(total, _PACKED)), longest)
    last = next(n for n in ladder if n >= most)
    return [n for n in ladder if least <= n <= max(least, last)]


def pack_rows(examples: Sequence[Example], ladder: Sequence[int], slots: Callable[[int], int]) -> list[tuple[int, list[int]]]:
    """Returns (row length, examples) of each row; the longest examples are placed first, each in the fullest row that takes it.

    An example that fits in no row starts one of the shortest length that holds it. Rows of length n have slots(n) slots.
    """
    rows: list[tuple[int, list[int]]] = []
    free_slots: list[int] = []
    rows_by_room: list[list[int]] = [[] for _ in range(ladder[-1] + 1)]
    for index in sorted(range(len(examples)), key=lambda i: -len(examples[i].input_ids)):
        size, wanted = len(examples[index].input_ids), len(examples[index].places)
        found = next(
            (
                (room, at)
                for room in range(size, ladder[-1] + 1)
                if (there := rows_by_room[room])
                for at in range(len(there) - 1, max(-1, len(there) - 1 - _LOOKED_AT), -1)
                if free_slots[there[at]] >= wanted
            ),
            None,
        )
        if found is None:
            room, row = next(n for n in ladder if n >= size), len(rows)
            rows.append((room, []))
            free_slots.append(slots(room))
        else:
            room, row = found[0], rows_by_room[found[0]].pop(found[1])
        rows[row][1].append(index)
        free_slots[row] -= wanted
        if free_slots[row]:
            rows_by_room[room - size].append(row)
    return rows


def batch_sizes(rows: int, full: int, least_padding: bool = True, before: int = 0) -> list[tuple[int, int]]:
    """Returns (rows taken, rows computed) of the batches for `rows` rows: full ones, then powers of two, so that shapes are few.

    Without `least_padding` the last rows are one batch: a full one after `_MANY` full ones, of which `before` precede these rows.

    >>> batch_sizes(69, 32), batch_sizes(3, 32)
    ([(32, 32), (32, 32), (4, 4), (1, 1)], [(3, 4)])
    >>> batch_sizes(69, 32, least_padding=False), batch_sizes(69, 32, least_padding=False, before=2)
    ([(32, 32), (32, 32), (5, 8)], [(32, 32), (32, 32), (5, 32)])
    """
    sizes = [(full, full)] * (rows // full)
    rest = rows % full
    while rest:
        above = min(full, 1 << (rest - 1).bit_length())
        below = 1 << (rest.bit_length() - 1)
        taken, computed = (rest, above) if not least_padding or above - rest <= above // 4 else (below, below)
        if not least_padding and len(sizes) + before >= _MANY:
            computed = full
        sizes.append((taken, computed))
        rest -= taken
    return sizes


def batches(
    examples: Sequence[Example], longest: int, tokens: int, slots: Callable[[int], int], pad_id: int, least_padding: bool = True,
    devices: int = 1,
) -> Iterator[PackedBatch]:  # fmt: skip
    """Yields batches of about `tokens` tokens for each device that hold every example once.

    Args:
      examples: the examples, none longer than `longest` or with more places than the slots of its row.
      longest: tokens of the longest possible example.
      tokens: rows x row length of a full batch on a device.
      slots: row length -> S, the places of a row at which the head runs.
      pad_id: the token after the last example of a row.
      least_padding: the last rows are computed in small batches; otherwise in one of a shape that is compiled anyway.
      devices: the rows of each batch are a multiple of it.
    """
    if not examples:
        return
    ladder = row_lengths([len(e.input_ids) for e in examples], longest)
    made, waiting = 0, list[list[int]]()  # batches so far; shorter rows that filled no batch, two in one row
    packed = pack_rows(examples, ladder, slots)
    for length, longer in zip(ladder, [*ladder[1:], None], strict=True):
        rows = waiting + [indices for row_length, indices in packed if row_length == length]
        full, start, waiting = devices * max(1, tokens // length), 0, []
        if longer is not None and longer >= 2 * length and slots(longer) >= 2 * slots(length):
            whole = len(rows) - len(rows) % full
            waiting = [[x for row in rows[i : i + 2] for x in row] for i in range(whole, len(rows), 2)]
            rows = rows[:whole]
        for taken, count in batch_sizes(len(rows), full, least_padding, made):
            count = -(-count // devices) * devices
            yield fill_rows(examples, rows[start : start + taken], count, length, slots(length), pad_id)
            start, made = start + taken, made + 1


def exact_shape(size: int, tokens: int) -> tuple[int, int]:
    """Returns (rows, row length) of the batch of an example of `size` tokens; they follow from `size` alone.

    Lengths are multiples of 8, four from one power of two to the next, and may exceed the longest that a model takes. Rows are a
    power of two, with `tokens` to twice as many tokens: kernels that take four rows at a time would treat a remainder in
    another way.

    >>> exact_shape(3, 256), exact_shape(33, 256), exact_shape(64, 256), exact_shape(300, 256)
    ((32, 8), (8, 40), (4, 64), (1, 320))
    """
    step = max(8, (1 << (size - 1).bit_length()) // 8)
    length = -(-size // step) * step
    return max(1, tokens >> (length.bit_length() - 1)), length


def exact_batches(examples: Sequence[Example], tokens: int, slots: int, pad_id: int) -> Iterator[PackedBatch]:
    """Yields batches that hold every example once, alone in its row, in its `exact_shape`; rows without an example are padding.

    Args:
      examples: none with more places than `slots`.
      tokens: a power of two; a batch has as many to twice as many tokens.
      slots: places of a row where the head runs.
      pad_id: the token after the last example of a row.
    """
    by_shape: dict[tuple[int, int], list[list[int]]] = {}
    for index, example in enumerate(examples):
        by_shape.setdefault(exact_shape(len(example.input_ids), tokens), []).append([index])
    for (count, length), rows in sorted(by_shape.items()):
        for start in range(0, len(rows), count):
            yield fill_rows(examples, rows[start : start + count], count, length, slots, pad_id)


def fill_rows(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], count: int, length: int, slots: int, pad_id: int
) -> PackedBatch:
    """Returns a batch of `count` rows of `length` tokens with `slots` places each; row i has the examples `rows[i]`."""
    names = ("token_type_ids", "position_ids", "sequence_ids")
    arrays = {"input_ids": np.full((count, length), pad_id, np.int32)}
    arrays |= {name: np.zeros((count, length), np.int32) for name in names}
    positions = np.zeros((count, slots), np.int32)
    places = []
    for row, indices in enumerate(rows):
        at = slot = 0
        for sequence, index in enumerate(indices, 1):
            example = examples[index]
            size, wanted = len(example.input_ids), len(example.places)
            tokens = slice(at, at + size)
            arrays["input_ids"][row, tokens] = example.input_ids
            arrays["token_type_ids"][row, tokens] = example.token_type_ids
            arrays["position_ids"][row, tokens] = np.arange(size)
            arrays["sequence_ids"][row, tokens] = sequence
            positions[row, slot : slot + wanted] = example.places + at
            places.append(Placement(index, row, tokens, slice(slot, slot + wanted)))
            at, slot = at + size, slot + wanted
    return PackedBatch(arrays, positions, places)
