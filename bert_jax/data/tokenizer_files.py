"""Readers of tokenizer files. Each makes a `tokenizers.Tokenizer` of a file as transformers' AutoTokenizer (v5) does."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.config import InputError, did_you_mean
from bert_jax.data import sentencepiece
from bert_jax.data.sentencepiece import ROLES
from bert_jax.disk import check_regular, read_json

Settings = dict[str, Any]
"""JSON of the files beside a tokenizer, by key. `_check_types` holds the types of the keys that are read."""

BERT_ROLES = {role: names[0] for role, names in ROLES.items()}
_PATTERNS = ("tokenizer.json", "vocab.txt", "*.model", "vocab.json")
"""The files of a directory; the first found counts."""
_CONFIG = "tokenizer_config.json"
_MOST_BYTES = 256 << 20
_MOST_GROWTH = 100
"""The most characters that a normalizer or decoder may make of one."""

_PYTHON_CLASSES = {
    f"{name}Tokenizer"
    for name in ("BertJapanese", "Bertweet", "Canine", "Flaubert", "Phobert", "ProphetNet", "RoCBert", "RoFormer", "Tapas", "XLM")
}
"""The classes that cut text in Python, by rules that no tokenizer.json holds. Values of `tokenizer_class` lose a final `Fast`."""
_CLASS_OF = {
    **dict.fromkeys(("bert", "distilbert", "electra", "ernie", "megatron-bert", "nomic_bert"), "BertTokenizer"),
    **dict.fromkeys(("roberta", "data2vec-text"), "RobertaTokenizer"),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "gte", "new"), "XLMRobertaTokenizer"), "camembert": "CamembertTokenizer",
    "albert": "AlbertTokenizer", "rembert": "RemBertTokenizer", "roformer": "RoFormerTokenizer",
    "mpnet": "MPNetTokenizer", "deberta-v2": "DebertaV2Tokenizer", "esm": "EsmTokenizer",
    "modernbert": "", "eurobert": "",
}  # fmt: skip
"""By `model_type`, the class that counts where no `tokenizer_class` is stated; none: a tokenizer.json decides alone."""
MODEL_TYPES = tuple(_CLASS_OF)
_FILE_DECIDES = ("modernbert", "xlm-roberta-xl")
"""The model types whose tokenizer.json counts as it is, whatever class is stated."""
_WITHOUT_TYPES = ("distilbert", "mpnet", "modernbert", "esm", "eurobert")
"""The model types that have no table of token types and whose classes in transformers take none."""

_ROLE_KEYS = {f"{name}_token" for name in (*ROLES, "bos", "eos")}
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents",
                     "split_special_tokens", "do_basic_tokenize", "split_by_punct"), (bool,)),
    **dict.fromkeys(_ROLE_KEYS, (str, dict)), "tokenizer_class": (str,), "model_input_names": (list,),
    "added_tokens_decoder": (dict,), "extra_special_tokens": (list, dict), "additional_special_tokens": (list,),
}  # fmt: skip
"""The types that a key may have; null is allowed everywhere."""


class Loaded(NamedTuple):
    """A tokenizer as its files describe it, with the token of each role."""

    engine: tokenizers.Tokenizer
    roles: dict[str, str]
    token_types: bool
    split_special_tokens: bool


@dataclass(frozen=True)
class _Class:
    """A tokenizer class of transformers: the file that it reads, and what it sets whatever a tokenizer.json holds.

    Attributes:
      kind: the file that it reads where there is no tokenizer.json, one of `_PATTERNS`.
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
    read: Callable[[_Source], tokenizers.Tokenizer]
    rebuild: Callable[[tokenizers.Tokenizer, _Source], bool]
    template: Callable[[tokenizers.Tokenizer, dict[str, str]], processors.PostProcessor]
    roles: dict[str, str]
    special: tuple[str, ...] = ()
    keeps_template: bool = False
    spaced_mask: bool = False
    added_mask: bool = False
    cases: bool = False
    token_types: bool = True


