"""Readers of tokenizer files. Each makes a `tokenizers.Tokenizer` of a file as transformers' AutoTokenizer (v5) does."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.config import InputError, did_you_mean
from bert_jax.data import sentencepiece
from bert_jax.data.sentencepiece import ROLES
from bert_jax.disk import check_regular, read_json

Settings = dict[str, Any]
"""JSON of the files beside a tokenizer, by key. `_check_types` holds the types of the keys that are read."""

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra")
BERT_ROLES = {role: names[0] for role, names in ROLES.items()}
_PATTERNS = ("tokenizer.json", "vocab.txt", "*.model", "vocab.json")
"""The files of a directory; the first found counts."""
_CONFIG = "tokenizer_config.json"
_MOST_BYTES = 256 << 20
_MOST_GROWTH = 100
"""The most characters that a normalizer or decoder may make of one."""

_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
# Values of `tokenizer_class`, without a final `Fast`.
_READ_CLASSES = {*_BERT_CLASSES, "RobertaTokenizer", "XLMRobertaTokenizer", "AlbertTokenizer", "PreTrainedTokenizer",
                 "TokenizersBackend"}  # fmt: skip
"""The classes that read a vocab.txt, vocab.json or .model as this module does."""
_PYTHON_CLASSES = {
    f"{name}Tokenizer"
    for name in ("BertJapanese", "Bertweet", "Canine", "Flaubert", "Phobert", "ProphetNet", "RoCBert", "RoFormer", "Tapas", "XLM")
}
"""The classes that cut text in Python, by rules that no tokenizer.json holds."""
_CLASS_OF = {"bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer", "roberta": "RobertaTokenizer",
             "xlm-roberta": "XLMRobertaTokenizer", "albert": "AlbertTokenizer"}  # fmt: skip
"""The class that transformers takes for a model_type where no `tokenizer_class` is stated."""

_ROLE_KEYS = {f"{name}_token" for name in (*ROLES, "bos", "eos")}
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents",
                     "split_special_tokens", "do_basic_tokenize"), (bool,)),
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
class _Source:
    """A tokenizer file with everything that decides how it is read. `kind` is one of `_PATTERNS`."""

    path: Path
    kind: str
    settings: Settings
    model_type: str | None
    lowercase: bool | None


def read(path: Path, lowercase: bool | None, model_type: str | None) -> Loaded:
    """Reads a tokenizer file and the files beside it; `Tokenizer.load` describes the arguments."""
    source = _describe(path, lowercase, model_type)
    engine = _read_engine(source)
    rebuilt = source.kind != "tokenizer.json" or _follow_class(engine, source)
    if lowercase is not None:
        _set_lowercase(engine, source, lowercase)
    roles = _add_tokens_beside(engine, source)
    if rebuilt and not (engine.post_processor and _class_name(source) == "AlbertTokenizer"):  # this class keeps the file's
        doubled = source.kind == "vocab.json" or (source.kind != "vocab.txt" and source.model_type in ("roberta", "xlm-roberta"))
        engine.post_processor = post_processor(engine, roles, doubled)
    takes_types = "token_type_ids" in source.settings.get("model_input_names", ["token_type_ids"])
    split = bool(source.settings.get("split_special_tokens"))
    return Loaded(engine, roles, takes_types and source.model_type != "distilbert", split)


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
    if kind == "vocab.json":  # the mask of byte-level BPE takes the space before it unless the settings say otherwise
        mask = settings.get("mask_token") or "<mask>"
        settings["mask_token"] = {"lstrip": True} | (mask if isinstance(mask, dict) else {"content": mask})
    return _Source(path, kind, settings, model_type, lowercase)


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


def _class_name(source: _Source) -> str:
    return _stated_class(source.settings) or _CLASS_OF.get(source.model_type or "", "")


def _refuse_other_rules(path: Path, kind: str, settings: Settings) -> None:
    """Raises InputError if the settings ask for rules of cutting text that are not implemented here."""
    name, hint = _stated_class(settings), ""
    if kind == "tokenizer.json":
        refused = {"tokenizer_class": name in _PYTHON_CLASSES}
    else:
        refused = {
            "tokenizer_class": bool(name) and name not in _READ_CLASSES,
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
    """Returns `model_type`, else the family that `tokenizer_class` names, else that of the config.json, else None."""
    if model_type is None:
        named = _stated_class(settings).removesuffix("Tokenizer").lower()
        beside = settings["model_type"] if settings["model_type"] in MODEL_TYPES else None
        return {name.replace("-", ""): name for name in MODEL_TYPES}.get(named, beside)
    if model_type not in MODEL_TYPES:
        nearest = did_you_mean(model_type, MODEL_TYPES)
        raise InputError(f"model_type={model_type!r}: expected one of {', '.join(MODEL_TYPES)}{nearest}")
    return model_type


# --- one reader for each kind of file ---


def _read_engine(source: _Source) -> tokenizers.Tokenizer:
    readers = {"tokenizer.json": _read_tokenizer_json, "vocab.txt": _read_vocab_txt, "vocab.json": _read_byte_level}
    return readers.get(source.kind, _read_sentencepiece)(source)


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


def _read_sentencepiece(source: _Source) -> tokenizers.Tokenizer:
    check_regular(source.path, _MOST_BYTES)
    model, name, settings = source.path.read_bytes(), str(source.path), source.settings
    if source.model_type == "xlm-roberta":
        return sentencepiece.convert_fairseq(model, name)
    if source.model_type == "albert":
        lowercase = settings.get("do_lower_case", True) if source.lowercase is None else source.lowercase
        return sentencepiece.convert_albert(model, name, bool(lowercase), settings.get("keep_accents", False))
    return sentencepiece.convert(model, name)


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
    mask = settings["mask_token"]
    if engine.token_to_id(mask["content"]) is not None:
        engine.add_special_tokens([AddedToken(mask["content"], lstrip=mask["lstrip"], special=True)])
    return engine


# --- changes after reading ---


def _follow_class(engine: tokenizers.Tokenizer, source: _Source) -> bool:
    """Sets the parts of a tokenizer.json that its class sets by the settings, not by the file. Returns False if there are none.

    transformers does so to any file. A file of another kind than the class makes would be spoilt, and is left as it is.
    """
    name, settings = _class_name(source), source.settings
    model, normalizer = engine.model, engine.normalizer
    if name in _BERT_CLASSES:
        if not isinstance(model, models.WordPiece) or not isinstance(normalizer, normalizers.BertNormalizer):
            return False
        engine.normalizer = _bert_normalizer(settings, bool(settings.get("do_lower_case", True)))
        model.max_input_chars_per_word = 100
    elif name == "RobertaTokenizer":
        byte_level = isinstance(engine.pre_tokenizer, pre_tokenizers.ByteLevel)
        if not isinstance(model, models.BPE) or not byte_level or normalizer is not None:
            return False
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    elif name in ("XLMRobertaTokenizer", "AlbertTokenizer"):
        own = {"Precompiled", "Replace"} | ({"NFKD", "StripAccents", "Lowercase"} if name == "AlbertTokenizer" else set())
        steps = json.loads(_state(normalizer)) or {"normalizers": []}
        steps = steps.get("normalizers", [steps])
        words = "Metaspace" in _state(engine.pre_tokenizer)
        if not isinstance(model, models.Unigram) or not words or not {step["type"] for step in steps} <= own:
            return False
        charsmap = next((base64.b64decode(step["precompiled_charsmap"]) for step in steps if step["type"] == "Precompiled"), b"")
        if name == "AlbertTokenizer":
            lowercase, keep_accents = bool(settings.get("do_lower_case", True)), bool(settings.get("keep_accents", False))
            engine.normalizer = sentencepiece.albert_normalizer(charsmap, lowercase, keep_accents)
        else:
            engine.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
        engine.pre_tokenizer = sentencepiece.words_as_hugging_face(bool(settings.get("add_prefix_space", True)))
    else:
        return False
    return True


def _set_lowercase(engine: tokenizers.Tokenizer, source: _Source, lowercase: bool) -> None:
    """Sets BERT's own normalization in a tokenizer.json. The readers of a vocab.txt and of ALBERT's .model have done it."""
    if source.kind == "vocab.txt" or (source.kind == "*.model" and source.model_type == "albert"):
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
            flags = {role.get("content"): role for role in roles if isinstance(role, dict)}
            file = source.path.with_name("added_tokens.json")
            pairs = [(int(id), flags.get(name, name)) for name, id in _object(file).items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: added tokens without ids: {error}") from error
    as_it_comes = source.kind == "*.model" and source.model_type not in ("xlm-roberta", "albert")  # found before normalization
    forced = {"normalized": False} if as_it_comes else {}
    return file, [(id, _added_token(value, file, **forced)) for id, value in sorted(pairs, key=lambda pair: pair[0])]


def _special_tokens(source: _Source) -> list[AddedToken]:
    """Returns the special tokens that the settings state without ids: bos, eos, a model's own, extra ones."""
    settings = source.settings
    extra, older = (settings.get(f"{kind}_special_tokens") or [] for kind in ("extra", "additional"))
    extra = [*extra.values(), *older] if isinstance(extra, dict) else extra or older
    own = [
        value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str) and key not in _ROLE_KEYS
    ]
    values = (settings.get("bos_token"), settings.get("eos_token"), *own, *extra)
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
    names = {*vocab, *(token.content for _, token in with_ids)}
    roles = {role: _find_role(role, names, source) for role in ROLES}
    states_flags = file.name == _CONFIG
    special = {*roles.values(), *(token.content for token in others if not states_flags)}
    known = {token.content for token in engine.get_added_tokens_decoder().values()}
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
    named = source.settings.get(f"{role}_token")
    named = named["content"] if isinstance(named, dict) else named
    candidates = (named,) if named else ROLES[role]
    for name in candidates:
        if name in vocab:
            return name
    hint = "; or say model_type: XLM-R's and ALBERT's have rules of their own" if source.kind == "*.model" else ""
    raise InputError(
        f"{source.path}: no {role} token ({' or '.join(candidates)}) among its {len(vocab)} tokens; name the one it has"
        f' as "{role}_token" in a tokenizer_config.json beside it, or add it to the vocabulary{hint}'
    )
