"""Masks batches for masked language modelling: a pure function of (seed, step, rows).

The random bits of a global batch come from one counter-based generator, Philox(seed, step), with a fixed number of draws a row.
A host advances it to its own first row, so the masks do not depend on the number of hosts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bert_jax.config import MaskingConfig

Rows = dict[str, np.ndarray]
_BLOCK = 8  # uint32 draws of a Philox counter step; rows begin at a whole step


@dataclass(frozen=True)
class Vocabulary:
    """The part of a tokenizer that masking needs."""

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]
    starts_word: np.ndarray  # bool [V]: False where the token continues a word


def random_bits(seed: int, step: int, first_row: int, num_rows: int, draws: int) -> np.ndarray:
    """Returns uint32 [num_rows, draws]: rows from `first_row` of the random table of (seed, step)."""
    blocks = -(-draws // _BLOCK)
    generator = np.random.Philox(key=np.array([seed, step], np.uint64))
    generator.advance(first_row * blocks)
    raw = generator.random_raw(num_rows * blocks * _BLOCK // 2)
    return raw.view(np.uint32).reshape(num_rows, blocks * _BLOCK)[:, :draws]


def target_counts(lengths: np.ndarray, rate: float) -> np.ndarray:
    """Returns max(1, round(length * rate)), the number of predictions for rows of `lengths` tokens.

    Special tokens count as tokens, as in BERT (create_pretraining_data.py, create_masked_lm_predictions).
    """
    return np.maximum(1, np.rint(lengths * rate)).astype(np.int64)


def mask_rows(
    input_ids: np.ndarray, vocabulary: Vocabulary, cfg: MaskingConfig, seed: int, step: int, first_row: int = 0, pad_id: int = 0,
    rate: float | None = None,
) -> Rows:  # fmt: skip
    """Replaces some tokens of `input_ids` [B, L], and returns the rows with the positions and ids to predict.

    By default 80 % of the chosen tokens become [MASK], 10 % a random token of the whole vocabulary, and 10 % stay. Special
    tokens (also [UNK], which teaches nothing) and padding are never chosen. `first_row` is the index of row 0 in the global
    batch; a row's masks do not depend on B. `rate` is the share of tokens to predict (default: `cfg.rate`); it does not change P.

    Returns:
      int32 `input_ids` [B, L], int32 `masked_positions` and `masked_ids` [B, P] in the order of positions, and float32
      `masked_weights` [B, P], 0 in unused slots.
    """
    num_rows, length = input_ids.shape
    slots, rate = cfg.num_slots(length), cfg.rate if rate is None else rate
    bits = random_bits(seed, step, first_row, num_rows, length + 2 * slots)
    candidates = input_ids != pad_id
    for special in vocabulary.special_ids:
        candidates &= input_ids != special
    if cfg.count == "bernoulli":
        candidates &= bits[:, :length] < np.uint32(round(rate * 2**32))
        wanted = np.full(num_rows, slots)
    else:
        wanted = np.minimum(target_counts((input_ids != pad_id).sum(1), rate), slots)
    choose = _choose_words if cfg.whole_word else _choose_tokens
    positions = choose(bits[:, :length], candidates, vocabulary.starts_word[input_ids], wanted, slots)
    return _replace(input_ids, positions, bits[:, length:], vocabulary, cfg)


_NONE = np.uint32(2**32 - 1)  # sorts after every key


def _random_keys(bits: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.uint32]:
    """Returns random sort keys, uint32 [B, L], and the mask of their low bits, which hold the position.

    The positions make keys distinct, so the order does not depend on the machine's sorting routine.
    """
    low = np.uint32((1 << (bits.shape[1] - 1).bit_length()) - 1)
    keys = (bits >> np.uint32(1) & ~low) | np.arange(bits.shape[1], dtype=np.uint32)  # below 2**31, so never _NONE
    return np.where(valid, keys, _NONE), low


def _choose_tokens(bits: np.ndarray, candidates: np.ndarray, starts: np.ndarray, wanted: np.ndarray, slots: int) -> np.ndarray:
    """Returns positions [B, P] of the chosen tokens in ascending order; L in unused slots."""
    length = bits.shape[1]
    keys, low = _random_keys(bits, candidates)
    first = np.sort(np.partition(keys, slots - 1, axis=1)[:, :slots], axis=1)
    used = (first != _NONE) & (np.arange(slots) < wanted[:, None])
    return np.sort(np.where(used, first & low, np.uint32(length)), axis=1)


def _choose_words(bits: np.ndarray, candidates: np.ndarray, starts: np.ndarray, wanted: np.ndarray, slots: int) -> np.ndarray:
    """Returns positions as `_choose_tokens`, of whole words in random order; a word that would exceed the count is skipped."""
    num_rows, length = bits.shape
    after_gap = np.concatenate([np.ones((num_rows, 1), bool), ~candidates[:, :-1]], axis=1)
    starts = candidates & (starts | after_gap)
    word = np.cumsum(starts, axis=1)  # 1.. within candidates; a special token has the word of its left neighbour
    rows = np.arange(num_rows)[:, None]
    sizes = np.bincount((rows * (length + 1) + word)[candidates], minlength=num_rows * (length + 1))
    sizes = sizes.reshape(num_rows, length + 1)
    keys, low = _random_keys(bits, starts)
    order = np.sort(keys, axis=1)
    order_words = np.where(order != _NONE, word[rows, np.minimum(order & low, np.uint32(length - 1))], 0)
    order_sizes = np.where(order_words > 0, sizes[rows, order_words], length + 1)  # no word: never fits
    total, accepted = np.zeros(num_rows, np.int64), np.zeros((num_rows, length + 1), bool)
    for j in range(int((order_words > 0).sum(1).max(initial=0))):
        fits = total + order_sizes[:, j] <= wanted
        total += np.where(fits, order_sizes[:, j], 0)
        accepted[np.arange(num_rows), order_words[:, j]] |= fits
        if (total == wanted).all():
            break
    chosen = accepted[rows, word] & candidates
    return np.sort(np.where(chosen, np.arange(length), length), axis=1)[:, :slots]


def _replace(input_ids: np.ndarray, positions: np.ndarray, bits: np.ndarray, vocabulary: Vocabulary, cfg: MaskingConfig) -> Rows:
    """Puts [MASK], a random token or the token itself at `positions` [B, P] (L: unused), by `bits` [B, 2P]."""
    used = positions < input_ids.shape[1]
    positions = np.where(used, positions, 0).astype(np.int32)
    rows = np.arange(len(input_ids))[:, None]
    original = input_ids[rows, positions]
    slots = positions.shape[1]
    draw = bits[:, :slots] * 2.0**-32
    random_ids = (bits[:, slots:].astype(np.uint64) * np.uint64(vocabulary.vocab_size)) >> np.uint64(32)
    new = np.where(draw < cfg.mask_prob, vocabulary.mask_id, original)
    new = np.where((draw >= cfg.mask_prob) & (draw < cfg.mask_prob + cfg.random_prob), random_ids, new)
    masked = input_ids.astype(np.int32)
    masked[np.broadcast_to(rows, positions.shape)[used], positions[used]] = new[used]
    return {
        "input_ids": masked,
        "masked_positions": positions,
        "masked_ids": np.where(used, original, 0).astype(np.int32),
        "masked_weights": used.astype(np.float32),
    }
