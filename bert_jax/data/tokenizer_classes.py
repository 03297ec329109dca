"""The tokenizer classes of transformers as rows: the file that each reads, and what each makes of a tokenizer.json."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.config import InputError
from bert_jax.data import sentencepiece
from bert_jax.data.sentencepiece import ROLES
from bert_jax.disk import check_regular, read_json

Settings = dict[str, Any]
"""JSON of the files beside a tokenizer, by key."""

BERT_ROLES = {role: names[0] for role, names in ROLES.items()}
PATTERNS = ("tokenizer.json", "vocab.txt", "*.model", "vocab.json")
"""The files of a directory; the first found counts."""
CONFIG = "tokenizer_config.json"
_MOST_BYTES = 256 << 20

PYTHON_CLASSES = {
    f"{name}Tokenizer"
    for name in ("BertJapanese", "Bertweet", "Canine", "Flaubert", "Phobert", "ProphetNet", "RoCBert", "RoFormer", "Tapas", "XLM")
}
"""The classes that cut text in Python, by rules that no tokenizer.json holds. Values of `tokenizer_class` lose a final `Fast`."""
CLASS_OF = {
    **dict.fromkeys(("bert", "distilbert", "electra", "ernie", "megatron-bert", "nomic_bert"), "BertTokenizer"),
    **dict.fromkeys(("roberta", "data2vec-text"), "RobertaTokenizer"),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "gte", "new"), "XLMRobertaTokenizer"), "camembert": "CamembertTokenizer",
    "albert": "AlbertTokenizer", "rembert": "RemBertTokenizer", "roformer": "RoFormerTokenizer",
    "mpnet": "MPNetTokenizer", "deberta-v2": "DebertaV2Tokenizer", "esm": "EsmTokenizer", "modernbert": "", "eurobert": "",
}  # fmt: skip
"""By `model_type`, the class that counts where no `tokenizer_class` is stated; none: a tokenizer.json decides alone."""
MODEL_TYPES = tuple(CLASS_OF)
FILE_DECIDES = ("modernbert", "xlm-roberta-xl")
"""The model types whose tokenizer.json counts as it is, whatever class is stated."""


@dataclass(frozen=True)
class Class:
    """A tokenizer class of transformers: the file that it reads, and what it sets whatever a tokenizer.json holds.

    Attributes:
      kind: the file that it reads where there is no tokenizer.json, one of `PATTERNS`.
      read: makes the tokenizer of that file.
      rebuild: sets the normalizer and the cutting into words of a tokenizer.json by the settings. Returns False, and changes
        nothing, for a file of another kind than the class makes.
      template: makes the post-processor; a file that has one keeps it if `keeps_template`.
      roles: names of special tokens that are tried before the usual ones.
      special: special tokens of a tokenizer.json whose settings state none besides the roles.
      spaced_mask: the mask takes the space before it unless the settings state its flags.
      added_mask: the mask need not be in the vocabulary; it is added behind it.
      cases: `read` follows `do_lower_case`.
      token_types: the second text of a pair has its own token type, unless the settings or the template say otherwise.
    """

    kind: str
    read: Callable[[Source], tokenizers.Tokenizer]
    rebuild: Callable[[tokenizers.Tokenizer, Source], bool]
    template: Callable[[tokenizers.Tokenizer, dict[str, str]], processors.PostProcessor]
    roles: dict[str, str]
    special: tuple[str, ...] = ()
    keeps_template: bool = False
    spaced_mask: bool = False
    added_mask: bool = False
    cases: bool = False
    token_types: bool = True


@dataclass(frozen=True)
class Source:
    """A tokenizer file with everything that decides how it is read. `kind` is one of `PATTERNS`."""

    path: Path
    kind: str
    settings: Settings
    model_type: str | None
    lowercase: bool | None
    rules: Class


# --- one reader for each kind of file ---


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, without its mark. Raises InputError for other files."""
    try:
        check_regular(path, _MOST_BYTES)
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error


def _read_vocab_txt(source: Source) -> tokenizers.Tokenizer:
    """Reads BERT's vocabulary. An id is the number of a line, of equal lines that of the last, as in BERT's own reader."""
    lines = read_text(source.path).removesuffix("\n").split("\n")  # not splitlines: U+2028 and others are entries
    vocab = {line.strip() or line.rstrip("\r"): number for number, line in enumerate(lines)}
    settings, lowercase = source.settings, source.lowercase
    if lowercase is None:
        words = [token for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token)]
        lowercase = bool(settings.get("do_lower_case", all(word == word.lower() for word in words)))
    unk = find_role("unk", vocab, source)
    return wordpiece(vocab, _bert_normalizer(settings, lowercase), unk, _longest_word(source.path))


