"""Held-out text with fixed masks, on which all runs are compared, whatever masks they train on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bert_jax.config import MaskingConfig, TrainConfig, named_paths
from bert_jax.data import corpus, sources
from bert_jax.data.corpus import Corpus
from bert_jax.data.pretraining import Batch, BatchSource, PretrainingData, cache_place, tokenizer_folder, unigram_loss
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.workers import Progress
from bert_jax.errors import InputError

MASKS = MaskingConfig()  # BERT's: 15 % of the tokens; 80 % of them [MASK], 10 % random, 10 % unchanged
SEED = 0  # masks are the same for all seeds of training


@dataclass(frozen=True)
class HeldOut:
    """A held-out text: its masked batches, and the numbers that a loss on them is compared with.

    Attributes:
      name: The name of the text in eval_sources; empty for the run's own held-out text.
      text: The corpus that its rows are of.
      batches: See `BatchSource`.
      predictions: The number of masked tokens.
      unigram_loss: See `pretraining.unigram_loss`.
      tokens_per_byte: See `tokens_per_byte`. Times the loss, it is the nats that the text costs per byte, if its tokens are
        predicted one by one with 15 % of them masked.
    """

    name: str
    text: Corpus
    batches: list[Batch]
    predictions: float
    unigram_loss: float
    tokens_per_byte: float

    def measures(self, means: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of this text, named `eval/...` or `eval/NAME/...`, from the means over its batches."""
        bits = means["masked_lm_loss"] * self.tokens_per_byte / math.log(2)
        values = {**means, "unigram_loss": self.unigram_loss, "bits_per_byte": bits}
        return {f"{metric_prefix(self.name)}{name}": value for name, value in values.items()}


def metric_prefix(name: str) -> str:
    """Returns the prefix of the metrics of a held-out text; `name` is empty for the run's own."""
    return f"eval/{name}/" if name else "eval/"


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Adds the name of a text to the errors inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"eval_sources: {name}: {error}") from None


def check(cfg: TrainConfig) -> None:
    """Checks that the files of eval_sources exist. Raises InputError, which names the source, if they do not."""
    for name, paths in named_paths(cfg.eval_sources, "eval_sources").items():
        with _naming(name):
            sources.list_files(paths, sources.reader_of(cfg.data))


def corpora(cfg: TrainConfig, progress: Progress) -> dict[str, Corpus]:
    """Returns the texts of eval_sources by name, tokenized as the run's own is: all of their rows are training rows.

    Raises:
      InputError: A text cannot be read or is empty.
    """
    found: dict[str, Corpus] = {}
    for name, paths in named_paths(cfg.eval_sources, "eval_sources").items():
        own = cfg.data.replace(source=paths, mixture=None, eval_source=(), eval_fraction=0.0)
        with _naming(name):
            found[name] = corpus.prepare(own, tokenizer_folder(cfg), cache_place(cfg), progress, Path(cfg.workdir) / "cache")
    return found


def load(cfg: TrainConfig, data: PretrainingData, progress: Progress) -> list[HeldOut]:
    """Returns the held-out texts of a run: its own, if there is one, and those of eval_sources.

    Raises:
      InputError: A text cannot be read, or has no token that can be masked.
    """
    found = [_of(cfg, data, data.held_out, "", data.evaluation)] if len(data.held_out) else []
    for name, text in corpora(cfg, progress).items():
        with _naming(name):
            found.append(_of(cfg, data, text.train, name, text))
    return found


def report(metrics: Mapping[str, float]) -> list[str]:
    """Returns a line for each held-out text in the metrics of a run."""
    lines = []
    for prefix in (key.removesuffix("masked_lm_loss") for key in metrics if key.endswith("/masked_lm_loss")):
        of = "held-out loss" if prefix == metric_prefix("") else f"loss on {prefix.split('/')[1]}"
        has_generator = f"{prefix}replaced_token_loss" in metrics
        of += " of the generator" * has_generator
        loss, accuracy, bits, unigram = (
            metrics[prefix + name] for name in ("masked_lm_loss", "masked_lm_accuracy", "bits_per_byte", "unigram_loss")
        )
        lines.append(
            f"{of} {loss:.3f} nats a masked token ({bits:.3f} bits per byte; {accuracy:.1%} of the tokens are right); "
            f"a model without context, which knows only how frequent each token is, reaches {unigram:.3f}"
        )
        if has_generator:
            of_tokens = {name: metrics[f"{prefix}replaced_token_{name}"] for name in ("loss", "share", "recall", "precision")}
            lines.append(
                "replaced tokens: {loss:.4f} nats a token; {share:.1%} of the tokens are replaced, {recall:.1%} of these are "
                "found, and {precision:.1%} of those called replaced are".format(**of_tokens)
            )
    return lines


def source(cfg: TrainConfig, tokenizer: Tokenizer, rows: corpus.Rows) -> BatchSource:
    """Returns the source of the evaluation batches of `rows`: BERT's masks, the same for all runs."""
    return replace(BatchSource.of(cfg, tokenizer, rows), cfg=MASKS, seed=SEED)


def _of(cfg: TrainConfig, data: PretrainingData, rows: corpus.Rows, name: str, text: Corpus) -> HeldOut:
    """Returns the first `cfg.eval_batches` batches of `rows`."""
    own = source(cfg, data.tokenizer, rows)
    batches = [own.evaluation(i) for i in range(own.num_evaluation_batches(cfg.eval_batches))]
    predictions = sum(float(batch["masked_weights"].sum()) for batch in batches)
    if not predictions:
        raise InputError("the held-out text has no token that can be masked: all are unknown. Is this its vocabulary?")
    unigram = unigram_loss(data.training.token_counts, iter(batches))
    used = rows[np.arange(min(len(rows), len(batches) * cfg.batch_size))][:, : cfg.data.max_seq_length]
    return HeldOut(name, text, batches, predictions, unigram, tokens_per_byte(used, data.tokenizer))


def tokens_per_byte(rows: np.ndarray, tokenizer: Tokenizer) -> float:
    """Returns the number of tokens in rows of ids [N, L] per UTF-8 byte, white space aside, of the text that they decode to.

    White space does not count because a WordPiece vocabulary does not keep it: `(a.b)` decodes to `( a . b )`. Special tokens,
    padding and unknown tokens are neither masked nor decoded, so they count on neither side.
    """
    tokens = num_bytes = 0
    for row in rows:
        plain = row[~np.isin(row, [*tokenizer.special_ids, tokenizer.pad_id])]
        tokens += len(plain)
        num_bytes += len("".join(tokenizer.decode(plain).split()).encode())
    return tokens / max(1, num_bytes)
