"""SentencePiece .model files as `tokenizers.Tokenizer`.

`convert` follows SentencePiece itself; `convert_fairseq` (XLM-R, CamemBERT), `convert_albert` and `convert_pieces` (DeBERTa-v2,
RemBERT) follow what Hugging Face builds around the pieces for these families, because their published models are used that way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from bert_jax.config import InputError
from bert_jax.formats.protobuf import fields

ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""The usual names of each role, in the order they are tried: BERT's, then RoBERTa's and XLM-R's. ALBERT has some of each."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""The types of pieces (ModelProto.SentencePiece.Type)."""
_UNIGRAM, _BPE = 1, 2
"""The types of models that are converted (TrainerSpec.ModelType)."""


@dataclass(frozen=True)
class _Model:
    """The content of a .model: of each piece its name, score and type, and the fields of the two specs that count."""

    names: list[str]
    scores: list[float]
    types: list[int]
    unk_id: int
    model_type: int
    byte_fallback: bool
    space_as_suffix: bool
    charsmap: bytes
    dummy_prefix: bool
    one_space: bool

    def of_type(self, *types: int) -> list[str]:
        return [name for name, each in zip(self.names, self.types, strict=True) if each in types]


def _parse(model: bytes, source: str) -> _Model:
    """Reads a .model (field numbers: sentencepiece_model.proto). Raises InputError if it is none."""
    try:
        proto = fields(model)
        pieces = [fields(piece) for piece in proto[1]]
        names = [piece[1][0].decode() for piece in pieces]
        # Nine digits hold a float32 and come back from JSON unchanged.
        scores = [float(f"{piece[2][0] if piece[2] else 0.0:.9g}") for piece in pieces]
        types = [piece[3][0] if piece[3] else _NORMAL for piece in pieces]
        trainer, norm = ({number: values[-1] for number, values in fields(proto[spec][-1]).items()} for spec in (2, 3))
        parsed = _Model(
            names, scores, types, types.index(_UNKNOWN), trainer.get(3, _UNIGRAM), bool(trainer.get(35, 0)),
            bool(trainer.get(24, 0)), norm.get(2, b""), bool(norm.get(3, 1)), bool(norm.get(4, 1)),
        )  # fmt: skip
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{source}: not a SentencePiece model ({error!r})") from error
    try:
        if parsed.charsmap:
            normalizers.Precompiled(parsed.charsmap).normalize_str("a é ﬁ")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exceptions and Rust's panics, which derive from BaseException
        raise InputError(f"{source}: not a SentencePiece model (precompiled_charsmap: {error})") from None
    return parsed


def convert(model: bytes, source: str) -> tokenizers.Tokenizer:
    """Converts a SentencePiece model.

    The ids are SentencePiece's own, except for: a combining mark or jamo that follows a composed or compatibility character, or
    another mark out of canonical order (NFKC text has none); U+0344, U+FFFF and characters younger than the model's Unicode;
    unigram segmentations that tie to within float32 (runs of one character: `=====`); bpe pieces that overlapping pairs can give
    (`ababa`); a user-defined token of a role, spelled out in text; and, in a model that keeps control characters or white space
    as they come, U+0001 and a text that holds only characters it drops.

    Args:
      model: the content of the file.
      source: its name, for errors.

    Raises:
      InputError: `model` is no SentencePiece model, or cannot be converted exactly.
    """
    parsed = _parse(model, source)
    normal = {name: score for name, score, each in zip(parsed.names, parsed.scores, parsed.types, strict=True) if each == _NORMAL}
    _refuse_inexact(parsed, source)
    if parsed.model_type == _UNIGRAM:
        top = max(normal.values(), default=0.0)
        user = parsed.of_type(_USER_DEFINED)
        boosted = {name: float(f"{len(name.encode()) * top - 0.1:.9g}") for name in user}  # as unigram_model.cc does
        scored = [(name, boosted.get(name, score)) for name, score in zip(parsed.names, parsed.scores, strict=True)]
        engine = tokenizers.Tokenizer(models.Unigram(scored, parsed.unk_id, parsed.byte_fallback))
    else:
        pairs = ((name[:cut], name[cut:]) for name in normal for cut in range(1, len(name)))
        merges = [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
        merges.sort(key=lambda pair: -normal[pair[0] + pair[1]])
        vocab, unk = {name: id for id, name in enumerate(parsed.names)}, parsed.names[parsed.unk_id]
        bpe = models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=parsed.byte_fallback)
        engine = tokenizers.Tokenizer(bpe)
    engine.add_special_tokens(parsed.of_type(_UNKNOWN, _CONTROL))
    engine.normalizer = _sentencepiece_normalizer(parsed)
    crossing = any("▁" in name[1:] for name in parsed.names)
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=not crossing)
    engine.decoder = decoders.Metaspace(prepend_scheme="always" if parsed.dummy_prefix else "never")
    if parsed.byte_fallback:
        split_after(engine, "<(?=0x[0-9A-F]{2}>)")  # the name of a byte, in text, is not that byte
        engine.decoder = decoders.Sequence([decoders.ByteFallback(), engine.decoder])
    return engine


