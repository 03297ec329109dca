"""Masked batches of a pretraining run. The global batch of a step is a function of (seed, step) alone."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import grain
import numpy as np

from bert_jax.config import TRAINED, DataConfig, MaskingConfig, TrainConfig, spans
from bert_jax.data import corpus, masking, packing
from bert_jax.data.corpus import Corpus, Rows
from bert_jax.data.order import Order, Part
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.tokenizer_training import VocabularyKind
from bert_jax.data.workers import Progress
from bert_jax.errors import InputError

Batch = dict[str, np.ndarray]
_EVALUATION = 2**63  # added to the step: held-out masks share no random bits with training's


@dataclass(frozen=True)
class PretrainingData:
    """A run's tokenizer, training rows and held-out rows, from one corpus or, with data.eval_source, from two."""

    tokenizer: Tokenizer
    training: Corpus
    evaluation: Corpus
    other_lengths: Mapping[int, Corpus] = field(default_factory=dict)  # the training text in rows of the phases' lengths

    @property
    def held_out(self) -> Rows:
        """The held-out rows; none where data.eval_fraction is 0."""
        return self.evaluation.held_out

    @property
    def key(self) -> str:
        """The names of the training and the held-out rows: equal keys give equal batches, in the phases' other lengths too."""
        return "+".join(corpus.summary["key"] for corpus in (self.training, self.evaluation))

    def batches(self, cfg: TrainConfig) -> list[BatchSource]:
        """Returns the training batches of each phase of a run.

        A phase goes on in the order of the rows where the last one of the same row length left it.
        """
        found: list[BatchSource] = []
        drawn: Counter[tuple[int, str]] = Counter()
        for span in spans(cfg):
            length = span.cfg.data.max_seq_length
            text = self.other_lengths.get(length, self.training)
            parts = tuple(
                Part(*text.sources[name], weight, drawn[length, name], name) for name, weight in span.cfg.data.weights.items()
            )
            if empty := [part.name for part in parts if part.stop == part.first]:
                where = f"{empty[0]}: give it more text, or leave it out of the mixture" if empty[0] else "the text: give more"
                raise span.named(InputError(f"there are no rows to train on in {where}"))
            source = replace(
                BatchSource.of(span.cfg, self.tokenizer, text.train), parts=parts, begin=span.begin, mask_line=span.mask_line
            )
            found.append(source)
            counts = source.order.counts([(span.until - span.begin) * span.cfg.batch_size])[0]
            drawn.update({(length, part.name): int(count) for part, count in zip(parts, counts, strict=True)})
        return found


def load_data(
    cfg: TrainConfig, progress: Progress, begun: Mapping[str, str] | None = None, start: Path | None = None
) -> PretrainingData:
    """Returns the tokenizer, read or trained once and kept in the work directory, and the tokenized text.

    Args:
      cfg: the run's config.
      progress: shows items as they pass.
      begun: the names of the rows, `data`, and the tokenizer's fingerprint, `tokenizer`, at the run's newest checkpoint.
      start: the folder of the tokenizer of the weights of init_from.

    Raises:
      InputError: the text or tokenizer cannot be read or, checked before any text is tokenized, is not that of `begun` or
        `start`; the tokenizer has more ids than model.vocab_size; a text of fill_masks has no mask.
    """
    if cfg.data.eval_source:
        corpus.list_files(texts(cfg)[1])  # an error in it comes before the other text has taken hours
    tokenizer, kept = load_tokenizer(cfg, progress, begun, start), tokenizer_folder(cfg)
    copies = Path(cfg.workdir) / "cache"
    keys: list[str] = begun["data"].split("+")[: 1 + bool(cfg.data.eval_source)] if begun else []
    made = [
        corpus.prepare(data, kept, cache_place(cfg), progress, copies, (keys[i], _begun_as(cfg)) if keys[i:] else None)
        for i, data in enumerate(texts(cfg))
    ]
    training = held_out = made.pop(0)
    if cfg.data.eval_source:
        held_out = made.pop(0)
        held_out.train, held_out.held_out = held_out.held_out, held_out.train
    return PretrainingData(tokenizer, training, held_out, {each.summary["max_seq_length"]: each for each in made})


def texts(cfg: TrainConfig) -> list[DataConfig]:
    """Returns the data of each corpus: the training text, data.eval_source, and the training text in rows of other lengths."""
    data, apart = cfg.data, []
    if data.eval_source:
        apart, data = [data.replace(source=data.eval_source, mixture=None, eval_fraction=0.0)], data.replace(eval_fraction=0.0)
    lengths = sorted({span.cfg.data.max_seq_length for span in spans(cfg)} - {data.max_seq_length})
    return [data, *apart, *(data.replace(max_seq_length=length) for length in lengths)]


def cache_place(cfg: TrainConfig) -> str:
    """Returns the path or URL of a run's token cache."""
    return cfg.data.cache_dir or str(Path(cfg.workdir) / "cache")


