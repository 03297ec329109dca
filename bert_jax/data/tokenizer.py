"""One face over every tokenizer file: text in, int32 ids out. No jax in here.

There is one engine, `tokenizers.Tokenizer`: vocab.txt, vocab.json + merges.txt and SentencePiece .model files are turned
into one on load, so the ids of training are the ids of the tokenizer.json that is exported, whatever was loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_jax.config import InputError, did_you_mean

Kind = Literal["unigram", "bpe", "wordpiece"]
# Role -> the names it goes by, in order: BERT's, then those of RoBERTa and XLM-R.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_BERT_NAMES = {role: names[0] for role, names in ROLES.items()}


class Tokenizer:
    """One face over tokenizer.json, vocab.txt, vocab.json + merges.txt and SentencePiece .model.

    Attributes:
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the five roles.
      vocab_size: V; ids are 0..V-1, added tokens included.
      special_ids: sorted ids of the roles and of every other special token.
      starts_word: bool [V], False where the token continues a word: `##` in WordPiece, no leading `▁` in SentencePiece
        (its unknown piece continues too), no leading `Ġ` in byte-level BPE. All True if the file marks no words.
    """

    def __init__(self, engine: tokenizers.Tokenizer, roles: dict[str, str] = _BERT_NAMES) -> None:
        """Takes over `engine`; `roles` maps pad, unk, cls, sep, mask to tokens that it has."""
        engine.no_padding()
        engine.no_truncation()
        engine.add_special_tokens([name for name in roles.values() if not _is_special(engine, name)])
        engine.encode_special_tokens = True
        added = engine.get_added_tokens_decoder()
        _guard(engine, [token.content for token in added.values() if token.special])
        self._engine, self._roles = engine, dict(roles)
        ids = {role: _id(engine, name) for role, name in roles.items()}
        self.pad_id, self.unk_id, self.cls_id = ids["pad"], ids["unk"], ids["cls"]
        self.sep_id, self.mask_id = ids["sep"], ids["mask"]
        cls, sep = roles["cls"], roles["sep"]
        engine.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.cls_id), (sep, self.sep_id)],
        )
        vocab = engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.special_ids = tuple(sorted(id for id, token in added.items() if token.special))
        self.starts_word = self._word_starts(vocab)

    def _word_starts(self, vocab: dict[str, int]) -> np.ndarray:
        starts = np.ones(self.vocab_size, np.bool_)
        spec = json.loads(self._engine.to_str())
        if spec["model"]["type"] == "WordPiece":
            prefix = spec["model"]["continuing_subword_prefix"]
            starts[[id for token, id in vocab.items() if token.startswith(prefix)]] = False
            return starts
        mark = "Ġ" if '"ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]]) else "▁"
        if any(token.startswith(mark) for token in vocab):
            starts[[id for token, id in vocab.items() if not token.startswith(mark)]] = False
            starts[[id for id in self.special_ids if id != self.unk_id]] = True
        return starts

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [n_i]: no special tokens added, no truncation, no padding.

        Special tokens in a text are text: the characters `[MASK]` never give `mask_id`. Releases the GIL; runs on several
        cores unless the environment says TOKENIZERS_PARALLELISM=false.
        """
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of texts, not one string")
        encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self._engine.decode([int(i) for i in ids], skip_special_tokens=True)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id; an id that the vocabulary leaves unused gives the empty string."""
        return [self._engine.id_to_token(int(i)) or "" for i in ids]

    def _json(self) -> str:
        return json.dumps(json.loads(self._engine.to_str()), ensure_ascii=False, sort_keys=True, indent=1)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokenizer.json that `save` writes: equal fingerprints give equal ids."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def save(self, directory: str | os.PathLike[str], model_max_length: int = 512) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads with equal ids.

        Its pairs are `[CLS] a [SEP] b [SEP]` with type ids 0 and 1. Each file appears whole or not at all.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            **{f"{role}_token": name for role, name in self._roles.items()},
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        texts = {"tokenizer.json": self._json(), "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2)}
        for name, text in texts.items():
            temporary = directory / f".{name}.{os.getpid()}"
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, directory / name)

    def __getstate__(self) -> tuple[str, dict[str, str]]:
        return self._engine.to_str(), self._roles  # `tokenizers` itself forgets encode_special_tokens

    def __setstate__(self, state: tuple[str, dict[str, str]]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state[0]), state[1])  # type: ignore[misc]

    @classmethod
    def load(cls, path: str | os.PathLike[str], lowercase: bool | None = None) -> Tokenizer:
        """Loads a directory, tokenizer.json, vocab.txt, SentencePiece .model, or vocab.json with merges.txt beside it.

        Args:
          path: the file; in a directory, the first found in the order above.
          lowercase: for BERT's own normalisation (vocab.txt): True is uncased. None asks `do_lower_case` of the
            tokenizer_config.json beside, else says uncased unless some entry has an upper-case letter.

        Raises:
          InputError: the file is missing, of another kind, damaged, has duplicates, or lacks one of the five roles.
        """
        path = Path(path)
        if path.is_dir():
            found = [f for pattern in ("tokenizer.json", "vocab.txt", "*.model", "vocab.json") for f in path.glob(pattern)]
            if not found:
                raise InputError(f"{path}: no tokenizer.json, vocab.txt, *.model or vocab.json in this directory")
            path = found[0]
        if not path.is_file():
            names = [f.name for f in path.parent.glob("*")]
            raise InputError(f"{path}: no such tokenizer file{did_you_mean(path.name, names)}")
        config = _config_beside(path)
        if path.suffix == ".txt":
            return cls(*_with_roles(_read_vocab_txt(path, config, lowercase), path, config))
        if path.suffix == ".model":
            engine = _convert_sentencepiece(path.read_bytes(), path)
        elif path.suffix == ".json" and path.name.endswith("vocab.json"):
            engine = _read_byte_level(path, config)
        elif path.suffix == ".json":
            try:
                engine = tokenizers.Tokenizer.from_file(str(path))
            except Exception as error:  # `tokenizers` raises plain Exception
                raise InputError(f"{path}: not a tokenizer.json: {error}") from error
        else:
            raise InputError(f"{path}: expected a directory, tokenizer.json, vocab.txt, vocab.json or *.model")
        if lowercase is not None:
            if not isinstance(engine.normalizer, normalizers.BertNormalizer):
                raise InputError(f"{path}: carries its own normalisation, so lowercase={lowercase} cannot apply; drop it")
            engine.normalizer.lowercase = lowercase
        return cls(*_with_roles(engine, path, config))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: Kind, lowercase: bool = True) -> Tokenizer:
        """Trains a vocabulary of exactly `vocab_size` tokens, [PAD] [UNK] [CLS] [SEP] [MASK] being ids 0 to 4.

        `unigram` and `bpe` are SentencePiece's: NFKC (case folded if `lowercase`), same texts same vocabulary.
        `wordpiece` is `tokenizers`', after BERT's normalisation: ids of equally frequent tokens move between runs, so
        save the result. Every line is used; long ones are cut at white space.

        Raises:
          InputError: `kind` is unknown, or the texts cannot fill, or do not fit, a vocabulary of this size.
        """
        if kind not in ("unigram", "bpe", "wordpiece"):
            raise InputError(f"kind={kind!r}: expected unigram, bpe or wordpiece{did_you_mean(kind, Kind.__args__)}")
        if kind == "wordpiece":
            engine = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
            _bert_rules(engine, lowercase)
            names = list(_BERT_NAMES.values())
            trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=names, show_progress=False)  # type: ignore[call-arg]
            engine.train_from_iterator(_lines(texts), trainer)
            if engine.get_vocab_size() != vocab_size:
                bound = "at most" if engine.get_vocab_size() < vocab_size else "at least"
                raise InputError(f"vocab_size={vocab_size}: these texts need {bound} {engine.get_vocab_size()}")
            return cls(engine)
        return cls(_convert_sentencepiece(_train_sentencepiece(texts, vocab_size, kind, lowercase)))


def _id(engine: tokenizers.Tokenizer, name: str) -> int:
    id = engine.token_to_id(name)
    assert id is not None, name
    return id


def _is_special(engine: tokenizers.Tokenizer, name: str) -> bool:
    return any(t.special and t.content == name for t in engine.get_added_tokens_decoder().values())


def _guard(engine: tokenizers.Tokenizer, names: list[str]) -> None:
    """Makes special tokens unreachable from text: Unigram would match `<s>` like any piece, SentencePiece does not."""
    leaks = [n for n in names if len(n) > 1 and _id(engine, n) in engine.encode(n, add_special_tokens=False).ids]
    pattern = "|".join(f"{re.escape(n[0])}(?={re.escape(n[1:])})" for n in leaks)
    if isinstance(engine.model, models.Unigram) and leaks and json.dumps(pattern) not in engine.to_str():
        split = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
        before = [] if engine.pre_tokenizer is None else [engine.pre_tokenizer]
        engine.pre_tokenizer = pre_tokenizers.Sequence([*before, split])


def _config_beside(path: Path) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json of the file's folder, the second over the first."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = path.parent / name
        if file.is_file():
            try:
                config |= json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, TypeError) as error:
                raise InputError(f"{file}: not a JSON object: {error}") from error
    return config


def _with_roles(
    engine: tokenizers.Tokenizer, path: Path, config: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The engine and the name of each role in it: as the config beside says, else the first usual name it has."""
    roles = {}
    for role, usual in ROLES.items():
        named = config.get(f"{role}_token")
        named = named["content"] if isinstance(named, dict) else named
        candidates = (named,) if named else usual
        found = [name for name in candidates if engine.token_to_id(name) is not None]
        if not found:
            raise InputError(
                f"{path}: no {role} token ({' or '.join(candidates)}) among its {engine.get_vocab_size()} tokens; name the"
                f' one it has as "{role}_token" in a tokenizer_config.json beside it, or add it to the vocabulary'
            )
        roles[role] = found[0]
    return engine, roles