@dataclass(frozen=True)
class _Source:
    """A tokenizer file with everything that decides how it is read. `kind` is one of `_PATTERNS`."""

    path: Path
    kind: str
    settings: Settings
    model_type: str | None
    lowercase: bool | None
    rules: _Class


def read(path: Path, lowercase: bool | None, model_type: str | None) -> Loaded:
    """Reads a tokenizer file and the files beside it; `Tokenizer.load` describes the arguments."""
    source = _describe(path, lowercase, model_type)
    rules, settings, from_json = source.rules, source.settings, source.kind == "tokenizer.json"
    engine = _read_tokenizer_json(source) if from_json else rules.read(source)
    rebuilt = rules.rebuild(engine, source) if from_json else True
    if rules.spaced_mask and not from_json and engine.token_to_id(settings["mask_token"]["content"]) is not None:
        engine.add_special_tokens([_added_token(settings["mask_token"], path.with_name(_CONFIG), special=True)])
    if lowercase is not None:
        _set_lowercase(engine, source, lowercase)
    roles = _add_tokens_beside(engine, source)
    if rebuilt and not (engine.post_processor and rules.keeps_template):
        engine.post_processor = rules.template(engine, roles)
    takes_types = "token_type_ids" in settings.get("model_input_names", ["token_type_ids"] * rules.token_types)
    split = bool(settings.get("split_special_tokens"))
    return Loaded(engine, roles, takes_types and source.model_type not in _WITHOUT_TYPES, split)


# --- the file and its settings ---


def find(path: Path) -> Path:
    """Returns the tokenizer file that `path`, a file or a directory, means."""
    if path.is_dir():
        for pattern in _PATTERNS:
            found = sorted(file for file in path.glob(pattern) if file.is_file())
            if len(found) > 1:
                raise InputError(f"{path}: several tokenizers, {', '.join(f.name for f in found)}; give the file")
            if found:
                return found[0]
        raise InputError(f"{path}: no tokenizer.json, vocab.txt, *.model or vocab.json in this directory")
    if not path.is_file():
        raise InputError(f"{path}: no such file{did_you_mean(path.name, [f.name for f in path.parent.glob('*')])}")
    return path


def has_tokenizer(directory: Path) -> bool:
    """Returns True if `directory` has a file that `Tokenizer.load` would read."""
    return any(file.is_file() for pattern in _PATTERNS for file in directory.glob(pattern))


def _describe(path: Path, lowercase: bool | None, model_type: str | None) -> _Source:
    settings = _settings_beside(path)
    endings = {"vocab.json": "vocab.json", ".json": "tokenizer.json", ".txt": "vocab.txt", ".model": "*.model"}
    kind = next((kind for ending, kind in endings.items() if path.name.endswith(ending)), "")
    _refuse_other_rules(path, kind, settings)
    model_type = _model_type(model_type, settings)
    if not kind:
        raise InputError(f"{path}: expected a directory, tokenizer.json, vocab.txt, vocab.json or *.model")
    if not _stated_class(settings) and _CLASS_OF.get(model_type or "") in _PYTHON_CLASSES:
        raise InputError(
            f"{path}: the tokenizer of a {model_type} cuts text by rules in Python, which no file holds: give ids; or, if "
            f'this one has other rules, state their class as "tokenizer_class" in a {_CONFIG} beside it'
        )
    rules = _rules(path, kind, settings, model_type)
    if rules.spaced_mask and kind != "tokenizer.json":
        stated = settings.get("mask_token") or rules.roles["mask"]
        settings["mask_token"] = {"lstrip": True} | (stated if isinstance(stated, dict) else {"content": stated})
    return _Source(path, kind, settings, model_type, lowercase, rules)