def tokenizer_folder(cfg: TrainConfig) -> Path:
    """Returns the folder where a run keeps its tokenizer."""
    return Path(cfg.workdir) / "tokenizer"


def load_tokenizer(
    cfg: TrainConfig, progress: Progress, begun: Mapping[str, str] | None = None, start: Path | None = None
) -> Tokenizer:
    """Returns a run's tokenizer, read or trained once and kept in `tokenizer_folder`; see `load_data`."""
    data, kept = cfg.data, tokenizer_folder(cfg)
    if not data.source:
        raise InputError("no text: give --data.source FILE... (globs, tfds:NAME), or set it in the config file")
    given = data.tokenizer if data.tokenizer not in TRAINED else start  # weights go with their vocabulary
    if cfg.init_from and given is None and not begun:
        raise InputError(f"--init-from {cfg.init_from} has no tokenizer: give the one it was trained with: --data.tokenizer PATH")
    if not (kept / "tokenizer.json").exists():
        if given:
            tokenizer = Tokenizer.load(given)
        else:
            kind = cast(VocabularyKind, data.tokenizer)
            tokenizer = Tokenizer.train(corpus.read_texts(texts(cfg)[0], progress), cfg.model.vocab_size, kind, data.lowercase)
        _as_rows_are(tokenizer, data).replace(special_tokens="read").save(kept, model_max_length=cfg.model.max_length)
    tokenizer = Tokenizer.load(kept, special_tokens=data.special_tokens)
    _check_kept(cfg, tokenizer, begun or {})
    if start and not begun:
        _check_start(cfg, tokenizer, _as_rows_are(Tokenizer.load(start, special_tokens=data.special_tokens), data))
    if tokenizer.vocab_size > cfg.model.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, more than model.vocab_size={cfg.model.vocab_size} embeddings: "
            f"set --model.vocab-size {tokenizer.vocab_size} or more"
        )
    for i, text in enumerate(cfg.fill_masks):
        if tokenizer.mask_id not in tokenizer.replace(special_tokens="read").encode_batch([text])[0]:
            raise InputError(f"fill_masks[{i}] has no {tokenizer.mask_token}: {text!r}")
    return tokenizer


def _begun_as(cfg: TrainConfig) -> str:
    """Returns the names of the runs whose text and tokenizer a run that goes on must have."""
    return cfg.workdir if cfg.branch_from is None else f"{cfg.workdir} or --branch-from {cfg.branch_from}"


def _as_rows_are(tokenizer: Tokenizer, data: DataConfig) -> Tokenizer:
    """Returns the tokenizer with the template of the run's examples, so that the exported model is used as it was trained."""
    as_bert = tokenizer.lays_out_as_bert(pairs=data.examples == "sentence_pairs")
    return tokenizer if as_bert else tokenizer.replace(bert_template=True)


def _check_kept(cfg: TrainConfig, tokenizer: Tokenizer, begun: Mapping[str, str]) -> None:
    """Raises InputError unless the work directory's tokenizer is that of its checkpoints and of the given file."""
    kept, given, fix = tokenizer_folder(cfg), cfg.data.tokenizer, "start again with another --workdir"
    if begun.get("tokenizer", fingerprint := tokenizer.fingerprint()) != fingerprint:
        more = "" if cfg.branch_from is None else ", or leave --data.tokenizer out, and that of the other run is taken"
        raise InputError(f"the tokenizer in {kept} is not what {_begun_as(cfg)} was begun with: restore it, or {fix}{more}")
    if given not in TRAINED and os.path.exists(given) and (other := tokenizer.difference(Tokenizer.load(given))):
        raise InputError(f"the vocabulary of {given} is not the one that {kept} was made from: {other}. Restore it, or {fix}")


