"""Checks the text, the vocabulary and the masks of a run for reasons why it might not learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.config import Span, TrainConfig, spans
from bert_jax.data import repeats
from bert_jax.data.corpus import Corpus
from bert_jax.data.masking import target_counts
from bert_jax.data.pretraining import BatchSource, PretrainingData


@dataclass(frozen=True)
class Diagnosis:
    """Facts as (name, value) to show, and warnings."""

    facts: list[tuple[str, str]]
    warnings: list[str]


def examine(data: PretrainingData, cfg: TrainConfig, others: Mapping[str, Corpus]) -> Diagnosis:
    """Returns facts and warnings about a run's data and the `others`, the texts of eval_sources, without touching a device.

    Facts about masks are those of the first phase.
    """
    phases = list(zip(spans(cfg), data.batches(cfg), strict=True))
    own = phases[0][0].cfg
    facts, warnings = _text(data.training)
    facts += _predictions(data.other_lengths.get(own.data.max_seq_length, data.training), own)
    warnings += _repeats(data.training)
    for name, text in {"": data.evaluation, **others}.items():
        warnings += _leaks(data.training, name, text)
    masks = [_masks(source) for _, source in phases]
    by_source = _epochs(data, cfg, phases)
    facts += [("rows", f"{len(data.training.train):,} for training, {len(data.held_out):,} held out")]
    shown = ", ".join(f"{name} {number:.2f}".strip() for name, number in by_source.items())
    facts += [("epochs", shown), masks[0][0]]
    most = max(by_source, key=by_source.__getitem__)
    if by_source[most] > 100:
        first, stop = data.training.sources[most]
        rows = f"the {stop - first:,} rows of {most}" if most else f"its {stop - first:,} rows"
        warnings.append(f"the run goes {by_source[most]:.0f} times through {rows}: it may learn them by heart")
    warnings += [span.naming(text) for (span, _), (_, text) in zip(phases, masks, strict=True) if text]
    return Diagnosis(facts, warnings)


def _epochs(data: PretrainingData, cfg: TrainConfig, phases: Sequence[tuple[Span, BatchSource]]) -> dict[str, float]:
    """Returns how often the run reads each source of its mixture, or the whole text under the empty name."""
    rows = dict.fromkeys(data.training.sources, 0.0)  # in units of rows of data.max_seq_length
    for span, source in phases:
        counts = source.order.counts([(span.until - span.begin) * source.batch_size])[0]
        for part, count in zip(source.parts, counts, strict=True):
            rows[part.name] += int(count) * source.max_seq_length / cfg.data.max_seq_length
    sizes = {name: max(1, stop - first) for name, (first, stop) in data.training.sources.items()}
    return {name: number / sizes[name] for name, number in rows.items()}


def _share(part: float, whole: float) -> str:
    return f"{part / max(1, whole):.2%}"


def _worst(corpus: Corpus, worst: list[list[int]]) -> str:
    return ", ".join(f"{corpus.summary['files'][i]} ({count:,})" for i, count in worst)


def _number(found: repeats.Repeats) -> str:
    return f"{'about ' * found['estimated']}{found['count']:,}"


def _text(corpus: Corpus) -> tuple[list[tuple[str, str]], list[str]]:
    s = corpus.summary
    slots = sum(s["rows"]) * s["max_seq_length"]
    facts = [
        ("files", f"{len(s['files']):,}"),
        (
            "parts of documents" if s.get("hold_out", [0, False])[1] else "documents",
            f"{s['documents']:,}, {s['held_out_documents']:,} of them held out",
        ),
        ("tokens", f"{s['text_tokens']:,}"),
        ("examples", f"{s['examples']:,}"),
        ("padding", _share(slots - s["real_tokens"], slots)),
        ("unknown tokens", _share(s["unknown_tokens"], s["text_tokens"])),
        ("duplicated documents", _number(s["repeats"]["documents"])),
    ]
    warnings = []
    if s["unknown_tokens"] > 0.01 * s["text_tokens"]:
        worst = _worst(corpus, s["repeats"]["unknown"])
        share = f"{s['unknown_tokens']:,} tokens ({_share(s['unknown_tokens'], s['text_tokens'])})"
        warnings.append(f"{share} are unknown, most in {worst}: is this the text's vocabulary?")
    skipped, first = s["skipped"], s["skipped_first"]
    warnings += _by_file("documents", skipped, lambda path: f"were skipped; the first: {first[path]}", "were skipped")
    left_out = "have no text (null, empty or blank) and are left out"
    warnings += _by_file("records", s.get("empty", {}), lambda path: left_out, "have no text and are left out")  # older: none
    if s["columns"] > s["max_seq_length"] and s["documents"] < 4 * len(s["rows"]):
        warnings.append(
            f"{s['documents']:,} documents in {len(s['rows']):,} shards: random next sentences come from the same shard, so "
            "often from the same document; cut the text into more documents (data.documents), or use full_sentences"
        )
    return facts, warnings


def _by_file(what: str, counts: dict[str, int], note: Callable[[str], str], more: str) -> list[str]:
    """Returns a warning for each of the ten files with the largest counts, and one for the others."""
    worst = sorted(counts.items(), key=lambda item: -item[1])
    warnings = [f"{count:,} {what} of {path} {note(path)}" for path, count in worst[:10]]
    rest = worst[10:]
    return warnings + [f"{sum(n for _, n in rest):,} {what} of {len(rest):,} more files {more}"] * bool(rest)


def _predictions(corpus: Corpus, cfg: TrainConfig) -> list[tuple[str, str]]:
    """Returns the share of predictions that the P slots of a row cut off."""
    rows = np.array(corpus.summary["row_lengths"])
    wanted = target_counts(np.arange(len(rows)), cfg.masking.rate)
    cut = np.maximum(0, wanted - cfg.masking.num_slots(corpus.summary["max_seq_length"]))
    return [("predictions cut by P", f"{_share((cut * rows).sum(), (wanted * rows).sum())}")]


def _repeats(corpus: Corpus) -> list[str]:
    """Warns of duplicated documents and sentences: a model that sees a text again and again learns it by heart."""
    warnings, documents, sentences = [], *(corpus.summary["repeats"][name] for name in ("documents", "sentences"))
    if documents["share"] > 0.01:
        worst = _worst(corpus, documents["worst"])
        warnings.append(f"{_number(documents)} documents ({documents['share']:.1%}) are copies of earlier ones, most in {worst}")
    if sentences["share"] > 0.2:
        worst = _worst(corpus, sentences["worst"])
        share = f"{_number(sentences)} of {sentences['of']:,} sentences ({sentences['share']:.0%})"
        warnings.append(f"{share} are repetitions, most in {worst}: is this boilerplate?")
    return warnings


def _leaks(trained: Corpus, name: str, text: Corpus) -> list[str]:
    """Warns of held-out text that is also trained on: the evaluation would be too good. `name` is that in eval_sources."""
    if text is trained:
        found = trained.summary["repeats"]["leaked"]
    else:
        held_out = dataclasses.replace(text.sentences, held_out=np.ones(len(text.sentences.hashes), bool))
        found = repeats.leaked(trained.sentences, held_out)
    if found["share"] <= 0.1:
        return []
    what = f"held-out sentences of {name} (eval_sources)" if name else "held-out sentences"
    share = f"{_number(found)} of {found['of']:,} {what} ({found['share']:.0%})"
    return [f"{share} are also in the training text, most from {_worst(text, found['worst'])}"]


def _masks(source: BatchSource) -> tuple[tuple[str, str], str]:
    """Returns a fact about the first masks of a phase, and a warning or an empty string."""
    tokens = predicted = masked = changed = 0
    for step in range(source.begin, source.begin + 4):
        batch = source.masked(step)
        used = batch["masked_weights"] > 0
        now = np.take_along_axis(batch["input_ids"], batch["masked_positions"], axis=1)
        tokens += int((batch["sequence_ids"] > 0).sum())
        predicted += int(used.sum())
        masked += int((used & (now == source.tokenizer.mask_id)).sum())
        changed += int((used & (now != batch["masked_ids"])).sum())
    now_masked, now_random, share = _share(masked, predicted), _share(changed - masked, predicted), _share(predicted, tokens)
    fact = "predicted", f"{share} of tokens: {now_masked} [MASK], {now_random} random"
    if abs(predicted / max(1, tokens) - source.cfg.rate) <= 0.25 * source.cfg.rate:
        return fact, ""
    other = "fewer" if predicted > source.cfg.rate * tokens else "more"
    return fact, f"{share} of the tokens are predicted; masking.rate={source.cfg.rate} asks for {other}"
