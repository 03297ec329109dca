"""One face over every tokenizer file: text in, int32 ids out. No jax in here.

There is one engine, `tokenizers.Tokenizer`: vocab.txt, vocab.json + merges.txt and SentencePiece .model files are
turned into one on load, so the ids of training are the ids of the exported tokenizer.json, whatever was loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

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
        special = {token.content for token in engine.get_added_tokens_decoder().values() if token.special}
        engine.add_special_tokens([name for name in roles.values() if name not in special])  # others may have lstrip
        engine.encode_special_tokens = True
        added = engine.get_added_tokens_decoder()
        _guard(engine, sorted(token.content for token in added.values() if token.special))
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

        Special tokens in a text are text: the characters `[MASK]` never give `mask_id`. Releases the GIL, and
        runs on several cores unless the environment says TOKENIZERS_PARALLELISM=false.
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
        texts = {
            "tokenizer.json": self._json(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        }
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
          lowercase: for BERT's own normalisation: True is uncased. None asks `do_lower_case` of a tokenizer_config.json
            beside a vocab.txt, else says uncased unless some entry has an upper-case letter.

        Raises:
          InputError: the file is missing, of another kind, damaged, has duplicates, or lacks one of the five roles.
        """
        path = _find(Path(path))
        config = _config_beside(path)
        if path.suffix == ".txt":
            vocab = _read_vocab_txt(path)
            roles = _find_roles(vocab, path, config)
            return cls(_wordpiece(vocab, config, lowercase, roles["unk"]), roles)
        if path.suffix == ".model":
            engine = _convert_sentencepiece(path.read_bytes(), str(path))
        elif path.name.endswith("vocab.json"):
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
                raise InputError(f"{path}: lowercase={lowercase} does not apply: the file has its own rule")
            engine.normalizer.lowercase = lowercase
        return cls(engine, _find_roles(engine.get_vocab(with_added_tokens=True), path, config))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: Kind, lowercase: bool = True) -> Tokenizer:
        """Trains a vocabulary of exactly `vocab_size` tokens; [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0 to 4.

        `unigram` and `bpe` are SentencePiece's, after NFKC (case folded if `lowercase`): same texts, same vocabulary.
        `wordpiece` is that of `tokenizers`, after BERT's normalisation: ids of equally frequent tokens move between
        runs, so save the result. Every line is used; long ones are cut at white space.

        Raises:
          InputError: `kind` is unknown, or the texts give fewer tokens than `vocab_size`, or need more.
        """
        if kind not in (kinds := get_args(Kind)):
            raise InputError(f"kind={kind!r}: expected one of {', '.join(kinds)}{did_you_mean(kind, kinds)}")
        if kind != "wordpiece":
            model = _train_sentencepiece(texts, vocab_size, kind, lowercase)
            return cls(_convert_sentencepiece(model, "trained model"))
        specials = list(_BERT_NAMES.values())
        engine = _wordpiece({name: id for id, name in enumerate(specials)}, {}, lowercase, "[UNK]")
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
        engine.train_from_iterator(_lines(texts), trainer)
        _require_size(vocab_size, engine.get_vocab_size())
        return cls(engine)


def _id(engine: tokenizers.Tokenizer, name: str) -> int:
    id = engine.token_to_id(name)
    assert id is not None, name
    return id


def _guard(engine: tokenizers.Tokenizer, names: list[str]) -> None:
    """Makes special tokens unreachable from text: Unigram would match `<s>` as it matches any piece."""
    leaks = [n for n in names if len(n) > 1 and _id(engine, n) in engine.encode(n, add_special_tokens=False).ids]
    pattern = "|".join(f"{re.escape(n[0])}(?={re.escape(n[1:])})" for n in leaks)
    if leaks and isinstance(engine.model, models.Unigram) and json.dumps(pattern) not in engine.to_str():
        _then_split(engine, pattern)


def _then_split(engine: tokenizers.Tokenizer, pattern: str) -> None:
    """Adds a cut after each match of `pattern` to the splitting before the model."""
    steps = [] if engine.pre_tokenizer is None else [engine.pre_tokenizer]
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
    engine.pre_tokenizer = pre_tokenizers.Sequence([*steps, cut])