def _check_start(cfg: TrainConfig, tokenizer: Tokenizer, theirs: Tokenizer) -> None:
    """Raises InputError if the weights of init_from have another vocabulary; warns where they have other rules."""
    if other := tokenizer.difference(theirs):
        raise InputError(
            f"--init-from {cfg.init_from} has another vocabulary than {cfg.data.tokenizer}: {other}. Its weights would belong to "
            "other tokens: leave --data.tokenizer out, and its own is taken"
        )
    if tokenizer.fingerprint() != theirs.fingerprint():
        print(
            f"warning: {cfg.data.tokenizer} has the vocabulary of --init-from {cfg.init_from}, but cuts text by other rules",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class BatchSource:
    """Makes masked batches of rows.

    A batch has int32 `input_ids, token_type_ids, position_ids, sequence_ids` [B, L] and `masked_positions, masked_ids` [B, P],
    float32 `masked_weights` [B, P], and int32 `next_sentence_label` [B] where rows have one. One that predicts next tokens also
    has `causal` [B], true. One for replaced-token detection has float32 `masked_draws` [B, P], by which tokens are sampled.
    """

    rows: Rows
    tokenizer: Tokenizer
    cfg: MaskingConfig
    max_seq_length: int
    batch_size: int
    seed: int
    parts: tuple[Part, ...] = ()  # default: all rows
    begin: int = 0  # the first step
    mask_line: tuple[int, int] = (0, 1)  # the steps at which the share of tokens to predict is `rate` and `final_rate`
    draws: bool = False  # batches have `masked_draws`
    order: Order = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", Order(self.parts or [Part(0, len(self.rows))], self.seed))

    @classmethod
    def of(cls, cfg: TrainConfig, tokenizer: Tokenizer, rows: Rows) -> BatchSource:
        """Returns the source of the batches of `rows` of a run without phases."""
        line, length = (0, cfg.num_steps), cfg.data.max_seq_length
        return cls(rows, tokenizer, cfg.masking, length, cfg.batch_size, cfg.seed, mask_line=line, draws=cfg.draws)

    def train(self, step: int, of: slice = slice(None)) -> Batch:
        """Returns the batch of `step`, or the rows `of` it. The order changes with each epoch, the masks with each step."""
        return (self.causal if masking.is_causal(self.cfg, self.seed, step) else self.masked)(step, of)

    def masked(self, step: int, of: slice = slice(None)) -> Batch:
        """Returns the batch of `step` with masks."""
        rows, first_row = self._rows(step, of)
        begin, end = self.mask_line
        return self._batch(rows, step, first_row, self.cfg.rate_at(min(1.0, (step - begin) / (end - begin))))

    def causal(self, step: int, of: slice = slice(None)) -> Batch:
        """Returns the batch of `step` with next tokens to predict."""
        tokenizer, ids = self.tokenizer, self._rows(step, of)[0][:, : self.max_seq_length]
        batch = packing.describe(ids, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
        return batch | masking.next_tokens(ids, batch["sequence_ids"], self._vocabulary)

    def kinds(self, step: int, of: slice = slice(None)) -> list[Batch]:
        """Returns a batch of each kind that training has."""
        share = self.cfg.causal_share
        return [make(step, of) for make, has in ((self.masked, share < 1), (self.causal, share > 0)) if has]

    def _rows(self, step: int, of: slice) -> tuple[np.ndarray, int]:
        """Returns the rows `of` a step, and the number of the first one in its batch."""
        first = (step - self.begin) * self.batch_size
        places = range(first, first + self.batch_size)[of]
        return self.rows[self.order.rows(places)], places[0] - first

    def evaluation(self, number: int) -> Batch:
        """Returns batch `number` of the rows in their own order. The last batch is padded with weight 0.

        The masks of a row are fixed, whatever the batch size.
        """
        first = number * self.batch_size
        rows = self.rows[np.arange(first, min(first + self.batch_size, len(self.rows)))]
        batch = self._batch(rows, _EVALUATION, first)
        missing = self.batch_size - len(rows)
        padded = {k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}
        if "next_sentence_label" in padded:
            padded["next_sentence_label"][len(rows) :] = -1
        return padded

    def num_evaluation_batches(self, most: int) -> int:
        """Returns the number of batches that hold all rows, at most `most`."""
        return min(most, -(-len(self.rows) // self.batch_size))

    def stream(self, start: int, stop: int, of: slice = slice(None)) -> Iterator[Batch]:
        """Returns the training batches of steps [start, stop), or the rows `of` them, made ahead in a thread."""
        steps = grain.MapDataset.range(start, stop).map(partial(self.train, of=of))
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    @property
    def _vocabulary(self) -> masking.Vocabulary:
        of = self.tokenizer
        return masking.Vocabulary(of.vocab_size, of.mask_id, of.special_ids, of.starts_word)

    def _batch(self, rows: np.ndarray, step: int, first_row: int = 0, rate: float | None = None) -> Batch:
        ids, tokenizer = rows[:, : self.max_seq_length], self.tokenizer
        batch = packing.describe(ids, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
        batch |= masking.mask_rows(ids, self._vocabulary, self.cfg, self.seed, step, first_row, tokenizer.pad_id, rate)
        if self.draws:
            batch["masked_draws"] = masking.uniform_draws(self.seed, step, first_row, *batch["masked_ids"].shape)
        if rows.shape[1] > self.max_seq_length:
            batch["next_sentence_label"] = rows[:, self.max_seq_length]
        return batch


def unigram_loss(token_counts: np.ndarray, batches: Iterator[Batch]) -> float:
    """Returns the loss of a model without context, in nats a masked token.

    It is the cross-entropy of the batches' masked tokens under the token frequencies of the training text plus one.
    """
    log_p = np.log(token_counts + 1.0) - np.log((token_counts + 1.0).sum())
    total = weight = 0.0
    for batch in batches:
        total -= float((log_p[batch["masked_ids"]] * batch["masked_weights"]).sum())
        weight += float(batch["masked_weights"].sum())
    return total / weight
