"""One face over every tokenizer file: text in, int32 ids out. No jax in here.

There is one engine, `tokenizers.Tokenizer`: vocab.txt, vocab.json + merges.txt and SentencePiece .model files are
turned into one on load, so the ids of training are the ids of the exported tokenizer.json, whatever was loaded.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_jax import disk
from bert_jax.config import InputError, did_you_mean
from bert_jax.data import sentencepiece
from bert_jax.data.sentencepiece import ROLES
from bert_jax.disk import check_regular, read_json

T = TypeVar("T")
Kind = Literal["unigram", "bpe", "wordpiece"]
SpecialTokens = Literal["read", "text"]
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra")
_FILES = ("tokenizer.json", "vocab.txt", "*.model", "vocab.json")  # in a directory, the first found
_BERT_NAMES = {role: names[0] for role, names in ROLES.items()}
_CONFIG = "tokenizer_config.json"
_NAMED = {f"{name}_token" for name in (*ROLES, "bos", "eos")}  # other keys of this form are a model's own tokens
_MOST_BYTES = 256 << 20  # of a tokenizer's file
_MOST_GROWTH = 100  # characters that a normaliser or decoder makes of one
_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
# `tokenizer_class`, less a final `Fast`, of those whose vocab.txt, vocab.json or .model is read as they read it
_READ_CLASSES: tuple[str, ...] = (*_BERT_CLASSES, "RobertaTokenizer", "XLMRobertaTokenizer", "AlbertTokenizer")
_READ_CLASSES += ("PreTrainedTokenizer", "TokenizersBackend")
# these do work in Python that no tokenizer.json holds, as finding the words of Japanese
_PYTHON_CLASSES = tuple(
    f"{name}Tokenizer"
    for name in ("BertJapanese", "Bertweet", "Canine", "Flaubert", "Phobert", "ProphetNet", "RoCBert", "RoFormer", "Tapas", "XLM")
)


class Encoding(NamedTuple):
    """What a text of n tokens becomes.

    Attributes:
      ids: int32 [n].
      offsets: int32 [n, 2]; `text[start:end]` is what token i stands for, without the white space around it (a lone `Ġ`
        or `▁` stands for nothing: start = end, where transformers gives `▁` the character after it). Starts and ends never
        fall; spans overlap only where tokens share a character, as the bytes of an emoji do, or are the `<0xE9>` of one
        run. As in transformers, a combining mark that was composed or dropped may lie outside, and in SentencePiece
        control characters that are dropped shift spans.
      word_ids: int32 [n], from 0, never falling: equal for tokens of one word. Words are what the tokenizer cuts the text
        into before it looks at its vocabulary, so that punctuation may be a word of its own; as in transformers.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_ids: np.ndarray


class Template(NamedTuple):
    """What stands around a text, or around and between the texts of a pair: `[CLS] a [SEP]`, `<s> a </s></s> b </s>`, ...

    Attributes:
      ids: tuples of ids: before the first text, behind it, and of a pair behind the second; each may be empty.
      types: their token types, likewise.
      text_types: the token type of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ids))

    def lay_out(self, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, int32 [n], of the texts (ids each) with the template around them."""
        ids: list[Any] = [self.ids[0]]
        types: list[Any] = [self.types[0]]
        for part, text_type, behind, behind_types in zip(parts, self.text_types, self.ids[1:], self.types[1:], strict=True):
            ids += [part, behind]
            types += [np.full(len(part), text_type), behind_types]
        return np.concatenate(ids).astype(np.int32), np.concatenate(types).astype(np.int32)