def _refuse_inexact(parsed: _Model, source: str) -> None:
    """Raises InputError for a model whose ids `tokenizers` cannot give."""
    user = parsed.of_type(_USER_DEFINED) if parsed.model_type == _BPE else []
    frozen = [name for name in user if len(name) > 1 and not any(name in usual for usual in ROLES.values())]
    unsupported = {
        "word and character models": parsed.model_type not in (_UNIGRAM, _BPE),
        "treat_whitespace_as_suffix": parsed.space_as_suffix,
        "unused pieces": _UNUSED in parsed.types,
        f"user-defined pieces in a bpe model ({' '.join(frozen[:5])})": bool(frozen),
    }
    for what, found in unsupported.items():
        if found:
            raise InputError(f"{source}: {what} cannot be converted exactly; train another model, or with type unigram")


def words_as_hugging_face(add_prefix_space: bool = True) -> pre_tokenizers.PreTokenizer:
    """Makes a cut at white space, with `▁` before each word."""
    prefix = pre_tokenizers.Metaspace(prepend_scheme="always" if add_prefix_space else "never")
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), prefix])


def _require_unigram(parsed: _Model, source: str) -> None:
    if parsed.model_type != _UNIGRAM:
        raise InputError(f"{source}: a model of this family is of type unigram")


def _pieces_over_words(parsed: _Model, source: str, scored: list[tuple[str, float]], unk_id: int) -> tokenizers.Tokenizer:
    """Makes a unigram tokenizer over `words_as_hugging_face`, whose mask takes the space before it."""
    _require_unigram(parsed, source)
    engine = tokenizers.Tokenizer(models.Unigram(scored, unk_id, False))
    engine.pre_tokenizer = words_as_hugging_face()
    engine.decoder = decoders.Metaspace(prepend_scheme="always")
    vocab = {name for name, _ in scored}
    special = {*parsed.of_type(_UNKNOWN, _CONTROL), *(name for usual in ROLES.values() for name in usual)} & vocab
    engine.add_special_tokens([AddedToken(name, lstrip=name in ROLES["mask"], special=True) for name in sorted(special)])
    return engine


XLM_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>"), 3
CAMEMBERT = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1
"""Fairseq's first tokens, and the first piece of the model that follows them."""


def convert_fairseq(model: bytes, source: str, specials: tuple[tuple[str, ...], int] = XLM_ROBERTA) -> tokenizers.Tokenizer:
    """Converts XLM-R's or CamemBERT's sentencepiece.bpe.model, with fairseq's ids.

    `<s>` `<pad>` `</s>` `<unk>` are 0 to 3, piece i of the model is i + 1, `<mask>` is the last. In CamemBERT piece i is i + 4,
    behind tokens that no text gives. Ids are those that transformers v5 gives from this file, except for unigram
    segmentations that tie to within float32.

    Raises:
      InputError: `model` is no unigram SentencePiece model whose first pieces are `<unk>` `<s>` `</s>`.
    """
    parsed = _parse(model, source)
    if parsed.names[:3] != ["<unk>", "<s>", "</s>"]:
        raise InputError(f"{source}: fairseq's models begin with <unk> <s> </s>, this one with {' '.join(parsed.names[:3])}")
    first, start = specials
    scored = [(name, -100.0 * (name == "<unk>NOTUSED")) for name in first]
    scored += [*zip(parsed.names[start:], parsed.scores[start:], strict=True), ("<mask>", 0.0)]
    engine = _pieces_over_words(parsed, source, scored, unk_id=3)
    if parsed.charsmap:
        engine.normalizer = normalizers.Precompiled(parsed.charsmap)
    return engine