def _find(path: Path) -> Path:
    """The tokenizer file that `path` means."""
    if path.is_dir():
        for pattern in ("tokenizer.json", "vocab.txt", "*.model", "vocab.json"):
            found = sorted(path.glob(pattern))
            if len(found) > 1:
                raise InputError(f"{path}: several tokenizers, {', '.join(f.name for f in found)}; give the file")
            if found:
                return found[0]
        raise InputError(f"{path}: no tokenizer.json, vocab.txt, *.model or vocab.json in this directory")
    if not path.is_file():
        raise InputError(f"{path}: no such file{did_you_mean(path.name, [f.name for f in path.parent.glob('*')])}")
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error


def _config_beside(path: Path) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json of the file's folder, the second over the first."""
    config: dict[str, Any] = {}
    for file in (path.with_name("special_tokens_map.json"), path.with_name("tokenizer_config.json")):
        if file.is_file():
            try:
                config |= json.loads(_read(file))
            except (ValueError, TypeError) as error:
                raise InputError(f"{file}: not a JSON object: {error}") from error
    return config


def _find_roles(vocab: Collection[str], path: Path, config: dict[str, Any]) -> dict[str, str]:
    """The token of each role: what the config beside names, else the first usual name that the vocabulary has."""
    roles = {}
    for role, usual in ROLES.items():
        named = config.get(f"{role}_token")
        named = named["content"] if isinstance(named, dict) else named
        candidates = (named,) if named else usual
        found = [name for name in candidates if name in vocab]
        if not found:
            raise InputError(
                f"{path}: no {role} token ({' or '.join(candidates)}) among its {len(vocab)} tokens; name the one it has"
                f' as "{role}_token" in a tokenizer_config.json beside it, or add it to the vocabulary'
            )
        roles[role] = found[0]
    return roles


def _read_vocab_txt(path: Path) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for number, line in enumerate(_read(path).split("\n")):  # not splitlines: U+2028 and the like are entries
        token = line.strip() or line.rstrip("\r")
        if token in vocab:
            raise InputError(f"{path}: {token!r} stands on lines {vocab[token] + 1} and {number + 1}; remove one")
        if token:
            vocab[token] = number
    return vocab


def _wordpiece(vocab: dict[str, int], config: dict[str, Any], lowercase: bool | None, unk: str) -> tokenizers.Tokenizer:
    """BERT's tokenizer (tokenization.py of google-research/bert; words of more than 100 characters as transformers)."""
    if lowercase is None:
        words = [token for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token)]
        lowercase = bool(config.get("do_lower_case", all(word == word.lower() for word in words)))
    engine = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    engine.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)
    return engine