class Tokenizer:
    """One face over tokenizer.json, vocab.txt, vocab.json + merges.txt and SentencePiece .model.

    Attributes:
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the five roles.
      mask_token: the text of the mask, `[MASK]` or `<mask>`.
      vocab_size: V; ids are 0..V-1, added tokens included.
      special_ids: sorted ids of the roles and of every other special token.
      special_tokens: "read" where the characters `[SEP]` in a text are that token, as published models expect; "text" where
        they are characters like others. (transformers' `split_special_tokens`, false and true.)
      starts_word: bool [V], False where the token continues a word: `##` in WordPiece, no leading `▁` in SentencePiece
        (its unknown piece continues too), no leading `Ġ` in byte-level BPE. All True if the file marks no words.
      single, pair: what stands around a text, and around the texts of a pair.
      token_types: whether the second text of a pair has token type 1.
    """

    def __init__(
        self,
        engine: tokenizers.Tokenizer,
        roles: dict[str, str] = _BERT_NAMES,
        special_tokens: SpecialTokens = "read",
        token_types: bool = True,
    ) -> None:
        """Takes over `engine`, whose post-processor says what stands around a text; without any, nothing does.

        Args:
          engine: a tokenizer of Hugging Face's library.
          roles: pad, unk, cls, sep, mask -> tokens that the engine has.
          special_tokens: see the attribute.
          token_types: False makes all of them 0, whatever the post-processor says.

        Raises:
          InputError: the post-processor repeats, drops or swaps texts; `special_tokens` is unknown.
        """
        if special_tokens not in (known := get_args(SpecialTokens)):
            nearest = did_you_mean(str(special_tokens), known)
            raise InputError(f"special_tokens={special_tokens!r}: expected one of {', '.join(known)}{nearest}")
        engine.no_padding()
        engine.no_truncation()
        flags = {token.content: token for token in engine.get_added_tokens_decoder().values()}
        for name in roles.values():
            token = flags.get(name, AddedToken(name, normalized=False))  # which may have lstrip
            if not token.special:
                token.special = True
                engine.add_special_tokens([token])
        added = engine.get_added_tokens_decoder()
        engine.encode_special_tokens = special_tokens == "text"
        if special_tokens == "text":
            _guard(engine, sorted(token.content for token in added.values() if token.special))
        if engine.post_processor is None:
            engine.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")  # as transformers
        self._engine, self._roles, self.special_tokens = engine, dict(roles), special_tokens
        ids = {role: _id(engine, name) for role, name in roles.items()}
        self.pad_id, self.unk_id, self.cls_id = ids["pad"], ids["unk"], ids["cls"]
        self.sep_id, self.mask_id = ids["sep"], ids["mask"]
        self.mask_token = roles["mask"]
        self.single, self.pair = (_template(engine, texts) for texts in (1, 2))
        if not token_types:
            self.single, self.pair = map(_untyped, (self.single, self.pair))
        self.token_types = any(self.pair.text_types) or any(map(any, self.pair.types))
        vocab = engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.special_ids = tuple(sorted(id for id, token in added.items() if token.special))
        self.starts_word = self._word_starts(vocab)

    def replace(self, special_tokens: SpecialTokens | None = None, bert_template: bool = False) -> Tokenizer:
        """One that reads special tokens in a text as such, or as text; or that lays texts out as BERT does."""
        if special_tokens in (None, self.special_tokens) and not bert_template:
            return self
        engine = tokenizers.Tokenizer.from_str(self._engine.to_str())
        if bert_template:
            engine.post_processor = _post_processor(engine, self._roles)
        return Tokenizer(engine, self._roles, special_tokens or self.special_tokens, self.token_types or bert_template)

    def lays_out_as_bert(self, pairs: bool) -> bool:
        """Whether texts, or `pairs` too, are laid out as `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`."""
        cls, sep = (self.cls_id,), (self.sep_id,)
        return self.single.ids == (cls, sep) and (not pairs or self.pair == Template((cls, sep, sep), ((0,), (0,), (1,)), (0, 1)))

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
        """Ids of each text, int32 [n_i]: nothing put around it, no truncation, no padding.

        What the characters `[SEP]` in a text are, `special_tokens` says; added tokens that are not special are always read.
        Releases the GIL, and runs on several cores unless the environment says TOKENIZERS_PARALLELISM=false.

        Raises:
          InputError: a text is no str, or has half of a surrogate pair, which no UTF-8 can hold; names its index.
        """
        return [np.array(encoding.ids, np.int32) for encoding in self._encode(texts)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode_batch`, with where each token stands in its text and the word that it belongs to."""
        encodings = self._encode(texts, offsets=True)
        return [
            Encoding(np.array(encoding.ids, np.int32), _spans(text, encoding), np.array(encoding.word_ids, np.int32))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _encode(self, texts: Sequence[str], offsets: bool = False) -> Iterator[tokenizers.Encoding]:
        """In portions, see `in_portions`: the memory that is needed while encoding does not grow with the number of texts."""
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, not one string")
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"texts[{i}] is a {type(text).__name__}, not a str")
        encode = self._engine.encode_batch if offsets else self._engine.encode_batch_fast
        try:
            for portion in in_portions(texts, lambda text: len(text) + 1):
                with _failures_named("the tokenizer fails at these texts"):
                    encodings = encode(portion, add_special_tokens=False)
                yield from encodings
        except TypeError:
            for i, text in enumerate(texts):
                if half := re.search("[\ud800-\udfff]", text):
                    raise InputError(
                        f"texts[{i}]: character {half.start()} is {half[0]!a}, half of a surrogate pair; remove it"
                    ) from None
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""
        with _failures_named("the tokenizer fails at these ids"):
            return self._engine.decode([int(i) for i in ids], skip_special_tokens=True)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id; an id that the vocabulary leaves unused gives the empty string."""
        return [self._engine.id_to_token(int(i)) or "" for i in ids]

    def _json(self) -> str:
        return json.dumps(json.loads(self._engine.to_str()), ensure_ascii=False, sort_keys=True, indent=1)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokenizer.json that `save` writes and of `special_tokens`: equal fingerprints give equal ids."""
        return hashlib.sha256((self._json() + "read" * (self.special_tokens == "read")).encode()).hexdigest()

    def difference(self, other: Tokenizer) -> str:
        """Where the two vocabularies differ, as `id 7 is 'the' there, 'of' here`; empty where each id has the same token."""
        if self.vocab_size != other.vocab_size:
            return f"{other.vocab_size} tokens there, {self.vocab_size} here"
        here, there = ({id: token for token, id in t._engine.get_vocab().items()} for t in (self, other))
        different = [i for i in range(self.vocab_size) if here.get(i) != there.get(i)]
        return f"id {(i := different[0])} is {there.get(i)!r} there, {here.get(i)!r} here" if different else ""

    def save(self, directory: str | os.PathLike[str], model_max_length: int = 512) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads with equal ids.

        `special_tokens` goes along, as `split_special_tokens`. Each file appears whole or not at all. Raises InputError where
        they cannot be written.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": self.special_tokens == "text",
            "model_input_names": ["input_ids", *["token_type_ids"] * self.token_types, "attention_mask"],
            **{f"{role}_token": name for role, name in self._roles.items()},
        }
        directory = Path(directory)
        texts = {
            "tokenizer.json": self._json(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        }
        for name, text in texts.items():
            disk.write_text(directory / name, text + "\n")

    def __getstate__(self) -> tuple[Any, ...]:
        return self._engine.to_str(), self._roles, self.special_tokens, self.token_types

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state[0]), *state[1:])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens)"

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], lowercase: bool | None = None, model_type: str | None = None,
        special_tokens: SpecialTokens | None = None,
    ) -> Tokenizer:  # fmt: skip
        """Loads a directory, tokenizer.json, vocab.txt, SentencePiece .model, or vocab.json with merges.txt beside it.

        Ids are those of transformers' AutoTokenizer (v5): the tokens that tokenizer_config.json or added_tokens.json add count
        too, and a tokenizer.json whose `tokenizer_class` (with none stated, `model_type`) is BERT's, DistilBERT's, ELECTRA's,
        RoBERTa's, XLM-R's or ALBERT's, and which is of the kind that such a class makes, is normalised, cut into words and
        put between special tokens as that class does by the keys of tokenizer_config.json (`do_lower_case`, `strip_accents`,
        `tokenize_chinese_chars`, `add_prefix_space`). Of any other class the file alone says how. `dropout` of BPE is off.
        Longer words than 100 letters are unknown to a vocab.txt; than 200 where bert_config.json stands beside it and neither
        config.json nor tokenizer_config.json, as in Google's code.

        Memory: files of at most 256 MiB are read, and take up to 30 times their size; a normaliser or decoder that would make
        more than 100 characters of one is refused.

        Args:
          path: the file; in a directory, the first found in the order above.
          lowercase: for BERT's own normalisation and ALBERT's: True is uncased. None asks the files: see above for a
            tokenizer.json; else `do_lower_case`, and without it uncased unless an entry of a vocab.txt has an upper-case
            letter.
          model_type: `model_type` of a config.json, one of `MODEL_TYPES`. Decides what the file leaves open: the ids and
            normalisation of a .model (else SentencePiece's own), what stands around texts where a file does not say, and no
            token types for distilbert. None asks `tokenizer_class` of a tokenizer_config.json or config.json beside, then
            the config.json's `model_type`.
          special_tokens: "read" or "text", see the attribute. None: what `split_special_tokens` of tokenizer_config.json
            says, else "read".

        Raises:
          InputError: the file is missing, of another kind, damaged, or lacks one of the five roles; the files beside name
            rules that are not read, or ids for added tokens that are not the next ones.
        """
        path = _find(Path(path))
        with _failures_named(f"{path}: not a tokenizer that can be used"):
            return cls._load(path, lowercase, model_type, special_tokens)

    @classmethod
    def _load(
        cls, path: Path, lowercase: bool | None, model_type: str | None, special_tokens: SpecialTokens | None
    ) -> Tokenizer:  # fmt: skip
        config = _config_beside(path)
        _refuse_other_rules(path, config)
        model_type = _model_type(model_type, config)
        if special_tokens is None:
            special_tokens = "text" if config.get("split_special_tokens") else "read"
        typed = model_type != "distilbert" and "token_type_ids" in config.get("model_input_names", ["token_type_ids"])
        doubled = path.name.endswith("vocab.json") or model_type in ("roberta", "xlm-roberta")
        if path.suffix == ".txt":
            vocab = _read_vocab_txt(path)
            engine = _wordpiece(vocab, config, lowercase, _find_role("unk", vocab, path, config), _longest_word(path))
            doubled = False
        elif path.suffix == ".model":
            engine = _read_sentencepiece(path, config, lowercase, model_type)
        elif path.name.endswith("vocab.json"):
            engine = _read_byte_level(path, config)
        elif path.suffix == ".json":
            engine = _read_tokenizer_json(path)
        else:
            raise InputError(f"{path}: expected a directory, tokenizer.json, vocab.txt, vocab.json or *.model")
        named = _class(config) or _CLASS_OF.get(model_type or "", "")
        rebuilt = _rebuild(engine, named, config) if _is_tokenizer_json(path) else path.name
        if lowercase is not None and path.suffix != ".txt" and not (path.suffix == ".model" and model_type == "albert"):
            if not isinstance(engine.normalizer, normalizers.BertNormalizer):
                raise InputError(f"{path}: lowercase={lowercase} does not apply: the file has its own rule")
            engine.normalizer.lowercase = lowercase
        raw = path.suffix == ".model" and model_type not in ("xlm-roberta", "albert")
        roles = _add_tokens_beside(engine, path, config, raw)
        if rebuilt and not (rebuilt == "AlbertTokenizer" and engine.post_processor):  # which alone keeps the file's
            engine.post_processor = _post_processor(engine, roles, doubled)
        return cls(engine, roles, special_tokens, typed)

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
            engine = sentencepiece.convert(sentencepiece.train(texts, vocab_size, kind, lowercase), "trained model")
        else:
            specials = list(_BERT_NAMES.values())
            engine = _wordpiece({name: id for id, name in enumerate(specials)}, {}, lowercase, "[UNK]")
            trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
            engine.train_from_iterator(sentencepiece.training_lines(texts), trainer)
            sentencepiece.require_size(vocab_size, engine.get_vocab_size())
        engine.post_processor = _post_processor(engine, _BERT_NAMES)
        return cls(engine)


def in_portions(items: Iterable[T], size_of: Callable[[T], int] = len, size: int = 1 << 20) -> Iterator[list[T]]:  # type: ignore[assignment]
    """Items in consecutive portions of about `size` characters: an encoding takes 50 times the memory of its ids, while it is
    there."""
    portion, so_far = list[T](), 0
    for item in items:
        portion.append(item)
        so_far += size_of(item)
        if so_far >= size:
            yield portion
            portion, so_far = [], 0
    if portion:
        yield portion


def has_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """True if `directory` has a file that `Tokenizer.load` would read."""
    return any(file.is_file() for pattern in _FILES for file in Path(directory).glob(pattern))


def _id(engine: tokenizers.Tokenizer, name: str) -> int:
    id = engine.token_to_id(name)
    assert id is not None, name
    return id


def _state(part: Any) -> str:
    """JSON of a pre-tokenizer or post-processor, or `null`."""
    return "null" if part is None else part.__getstate__().decode()


def _post_processor(engine: tokenizers.Tokenizer, roles: dict[str, str], doubled: bool = False) -> processors.PostProcessor:
    """BERT's layout, or with `doubled` separators and without types RoBERTa's; offsets as byte-level BPE has them."""
    cls, sep = roles["cls"], roles["sep"]
    pair = f"{cls} $A {sep} {sep} $B {sep}" if doubled else f"{cls} $A {sep} $B:1 {sep}:1"
    ids = [(name, _id(engine, name)) for name in (cls, sep)]
    template = processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=pair, special_tokens=ids)
    prefix = re.search(r'"ByteLevel","add_prefix_space":(true|false)', _state(engine.pre_tokenizer))
    if not prefix:
        return template
    trim = processors.ByteLevel(trim_offsets=True, add_prefix_space=prefix[1] == "true")
    return processors.Sequence([trim, template])


def _template(engine: tokenizers.Tokenizer, texts: int) -> Template:
    """What the engine's post-processor puts around one text or two, found by giving it texts of one token each."""
    pieces = models.WordPiece({"a": 0, "b": 1}, unk_token="a")
    letters = tokenizers.Tokenizer(pieces)
    a, b = (letters.encode(letter) for letter in "ab")
    whole = engine.post_process(a) if texts == 1 else engine.post_process(a, b)
    places = [i for i, special in enumerate(whole.special_tokens_mask) if not special]
    if [whole.ids[i] for i in places] != [0, 1][:texts]:
        raise InputError(f"the tokenizer's template for {('a text', 'a pair')[texts - 1]} repeats, drops or swaps texts")
    cuts = [(before + 1, at) for before, at in pairwise([-1, *places, len(whole.ids)])]
    ids, types = (tuple(tuple(values[start:stop]) for start, stop in cuts) for values in (whole.ids, whole.type_ids))
    return Template(ids, types, tuple(whole.type_ids[i] for i in places))


def _untyped(template: Template) -> Template:
    return Template(template.ids, tuple((0,) * len(some) for some in template.ids), (0,) * len(template.text_types))


def _spans(text: str, encoding: tokenizers.Encoding) -> np.ndarray:
    """int32 [n, 2]: the engine's offsets, less the white space that a word's first token stands for too."""
    spans, before = np.array(encoding.offsets, np.int32).reshape(-1, 2), 0
    for i, ((start, end), token) in enumerate(zip(encoding.offsets, encoding.tokens, strict=True)):
        surface = text[start:end]
        stripped = surface.strip()
        if not token.strip("▁") and "▁" not in surface:
            start += len(surface) - len(surface.lstrip())  # `end`, if there is nothing else
            end = max(start, before)  # later than start inside one character, as in U+FDFA
            spans[i] = start, end
        elif stripped and stripped != surface:
            start += len(surface) - len(surface.lstrip())
            end = start + len(stripped)
            spans[i] = start, end
        before = end
    spans[:, 0] = np.minimum.accumulate(spans[::-1, 0])[::-1]  # the next token may stand for that white space as well
    return spans


def _guard(engine: tokenizers.Tokenizer, names: list[str]) -> None:
    """Makes special tokens unreachable from text: Unigram would match `<s>` as it matches any piece."""
    leaks = [n for n in names if len(n) > 1 and _id(engine, n) in engine.encode(n, add_special_tokens=False).ids]
    pattern = "|".join(f"{re.escape(n[0])}(?={re.escape(n[1:])})" for n in leaks)
    if leaks and isinstance(engine.model, models.Unigram) and json.dumps(pattern) not in engine.to_str():
        sentencepiece.then_split(engine, pattern)


def _find(path: Path) -> Path:
    """The tokenizer file that `path` means."""
    if path.is_dir():
        for pattern in _FILES:
            found = sorted(file for file in path.glob(pattern) if file.is_file())
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
        check_regular(path, _MOST_BYTES)
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error


def _is_tokenizer_json(path: Path) -> bool:
    return path.suffix == ".json" and not path.name.endswith("vocab.json")


def _object(file: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file."""
    return read_json(file, dict) or {}


_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents", "split_special_tokens",
          "do_basic_tokenize")  # fmt: skip
_KINDS: dict[str, tuple[type, ...]] = {  # of the keys that are read; null is any key's
    **dict.fromkeys(_FLAGS, (bool,)), **dict.fromkeys(_NAMED, (str, dict)), "tokenizer_class": (str,),
    "model_input_names": (list,), "added_tokens_decoder": (dict,), "extra_special_tokens": (list, dict),
    "additional_special_tokens": (list,),
}  # fmt: skip


def _check_types(file: Path, values: dict[str, Any]) -> None:
    """Raises InputError where a key that is read has a value of another type than it may have."""
    for key, kinds in _KINDS.items():
        value = values.get(key)
        if key in _NAMED and isinstance(value, dict):
            value = value.get("content", 0)  # the text of a token
        if value is not None and not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{file}: {key} is {str(value)[:80]!r}, a {type(value).__name__}; expected {expected}")


def _config_beside(path: Path) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json of the file's folder, the second over the first.

    `model_type` is that of the config.json; `tokenizer_class` too if the second has none.
    """
    model, names, config = (_object(path.with_name(name)) for name in ("config.json", "special_tokens_map.json", _CONFIG))
    for name, values in (("special_tokens_map.json", names), (_CONFIG, config)):
        _check_types(path.with_name(name), values)
    if "added_tokens_decoder" in config:  # as transformers: the older way of stating these is not read then
        names = {key: value for key, value in names.items() if not key.endswith("special_tokens")}
    tokenizer_class = config.get("tokenizer_class") or model.get("tokenizer_class")
    return names | config | {"tokenizer_class": tokenizer_class, "model_type": model.get("model_type")}


def _class(config: dict[str, Any]) -> str:
    return str(config["tokenizer_class"] or "").removesuffix("Fast")


def _refuse_other_rules(path: Path, config: dict[str, Any]) -> None:
    """InputError if what stands beside says that text is cut up by rules that are not read here."""
    name, hint = _class(config), ""
    if _is_tokenizer_json(path):
        refused = ["tokenizer_class"] * (name in _PYTHON_CLASSES)
    else:
        refused = ["tokenizer_class"] * (name not in ("", *_READ_CLASSES))
        refused += ["word_tokenizer_type"] * (config.get("word_tokenizer_type") not in (None, "basic"))
        refused += ["subword_tokenizer_type"] * (config.get("subword_tokenizer_type") not in (None, "wordpiece"))
        refused += ["do_basic_tokenize"] * (config.get("do_basic_tokenize") is False)
        if name not in _PYTHON_CLASSES:
            hint = "; save it with transformers, whose tokenizer.json is read"
    for key in refused:
        file = path.with_name("config.json" if key not in _object(path.with_name(_CONFIG)) else _CONFIG)
        said = json.dumps(config[key], ensure_ascii=False)
        raise InputError(f'{file}: "{key}": {said} cuts text by rules other than those {path.name} is read by{hint}')


def _model_type(model_type: str | None, config: dict[str, Any]) -> str | None:
    """`model_type`, else the family that `tokenizer_class` names, else that of the config.json, else None."""
    if model_type is None:
        named = _class(config).removesuffix("Tokenizer").lower()
        beside = config["model_type"] if config["model_type"] in MODEL_TYPES else None
        return {name.replace("-", ""): name for name in MODEL_TYPES}.get(named, beside)
    if model_type not in MODEL_TYPES:
        nearest = did_you_mean(model_type, MODEL_TYPES)
        raise InputError(f"model_type={model_type!r}: expected one of {', '.join(MODEL_TYPES)}{nearest}")
    return model_type


_FAIRSEQ_STEPS = {"Precompiled", "Replace"}  # of the normalisers that converters of XLM-R's .model have written
_ALBERT_STEPS = _FAIRSEQ_STEPS | {"NFKD", "StripAccents", "Lowercase"}
# What transformers takes where no `tokenizer_class` is stated
_CLASS_OF = {"bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer"}
_CLASS_OF |= {"roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer", "albert": "AlbertTokenizer"}


@contextlib.contextmanager
def _failures_named(what: str) -> Iterator[None]:
    """What `tokenizers` raises, plain Exceptions and the panics of Rust, which are not even that, as InputErrors."""
    try:
        yield
    except BaseException as error:
        panicked = not isinstance(error, Exception | KeyboardInterrupt | SystemExit | GeneratorExit)
        if type(error) is not Exception and not panicked:
            raise
        raise InputError(f"{what}: {error}") from None


def _growth(step: Any) -> float:
    """Characters that a normaliser or decoder, as JSON, may make of one. NFKD's 18 are no danger: they are not made again."""
    if not isinstance(step, dict):
        return 1
    if step.get("type") == "Replace":
        pattern, content = step.get("pattern"), step.get("content")
        string = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(content) if isinstance(content, str) else 1
        return max(1, length / len(string) if isinstance(string, str) and string else length + 1)
    below = step.get("normalizers") or step.get("decoders")
    return math.prod(map(_growth, below)) if isinstance(below, list) else 1


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    text = _read(path)
    with _failures_named(f"{path}: not a tokenizer.json"):
        engine = tokenizers.Tokenizer.from_str(text)
    engine.no_padding()
    engine.no_truncation()
    spec = json.loads(text.removeprefix("\ufeff"))
    for part in ("normalizer", "decoder"):
        if (growth := _growth(spec.get(part))) > _MOST_GROWTH:
            raise InputError(f"{path}: its {part} makes up to {growth:.3g} characters of each one; {_MOST_GROWTH} are the most")
    with _failures_named(f"{path}: not a tokenizer.json"):
        engine.encode("\U0010fffd")  # a vocabulary without its own unk_token fails only where a text needs it
    if isinstance(engine.model, models.BPE):
        engine.model.dropout = None  # a regularisation of training
    return engine


def _rebuild(engine: tokenizers.Tokenizer, name: str, config: dict[str, Any]) -> str:
    """Sets what transformers' class `name` sets anew whatever a tokenizer.json says; `name`, or "" for any other file.

    transformers rebuilds any file; one of another kind than the class makes would be spoilt, and is read as it is.
    """
    model, normalizer = engine.model, engine.normalizer
    if name in _BERT_CLASSES:
        ours = isinstance(model, models.WordPiece) and isinstance(normalizer, normalizers.BertNormalizer)
        if ours:
            engine.normalizer = _bert_normalizer(config, bool(config.get("do_lower_case", True)))
            model.max_input_chars_per_word = 100
        return name * ours
    if name == "RobertaTokenizer":
        ours = isinstance(model, models.BPE) and isinstance(engine.pre_tokenizer, pre_tokenizers.ByteLevel) and normalizer is None
        if ours:
            engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
        return name * ours
    known = {"XLMRobertaTokenizer": _FAIRSEQ_STEPS, "AlbertTokenizer": _ALBERT_STEPS}.get(name)
    steps = json.loads(_state(normalizer)) or {"normalizers": []}
    steps = steps.get("normalizers", [steps])
    words = "Metaspace" in _state(engine.pre_tokenizer)
    if known is None or not isinstance(model, models.Unigram) or not words or not {step["type"] for step in steps} <= known:
        return ""
    charsmap = next((base64.b64decode(step["precompiled_charsmap"]) for step in steps if step["type"] == "Precompiled"), b"")
    lowercase, keep_accents = (bool(config.get(key, usual)) for key, usual in (("do_lower_case", True), ("keep_accents", False)))
    if name == "AlbertTokenizer":
        engine.normalizer = sentencepiece.albert_normalizer(charsmap, lowercase, keep_accents)
    else:
        engine.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    engine.pre_tokenizer = sentencepiece.words_as_hugging_face(bool(config.get("add_prefix_space", True)))
    return name


def _added_token(value: Any, file: Path, **flags: bool) -> AddedToken:
    """A token as configs write it, its text or an object with `content` and flags; `flags` go before those."""
    written = value if isinstance(value, dict) else {"content": value}
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        return AddedToken(written["content"], **{key: written[key] for key in known if key in written} | flags)
    except (TypeError, LookupError) as error:
        raise InputError(f"{file}: {value!r} is no added token: {error!r}") from error


def _stated_ids(path: Path, config: dict[str, Any]) -> tuple[Path, list[tuple[int, Any]]]:
    """The file beside a vocabulary that states added tokens with ids, and what it states, by id."""
    file, decoder = path.with_name(_CONFIG), config.get("added_tokens_decoder")
    try:
        if decoder is not None:
            pairs = [(int(id), value) for id, value in decoder.items()]
        else:  # which states ids alone: a role's flags stand elsewhere
            roles = [config.get(f"{role}_token") for role in ROLES]
            flags = {role.get("content"): role for role in roles if isinstance(role, dict)}
            file = path.with_name("added_tokens.json")
            pairs = [(int(id), flags.get(name, name)) for name, id in _object(file).items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: added tokens without ids: {error}") from error
    return file, sorted(pairs, key=lambda pair: pair[0])


def _add_tokens_beside(engine: tokenizers.Tokenizer, path: Path, config: dict[str, Any], raw: bool = False) -> dict[str, str]:
    """Adds the tokens stated beside a file as transformers v5 does; returns the roles, which may be among them.

    Those with ids come first, then special ones without. `raw` finds them in the text as it comes, not normalised.

    Raises:
      InputError: a role is missing, or an id is not the one that the token has or, being new, the next one.
    """
    file, stated = _stated_ids(path, config)
    extra, older = (config.get(f"{kind}_special_tokens") or [] for kind in ("extra", "additional"))
    extra = [*extra.values(), *older] if isinstance(extra, dict) else extra or older
    own = [value for key, value in config.items() if key.endswith("_token") and isinstance(value, str) and key not in _NAMED]
    extra = [value for value in (config.get("bos_token"), config.get("eos_token"), *own, *extra) if value]
    others = [_added_token(value, path.with_name(_CONFIG), special=True) for value in extra]
    tokens = [_added_token(value, file, **{"normalized": False} if raw else {}) for _, value in stated]
    vocab = engine.get_vocab(with_added_tokens=True)
    roles = _find_roles({*vocab, *(token.content for token in tokens)}, path, config)
    whole = file.name == _CONFIG  # states flags too
    special = {*roles.values(), *(token.content for token in others if not whole)}
    known = {token.content for token in engine.get_added_tokens_decoder().values()}
    size = max(vocab.values()) + 1
    for id, token in [*zip([id for id, _ in stated], tokens, strict=True), *((None, token) for token in others)]:
        token.special = token.special or token.content in special
        if token.content not in known or (whole and id is not None):
            engine.add_tokens([token])
            known.add(token.content)
        due = vocab.setdefault(token.content, size)
        size = max(size, due + 1)
        if id not in (None, due) and not _is_tokenizer_json(path):  # whose own ids count
            raise InputError(f"{file}: {token.content!r} has id {id}, but beside {path.name} it gets {due}")
        if _id(engine, token.content) != due:
            raise InputError(f"{path}: leaves ids unused, so that {token.content!r} of {file.name} cannot be added")
    return roles


def _find_roles(vocab: Collection[str], path: Path, config: dict[str, Any]) -> dict[str, str]:
    return {role: _find_role(role, vocab, path, config) for role in ROLES}


def _find_role(role: str, vocab: Collection[str], path: Path, config: dict[str, Any]) -> str:
    """The token of a role: what the config beside names, else the first usual name that the vocabulary has."""
    named = config.get(f"{role}_token")
    named = named["content"] if isinstance(named, dict) else named
    candidates = (named,) if named else ROLES[role]
    for name in candidates:
        if name in vocab:
            return name
    hint = "; or say model_type: XLM-R's and ALBERT's have rules of their own" if path.suffix == ".model" else ""
    raise InputError(
        f"{path}: no {role} token ({' or '.join(candidates)}) among its {len(vocab)} tokens; name the one it has"
        f' as "{role}_token" in a tokenizer_config.json beside it, or add it to the vocabulary{hint}'
    )


def _read_vocab_txt(path: Path) -> dict[str, int]:
    """Token -> line, from 0; of lines that are equal the last, as BERT's own reader and transformers do."""
    vocab: dict[str, int] = {}
    lines = _read(path).removesuffix("\n").split("\n")  # not splitlines: U+2028 and the like are entries
    for number, line in enumerate(lines):
        vocab[line.strip() or line.rstrip("\r")] = number
    return vocab


def _longest_word(path: Path) -> int:
    """Letters of the longest word that is looked up: 200 where the files are Google's, 100 in transformers."""
    googles = path.with_name("bert_config.json").is_file()
    return 200 if googles and not any(path.with_name(name).is_file() for name in ("config.json", _CONFIG)) else 100


def _bert_normalizer(config: dict[str, Any], lowercase: bool) -> normalizers.BertNormalizer:
    chinese, strip = config.get("tokenize_chinese_chars", True), config.get("strip_accents")
    return normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese, strip_accents=strip)


def _wordpiece(
    vocab: dict[str, int], config: dict[str, Any], lowercase: bool | None, unk: str, longest_word: int = 100
) -> tokenizers.Tokenizer:
    """BERT's tokenizer (tokenization.py of google-research/bert); longer words are unknown."""
    if lowercase is None:
        words = [token for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token)]
        lowercase = bool(config.get("do_lower_case", all(word == word.lower() for word in words)))
    engine = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=longest_word))
    engine.normalizer = _bert_normalizer(config, lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)
    return engine


def _read_sentencepiece(
    path: Path, config: dict[str, Any], lowercase: bool | None, model_type: str | None
) -> tokenizers.Tokenizer:
    check_regular(path, _MOST_BYTES)
    model, source = path.read_bytes(), str(path)
    if model_type == "xlm-roberta":
        return sentencepiece.convert_fairseq(model, source)
    if model_type == "albert":
        lowercase = config.get("do_lower_case", True) if lowercase is None else lowercase
        return sentencepiece.convert_albert(model, source, bool(lowercase), config.get("keep_accents", False))
    return sentencepiece.convert(model, source)


def _read_byte_level(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """RoBERTa's byte-level BPE, whose `<mask>` takes the space before it."""
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise InputError(f"{path}: byte-level BPE needs {merges.name} beside it")
    lines = [line for line in _read(merges).split("\n") if line.strip("\r") and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    try:
        if wrong := next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None):
            raise ValueError(f"{wrong!r} is no pair of pieces")
        engine = tokenizers.Tokenizer(models.BPE(_object(path), pairs))  # type: ignore[arg-type]
    except InputError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        raise InputError(f"{path} with {merges.name}: not a byte-level BPE vocabulary: {error}") from error
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    engine.decoder = decoders.ByteLevel()
    mask = config.get("mask_token") or "<mask>"
    mask = {"lstrip": True} | (mask if isinstance(mask, dict) else {"content": mask})
    config["mask_token"] = mask
    if engine.token_to_id(mask["content"]) is not None:
        engine.add_special_tokens([AddedToken(mask["content"], lstrip=mask["lstrip"], special=True)])
    return engine
