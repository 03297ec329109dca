"""The stream of masked batches: the global batch of a step is a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np

from bert_jax.config import MaskingConfig
from bert_jax.data import masking, packing
from bert_jax.data.corpus import Rows
from bert_jax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
_EVALUATION = 2**63  # added to the step: held-out masks share no random bits with training's


@dataclass(frozen=True)
class BatchSource:
    """Makes batches of `rows`: int32 `input_ids, token_type_ids, position_ids, sequence_ids` [B, L], `masked_positions,
    masked_ids` [B, P], float32 `masked_weights` [B, P], and int32 `next_sentence_label` [B] where rows have one."""

    rows: Rows
    tokenizer: Tokenizer
    cfg: MaskingConfig
    max_seq_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        order = grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle().repeat()
        object.__setattr__(self, "_order", order)

    def train(self, step: int) -> Batch:
        """The batch of `step`: rows in an order shuffled anew each epoch, with masks of this step's own."""
        first = step * self.batch_size
        rows = self.rows[[self._order[i] for i in range(first, first + self.batch_size)]]  # type: ignore[attr-defined]
        return self._batch(rows, step)

    def evaluation(self, number: int) -> Batch:
        """Batch `number` of the rows in their own order with fixed masks; the last is filled up with weight 0."""
        first = number * self.batch_size
        rows = self.rows[np.arange(first, min(first + self.batch_size, len(self.rows)))]
        batch = self._batch(rows, _EVALUATION + number)
        missing = self.batch_size - len(rows)
        padded = {k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}
        if "next_sentence_label" in padded:
            padded["next_sentence_label"][len(rows) :] = -1
        return padded

    def num_evaluation_batches(self, most: int) -> int:
        """Batches that hold all rows, but no more than `most`."""
        return min(most, -(-len(self.rows) // self.batch_size))

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The training batches of steps [start, stop), made ahead in a thread."""
        steps = grain.MapDataset.range(start, stop).map(self.train)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def _batch(self, rows: np.ndarray, step: int) -> Batch:
        ids, tokenizer = rows[:, : self.max_seq_length], self.tokenizer
        batch = packing.describe(ids, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
        vocabulary = masking.Vocabulary(
            tokenizer.vocab_size, tokenizer.mask_id, tokenizer.special_ids, tokenizer.starts_word
        )
        batch |= masking.mask_rows(ids, vocabulary, self.cfg, self.seed, step, pad_id=tokenizer.pad_id)
        if rows.shape[1] > self.max_seq_length:
            batch["next_sentence_label"] = rows[:, self.max_seq_length]
        return batch


def unigram_loss(token_counts: np.ndarray, batches: Iterator[Batch]) -> float:
    """Nats a masked token that a model without context can reach: cross-entropy of the batches' masked tokens under
    the training text's token frequencies, with one added to every count."""
    log_p = np.log(token_counts + 1.0) - np.log((token_counts + 1.0).sum())
    total = weight = 0.0
    for batch in batches:
        total -= float((log_p[batch["masked_ids"]] * batch["masked_weights"]).sum())
        weight += float(batch["masked_weights"].sum())
    return total / weight