def _object(file: Path) -> Settings:
    """Reads a JSON object, {} if there is no such file."""
    return read_json(file, dict) or {}


def _settings_beside(path: Path) -> Settings:
    """Reads special_tokens_map.json and tokenizer_config.json, whose keys take precedence, and `model_type` of config.json.

    `tokenizer_class` comes from config.json where tokenizer_config.json has none.
    """
    model, names, config = (_object(path.with_name(name)) for name in ("config.json", "special_tokens_map.json", _CONFIG))
    for name, values in (("special_tokens_map.json", names), (_CONFIG, config)):
        _check_types(path.with_name(name), values)
    if "added_tokens_decoder" in config:  # transformers does not read the older way of stating these then
        names = {key: value for key, value in names.items() if not key.endswith("special_tokens")}
    tokenizer_class = config.get("tokenizer_class") or model.get("tokenizer_class")
    return names | config | {"tokenizer_class": tokenizer_class, "model_type": model.get("model_type")}


def _check_types(file: Path, values: Settings) -> None:
    """Raises InputError where a key that is read has a value of another type than it may have."""
    for key, types in _TYPES.items():
        value = values.get(key)
        if key in _ROLE_KEYS and isinstance(value, dict):
            value = value.get("content", 0)  # the text of a token
        if value is not None and not isinstance(value, types):
            expected = " or ".join(each.__name__ for each in types)
            raise InputError(f"{file}: {key} is {str(value)[:80]!r}, a {type(value).__name__}; expected {expected}")


def _stated_class(settings: Settings) -> str:
    return str(settings["tokenizer_class"] or "").removesuffix("Fast")


def _rules(path: Path, kind: str, settings: Settings, model_type: str | None) -> _Class:
    """Returns the class that counts: the stated one, else that of the model type, else the usual one for this kind of file."""
    stated, usual = _stated_class(settings), _CLASS_OF.get(model_type or "")
    if kind == "tokenizer.json":
        return _CLASSES.get(stated or usual or "", _FILE) if model_type not in _FILE_DECIDES else _FILE
    if kind == "vocab.json" and usual == "" and not stated:
        raise InputError(f"{path}: a {model_type} is read from its tokenizer.json, which holds the rules of cutting text; add it")
    classes = [_CLASSES[name] for name in (stated, usual or "") if name in _CLASSES]
    return next((each for each in classes if each.kind == kind), _USUAL[kind])


def _refuse_other_rules(path: Path, kind: str, settings: Settings) -> None:
    """Raises InputError if the settings ask for rules of cutting text that are not implemented here."""
    name, hint = _stated_class(settings), ""
    if kind == "tokenizer.json":
        refused = {"tokenizer_class": name in _PYTHON_CLASSES}
    else:
        refused = {
            "tokenizer_class": bool(name) and name not in (*_CLASSES, "PreTrainedTokenizer", "TokenizersBackend"),
            "word_tokenizer_type": settings.get("word_tokenizer_type") not in (None, "basic"),
            "subword_tokenizer_type": settings.get("subword_tokenizer_type") not in (None, "wordpiece"),
            "do_basic_tokenize": settings.get("do_basic_tokenize") is False,
        }
        if name not in _PYTHON_CLASSES:
            hint = "; save it with transformers, whose tokenizer.json is read"
    for key in (key for key, wrong in refused.items() if wrong):
        file = path.with_name("config.json" if key not in _object(path.with_name(_CONFIG)) else _CONFIG)
        said = json.dumps(settings[key], ensure_ascii=False)
        raise InputError(f'{file}: "{key}": {said} cuts text by rules other than those {path.name} is read by{hint}')


def _model_type(model_type: str | None, settings: Settings) -> str | None:
    """Returns `model_type`, which must be known, else that of the config.json if it is."""
    if model_type is None:
        return settings["model_type"] if settings["model_type"] in MODEL_TYPES else None
    if model_type not in MODEL_TYPES:
        nearest = did_you_mean(model_type, MODEL_TYPES)
        raise InputError(f"model_type={model_type!r}: expected one of {', '.join(MODEL_TYPES)}{nearest}")
    return model_type


