"""Trains vocabularies: SentencePiece's unigram and bpe, and WordPiece."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import tokenizers
from tokenizers import normalizers, trainers

from bert_jax.config import InputError, did_you_mean
from bert_jax.data import sentencepiece, tokenizer_classes

VocabularyKind = Literal["unigram", "bpe", "wordpiece"]
_SPACES = re.compile(r"\s*")


def train(texts: Iterable[str], vocab_size: int, kind: VocabularyKind, lowercase: bool) -> tokenizers.Tokenizer:
    """Trains a vocabulary as `Tokenizer.train` describes, without a template."""
    if kind not in (kinds := get_args(VocabularyKind)):
        raise InputError(f"kind={kind!r}: expected one of {', '.join(kinds)}{did_you_mean(kind, kinds)}")
    if kind == "wordpiece":
        return _train_wordpiece(texts, vocab_size, lowercase)
    return sentencepiece.convert(train_sentencepiece(texts, vocab_size, kind, lowercase), "trained model")


def _train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    special = list(tokenizer_classes.BERT_ROLES.values())
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    engine = tokenizer_classes.wordpiece({name: id for id, name in enumerate(special)}, normalizer, "[UNK]")
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    engine.train_from_iterator(training_lines(texts), trainer)
    _require_size(vocab_size, engine.get_vocab_size())
    return engine


def train_sentencepiece(texts: Iterable[str], vocab_size: int, kind: str, lowercase: bool) -> bytes:
    """Returns a SentencePiece model, trained after NFKC, with case folded if `lowercase`."""
    import sentencepiece

    model, failed = io.BytesIO(), list[BaseException]()

    def remember_failure() -> Iterator[str]:
        try:
            yield from training_lines(texts)
        except (Exception, KeyboardInterrupt) as error:
            failed.append(error)  # SentencePiece keeps only its text
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=remember_failure(),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece="[PAD]", unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]", control_symbols=["[MASK]"],
            num_threads=16,  # the result depends on this number, and not on how many cores there are
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        if possible := re.search(r"(?:value <= |required_chars\. \d+ vs )(\d+)", str(error)):
            _require_size(vocab_size, int(possible[1]))
        raise InputError(f"vocab_size={vocab_size}: SentencePiece: {error}") from error
    return model.getvalue()


def _require_size(vocab_size: int, possible: int) -> None:
    if vocab_size != possible:
        bound, more = ("give at most", "more text or ") if possible < vocab_size else ("need at least", "")
        raise InputError(f"vocab_size={vocab_size}: these texts {bound} {possible} tokens; give {more}that as the size")


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields the `lines` of all texts. Raises InputError if there are none."""
    empty = True
    for text in texts:
        for line in lines(text):
            empty = False
            yield line
    if empty:
        raise InputError("no text to train a vocabulary on: every line is empty")


def lines(text: str, longest: int = 1000) -> Iterator[str]:
    """Yields lines of at most `longest` characters, cut at white space.

    SentencePiece would skip lines of more than 4192 bytes, with NUL, or with `▅`, its sign for unknown characters.
    """
    for line in text.replace("\x00", " ").replace("▅", " ").splitlines():
        yield from (piece for piece in _cut_line(line, longest) if piece.strip())


def _cut_line(line: str, longest: int) -> Iterator[str]:
    """Yields pieces of at most `longest` characters, cut at white space, which is left out there."""
    start = 0
    while len(line) - start > longest:
        cut = max(line.rfind(" ", start + 1, start + longest), line.rfind("\t", start + 1, start + longest))
        cut = cut if cut > start else start + longest
        yield line[start:cut]
        start = _SPACES.match(line, cut).end()  # type: ignore[union-attr]
    yield line[start:]
