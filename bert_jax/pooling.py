"""How a sentence embedding is made of hidden states, in and out of sentence-transformers' files. No jax in here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bert_jax.config import BertConfig, InputError

PoolingMode = Literal["cls", "mean", "max"]
_TRANSFORMERS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # as its files are called
_LEGACY = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}


@dataclass(frozen=True)
class Pooling:
    """Hidden states [L, D] of a text -> its embedding [D].

    Attributes:
      mode: the first token's state, or the mean or maximum over all tokens, special ones included.
      normalize: whether the embedding is scaled to length 1.
      max_length: tokens of a text, special ones included, that count; None: as many as the model takes.
      lowercase: whether texts are lower-cased before they are tokenized.
      prompt: put before each text.
    """

    mode: PoolingMode = "mean"
    normalize: bool = True
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""

    def read(self, text: str) -> str:
        """The text as it is tokenized."""
        return (self.prompt + text).lower() if self.lowercase else self.prompt + text

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 3:
            raise InputError(f"Pooling: max_length={self.max_length} leaves no token of a text between the two special ones")


def _json(path: Path, kind: type = dict) -> Any:
    """What a file holds, of type `kind`; an empty one without the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except ValueError as e:
        raise InputError(f"{path} is not JSON: {e}") from None
    if not isinstance(content, kind):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a {kind.__name__}")
    return content


def read_pooling(directory: Path) -> Pooling | None:
    """What modules.json and the files that it names say; None where there is no modules.json.

    Raises InputError for a module or mode that is not in the table: embeddings without it would be other ones.
    """
    mode, normalize = None, False
    for module in _json(directory / "modules.json", list):
        try:
            kind = module["type"].rsplit(".", 1)[-1]
            config = directory / module["path"] / "config.json"
        except (TypeError, LookupError, AttributeError):
            raise InputError(f"{directory}/modules.json: {module!r} is no module with a type and a path") from None
        if kind == "Pooling":
            mode = _read_mode(config)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise InputError(
                f"{directory}/modules.json: {kind} modules are not supported; known: Transformer, Pooling, Normalize"
            )
    if mode is None:
        return None
    library = _json(directory / "config_sentence_transformers.json")
    named, prompts = library.get("default_prompt_name"), library.get("prompts") or {}
    if named and named not in prompts:
        raise InputError(f"{directory}/config_sentence_transformers.json: default_prompt_name={named!r} is not among its prompts")
    prompt = prompts[named] if named else ""
    transformer: dict[str, Any] = next(
        filter(None, (_json(directory / f"sentence_{name}_config.json") for name in _TRANSFORMERS)), {}
    )
    length = transformer.get("max_seq_length") or _json(directory / "tokenizer_config.json").get("model_max_length")
    lowercase = bool(transformer.get("do_lower_case", False))
    return Pooling(mode, normalize, length if isinstance(length, int) else None, lowercase, prompt)


def _read_mode(path: Path) -> PoolingMode:
    config = _json(path)
    named = config.get("pooling_mode")
    if named is None:
        named = [_LEGACY.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on] or "mean"
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    for mode in get_args(PoolingMode):
        if named == mode:
            return mode
    raise InputError(f"{path}: pooling mode {named!r} is not supported; known: {', '.join(get_args(PoolingMode))}")


def write_pooling(directory: Path, pooling: Pooling, cfg: BertConfig) -> None:
    """Writes the files that sentence-transformers reads, in the form that all its versions do."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 3 if pooling.normalize else 2]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": cfg.hidden_size,
            **{key: mode == pooling.mode for key, mode in _LEGACY.items()},
        },
        "sentence_bert_config.json": {
            "max_seq_length": min(pooling.max_length or cfg.max_length, cfg.max_length),
            "do_lower_case": pooling.lowercase,
        },
        "config_sentence_transformers.json": {
            "prompts": {"default": pooling.prompt},
            "default_prompt_name": "default" if pooling.prompt else None,
        },
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        temporary = directory / f"{name}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, directory / name)