# --- one reader for each kind of file ---


def _read_text(path: Path) -> str:
    try:
        check_regular(path, _MOST_BYTES)
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error


@contextlib.contextmanager
def failures_named(what: str) -> Iterator[None]:
    """Turns plain Exceptions and Rust's panics, which `tokenizers` raises, into InputErrors."""
    try:
        yield
    except BaseException as error:
        panicked = not isinstance(error, Exception | KeyboardInterrupt | SystemExit | GeneratorExit)
        if type(error) is not Exception and not panicked:
            raise
        raise InputError(f"{what}: {error}") from None


def _read_tokenizer_json(source: _Source) -> tokenizers.Tokenizer:
    path = source.path
    text = _read_text(path)
    with failures_named(f"{path}: not a tokenizer.json"):
        engine = tokenizers.Tokenizer.from_str(text)
    engine.no_padding()
    engine.no_truncation()
    spec = json.loads(text.removeprefix("\ufeff"))
    for part in ("normalizer", "decoder"):
        if (growth := _growth(spec.get(part))) > _MOST_GROWTH:
            raise InputError(f"{path}: its {part} makes up to {growth:.3g} characters of each one; {_MOST_GROWTH} are the most")
    with failures_named(f"{path}: not a tokenizer.json"):
        engine.encode("\U0010fffd")  # a vocabulary without its own unk_token fails only where a text needs it
    if isinstance(engine.model, models.BPE):
        engine.model.dropout = None  # it regularizes training
    return engine


def _growth(step: object) -> float:
    """Returns how many characters a normalizer or decoder, as JSON, may make of one.

    The 18 of NFKD are no danger: they are not decomposed again.
    """
    if not isinstance(step, dict):
        return 1
    if step.get("type") == "Replace":
        pattern, content = step.get("pattern"), step.get("content")
        string = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(content) if isinstance(content, str) else 1
        return max(1, length / len(string) if isinstance(string, str) and string else length + 1)
    steps = step.get("normalizers") or step.get("decoders")
    return math.prod(map(_growth, steps)) if isinstance(steps, list) else 1


def _read_vocab_txt(source: _Source) -> tokenizers.Tokenizer:
    """Reads BERT's vocabulary. An id is the number of a line, of equal lines that of the last, as in BERT's own reader."""
    lines = _read_text(source.path).removesuffix("\n").split("\n")  # not splitlines: U+2028 and others are entries
    vocab = {line.strip() or line.rstrip("\r"): number for number, line in enumerate(lines)}
    settings, lowercase = source.settings, source.lowercase
    if lowercase is None:
        words = [token for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token)]
        lowercase = bool(settings.get("do_lower_case", all(word == word.lower() for word in words)))
    unk = _find_role("unk", vocab, source)
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
    return 200 if googles and not any(path.with_name(name).is_file() for name in ("config.json", _CONFIG)) else 100


def _read_letters(source: _Source) -> tokenizers.Tokenizer:
    """Reads ESM's vocabulary: each entry found in a text is a token; what is between them, cut at white space, is unknown."""
    lines = [line.strip() for line in _read_text(source.path).splitlines()]
    vocab = {line: number for number, line in enumerate(lines)}
    engine = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=_find_role("unk", vocab, source)))
    longest_first = "|".join(map(re.escape, sorted(filter(None, vocab), key=len, reverse=True)))
    spaces = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")  # as str.split does
    engine.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.Split(Regex(longest_first), "isolated")])
    return engine


def _read_sentencepiece(convert: Callable[[bytes, str], tokenizers.Tokenizer], source: _Source) -> tokenizers.Tokenizer:
    check_regular(source.path, _MOST_BYTES)
    return convert(source.path.read_bytes(), str(source.path))


