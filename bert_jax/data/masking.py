"""Masks batches for masked language modelling: a pure function of (seed, step, rows).

    token  tokens, each by itself (Devlin et al., 2018)
    word   all tokens of a word
    span   some neighboring words, replaced in one way (Joshi et al., 2020, without their loss of a span's boundary)

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


# Added to the step: the choice of a step's objective, and the draws of its samples, share no random bits with its masks.
_CAUSAL, _SAMPLES = 2**62, 2**61


def is_causal(cfg: MaskingConfig, seed: int, step: int) -> bool:
    """Returns True if a step predicts next tokens, with the probability `cfg.causal_share`."""
    return bool(random_bits(seed, _CAUSAL + step, 0, 1, 1)[0, 0] * 2.0**-32 < cfg.causal_share)


def next_tokens(input_ids: np.ndarray, sequence_ids: np.ndarray, vocabulary: Vocabulary) -> Rows:
    """Returns `input_ids` [B, L] as a batch of causal rows that predicts the token behind each one.

    Special tokens, padding and the first token of another sequence are not predicted.

    Returns:
      The arrays of `mask_rows`, with P = L - 1 slots, and `causal` [B], true.
    """
    behind = input_ids[:, 1:]
    counted = (sequence_ids[:, 1:] == sequence_ids[:, :-1]) & (sequence_ids[:, 1:] > 0)
    for special in vocabulary.special_ids:
        counted &= behind != special
    places = np.arange(behind.shape[1], dtype=np.int32)
    return {
        "input_ids": input_ids.astype(np.int32),
        "masked_positions": np.where(counted, places, 0).astype(np.int32),
        "masked_ids": np.where(counted, behind, 0).astype(np.int32),
        "masked_weights": counted.astype(np.float32),
        "causal": np.ones(len(input_ids), bool),
    }


def uniform_draws(seed: int, step: int, first_row: int, num_rows: int, slots: int) -> np.ndarray:
    """Returns float32 [num_rows, slots] in [0, 1), multiples of 2**-23, by which a model samples a token for each slot."""
    bits = random_bits(seed, _SAMPLES + step, first_row, num_rows, slots)
    return (bits >> np.uint32(9)).astype(np.float32) * np.float32(2.0**-23)


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
    bits = random_bits(seed, step, first_row, num_rows, length + 2 * slots + (slots if cfg.unit == "span" else 0))
    candidates = input_ids != pad_id
    for special in vocabulary.special_ids:
        candidates &= input_ids != special
    if cfg.count == "bernoulli":
        candidates &= bits[:, :length] < np.uint32(min(round(rate * 2**32), 2**32 - 1))
        wanted = np.full(num_rows, slots)
    else:
        wanted = np.minimum(target_counts((input_ids != pad_id).sum(1), rate), slots)
    starts, draws = vocabulary.starts_word[input_ids], bits[:, length : length + slots]
    if cfg.unit == "span":
        positions, span = _choose_spans(bits[:, :length], bits[:, -slots:], candidates, starts, wanted)
        draws = np.take_along_axis(draws, span, axis=1)
    else:
        choose = {"token": _choose_tokens, "word": _choose_words}[cfg.unit]
        positions = choose(bits[:, :length], candidates, starts, wanted, slots)
    return _replace(input_ids, positions, draws, bits[:, length + slots :], vocabulary, cfg)


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
    starts = _starts_of_words(candidates, starts)
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


def _starts_of_words(candidates: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Marks the candidates [B, L] that begin a word: those whose token does, and those behind what is never masked."""
    after_gap = np.concatenate([np.ones((len(candidates), 1), bool), ~candidates[:, :-1]], axis=1)
    return candidates & (starts | after_gap)


_LENGTHS = 1 - 0.8 ** np.arange(1, 11)  # 1 to 10 words: geometric with p = 0.2, cut at 10 (Joshi et al., 2020, section 3.1)
_LENGTHS = (_LENGTHS / _LENGTHS[-1] * 2**32).astype(np.uint64)


def _choose_spans(
    bits: np.ndarray, length_bits: np.ndarray, candidates: np.ndarray, starts: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions [B, P] as `_choose_tokens`, and the number from 0 of the span of each, by `length_bits` [B, P].

    Spans begin at words in random order and end before what is never masked and where the count is reached. A word that is
    masked already begins none, and a span that meets another goes on behind it.
    """
    (num_rows, length), slots = bits.shape, length_bits.shape[1]
    rows, places = np.arange(num_rows)[:, None], np.arange(length)
    starts = _starts_of_words(candidates, starts)
    word, gaps = np.cumsum(starts, axis=1), np.cumsum(~candidates, axis=1)
    keys, low = _random_keys(bits, starts)
    order = np.sort(keys, axis=1)
    words = 1 + np.searchsorted(_LENGTHS, length_bits, side="right").clip(max=9)  # [B, P] of each span
    span, number = np.full((num_rows, length), -1), np.zeros(num_rows, np.int64)
    for j in range(length):
        room = wanted - (span >= 0).sum(axis=1)
        if not ((order[:, j] != _NONE) & (room > 0)).any():
            break
        first = np.minimum(order[:, j] & low, np.uint32(length - 1)).astype(np.int64)[:, None]
        begins = (order[:, j] != _NONE) & (room > 0) & (span[rows, first][:, 0] < 0)
        last = word[rows, first] + words[rows, np.minimum(number, slots - 1)[:, None]] - 1
        inside = (places >= first) & (word <= last) & candidates & (gaps == gaps[rows, first]) & (span < 0)
        inside &= begins[:, None] & (np.cumsum(inside, axis=1) <= room[:, None])
        span = np.where(inside, number[:, None], span)
        number += begins
    positions = np.sort(np.where(span >= 0, places, length), axis=1)[:, :slots]
    return positions, span[rows, np.minimum(positions, length - 1)].clip(min=0)


def _replace(
    input_ids: np.ndarray, positions: np.ndarray, draws: np.ndarray, bits: np.ndarray, vocabulary: Vocabulary, cfg: MaskingConfig
) -> Rows:
    """Puts [MASK], a random token or the token itself at `positions` [B, P] (L: unused).

    `draws` [B, P] choose among the three, the first P of `bits` the random token.
    """
    used = positions < input_ids.shape[1]
    positions = np.where(used, positions, 0).astype(np.int32)
    rows = np.arange(len(input_ids))[:, None]
    original = input_ids[rows, positions]
    draw = draws * 2.0**-32
    random_ids = (bits[:, : positions.shape[1]].astype(np.uint64) * np.uint64(vocabulary.vocab_size)) >> np.uint64(32)
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
