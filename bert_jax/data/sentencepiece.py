"""SentencePiece .model files as `tokenizers.Tokenizer`: reading, converting, training. No jax in here.

Three conversions: `convert` keeps to SentencePiece itself; `convert_fairseq` (XLM-R) and `convert_albert` keep to what
Hugging Face builds around the pieces for these two families, because the published models are used that way.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from bert_jax.config import InputError
from bert_jax.formats.protobuf import fields

# Role -> the names it goes by, in order: BERT's, then those of RoBERTa and XLM-R. ALBERT has some of each.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}

_SPACES = re.compile(r"\s*")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # SentencePiece.Type


class _Model(NamedTuple):
    """What a .model says: of each piece its name, score and type, and two specs by field number."""

    names: list[str]
    scores: list[float]
    kinds: list[int]
    unk_id: int
    trainer: dict[int, Any]
    norm: dict[int, Any]

    def of_kind(self, *kinds: int) -> list[str]:
        return [name for name, kind in zip(self.names, self.kinds, strict=True) if kind in kinds]


def _parse(model: bytes, source: str) -> _Model:
    """Reads a .model (field numbers: sentencepiece_model.proto); InputError if it is none."""
    try:
        proto = fields(model)
        pieces = [fields(piece) for piece in proto[1]]
        names = [piece[1][0].decode() for piece in pieces]
        # Nine digits hold a float32 and come back from JSON unchanged.
        scores = [float(f"{piece[2][0] if piece[2] else 0.0:.9g}") for piece in pieces]
        kinds = [piece[3][0] if piece[3] else _NORMAL for piece in pieces]
        trainer, norm = ({n: v[-1] for n, v in fields(proto[number][-1]).items()} for number in (2, 3))
        parsed = _Model(names, scores, kinds, kinds.index(_UNKNOWN), trainer, norm)
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{source}: not a SentencePiece model ({error!r})") from error
    try:
        if norm.get(2):
            normalizers.Precompiled(norm[2]).normalize_str("a é ﬁ")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, and Rust's panics, which are not even that
        raise InputError(f"{source}: not a SentencePiece model (precompiled_charsmap: {error})") from None
    return parsed


def convert(model: bytes, source: str) -> tokenizers.Tokenizer:
    """A SentencePiece model as a `tokenizers.Tokenizer`.

    The ids are SentencePiece's own, but for these: a combining mark or jamo that follows a composed or compatibility
    character, or another mark out of canonical order (NFKC text has none); U+0344, U+FFFF and characters younger than the
    model's Unicode; unigram segmentations that tie to within float32 (runs of one character: `=====`); bpe pieces that
    overlapping pairs can give (`ababa`); a user-defined token of a role, spelled out in text; and, in a model that
    keeps control characters or white space as they come, U+0001 and a text of nothing else than characters it drops.
    """
    names, scores, kinds, unk_id, trainer, norm = parsed = _parse(model, source)
    unigram, fallback = trainer.get(3, 1) == 1, bool(trainer.get(35, 0))
    normal = {name: score for name, score, kind in zip(names, scores, kinds, strict=True) if kind == _NORMAL}
    user = parsed.of_kind(_USER_DEFINED)
    frozen = [name for name in user if len(name) > 1 and not any(name in usual for usual in ROLES.values())]
    for unsupported, what in (
        (trainer.get(3, 1) not in (1, 2), "word and character models"),
        (trainer.get(24, 0), "treat_whitespace_as_suffix"),
        (_UNUSED in kinds, "unused pieces"),
        (not unigram and frozen, f"user-defined pieces in a bpe model ({' '.join(frozen[:5])})"),
    ):
        if unsupported:
            raise InputError(f"{source}: {what} cannot be converted exactly; train another model, or with type unigram")
    if unigram:
        top = max(normal.values(), default=0.0)
        boosted = {name: float(f"{len(name.encode()) * top - 0.1:.9g}") for name in user}  # as unigram_model.cc does
        scored = [(name, boosted.get(name, score)) for name, score in zip(names, scores, strict=True)]
        engine = tokenizers.Tokenizer(models.Unigram(scored, unk_id, fallback))
    else:
        pairs = ((name[:cut], name[cut:]) for name in normal for cut in range(1, len(name)))
        merges = [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
        merges.sort(key=lambda pair: -normal[pair[0] + pair[1]])
        vocab = {name: id for id, name in enumerate(names)}
        engine = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=names[unk_id], fuse_unk=True, byte_fallback=fallback))
    engine.add_special_tokens(parsed.of_kind(_UNKNOWN, _CONTROL))
    engine.normalizer = _sentencepiece_normalizer(norm)
    crossing = any("▁" in name[1:] for name in names)
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=not crossing)
    engine.decoder = decoders.Metaspace(prepend_scheme="always" if norm.get(3, 1) else "never")
    if fallback:
        then_split(engine, "<(?=0x[0-9A-F]{2}>)")  # the name of a byte, in text, is not that byte
        engine.decoder = decoders.Sequence([decoders.ByteFallback(), engine.decoder])
    return engine


def words_as_hugging_face(add_prefix_space: bool = True) -> pre_tokenizers.PreTokenizer:
    """Words between white space, each with `▁` before it."""
    prefix = pre_tokenizers.Metaspace(prepend_scheme="always" if add_prefix_space else "never")
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), prefix])


def _pieces_over_words(parsed: _Model, source: str, scored: list[tuple[str, float]], unk_id: int) -> tokenizers.Tokenizer:
    """The pieces `scored` over words cut at white space, each with `▁` before it; the mask takes the space before it."""
    if parsed.trainer.get(3, 1) != 1:
        raise InputError(f"{source}: a model of this family is of type unigram")
    engine = tokenizers.Tokenizer(models.Unigram(scored, unk_id, False))
    engine.pre_tokenizer = words_as_hugging_face()
    engine.decoder = decoders.Metaspace(prepend_scheme="always")
    vocab = {name for name, _ in scored}
    special = {*parsed.of_kind(_UNKNOWN, _CONTROL), *(name for usual in ROLES.values() for name in usual)} & vocab
    engine.add_special_tokens([AddedToken(name, lstrip=name in ROLES["mask"], special=True) for name in sorted(special)])
    return engine


def convert_fairseq(model: bytes, source: str) -> tokenizers.Tokenizer:
    """XLM-R's sentencepiece.bpe.model with fairseq's ids.

    `<s>` `<pad>` `</s>` `<unk>` are 0 to 3, piece i of the model is i + 1, `<mask>` is the last. Ids are those that
    transformers v5 gives from this file, but for unigram segmentations that tie to within float32.

    Raises:
      InputError: `model` is no unigram SentencePiece model whose first pieces are `<unk>` `<s>` `</s>`.
    """
    parsed = _parse(model, source)
    if parsed.names[:3] != ["<unk>", "<s>", "</s>"]:
        raise InputError(f"{source}: fairseq's models begin with <unk> <s> </s>, this one with {' '.join(parsed.names[:3])}")
    scored = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    scored += [*zip(parsed.names[3:], parsed.scores[3:], strict=True), ("<mask>", 0.0)]
    engine = _pieces_over_words(parsed, source, scored, unk_id=3)
    if parsed.norm.get(2):
        engine.normalizer = normalizers.Precompiled(parsed.norm[2])
    return engine


def convert_albert(model: bytes, source: str, lowercase: bool, keep_accents: bool) -> tokenizers.Tokenizer:
    """ALBERT's spiece.model, with the normalisation that Hugging Face puts before the model's own.

    Ids are those of the published tokenizer.json: user-defined pieces, as `(`, are pieces like others. (From a bare
    spiece.model transformers v5 cuts the text at each of them instead, which no ALBERT has been trained with.) As in
    transformers v5, pieces of digits and a comma, as `9,`, are not cut up.

    Raises:
      InputError: `model` is no unigram SentencePiece model.
    """
    parsed = _parse(model, source)
    engine = _pieces_over_words(parsed, source, [*zip(parsed.names, parsed.scores, strict=True)], parsed.unk_id)
    engine.normalizer = albert_normalizer(parsed.norm.get(2, b""), lowercase, keep_accents)
    return engine


def albert_normalizer(charsmap: bytes, lowercase: bool, keep_accents: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    if not keep_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    return normalizers.Sequence(steps)


def _sentencepiece_normalizer(norm: dict[int, Any]) -> normalizers.Normalizer:
    dummy_prefix, one_space = norm.get(3, 1), norm.get(4, 1)
    replace = normalizers.Replace
    steps: list[normalizers.Normalizer] = []
    if norm.get(2):
        # `Precompiled` looks up whole grapheme clusters and takes the shortest rule: case folding would drop the accent
        # of E + U+0301. So compose first, which is what the map's long rules do, and cut clusters apart with U+0001
        # (not at the very start: the alignments of `tokenizers` panic).
        charsmap = normalizers.Precompiled(norm[2])
        if charsmap.normalize_str("ﬁe\u0301") == "fié":
            # The points of Hebrew and Arabic do not compose; the cut keeps the order they came in.
            steps += [replace(Regex(r"(?!\A)(?=[\u0591-\u05c7\u064b-\u0652\u0670])"), "\x01"), normalizers.NFKC()]
        steps += [replace(Regex(r"(?!\A)(?=[^\x00-\x7f]|\n)"), "\x01"), charsmap, replace("\x01", "")]
        tilde = "\uff5e"  # the one compatibility character that such a map may keep
        if charsmap.normalize_str(tilde) == tilde:
            steps = [replace(tilde, "\uffff"), *steps, replace("\uffff", tilde)]
    if one_space:
        steps += [replace(Regex(" {2,}"), " "), replace(Regex(r"\A +"), "")]
    if dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if one_space:
        steps.append(replace(Regex(r"[ ▁]+\z"), ""))
    return normalizers.Sequence(steps)


def then_split(engine: tokenizers.Tokenizer, pattern: str) -> None:
    """Adds a cut after each match of `pattern` to the splitting before the model."""
    steps = [] if engine.pre_tokenizer is None else [engine.pre_tokenizer]
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
    engine.pre_tokenizer = pre_tokenizers.Sequence([*steps, cut])


def require_size(vocab_size: int, possible: int) -> None:
    if vocab_size != possible:
        bound, more = ("give at most", "more text or ") if possible < vocab_size else ("need at least", "")
        raise InputError(f"vocab_size={vocab_size}: these texts {bound} {possible} tokens; give {more}that as the size")


def _cut_line(line: str, longest: int) -> Iterator[str]:
    """Pieces of at most `longest` characters, cut before white space, which is left out there."""
    start = 0
    while len(line) - start > longest:
        cut = max(line.rfind(" ", start + 1, start + longest), line.rfind("\t", start + 1, start + longest))
        cut = cut if cut > start else start + longest
        yield line[start:cut]
        start = _SPACES.match(line, cut).end()  # type: ignore[union-attr]
    yield line[start:]


def lines(text: str, longest: int = 1000) -> Iterator[str]:
    """Lines of at most `longest` characters, cut at white space, without what makes SentencePiece skip a line.

    It skips those of more than 4192 bytes, with NUL, and with its own sign for unknown, `▅`.
    """
    for line in text.replace("\x00", " ").replace("▅", " ").splitlines():
        yield from (piece for piece in _cut_line(line, longest) if piece.strip())


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """The `lines` of all texts. Raises InputError where there is none."""
    empty = True
    for text in texts:
        for line in lines(text):
            empty = False
            yield line
    if empty:
        raise InputError("no text to train a vocabulary on: every line is empty")


def train(texts: Iterable[str], vocab_size: int, kind: str, lowercase: bool) -> bytes:
    import sentencepiece

    model, failed = io.BytesIO(), list[BaseException]()

    def passed_on() -> Iterator[str]:
        try:
            yield from training_lines(texts)
        except (Exception, KeyboardInterrupt) as error:
            failed.append(error)  # of which SentencePiece passes on the text alone
            raise

    names = {"pad": "[PAD]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]"}
    ids: Any = {f"{name}_id": id for id, name in enumerate(names)}
    pieces: Any = {f"{name}_piece": piece for name, piece in names.items()}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=passed_on(),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            control_symbols=["[MASK]"],
            **ids,
            **pieces,
            num_threads=16,  # the result depends on it, and not on the cores there are
            minloglevel=2,
        )
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        if possible := re.search(r"(?:value <= |required_chars\. \d+ vs )(\d+)", str(error)):
            require_size(vocab_size, int(possible[1]))
        raise InputError(f"vocab_size={vocab_size}: SentencePiece: {error}") from error
    return model.getvalue()