def _read_albert(source: _Source) -> tokenizers.Tokenizer:
    keep_accents = source.settings.get("keep_accents", False)
    convert = partial(sentencepiece.convert_albert, lowercase=_lowercase(source, True), keep_accents=keep_accents)
    return _read_sentencepiece(convert, source)


def _read_deberta(source: _Source) -> tokenizers.Tokenizer:
    check_regular(source.path, _MOST_BYTES)
    engine, _ = sentencepiece.convert_pieces(source.path.read_bytes(), str(source.path))
    _as_deberta(engine, source)
    return engine


def _read_rembert(source: _Source) -> tokenizers.Tokenizer:
    check_regular(source.path, _MOST_BYTES)
    engine, charsmap = sentencepiece.convert_pieces(source.path.read_bytes(), str(source.path))
    _set_rembert(engine, source, charsmap)
    return engine


def _lowercase(source: _Source, default: bool) -> bool:
    """Returns what `Tokenizer.load` was told about lower case, else `do_lower_case`."""
    return bool(source.settings.get("do_lower_case", default)) if source.lowercase is None else source.lowercase


def _read_byte_level(source: _Source) -> tokenizers.Tokenizer:
    """Reads RoBERTa's byte-level BPE."""
    path, settings = source.path, source.settings
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise InputError(f"{path}: byte-level BPE needs {merges.name} beside it")
    lines = [line for line in _read_text(merges).split("\n") if line.strip("\r") and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    vocab = _object(path)
    try:
        if wrong := next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None):
            raise ValueError(f"{wrong!r} is no pair of pieces")
        engine = tokenizers.Tokenizer(models.BPE(vocab, pairs))  # type: ignore[arg-type]
    except Exception as error:  # `tokenizers` raises plain Exception
        raise InputError(f"{path} with {merges.name}: not a byte-level BPE vocabulary: {error}") from error
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    engine.decoder = decoders.ByteLevel()
    return engine


# --- changes after reading ---


# Each returns False, and changes nothing, for a tokenizer.json of another kind than its class makes, which would be spoilt.
# (transformers changes any file.)


def _as_it_is(engine: tokenizers.Tokenizer, source: _Source) -> bool:
    return False


def _as_bert(engine: tokenizers.Tokenizer, source: _Source) -> bool:
    model = engine.model
    if not isinstance(model, models.WordPiece) or not isinstance(engine.normalizer, normalizers.BertNormalizer):
        return False
    engine.normalizer = _bert_normalizer(source.settings, bool(source.settings.get("do_lower_case", True)))
    model.max_input_chars_per_word = 100
    return True


def _as_roberta(engine: tokenizers.Tokenizer, source: _Source) -> bool:
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


def _as_fairseq(engine: tokenizers.Tokenizer, source: _Source) -> bool:
    if (steps := _unigram_steps(engine, ("Precompiled", "Replace"))) is None:
        return False
    charsmap = _charsmap(steps)
    engine.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    engine.pre_tokenizer = sentencepiece.words_as_hugging_face(bool(source.settings.get("add_prefix_space", True)))
    return True


def _as_albert(engine: tokenizers.Tokenizer, source: _Source) -> bool:
    settings = source.settings
    if (steps := _unigram_steps(engine, ("Precompiled", "Replace", "NFKD", "StripAccents", "Lowercase"))) is None:
        return False
    lowercase, keep_accents = bool(settings.get("do_lower_case", True)), bool(settings.get("keep_accents", False))
    engine.normalizer = sentencepiece.albert_normalizer(_charsmap(steps), lowercase, keep_accents)
    engine.pre_tokenizer = sentencepiece.words_as_hugging_face(bool(settings.get("add_prefix_space", True)))
    return True