def wordpiece(
    vocab: dict[str, int], normalizer: normalizers.BertNormalizer, unk: str, longest_word: int = 100
) -> tokenizers.Tokenizer:
    """Makes BERT's tokenizer (tokenization.py of google-research/bert); words longer than `longest_word` are unknown."""
    engine = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=longest_word))
    engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)
    return engine


def _bert_normalizer(settings: Settings, lowercase: bool) -> normalizers.BertNormalizer:
    chinese, strip = settings.get("tokenize_chinese_chars", True), settings.get("strip_accents")
    return normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese, strip_accents=strip)


def _longest_word(path: Path) -> int:
    """Returns 200 where the files are Google's, 100, as in transformers, elsewhere."""
    googles = path.with_name("bert_config.json").is_file()
    return 200 if googles and not any(path.with_name(name).is_file() for name in ("config.json", CONFIG)) else 100


def _read_letters(source: Source) -> tokenizers.Tokenizer:
    """Reads ESM's vocabulary: each entry found in a text is a token; what is between them, cut at white space, is unknown."""
    lines = [line.strip() for line in read_text(source.path).splitlines()]
    vocab = {line: number for number, line in enumerate(lines)}
    engine = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=find_role("unk", vocab, source)))
    longest_first = "|".join(map(re.escape, sorted(filter(None, vocab), key=len, reverse=True)))
    spaces = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")  # as str.split does
    engine.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.Split(Regex(longest_first), "isolated")])
    return engine


def _content(source: Source) -> tuple[bytes, str]:
    """Returns the bytes of a .model, and its name for errors."""
    check_regular(source.path, _MOST_BYTES)
    return source.path.read_bytes(), str(source.path)


def _read_sentencepiece(convert: Callable[[bytes, str], tokenizers.Tokenizer], source: Source) -> tokenizers.Tokenizer:
    return convert(*_content(source))


def _read_albert(source: Source) -> tokenizers.Tokenizer:
    keep_accents = source.settings.get("keep_accents", False)
    convert = partial(sentencepiece.convert_albert, lowercase=_lowercase(source, True), keep_accents=keep_accents)
    return _read_sentencepiece(convert, source)


def _read_deberta(source: Source) -> tokenizers.Tokenizer:
    engine, _ = sentencepiece.convert_pieces(*_content(source))
    _as_deberta(engine, source)
    return engine


def _read_rembert(source: Source) -> tokenizers.Tokenizer:
    engine, charsmap = sentencepiece.convert_pieces(*_content(source))
    _set_rembert(engine, source, charsmap)
    return engine


def _lowercase(source: Source, default: bool) -> bool:
    """Returns what `Tokenizer.load` was told about lower case, else `do_lower_case`."""
    return bool(source.settings.get("do_lower_case", default)) if source.lowercase is None else source.lowercase


def _read_byte_level(source: Source) -> tokenizers.Tokenizer:
    """Reads RoBERTa's byte-level BPE."""
    path, settings = source.path, source.settings
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise InputError(f"{path}: byte-level BPE needs {merges.name} beside it")
    lines = [line for line in read_text(merges).split("\n") if line.strip("\r") and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    vocab = read_json(path, dict) or {}
    try:
        if wrong := next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None):
            raise ValueError(f"{wrong!r} is no pair of pieces")
        engine = tokenizers.Tokenizer(models.BPE(vocab, pairs))  # type: ignore[arg-type]
    except Exception as error:  # `tokenizers` raises plain Exception
        raise InputError(f"{path} with {merges.name}: not a byte-level BPE vocabulary: {error}") from error
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    engine.decoder = decoders.ByteLevel()
    return engine


# --- changes to a tokenizer.json, and templates ---


# Each returns False, and changes nothing, for a tokenizer.json of another kind than its class makes, which would be spoilt.
# (transformers changes any file.)


def _as_it_is(engine: tokenizers.Tokenizer, source: Source) -> bool:
    return False


def _as_bert(engine: tokenizers.Tokenizer, source: Source) -> bool:
    model = engine.model
    if not isinstance(model, models.WordPiece) or not isinstance(engine.normalizer, normalizers.BertNormalizer):
        return False
    engine.normalizer = _bert_normalizer(source.settings, bool(source.settings.get("do_lower_case", True)))
    model.max_input_chars_per_word = 100
    return True


