"""Tokenizers: text in, int32 ids out.

There is one engine, `tokenizers.Tokenizer`: vocab.txt, vocab.json + merges.txt and SentencePiece .model files are turned into one
on load, so that the ids of training are the ids of the exported tokenizer.json, whichever file was loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, processors

from bert_jax import disk
from bert_jax.config import InputError, did_you_mean
from bert_jax.data import sentencepiece, tokenizer_classes, tokenizer_files, tokenizer_training
from bert_jax.data.tokenizer_classes import token_id
from bert_jax.data.tokenizer_files import failures_named
from bert_jax.data.tokenizer_files import has_tokenizer as has_tokenizer
from bert_jax.data.tokenizer_training import VocabularyKind

T = TypeVar("T")
SpecialTokens = Literal["read", "text"]


class Encoding(NamedTuple):
    """A text as n tokens.

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
    """The special tokens around a text, or around and between the texts of a pair: `[CLS] a [SEP]`, `<s> a </s></s> b </s>`, ...

    Attributes:
      ids: tuples of ids: before the first text, after it, and in a pair after the second; each may be empty.
      types: their token types, likewise.
      text_types: the token type of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ids))

    def lay_out(self, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and token types, int32 [n], of the texts (the ids of each) with the template around them."""
        ids: list[Sequence[int] | np.ndarray] = [self.ids[0]]
        types: list[Sequence[int] | np.ndarray] = [self.types[0]]
        for part, text_type, after, after_types in zip(parts, self.text_types, self.ids[1:], self.types[1:], strict=True):
            ids += [part, after]
            types += [np.full(len(part), text_type), after_types]
        return np.concatenate(ids).astype(np.int32), np.concatenate(types).astype(np.int32)


