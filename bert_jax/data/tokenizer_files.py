"""Readers of tokenizer files. Each makes a `tokenizers.Tokenizer` of a file as transformers' AutoTokenizer (v5) does."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, models, normalizers

from bert_jax.config import InputError, did_you_mean
from bert_jax.data.sentencepiece import ROLES
from bert_jax.data.tokenizer_classes import (
    CLASS_OF,
    CLASSES,
    CONFIG,
    FILE,
    FILE_DECIDES,
    MODEL_TYPES,
    PATTERNS,
    PYTHON_CLASSES,
    SENTENCEPIECE,
    USUAL,
    Class,
    Settings,
    Source,
    find_role,
    read_text,
    token_id,
)
from bert_jax.disk import read_json

_MOST_GROWTH = 100
"""The most characters that a normalizer or decoder may make of one."""

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


def read(path: Path, lowercase: bool | None, model_type: str | None) -> Loaded:
    """Reads a tokenizer file and the files beside it; `Tokenizer.load` describes the arguments."""
    source = _describe(path, lowercase, model_type)
    rules, settings, from_json = source.rules, source.settings, source.kind == "tokenizer.json"
    engine = _read_tokenizer_json(source) if from_json else rules.read(source)
    rebuilt = rules.rebuild(engine, source) if from_json else True
    if rules.spaced_mask and not from_json and engine.token_to_id(settings["mask_token"]["content"]) is not None:
        engine.add_special_tokens([_added_token(settings["mask_token"], path.with_name(CONFIG), special=True)])
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
        for pattern in PATTERNS:
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
    return any(file.is_file() for pattern in PATTERNS for file in directory.glob(pattern))


def _describe(path: Path, lowercase: bool | None, model_type: str | None) -> Source:
    settings = _settings_beside(path)
    endings = {"vocab.json": "vocab.json", ".json": "tokenizer.json", ".txt": "vocab.txt", ".model": "*.model"}
    kind = next((kind for ending, kind in endings.items() if path.name.endswith(ending)), "")
    _refuse_other_rules(path, kind, settings)
    model_type = _model_type(model_type, settings)
    if not kind:
        raise InputError(f"{path}: expected a directory, tokenizer.json, vocab.txt, vocab.json or *.model")
    if not _stated_class(settings) and CLASS_OF.get(model_type or "") in PYTHON_CLASSES:
        raise InputError(
            f"{path}: the tokenizer of a {model_type} cuts text by rules in Python, which no file holds: give ids; or, if "
            f'this one has other rules, state their class as "tokenizer_class" in a {CONFIG} beside it'
        )
    rules = _rules(path, kind, settings, model_type)
    if rules.spaced_mask and kind != "tokenizer.json":
        stated = settings.get("mask_token") or rules.roles["mask"]
        settings["mask_token"] = {"lstrip": True} | (stated if isinstance(stated, dict) else {"content": stated})
    return Source(path, kind, settings, model_type, lowercase, rules)


def _object(file: Path) -> Settings:
    """Reads a JSON object, {} if there is no such file."""
    return read_json(file, dict) or {}


def _settings_beside(path: Path) -> Settings:
    """Reads special_tokens_map.json and tokenizer_config.json, whose keys take precedence, and `model_type` of config.json.

    `tokenizer_class` comes from config.json where tokenizer_config.json has none.
    """
    model, names, config = (_object(path.with_name(name)) for name in ("config.json", "special_tokens_map.json", CONFIG))
    for name, values in (("special_tokens_map.json", names), (CONFIG, config)):
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


def _rules(path: Path, kind: str, settings: Settings, model_type: str | None) -> Class:
    """Returns the class that counts: the stated one, else that of the model type, else the usual one for this kind of file."""
    stated, usual = _stated_class(settings), CLASS_OF.get(model_type or "")
    if kind == "tokenizer.json":
        return CLASSES.get(stated or usual or "", FILE) if model_type not in FILE_DECIDES else FILE
    if kind == "vocab.json" and usual == "" and not stated:
        raise InputError(f"{path}: a {model_type} is read from its tokenizer.json, which holds the rules of cutting text; add it")
    classes = [CLASSES[name] for name in (stated, usual or "") if name in CLASSES]
    return next((each for each in classes if each.kind == kind), USUAL[kind])


def _refuse_other_rules(path: Path, kind: str, settings: Settings) -> None:
    """Raises InputError if the settings ask for rules of cutting text that are not implemented here."""
    name, hint = _stated_class(settings), ""
    if kind == "tokenizer.json":
        refused = {"tokenizer_class": name in PYTHON_CLASSES}
    else:
        refused = {
            "tokenizer_class": bool(name) and name not in (*CLASSES, "PreTrainedTokenizer", "TokenizersBackend"),
            "word_tokenizer_type": settings.get("word_tokenizer_type") not in (None, "basic"),
            "subword_tokenizer_type": settings.get("subword_tokenizer_type") not in (None, "wordpiece"),
            "do_basic_tokenize": settings.get("do_basic_tokenize") is False,
        }
        if name not in PYTHON_CLASSES:
            hint = "; save it with transformers, whose tokenizer.json is read"
    for key in (key for key, wrong in refused.items() if wrong):
        file = path.with_name("config.json" if key not in _object(path.with_name(CONFIG)) else CONFIG)
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


def _read_tokenizer_json(source: Source) -> tokenizers.Tokenizer:
    engine = read_engine(source.path)
    engine.no_truncation()
    return engine


def read_engine(path: Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json as the file says, without padding. Raises InputError for a damaged or a harmful one."""
    text = read_text(path)
    with failures_named(f"{path}: not a tokenizer.json"):
        engine = tokenizers.Tokenizer.from_str(text)
    engine.no_padding()
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