def _as_roberta(engine: tokenizers.Tokenizer, source: Source) -> bool:
    byte_level = isinstance(engine.pre_tokenizer, pre_tokenizers.ByteLevel)
    if not isinstance(engine.model, models.BPE) or not byte_level or engine.normalizer is not None:
        return False
    prefix = bool(source.settings.get("add_prefix_space", False))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return True


def _unigram_steps(engine: tokenizers.Tokenizer, own: Collection[str]) -> list[Settings] | None:
    """Returns the steps of the normalizer, None unless they are among `own` and the model is Unigram over `▁` words."""
    steps = json.loads(_state(engine.normalizer)) or {"normalizers": []}
    steps = steps.get("normalizers", [steps])
    words = "Metaspace" in _state(engine.pre_tokenizer)
    fits = isinstance(engine.model, models.Unigram) and words and {step["type"] for step in steps} <= {*own}
    return steps if fits else None


def _charsmap(steps: list[Settings]) -> bytes:
    return next((base64.b64decode(step["precompiled_charsmap"]) for step in steps if step["type"] == "Precompiled"), b"")


def _as_fairseq(engine: tokenizers.Tokenizer, source: Source) -> bool:
    if (steps := _unigram_steps(engine, ("Precompiled", "Replace"))) is None:
        return False
    charsmap = _charsmap(steps)
    engine.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    engine.pre_tokenizer = sentencepiece.words_as_hugging_face(bool(source.settings.get("add_prefix_space", True)))
    return True


def _as_albert(engine: tokenizers.Tokenizer, source: Source) -> bool:
    settings = source.settings
    if (steps := _unigram_steps(engine, ("Precompiled", "Replace", "NFKD", "StripAccents", "Lowercase"))) is None:
        return False
    lowercase, keep_accents = bool(settings.get("do_lower_case", True)), bool(settings.get("keep_accents", False))
    engine.normalizer = sentencepiece.albert_normalizer(_charsmap(steps), lowercase, keep_accents)
    engine.pre_tokenizer = sentencepiece.words_as_hugging_face(bool(settings.get("add_prefix_space", True)))
    return True


def _as_rembert(engine: tokenizers.Tokenizer, source: Source) -> bool:
    if (steps := _unigram_steps(engine, ("Precompiled", "Replace", "NFKD", "StripAccents", "Lowercase"))) is None:
        return False
    _set_rembert(engine, source, _charsmap(steps))
    return True


def _set_rembert(engine: tokenizers.Tokenizer, source: Source, charsmap: bytes) -> None:
    settings = source.settings
    keep_accents = bool(settings.get("keep_accents", True))
    engine.normalizer = sentencepiece.albert_normalizer(charsmap, _lowercase(source, False), keep_accents, one_space=True)
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)


def _as_deberta(engine: tokenizers.Tokenizer, source: Source) -> bool:
    """Sets what transformers v5 does for DeBERTa-v2, which leaves the compatibility characters of the .model as they are."""
    settings = source.settings
    if (
        source.kind == "tokenizer.json"
        and _unigram_steps(engine, ("Precompiled", "Replace", "Strip", "Lowercase", "NFC")) is None
    ):
        return False
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if _lowercase(source, False) else []
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    engine.normalizer = normalizers.Sequence([*steps, spaces, normalizers.NFC(), normalizers.Strip(left=False, right=True)])
    scheme = "always" if settings.get("add_prefix_space", True) else "first"
    punctuation = [pre_tokenizers.Punctuation("isolated")] if settings.get("split_by_punct") else []
    engine.pre_tokenizer = pre_tokenizers.Sequence([*punctuation, pre_tokenizers.Metaspace(prepend_scheme=scheme)])
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return True


def _state(part: object) -> str:
    """Returns the JSON of a normalizer or pre-tokenizer, or `null`."""
    return "null" if part is None else cast(bytes, part.__getstate__()).decode()