class Tokenizer:
    """A tokenizer of any of the kinds of file that `load` reads, or a trained one.

    Attributes:
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the five roles.
      mask_token: the text of the mask, `[MASK]` or `<mask>`.
      vocab_size: V; ids are 0..V-1, added tokens included.
      special_ids: sorted ids of the roles and of every other special token.
      special_tokens: "read" where the characters `[SEP]` in a text are that token, as published models expect; "text" where
        they are characters like others. (The `split_special_tokens` of transformers: false and true.)
      starts_word: bool [V], False where the token continues a word: `##` in WordPiece, no leading `▁` in SentencePiece
        (its unknown piece continues too), no leading `Ġ` in byte-level BPE. All True if the file marks no words.
      single, pair: the templates of a text and of a pair of texts.
      token_types: True if the second text of a pair has token type 1.
    """

    def __init__(
        self,
        engine: tokenizers.Tokenizer,
        roles: dict[str, str] = tokenizer_classes.BERT_ROLES,
        special_tokens: SpecialTokens = "read",
        token_types: bool = True,
    ) -> None:
        """Takes over `engine`, whose post-processor is the template; an engine without one adds no special tokens.

        Args:
          engine: a tokenizer of Hugging Face's library.
          roles: pad, unk, cls, sep, mask -> tokens that the engine has.
          special_tokens: see the attribute.
          token_types: False makes all of them 0, whatever the post-processor does.

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
            engine.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")  # as in transformers
        self._engine, self._roles, self.special_tokens = engine, dict(roles), special_tokens
        ids = {role: token_id(engine, name) for role, name in roles.items()}
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
        """Returns a tokenizer that reads special tokens in a text as such, or as text; or whose templates are BERT's."""
        if special_tokens in (None, self.special_tokens) and not bert_template:
            return self
        engine = self.engine()
        if bert_template:
            engine.post_processor = tokenizer_classes.post_processor(engine, self._roles)
        return Tokenizer(engine, self._roles, special_tokens or self.special_tokens, self.token_types or bert_template)

    def lays_out_as_bert(self, pairs: bool) -> bool:
        """Returns True if the templates of texts, and of `pairs`, are `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`."""
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
        """Returns the ids of each text, int32 [n_i], without a template, truncation or padding.

        `special_tokens` decides about the characters `[SEP]` in a text; added tokens that are not special are always read.
        Releases the GIL, and runs on several cores unless the environment has TOKENIZERS_PARALLELISM=false.

        Raises:
          InputError: a text is not a str, or has half of a surrogate pair, which UTF-8 cannot hold; names its index.
        """
        return [np.array(encoding.ids, np.int32) for encoding in self._encode(texts)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Returns the ids of `encode_batch` with the span of each token in its text and the word that it belongs to."""
        encodings = self._encode(texts, offsets=True)
        return [
            Encoding(np.array(encoding.ids, np.int32), _spans(text, encoding), np.array(encoding.word_ids, np.int32))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _encode(self, texts: Sequence[str], offsets: bool = False) -> Iterator[tokenizers.Encoding]:
        return encoded(self._engine, texts, offsets)

    def engine(self) -> tokenizers.Tokenizer:
        """Returns a copy of the engine, which reads special tokens in a text as these tokens."""
        return tokenizers.Tokenizer.from_str(self._engine.to_str())

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, without special tokens."""
        with failures_named("the tokenizer fails at these ids"):
            return self._engine.decode([int(i) for i in ids], skip_special_tokens=True)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the token of each id; the empty string for an id that the vocabulary leaves unused."""
        return [self._engine.id_to_token(int(i)) or "" for i in ids]

    def vocabulary(self) -> dict[str, int]:
        """Returns the id of each token, added tokens included."""
        return dict(self._engine.get_vocab())

    def _json(self) -> str:
        return json.dumps(json.loads(self._engine.to_str()), ensure_ascii=False, sort_keys=True, indent=1)

    def fingerprint(self) -> str:
        """Returns a SHA-256 (hex) of the saved tokenizer.json and of `special_tokens`: equal fingerprints give equal ids."""
        return hashlib.sha256((self._json() + "read" * (self.special_tokens == "read")).encode()).hexdigest()

    def difference(self, other: Tokenizer) -> str:
        """Describes how two vocabularies differ: `id 7 is 'the' there, 'of' here`; empty if each id has the same token."""
        if self.vocab_size != other.vocab_size:
            return f"{other.vocab_size} tokens there, {self.vocab_size} here"
        here, there = ({id: token for token, id in t._engine.get_vocab().items()} for t in (self, other))
        different = [i for i in range(self.vocab_size) if here.get(i) != there.get(i)]
        return f"id {(i := different[0])} is {there.get(i)!r} there, {here.get(i)!r} here" if different else ""

    def without_token_types(self) -> Tokenizer:
        """Returns this tokenizer for a model without token types: all are 0, and transformers gives the model none."""
        return Tokenizer(self._engine, self._roles, self.special_tokens, False)

    def save(self, directory: str | os.PathLike[str], model_max_length: int = 512) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads with equal ids.

        `special_tokens` is saved as `split_special_tokens`. Each file appears whole or not at all.

        Raises:
          InputError: they cannot be written.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": self.special_tokens == "text",
            "model_input_names": ["input_ids", *["token_type_ids"] * self.token_types, "attention_mask"],
            **{f"{role}_token": name for role, name in self._roles.items() if role != "unk" or self.unk_id != self.pad_id},
        }
        texts = {"tokenizer.json": self._json(), "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2)}
        for name, text in texts.items():
            disk.write_text(Path(directory) / name, text + "\n")

    def __getstate__(self) -> tuple[str, dict[str, str], SpecialTokens, bool]:
        return self._engine.to_str(), self._roles, self.special_tokens, self.token_types

    def __setstate__(self, state: tuple[str, dict[str, str], SpecialTokens, bool]) -> None:
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
        MPNet's, RoBERTa's, XLM-R's, CamemBERT's, ALBERT's or DeBERTa-v2's, and which is of the kind that this class makes, is
        normalized, cut into words and put between special tokens as the class does by the keys of tokenizer_config.json
        (`do_lower_case`, `strip_accents`, `tokenize_chinese_chars`, `add_prefix_space`, `split_by_punct`). For any other class,
        and for ModernBERT and XLM-R XL, the file alone decides. `dropout` of BPE is off. One exception: the .model of an XLM-R
        XL has XLM-R's ids, which transformers does not give.
        Words longer than 100 letters are unknown to a vocab.txt; longer than 200 where bert_config.json stands beside it and
        neither config.json nor tokenizer_config.json does, as in Google's code.

        Memory: files of at most 256 MiB are read, and take up to 30 times their size; a normalizer or decoder that would make
        more than 100 characters of one is refused.

        Args:
          path: the file; in a directory, the first found in the order above.
          lowercase: for BERT's own normalization and ALBERT's: True is uncased. None asks the files: see above for a
            tokenizer.json; else `do_lower_case`, and without it uncased unless an entry of a vocab.txt has an upper-case
            letter.
          model_type: `model_type` of a config.json, one of `tokenizer_classes.MODEL_TYPES`. Decides what the file leaves open
            where no `tokenizer_class` is stated: the ids and normalization of a .model (else SentencePiece's own), the template,
            the names of the special tokens. DistilBERT, MPNet, ModernBERT, ESM and EuroBERT have no token types. None: that of
            the config.json beside.
          special_tokens: "read" or "text", see the attribute. None: by `split_special_tokens` of tokenizer_config.json,
            else "read".

        Raises:
          InputError: the file is missing, of another kind, damaged, or lacks one of the five roles; the files beside ask for
            rules that are not implemented, or state ids for added tokens that are not the next ones.
        """
        file = tokenizer_files.find(Path(path))
        with failures_named(f"{file}: not a tokenizer that can be used"):
            loaded = tokenizer_files.read(file, lowercase, model_type)
            special_tokens = special_tokens or ("text" if loaded.split_special_tokens else "read")
            return cls(loaded.engine, loaded.roles, special_tokens, loaded.token_types)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: VocabularyKind, lowercase: bool = True) -> Tokenizer:
        """Trains a vocabulary of exactly `vocab_size` tokens; [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0 to 4.

        `unigram` and `bpe` are SentencePiece's, after NFKC (case folded if `lowercase`): same texts, same vocabulary.
        `wordpiece` is that of `tokenizers`, after BERT's normalization: ids of equally frequent tokens move between
        runs, so save the result. Every line is used; long ones are cut at white space.

        Raises:
          InputError: `kind` is unknown, or the texts give fewer tokens than `vocab_size`, or need more.
        """
        engine = tokenizer_training.train(texts, vocab_size, kind, lowercase)
        engine.post_processor = tokenizer_classes.post_processor(engine, tokenizer_classes.BERT_ROLES)
        return cls(engine)