def _read_byte_level(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's and RoBERTa's byte-level BPE."""
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise InputError(f"{path}: byte-level BPE needs {merges.name} beside it")
    try:
        engine = tokenizers.Tokenizer(models.BPE.from_file(str(path), str(merges)))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise InputError(f"{path} with {merges.name}: not a byte-level BPE vocabulary: {error}") from error
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    engine.decoder = decoders.ByteLevel()
    return engine


# --- SentencePiece ---

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # SentencePiece.Type


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Field number -> values of a protobuf message: varints as int, fixed32 as float, the rest as bytes.

    By hand, because sentencepiece's generated module refuses a protobuf older than its own, as notebooks have.
    """
    at = 0
    fields: dict[int, list[Any]] = defaultdict(list)

    def varint() -> int:
        nonlocal at
        start = at
        while message[at] > 127:
            at += 1
        at += 1
        return sum((byte & 127) << 7 * i for i, byte in enumerate(message[start:at]))

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            fields[number].append(varint())
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        data, at = message[at : at + size], at + size
        if at > len(message):
            raise IndexError("cut short")
        fields[number].append(struct.unpack("<f", data)[0] if wire == 5 else data)
    return fields


def _convert_sentencepiece(model: bytes, source: str) -> tokenizers.Tokenizer:
    """A SentencePiece model as a `tokenizers.Tokenizer` (field numbers: sentencepiece_model.proto).

    The ids are SentencePiece's own, but for these: a combining mark or jamo that follows a composed or compatibility
    character, or another mark out of canonical order (NFKC text has none); U+0344, U+FFFF and characters younger than the
    model's Unicode; unigram segmentations that tie to within float32 (runs of one character: `=====`); bpe pieces that
    overlapping pairs can give (`ababa`); a user-defined token of a role, spelled out in text; and, in a model that
    keeps control characters or white space as they come, U+0001 and a text of nothing else than characters it drops.
    """
    try:
        proto = _fields(model)
        pieces = [_fields(piece) for piece in proto[1]]
        names = [piece[1][0].decode() for piece in pieces]
        # Nine digits hold a float32 and come back from JSON unchanged.
        scores = [float(f"{piece[2][0] if piece[2] else 0.0:.9g}") for piece in pieces]
        kinds = [piece[3][0] if piece[3] else _NORMAL for piece in pieces]
        trainer, norm = ({n: v[-1] for n, v in _fields(proto[number][-1]).items()} for number in (2, 3))
        unk_id = kinds.index(_UNKNOWN)
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{source}: not a SentencePiece model ({error!r})") from error
    unigram, fallback = trainer.get(3, 1) == 1, bool(trainer.get(35, 0))
    normal = {name: score for name, score, kind in zip(names, scores, kinds, strict=True) if kind == _NORMAL}
    user = [name for name, kind in zip(names, kinds, strict=True) if kind == _USER_DEFINED]
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
    engine.add_special_tokens([n for n, kind in zip(names, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)])
    engine.normalizer = _sentencepiece_normalizer(norm)
    crossing = any("▁" in name[1:] for name in names)
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=not crossing)
    engine.decoder = decoders.Metaspace(prepend_scheme="always" if norm.get(3, 1) else "never")
    if fallback:
        _then_split(engine, "<(?=0x[0-9A-F]{2}>)")  # the name of a byte, in text, is not that byte
        engine.decoder = decoders.Sequence([decoders.ByteFallback(), engine.decoder])
    return engine


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


def _require_size(vocab_size: int, possible: int) -> None:
    if vocab_size != possible:
        bound = "give at most" if possible < vocab_size else "need at least"
        raise InputError(f"vocab_size={vocab_size}: these texts {bound} {possible} tokens")


def _lines(texts: Iterable[str], longest: int = 1000) -> Iterator[str]:
    """Lines of at most `longest` characters, cut at white space, without what makes SentencePiece skip a line.

    It skips those of more than 4192 bytes, with NUL, and with its own sign for unknown, `▅`.
    """
    empty = True
    for text in texts:
        text = text.replace("\x00", " ").replace("▅", " ")
        empty = empty and not text.strip()
        for line in text.splitlines():
            while len(line) > longest:
                cut = max(line.rfind(" ", 1, longest), line.rfind("\t", 1, longest))
                cut = cut if cut > 0 else longest
                yield line[:cut]
                line = line[cut:].lstrip()
            if line.strip():
                yield line
    if empty:
        raise InputError("no text to train a vocabulary on: every line is empty")


def _train_sentencepiece(texts: Iterable[str], vocab_size: int, kind: str, lowercase: bool) -> bytes:
    import sentencepiece

    model, failed = io.BytesIO(), list[BaseException]()

    def lines() -> Iterator[str]:
        try:
            yield from _lines(texts)
        except (Exception, KeyboardInterrupt) as error:
            failed.append(error)  # of which SentencePiece passes on the text alone
            raise

    names = {"pad": "[PAD]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]"}
    ids: Any = {f"{name}_id": id for id, name in enumerate(names)}
    pieces: Any = {f"{name}_piece": piece for name, piece in names.items()}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
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
            _require_size(vocab_size, int(possible[1]))
        raise InputError(f"vocab_size={vocab_size}: SentencePiece: {error}") from error
    return model.getvalue()
