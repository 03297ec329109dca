"""Packs examples into rows of one length, and describes the tokens of such rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Returns the indices of the examples in each row, placed longest first in the fullest row that takes them.

    Rows are in the order of their first example, so that text stays near its neighbours.

    >>> pack([3, 8, 5, 1], row_length=8)
    [[0, 2], [1], [3]]
    """
    room_at = [list[int]() for _ in range(row_length + 1)]  # rows by room left: best fit is first fit with exact rooms
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        room = next((r for r in range(length, row_length + 1) if room_at[r]), None)
        if room is None:
            rows.append([index])
            room_at[row_length - length].append(len(rows) - 1)
        else:
            row = room_at[room].pop()
            rows[row].append(index)
            room_at[room - length].append(row)
    return sorted(sorted(row) for row in rows)


def to_rows(examples: Sequence[np.ndarray], packed: Sequence[Sequence[int]], row_length: int, pad_id: int) -> np.ndarray:
    """Returns int32 [rows, L]: the examples of each row one after the other, padded with `pad_id`."""
    rows = np.full((len(packed), row_length), pad_id, np.int32)
    for row, indices in zip(rows, packed, strict=True):
        joined = np.concatenate([examples[i] for i in indices])
        row[: len(joined)] = joined
    return rows


def describe(input_ids: np.ndarray, cls_id: int, sep_id: int, pad_id: int) -> dict[str, np.ndarray]:
    """Returns the int32 arrays [B, L] that follow from rows of `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]` examples.

    `sequence_ids`: 1, 2, ... for the examples of a row, 0 at padding. `position_ids`: from 0 in each example.
    `token_type_ids`: 1 after an example's first [SEP]. Text has no [CLS], so each one begins an example.

    >>> {k: v[0].tolist() for k, v in describe(np.array([[1, 7, 2, 8, 2, 1, 9, 2, 0]]), 1, 2, 0).items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'token_type_ids': [0, 0, 0, 1, 1, 0, 0, 0, 0], 'position_ids': [0, 1, 2, 3, 4, 0, 1, 2, 0],
     'sequence_ids': [1, 1, 1, 1, 1, 2, 2, 2, 0]}
    """
    real = input_ids != pad_id
    start = input_ids == cls_id
    place = np.arange(input_ids.shape[1], dtype=np.int32)
    begun = np.maximum.accumulate(np.where(start, place, 0), axis=1)
    seps = np.cumsum(input_ids == sep_id, axis=1, dtype=np.int32) - (input_ids == sep_id)  # [SEP]s before each token
    types = (seps - np.take_along_axis(seps, begun, axis=1) > 0) & real
    return {
        "token_type_ids": types.astype(np.int32),
        "position_ids": np.where(real, place - begun, 0).astype(np.int32),
        "sequence_ids": np.where(real, np.cumsum(start, axis=1), 0).astype(np.int32),
    }