def encoded(engine: tokenizers.Tokenizer, texts: Sequence[str], offsets: bool = False) -> Iterator[tokenizers.Encoding]:
    """Yields the encoding of each text without a template, in portions (`in_portions`), which bounds the memory.

    Args:
      engine: the tokenizer.
      texts: the texts.
      offsets: compute the offsets of tokens, too.

    Raises:
      InputError: a text is not a str, or has half of a surrogate pair, which UTF-8 cannot hold; names its index.
    """
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, not one string")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts[{i}] is a {type(text).__name__}, not a str")
    encode = engine.encode_batch if offsets else engine.encode_batch_fast
    try:
        for portion in in_portions(texts, lambda text: len(text) + 1):
            with failures_named("the tokenizer fails at these texts"):
                encodings = encode(portion, add_special_tokens=False)
            yield from encodings
    except TypeError:
        for i, text in enumerate(texts):
            if half := re.search("[\ud800-\udfff]", text):
                raise InputError(
                    f"texts[{i}]: character {half.start()} is {half[0]!a}, half of a surrogate pair; remove it"
                ) from None
        raise


def in_portions(items: Iterable[T], size_of: Callable[[T], int] = len, size: int = 1 << 20) -> Iterator[list[T]]:  # type: ignore[assignment]
    """Yields items in consecutive portions of about `size` characters: an encoding takes 50 times the memory of its ids."""
    portion, so_far = list[T](), 0
    for item in items:
        portion.append(item)
        so_far += size_of(item)
        if so_far >= size:
            yield portion
            portion, so_far = [], 0
    if portion:
        yield portion


def _template(engine: tokenizers.Tokenizer, texts: int) -> Template:
    """Finds the template of one text or two by giving the post-processor texts of one token each."""
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
    """Returns the engine's offsets, int32 [n, 2], without the white space that a word's first token also stands for."""
    spans, before = np.array(encoding.offsets, np.int32).reshape(-1, 2), 0
    for i, ((start, end), token) in enumerate(zip(encoding.offsets, encoding.tokens, strict=True)):
        surface = text[start:end]
        stripped = surface.strip()
        if not token.strip("▁") and "▁" not in surface:
            start += len(surface) - len(surface.lstrip())  # this is `end` if there is nothing else
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
    """Makes special tokens unreachable from text, where Unigram would match `<s>` as it matches any piece."""
    state = engine.to_str()
    cuts = {name: f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names if len(name) > 1}
    leaks = [
        cut for name, cut in cuts.items()
        if token_id(engine, name) in engine.encode(name, add_special_tokens=False).ids
        and json.dumps(cut, ensure_ascii=False)[1:-1] not in state
    ]  # fmt: skip
    if leaks and isinstance(engine.model, (models.Unigram, models.WordLevel)):
        sentencepiece.split_after(engine, "|".join(leaks))