def _bert_rules(engine: tokenizers.Tokenizer, lowercase: bool, chinese: bool = True, accents: bool | None = None) -> None:
    """BERT's normalisation, splitting and decoding (tokenization.py of google-research/bert)."""
    engine.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, handle_chinese_chars=chinese, strip_accents=accents
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)


def _read_vocab_txt(path: Path, config: dict[str, Any], lowercase: bool | None) -> tokenizers.Tokenizer:
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 and the like are entries
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines):
        token = line.strip() or line.rstrip("\r")
        if token in vocab:
            raise InputError(f"{path}: {token!r} stands on lines {vocab[token] + 1} and {number + 1}; remove one")
        if token:
            vocab[token] = number
    if lowercase is None:
        cased = any(any(c.isupper() for c in token) for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token))
        lowercase = bool(config.get("do_lower_case", not cased))
    unk = config.get("unk_token", "[UNK]")
    unk = unk["content"] if isinstance(unk, dict) else unk
    model = models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100)
    engine = tokenizers.Tokenizer(model)
    _bert_rules(engine, lowercase, config.get("tokenize_chinese_chars", True), config.get("strip_accents"))
    return engine


def _read_byte_level(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's and RoBERTa's byte-level BPE."""
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise InputError(f"{path}: byte-level BPE needs {merges.name} beside it")
    try:
        model = models.BPE.from_file(str(path), str(merges))
    except Exception as error:
        raise InputError(f"{path} with {merges.name}: not a byte-level BPE vocabulary: {error}") from error
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    engine.decoder = decoders.ByteLevel()
    return engine


# SentencePiece -----------------------------------------------------------------------------------------------------

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # sentencepiece_model.proto, SentencePiece.Type


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: varints as int, fixed32 as float, the rest as bytes.

    sentencepiece's generated module refuses to load beside a protobuf older than the one that wrote it.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: lambda: 8, 2: varint, 5: lambda: 4}[key & 7]()
        data = message[at : at + size]
        if len(data) != size:
            raise IndexError("cut short")
        at += size
        yield key >> 3, struct.unpack("<f", data)[0] if key & 7 == 5 else data


def _convert_sentencepiece(model: bytes, path: str | os.PathLike[str] = "the trained model") -> tokenizers.Tokenizer:
    """A SentencePiece model as a `tokenizers.Tokenizer` with the same ids.

    The same ids for every text but these (none of them in ordinary text): combining marks out of canonical order, characters
    younger than the model's Unicode, BPE texts where a piece can be merged in two ways that overlap (`ababa`),
    segmentations whose scores tie to within float32, and literal special tokens.
    """
    try:
        fields = list(_fields(model))
        pieces = [dict(_fields(value)) for number, value in fields if number == 1]
        trainer, norm = (dict(_fields(dict(fields).get(number, b""))) for number in (2, 3))
        names = [piece[1].decode() for piece in pieces]
    except (IndexError, KeyError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a SentencePiece model ({error!r})") from error
    kinds = [piece.get(3, _NORMAL) for piece in pieces]
    # The shortest decimal of the float32: what a JSON reader gives back unchanged.
    scores = [float(str(np.float32(piece.get(2, 0.0)))) for piece in pieces]
    vocab = {name: id for id, name in enumerate(names)}
    model_type, fallback = trainer.get(3, 1), bool(trainer.get(35, 0))
    for refused, what in (
        (_UNKNOWN not in kinds, "no unknown piece: not a SentencePiece model"),
        (model_type not in (1, 2), "a word or character model; unigram and bpe are supported"),
        (_UNUSED in kinds, "unused pieces are not supported"),
        (trainer.get(24, 0), "treat_whitespace_as_suffix is not supported"),
        (not norm.get(5, 1), "escape_whitespaces=false is not supported"),
    ):
        if refused:
            raise InputError(f"{path}: {what}")
    unk_id = kinds.index(_UNKNOWN)
    if model_type == 1:
        top = max((s for s, kind in zip(scores, kinds, strict=True) if kind == _NORMAL), default=0.0)
        scores = [
            len(name.encode()) * top - 0.1 if kind == _USER_DEFINED else score
            for name, score, kind in zip(names, scores, kinds, strict=True)
        ]
        engine = tokenizers.Tokenizer(models.Unigram(list(zip(names, scores, strict=True)), unk_id, fallback))
    else:
        merges = [
            (name[:cut], name[cut:], score)
            for name, score, kind in zip(names, scores, kinds, strict=True)
            if kind == _NORMAL
            for cut in range(1, len(name))
            if all(kinds[vocab[part]] == _NORMAL for part in (name[:cut], name[cut:]) if part in vocab)
            and name[:cut] in vocab
            and name[cut:] in vocab
        ]
        merges.sort(key=lambda merge: -merge[2])
        engine = tokenizers.Tokenizer(
            models.BPE(vocab, [m[:2] for m in merges], unk_token=names[unk_id], fuse_unk=True, byte_fallback=fallback)
        )
        user = [n for n, kind in zip(names, kinds, strict=True) if kind == _USER_DEFINED and len(n) > 1]
        engine.add_tokens([AddedToken(n, normalized=False) for n in user if n not in sum(ROLES.values(), ())])
    engine.add_special_tokens([n for n, kind in zip(names, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)])
    engine.normalizer = _sentencepiece_normalizer(norm)
    crossing = any("▁" in name[1:] for name in names)
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=not crossing)
    if fallback:
        engine.pre_tokenizer = pre_tokenizers.Sequence(
            [engine.pre_tokenizer, pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")]
        )
    scheme = "always" if norm.get(3, 1) else "never"
    metaspace = decoders.Metaspace(prepend_scheme=scheme)
    engine.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if fallback else metaspace
    return engine


def _sentencepiece_normalizer(norm: dict[int, Any]) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if norm.get(2):
        # `Precompiled` looks up whole grapheme clusters, and takes the shortest rule: case folding would drop the accent
        # of E + U+0301. So compose first (what the map's long rules do), and cut clusters apart by U+0001.
        charsmap = normalizers.Precompiled(norm[2])
        composes = charsmap.normalize_str("ﬁe\u0301") == "fié"
        tilde = composes and charsmap.normalize_str("～") == "～"  # the one compatibility character the map may keep
        steps += [normalizers.Replace("～", "\uffff")] * tilde + [normalizers.NFKC()] * composes
        steps += [normalizers.Replace(Regex(r"(?=[^\x00-\x7f]|\n)"), "\x01"), charsmap, normalizers.Replace("\x01", "")]
        steps += [normalizers.Replace("\uffff", "～")] * tilde
    if norm.get(4, 1):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(right=False)]
    steps.append(normalizers.Replace(" ", "▁"))
    if norm.get(3, 1):
        steps.append(normalizers.Prepend("▁"))
    if norm.get(4, 1):
        steps.append(normalizers.Replace(Regex("▁+$"), ""))
    return normalizers.Sequence(steps)


def _lines(texts: Iterable[str], longest: int = 1000) -> Iterator[str]:
    """Lines of at most `longest` characters, cut at white space: SentencePiece skips lines of more than 4192 bytes."""
    for text in texts:
        for line in text.replace("\x00", " ").replace("▅", " ").splitlines():  # it skips lines with these, too
            while len(line) > longest:
                cut = max(line.rfind(" ", 1, longest), line.rfind("\t", 1, longest))
                cut = cut if cut > 0 else longest
                yield line[:cut]
                line = line[cut:].lstrip()
            if line.strip():
                yield line


def _train_sentencepiece(texts: Iterable[str], vocab_size: int, kind: str, lowercase: bool) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    names = _BERT_NAMES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            **{f"{ours}_id": id for id, ours in enumerate(("pad", "unk", "bos", "eos"))},
            **{f"{ours}_piece": names[role] for ours, role in dict(pad="pad", unk="unk", bos="cls", eos="sep").items()},
            control_symbols=[names["mask"]],
            num_threads=16,  # the result depends on it, not on the cores there are
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(f"vocab_size={vocab_size}: {error}") from error
    return model.getvalue()