def convert_albert(model: bytes, source: str, lowercase: bool, keep_accents: bool) -> tokenizers.Tokenizer:
    """Converts ALBERT's spiece.model, with the normalization that Hugging Face puts before the model's own.

    Ids are those of the published tokenizer.json: user-defined pieces, such as `(`, are pieces like others. (From a bare
    spiece.model transformers v5 cuts the text at each of them instead, which no ALBERT has been trained with.) As in
    transformers v5, pieces of digits and a comma, such as `9,`, are not cut up.

    Raises:
      InputError: `model` is no unigram SentencePiece model.
    """
    parsed = _parse(model, source)
    engine = _pieces_over_words(parsed, source, [*zip(parsed.names, parsed.scores, strict=True)], parsed.unk_id)
    engine.normalizer = albert_normalizer(parsed.charsmap, lowercase, keep_accents)
    return engine


def convert_pieces(model: bytes, source: str) -> tuple[tokenizers.Tokenizer, bytes]:
    """Converts the pieces of DeBERTa-v2's or RemBERT's model, with its own ids, without normalizer and pre-tokenizer.

    Control and user-defined pieces are added tokens, which cut a text wherever they stand in it.

    Returns:
      The tokenizer, and the map of characters of the model's own normalization.

    Raises:
      InputError: `model` is no unigram SentencePiece model.
    """
    parsed = _parse(model, source)
    _require_unigram(parsed, source)
    engine = tokenizers.Tokenizer(models.Unigram([*zip(parsed.names, parsed.scores, strict=True)], parsed.unk_id, False))
    engine.add_special_tokens(parsed.of_type(_UNKNOWN, _CONTROL))
    engine.add_tokens([AddedToken(name, normalized=False) for name in parsed.of_type(_USER_DEFINED)])
    return engine, parsed.charsmap


def albert_normalizer(charsmap: bytes, lowercase: bool, keep_accents: bool, one_space: bool = False) -> normalizers.Normalizer:
    """Makes ALBERT's normalization, with `one_space` RemBERT's; `charsmap` is that of the .model."""
    steps: list[normalizers.Normalizer] = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    if one_space:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if not keep_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    return normalizers.Sequence(steps)


def _sentencepiece_normalizer(parsed: _Model) -> normalizers.Normalizer:
    replace = normalizers.Replace
    steps: list[normalizers.Normalizer] = []
    if parsed.charsmap:
        # `Precompiled` looks up whole grapheme clusters and takes the shortest rule: case folding would drop the accent in
        # E + U+0301. So compose first, which is what the map's long rules do, and cut clusters apart with U+0001
        # (not at the very start: the alignments of `tokenizers` panic).
        charsmap = normalizers.Precompiled(parsed.charsmap)
        if charsmap.normalize_str("ﬁe\u0301") == "fié":
            # The points of Hebrew and Arabic do not compose; the cut keeps the order they came in.
            steps += [replace(Regex(r"(?!\A)(?=[\u0591-\u05c7\u064b-\u0652\u0670])"), "\x01"), normalizers.NFKC()]
        steps += [replace(Regex(r"(?!\A)(?=[^\x00-\x7f]|\n)"), "\x01"), charsmap, replace("\x01", "")]
        tilde = "\uff5e"  # the one compatibility character that such a map may keep
        if charsmap.normalize_str(tilde) == tilde:
            steps = [replace(tilde, "\uffff"), *steps, replace("\uffff", tilde)]
    if parsed.one_space:
        steps += [replace(Regex(" {2,}"), " "), replace(Regex(r"\A +"), "")]
    if parsed.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if parsed.one_space:
        steps.append(replace(Regex(r"[ ▁]+\z"), ""))
    return normalizers.Sequence(steps)


def split_after(engine: tokenizers.Tokenizer, pattern: str) -> None:
    """Adds a cut after each match of `pattern` to the engine's pre-tokenizer."""
    steps = [] if engine.pre_tokenizer is None else [engine.pre_tokenizer]
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
    engine.pre_tokenizer = pre_tokenizers.Sequence([*steps, cut])