# --- changes after reading ---


def _set_lowercase(engine: tokenizers.Tokenizer, source: Source, lowercase: bool) -> None:
    """Sets BERT's own normalization in a tokenizer.json. The readers of other files have done it."""
    if source.kind != "tokenizer.json" and source.rules.cases:
        return
    if not isinstance(engine.normalizer, normalizers.BertNormalizer):
        raise InputError(f"{source.path}: lowercase={lowercase} does not apply: the file has its own rule")
    engine.normalizer.lowercase = lowercase


# --- added tokens and roles ---


def _added_token(value: Any, file: Path, **flags: bool) -> AddedToken:
    """Makes a token of its text, or of an object with `content` and flags. `flags` take precedence."""
    written = value if isinstance(value, dict) else {"content": value}
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        return AddedToken(written["content"], **{key: written[key] for key in known if key in written} | flags)
    except (TypeError, LookupError) as error:
        raise InputError(f"{file}: {value!r} is no added token: {error!r}") from error


def _tokens_with_ids(source: Source) -> tuple[Path, list[tuple[int, AddedToken]]]:
    """Returns the file that states added tokens with ids, and its tokens in the order of their ids."""
    settings, file, decoder = source.settings, source.path.with_name(CONFIG), source.settings.get("added_tokens_decoder")
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
    as_it_comes = source.rules is SENTENCEPIECE  # found before normalization
    forced = {"normalized": False} if as_it_comes else {}
    return file, [(id, _added_token(value, file, **forced)) for id, value in sorted(pairs, key=lambda pair: pair[0])]


def _special_tokens(source: Source) -> list[AddedToken]:
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
    return [_added_token(value, source.path.with_name(CONFIG), special=True) for value in values if value]


def _add_tokens_beside(engine: tokenizers.Tokenizer, source: Source) -> dict[str, str]:
    """Adds the tokens stated beside a file as transformers v5 does; returns the roles, which may be among them.

    Raises:
      InputError: a role is missing, or an id is not the one that the token has or, being new, the next one.
    """
    path = source.path
    file, with_ids = _tokens_with_ids(source)
    others = _special_tokens(source)
    vocab = engine.get_vocab(with_added_tokens=True)
    names = {*vocab, *(token.content for _, token in with_ids), *(token.content for token in others)}
    bpe = engine.model if source.rules is FILE and isinstance(engine.model, models.BPE) else None
    without_unk = bpe is not None and not bpe.unk_token and not source.settings.get("unk_token")
    roles = {role: find_role(role, names, source) for role in ROLES if role != "unk" or not without_unk}
    known = {token.content for token in engine.get_added_tokens_decoder().values()}
    if without_unk:  # byte-level BPE knows every text
        roles["unk"] = next((name for name in ROLES["unk"] if name in known), roles["pad"])
    states_flags = file.name == CONFIG
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