def _as_rembert(engine: tokenizers.Tokenizer, source: _Source) -> bool:
    if (steps := _unigram_steps(engine, ("Precompiled", "Replace", "NFKD", "StripAccents", "Lowercase"))) is None:
        return False
    _set_rembert(engine, source, _charsmap(steps))
    return True


def _set_rembert(engine: tokenizers.Tokenizer, source: _Source, charsmap: bytes) -> None:
    settings = source.settings
    keep_accents = bool(settings.get("keep_accents", True))
    engine.normalizer = sentencepiece.albert_normalizer(charsmap, _lowercase(source, False), keep_accents, one_space=True)
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)


def _as_deberta(engine: tokenizers.Tokenizer, source: _Source) -> bool:
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


def _set_lowercase(engine: tokenizers.Tokenizer, source: _Source, lowercase: bool) -> None:
    """Sets BERT's own normalization in a tokenizer.json. The readers of other files have done it."""
    if source.kind != "tokenizer.json" and source.rules.cases:
        return
    if not isinstance(engine.normalizer, normalizers.BertNormalizer):
        raise InputError(f"{source.path}: lowercase={lowercase} does not apply: the file has its own rule")
    engine.normalizer.lowercase = lowercase


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


# --- added tokens and roles ---


def token_id(engine: tokenizers.Tokenizer, name: str) -> int:
    """Returns the id of a token that the engine has."""
    found = engine.token_to_id(name)
    assert found is not None, name
    return found


def _added_token(value: Any, file: Path, **flags: bool) -> AddedToken:
    """Makes a token of its text, or of an object with `content` and flags. `flags` take precedence."""
    written = value if isinstance(value, dict) else {"content": value}
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        return AddedToken(written["content"], **{key: written[key] for key in known if key in written} | flags)
    except (TypeError, LookupError) as error:
        raise InputError(f"{file}: {value!r} is no added token: {error!r}") from error


def _tokens_with_ids(source: _Source) -> tuple[Path, list[tuple[int, AddedToken]]]:
    """Returns the file that states added tokens with ids, and its tokens in the order of their ids."""
    settings, file, decoder = source.settings, source.path.with_name(_CONFIG), source.settings.get("added_tokens_decoder")
    try:
        if decoder is not None:
            pairs = [(int(id), value) for id, value in decoder.items()]
        else:  # added_tokens.json states ids alone; the settings hold the flags of a role
            roles = [settings.get(f"{role}_token") for role in ROLES]
            unstated = {name: {"content": name, "normalized": True} for name in source.rules.roles.values() if name not in roles}
            flags = unstated | {role.get("content"): role for role in roles if isinstance(role, dict)}
            file = source.path.with_name("added_tokens.json")
            pairs = [(int(id), flags.get(name, name)) for name, id in _object(file).items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: added tokens without ids: {error}") from error
    as_it_comes = source.rules is _SENTENCEPIECE  # found before normalization
    forced = {"normalized": False} if as_it_comes else {}
    return file, [(id, _added_token(value, file, **forced)) for id, value in sorted(pairs, key=lambda pair: pair[0])]


def _special_tokens(source: _Source) -> list[AddedToken]:
    """Returns the special tokens that the settings state without ids: bos, eos, a model's own, extra ones."""
    settings = source.settings
    extra, older = (settings.get(f"{kind}_special_tokens") or [] for kind in ("extra", "additional"))
    extra = [*extra.values(), *older] if isinstance(extra, dict) else extra or older
    if not extra and source.kind == "tokenizer.json":
        extra = source.rules.special
    own = [
        value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str) and key not in _ROLE_KEYS
    ]
    mask = [settings.get("mask_token") or source.rules.roles["mask"]] * source.rules.added_mask
    values = (settings.get("bos_token"), settings.get("eos_token"), *mask, *own, *extra)
    return [_added_token(value, source.path.with_name(_CONFIG), special=True) for value in values if value]


