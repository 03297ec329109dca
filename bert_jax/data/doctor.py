"""Why would this not learn: what is odd about the text, the vocabulary and the masks of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bert_jax.config import TrainConfig
from bert_jax.data.corpus import Corpus
from bert_jax.data.masking import target_counts
from bert_jax.data.pretraining import BatchSource, PretrainingData


@dataclass(frozen=True)
class Diagnosis:
    """What was counted, as (name, value) to show, and what a person should look at."""

    facts: list[tuple[str, str]]
    warnings: list[str]


def examine(data: PretrainingData, cfg: TrainConfig, source: BatchSource) -> Diagnosis:
    """Facts and warnings about a run's data; nothing is changed and no device is touched."""
    facts, warnings = _text(data.training)
    facts += _predictions(data.training, cfg)
    warnings += _repeats(data.training)
    warnings += _leaks(data)
    mask_facts, mask_warnings = _masks(source, cfg)
    epochs = cfg.num_steps * cfg.batch_size / max(1, len(data.training.train))
    facts += [("rows", f"{len(data.training.train):,} for training, {len(data.held_out):,} held out")]
    facts += [("epochs", f"{epochs:.2f}"), *mask_facts]
    if epochs > 100:
        warnings.append(f"the run goes {epochs:.0f} times through its {len(data.training.train):,} rows: it may learn them by heart")
    return Diagnosis(facts, warnings + mask_warnings)


def _share(part: float, whole: float) -> str:
    return f"{part / max(1, whole):.2%}"


def _text(corpus: Corpus) -> tuple[list[tuple[str, str]], list[str]]:
    s = corpus.summary
    slots = sum(s["rows"]) * s["max_seq_length"]
    facts = [
        ("files", f"{len(s['files']):,}"),
        ("documents", f"{s['documents']:,}, {s['held_out_documents']:,} of them held out"),
        ("tokens", f"{s['text_tokens']:,}"),
        ("examples", f"{s['examples']:,}"),
        ("padding", _share(slots - s["real_tokens"], slots)),
        ("unknown tokens", _share(s["unknown_tokens"], s["text_tokens"])),
        ("duplicated documents", f"{s['duplicated_documents']:,}"),
    ]
    warnings = []
    if s["unknown_tokens"] > 0.01 * s["text_tokens"]:
        warnings.append(f"{_share(s['unknown_tokens'], s['text_tokens'])} of the tokens are unknown: is this the text's vocabulary?")
    for path, count in list(s["skipped"].items())[:10]:
        warnings.append(f"{count:,} documents of {path} were skipped; the first: {s['skipped_first'][path]}")
    return facts, warnings


def _predictions(corpus: Corpus, cfg: TrainConfig) -> list[tuple[str, str]]:
    """How many predictions the P slots of a row cut off."""
    rows = np.array(corpus.summary["row_lengths"])
    wanted = target_counts(np.arange(len(rows)), cfg.masking.rate)
    cut = np.maximum(0, wanted - cfg.masking.num_slots(corpus.summary["max_seq_length"]))
    return [("predictions cut by P", f"{_share((cut * rows).sum(), (wanted * rows).sum())}")]


def _repeats(corpus: Corpus) -> list[str]:
    """Duplicated documents and sentences: a model that sees a text again and again learns that text."""
    warnings = []
    _, first, inverse = np.unique(corpus.document_hashes, return_index=True, return_inverse=True)
    copies = first[inverse] != np.arange(len(inverse))
    if copies.mean() > 0.01:
        by_file = np.bincount(corpus.document_files[copies])
        worst = ", ".join(f"{corpus.summary['files'][i]} ({by_file[i]:,})" for i in np.argsort(-by_file)[:3] if by_file[i])
        warnings.append(f"{copies.sum():,} documents ({copies.mean():.1%}) are copies of earlier ones, most in {worst}")
    sentences = len(corpus.sentence_hashes)
    repeated = sentences - len(np.unique(corpus.sentence_hashes))
    if repeated > 0.2 * sentences:
        warnings.append(f"{repeated:,} of {sentences:,} sentences ({repeated / sentences:.0%}) are repetitions: is this boilerplate?")
    return warnings


def _leaks(data: PretrainingData) -> list[str]:
    """Held-out text that is also trained on: the evaluation would flatter."""
    if data.evaluation is not data.training:
        trained, held_out = data.training.sentence_hashes, data.evaluation.sentence_hashes
    else:
        side = np.repeat(data.training.document_held_out, data.training.document_sentences)
        trained, held_out = data.training.sentence_hashes[~side], data.training.sentence_hashes[side]
    shared = np.isin(held_out, trained).mean() if len(held_out) else 0
    where = ", ".join(data.evaluation.summary["files"][:3])
    return [f"{shared:.0%} of the held-out sentences ({where}) are also in the training text"] if shared > 0.1 else []


def _masks(source: BatchSource, cfg: TrainConfig) -> tuple[list[tuple[str, str]], list[str]]:
    """What masking does to a few real batches."""
    tokens = predicted = masked = changed = 0
    for step in range(4):
        batch = source.train(step)
        used = batch["masked_weights"] > 0
        now = np.take_along_axis(batch["input_ids"], batch["masked_positions"], axis=1)
        tokens += int((batch["sequence_ids"] > 0).sum())
        predicted += int(used.sum())
        masked += int((used & (now == source.tokenizer.mask_id)).sum())
        changed += int((used & (now != batch["masked_ids"])).sum())
    fact = f"{_share(predicted, tokens)} of tokens: {_share(masked, predicted)} [MASK], {_share(changed - masked, predicted)} random"
    warnings = []
    if abs(predicted / max(1, tokens) - cfg.masking.rate) > 0.25 * cfg.masking.rate:
        warnings.append(f"{_share(predicted, tokens)} of the tokens are predicted where masking.rate={cfg.masking.rate} asks for more")
    return [("predicted", fact)], warnings