def post_processor(engine: tokenizers.Tokenizer, roles: dict[str, str], doubled: bool = False) -> processors.PostProcessor:
    """Makes BERT's template, or with `doubled` RoBERTa's: two separators, no token types. Byte-level BPE trims offsets."""
    cls, sep = roles["cls"], roles["sep"]
    pair = f"{cls} $A {sep} {sep} $B {sep}" if doubled else f"{cls} $A {sep} $B:1 {sep}:1"
    ids = [(name, token_id(engine, name)) for name in (cls, sep)]
    template = processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=pair, special_tokens=ids)
    prefix = re.search(r'"ByteLevel","add_prefix_space":(true|false)', _state(engine.pre_tokenizer))
    if not prefix:
        return template
    trim = processors.ByteLevel(trim_offsets=True, add_prefix_space=prefix[1] == "true")
    return processors.Sequence([trim, template])


def _doubled(engine: tokenizers.Tokenizer, roles: dict[str, str]) -> processors.PostProcessor:
    return post_processor(engine, roles, doubled=True)


def _roberta_processing(engine: tokenizers.Tokenizer, roles: dict[str, str]) -> processors.PostProcessor:
    """Makes MPNet's: RoBERTa's template, and a `Ġ` in front of a token is no part of its span."""
    sep, cls = ((roles[role], token_id(engine, roles[role])) for role in ("sep", "cls"))
    return processors.RobertaProcessing(sep, cls, True, False)


def token_id(engine: tokenizers.Tokenizer, name: str) -> int:
    """Returns the id of a token that the engine has."""
    found = engine.token_to_id(name)
    assert found is not None, name
    return found


def find_role(role: str, vocab: Collection[str], source: Source) -> str:
    """Returns the token of a role: the one that the settings name, else the first usual name that the vocabulary has."""
    settings, rules = source.settings, source.rules
    other = {"cls": "bos_token", "sep": "eos_token"}.get(role, "") if rules is FILE else ""
    stated = settings.get(f"{role}_token") or settings.get(other)
    named = stated["content"] if isinstance(stated, dict) else stated
    candidates = (named,) if named else tuple(dict.fromkeys([rules.roles[role], *ROLES[role]]))
    for name in candidates:
        if name in vocab:
            return name
    hint = "; or say model_type: XLM-R's and ALBERT's have rules of their own" if source.kind == "*.model" else ""
    raise InputError(
        f"{source.path}: no {role} token ({' or '.join(candidates)}) among its {len(vocab)} tokens; name the one it has"
        f' as "{role}_token" in a tokenizer_config.json beside it, or add it to the vocabulary{hint}'
    )


# --- the table ---

_ANGLED = {role: names[1] for role, names in ROLES.items()}
_BERT = Class("vocab.txt", _read_vocab_txt, _as_bert, post_processor, BERT_ROLES, cases=True)
_ROBERTA = Class("vocab.json", _read_byte_level, _as_roberta, _doubled, _ANGLED, spaced_mask=True)
SENTENCEPIECE = Class("*.model", partial(_read_sentencepiece, sentencepiece.convert), _as_it_is, post_processor, BERT_ROLES)
FILE = replace(SENTENCEPIECE, kind="tokenizer.json")
"""No class: a tokenizer.json counts as it is."""
_XLM_ROBERTA = Class("*.model", partial(_read_sentencepiece, sentencepiece.convert_fairseq), _as_fairseq, _doubled, _ANGLED)
CLASSES = {
    "BertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "DistilBertTokenizer": replace(_BERT, token_types=False),
    "MPNetTokenizer": replace(
        _BERT, template=_roberta_processing, roles=_ANGLED | {"unk": "[UNK]"}, spaced_mask=True, token_types=False
    ),
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _XLM_ROBERTA,
    "CamembertTokenizer": replace(
        _XLM_ROBERTA,
        read=partial(_read_sentencepiece, partial(sentencepiece.convert_fairseq, specials=sentencepiece.CAMEMBERT)),
        special=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    "AlbertTokenizer": Class("*.model", _read_albert, _as_albert, post_processor, BERT_ROLES, keeps_template=True, cases=True),
    "DebertaV2Tokenizer": Class("*.model", _read_deberta, _as_deberta, post_processor, BERT_ROLES, added_mask=True, cases=True),
    "RemBertTokenizer": Class(
        "*.model",
        _read_rembert,
        _as_rembert,
        post_processor,
        BERT_ROLES | {"pad": "<pad>", "unk": "<unk>"},
        cases=True,
        token_types=False,
    ),
    "EsmTokenizer": Class(
        "vocab.txt", _read_letters, _as_it_is, post_processor, _ANGLED | {"cls": "<cls>", "sep": "<eos>"}, token_types=False
    ),
}
USUAL = {each.kind: each for each in (_BERT, _ROBERTA, SENTENCEPIECE)}