def _add_tokens_beside(engine: tokenizers.Tokenizer, source: _Source) -> dict[str, str]:
    """Adds the tokens stated beside a file as transformers v5 does; returns the roles, which may be among them.

    Raises:
      InputError: a role is missing, or an id is not the one that the token has or, being new, the next one.
    """
    path = source.path
    file, with_ids = _tokens_with_ids(source)
    others = _special_tokens(source)
    vocab = engine.get_vocab(with_added_tokens=True)
    names = {*vocab, *(token.content for _, token in with_ids), *(token.content for token in others)}
    bpe = engine.model if source.rules is _FILE and isinstance(engine.model, models.BPE) else None
    without_unk = bpe is not None and not bpe.unk_token and not source.settings.get("unk_token")
    roles = {role: _find_role(role, names, source) for role in ROLES if role != "unk" or not without_unk}
    known = {token.content for token in engine.get_added_tokens_decoder().values()}
    if without_unk:  # byte-level BPE knows every text
        roles["unk"] = next((name for name in ROLES["unk"] if name in known), roles["pad"])
    states_flags = file.name == _CONFIG
    special = {*roles.values(), *(token.content for token in others if not states_flags)}
    size = max(vocab.values()) + 1
    for id, token in [*with_ids, *((None, token) for token in others)]:
        token.special = token.special or token.content in special
        if token.content not in known or (states_flags and id is not None):
            engine.add_tokens([token])
            known.add(token.content)
        due = vocab.setdefault(token.content, size)
        size = max(size, due + 1)
        if id not in (None, due) and source.kind != "tokenizer.json":  # whose own ids count
            raise InputError(f"{file}: {token.content!r} has id {id}, but beside {path.name} it gets {due}")
        if token_id(engine, token.content) != due:
            raise InputError(f"{path}: leaves ids unused, so that {token.content!r} of {file.name} cannot be added")
    return roles


def _find_role(role: str, vocab: Collection[str], source: _Source) -> str:
    """Returns the token of a role: the one that the settings name, else the first usual name that the vocabulary has."""
    settings, rules = source.settings, source.rules
    other = {"cls": "bos_token", "sep": "eos_token"}.get(role, "") if rules is _FILE else ""
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


# --- the classes of transformers ---

_ANGLED = {role: names[1] for role, names in ROLES.items()}
_BERT = _Class("vocab.txt", _read_vocab_txt, _as_bert, post_processor, BERT_ROLES, cases=True)
_ROBERTA = _Class("vocab.json", _read_byte_level, _as_roberta, _doubled, _ANGLED, spaced_mask=True)
_SENTENCEPIECE = _Class("*.model", partial(_read_sentencepiece, sentencepiece.convert), _as_it_is, post_processor, BERT_ROLES)
_FILE = replace(_SENTENCEPIECE, kind="tokenizer.json")
"""No class: a tokenizer.json counts as it is."""
_XLM_ROBERTA = _Class("*.model", partial(_read_sentencepiece, sentencepiece.convert_fairseq), _as_fairseq, _doubled, _ANGLED)
_CLASSES = {
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
    "AlbertTokenizer": _Class("*.model", _read_albert, _as_albert, post_processor, BERT_ROLES, keeps_template=True, cases=True),
    "DebertaV2Tokenizer": _Class("*.model", _read_deberta, _as_deberta, post_processor, BERT_ROLES, added_mask=True, cases=True),
    "RemBertTokenizer": _Class(
        "*.model",
        _read_rembert,
        _as_rembert,
        post_processor,
        BERT_ROLES | {"pad": "<pad>", "unk": "<unk>"},
        cases=True,
        token_types=False,
    ),
    "EsmTokenizer": _Class(
        "vocab.txt", _read_letters, _as_it_is, post_processor, _ANGLED | {"cls": "<cls>", "sep": "<eos>"}, token_types=False
    ),
}
_USUAL = {each.kind: each for each in (_BERT, _ROBERTA, _SENTENCEPIECE)}
