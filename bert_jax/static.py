"""Embeddings from a table of token vectors, by NumPy alone, in the files of sentence-transformers and model2vec. No JAX here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from bert_jax.data.plain_tokenizer import PlainTokenizer
from bert_jax.disk import put
from bert_jax.errors import InputError, did_you_mean
from bert_jax.formats.tensors import read_directory, write_safetensors
from bert_jax.hub import find
from bert_jax.modules import MODELS, STATIC, check_names, json_object, library_prompts, read_library, read_modules

_TOKENS = 1 << 16  # tokens of a text that are added up at a time


@dataclass(frozen=True, eq=False)
class StaticEmbedder:
    """Returns a vector for each text: the mean of the vectors of its tokens, without special tokens around the text.

    Attributes:
      table: vectors [R, D] of any type of numbers, in memory or mapped.
      tokenizer: V tokens.
      normalize: scale embeddings to length 1.
      mapping: the row of each token, int [V]; None: token i has row i.
      weights: a factor of the vector of each token, [V]; None: 1.
      truncate_dim: number of leading values of an embedding to keep; None: all. They are not normalised again.
      prompt: text to put before each text.
      prompts: further prompts by name.
      similarity_fn_name: how sentence-transformers compares embeddings; only kept for `save`.
    """

    table: np.ndarray
    tokenizer: PlainTokenizer
    normalize: bool = True
    mapping: np.ndarray | None = None
    weights: np.ndarray | None = None
    truncate_dim: int | None = None
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    similarity_fn_name: str | None = None

    def __post_init__(self) -> None:
        table, mapping, weights = self.table, self.mapping, self.weights
        if table.ndim != 2 or any(each is not None and each.ndim != 1 for each in (mapping, weights)):
            raise InputError("token vectors: expected a table [rows, values], and a mapping and weights [tokens]")
        each_token = {"rows": table if mapping is None else mapping, "weights": weights}
        for name, each in each_token.items():
            if each is not None and len(each) < self.tokenizer.vocab_size:
                raise InputError(f"{len(each)} {name} for {self.tokenizer.vocab_size} tokens of the tokenizer: give one for each")
        if mapping is not None and (mapping.dtype.kind not in "iu" or not 0 <= mapping.min() <= mapping.max() < len(table)):
            raise InputError(f"the mapping of tokens to rows has numbers outside 0 to {len(table) - 1}")

    def __call__(self, texts: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        """Embeds texts of any length.

        Args:
          texts: N texts.
          prompt_name: the name in `prompts` of the prompt before each text, such as "query"; default: `prompt`.

        Returns:
          Vectors, float32 [N, D]; zeros for a text without tokens.
        """
        if isinstance(texts, (str, bytes)):
            raise InputError(f"texts is a {type(texts).__name__}; expected a list, such as [{'text'!r}]")
        if prompt_name is not None and prompt_name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InputError(f"no prompt {prompt_name!r}{did_you_mean(prompt_name, self.prompts)}; the model's prompts: {known}")
        prompt = self.prompt if prompt_name is None else self.prompts[prompt_name]
        texts = [prompt + text if isinstance(text, str) else text for text in texts]
        vectors = np.zeros((len(texts), self.table.shape[1]), np.float32)
        for vector, ids in zip(vectors, self.tokenizer.encode(texts), strict=True):
            for start in range(0, len(ids), _TOKENS):
                vector += self._rows(ids[start : start + _TOKENS]).sum(axis=0)
            vector /= max(1, len(ids))
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))
        return np.ascontiguousarray(vectors[:, : self.truncate_dim])

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """Returns the vectors of tokens, float32 [n, D]."""
        rows = self.table[ids if self.mapping is None else self.mapping[ids]].astype(np.float32, copy=False)
        return rows if self.weights is None else rows * self.weights[ids, None].astype(np.float32)

    def save(self, directory: str | Path) -> None:
        """Writes a directory that `load`, sentence-transformers and model2vec read. Raises InputError if it cannot."""
        folder = Path(directory)
        tensors = {"embeddings": self.table, "mapping": self.mapping, "weights": self.weights}
        config = {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "hidden_dim": self.table.shape[1],
            "embedding_dtype": self.table.dtype.name,
            "seq_length": 1_000_000,
            "normalize": self.normalize,
        }
        library = {
            "model_type": "SentenceTransformer",
            **library_prompts(self.prompt, self.prompts),
            "similarity_fn_name": self.similarity_fn_name,
            **({} if self.truncate_dim is None else {"truncate_dim": self.truncate_dim}),
        }
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"{MODELS}.{kind}"}
            for i, (path, kind) in enumerate([(".", STATIC), ("1_Normalize", "Normalize")][: 1 + self.normalize])
        ]
        files = {"config.json": config, "config_sentence_transformers.json": library, "modules.json": modules}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.tokenizer.save(folder / "tokenizer.json")
            there = {name: np.ascontiguousarray(each) for name, each in tensors.items() if each is not None}
            write_safetensors(folder / "model.safetensors", there)
            for name, content in files.items():
                put(folder / name, json.dumps(content, indent=2) + "\n")
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write the table to {folder}: {error}") from None

    @classmethod
    def load(cls, path_or_name: str | Path) -> StaticEmbedder:
        """Reads a table of token vectors.

        Embeddings are those of sentence-transformers. model2vec gives other ones where it leaves out unknown tokens that have a
        vector, and cuts texts.

        Args:
          path_or_name: a directory of `save`, of model2vec, or of sentence-transformers with a StaticEmbedding, or a name on the
            Hugging Face hub.

        Raises:
          InputError: the directory has no such table, other modules, or damaged files.
        """
        home = find(path_or_name)
        if not is_static(home):
            raise InputError(f"{home} has no table of token vectors: `bert_jax static` makes one of a model")
        modules = read_modules(home)
        kinds = [kind for kind, _ in modules]
        if kinds[1:] not in ([], ["Normalize"]):
            expected = f"expected a {STATIC}, then a Normalize or nothing"
            raise InputError(f"{home}/modules.json: {', '.join(kinds)} are not supported together; {expected}")
        for _, folder in modules[1:]:
            check_names(json_object(folder / "config.json"), folder / "config.json")
        folder = modules[0][1] if modules else home
        tensors, where = read_directory(folder)
        table = tensors.get("embedding.weight", tensors.get("embeddings"))
        if table is None:
            raise InputError(f"{where} has neither embedding.weight nor embeddings, but {', '.join(tensors) or 'nothing'}")
        normalize = "Normalize" in kinds if modules else bool(json_object(home / "config.json").get("normalize"))
        _, library = read_library(home / "config_sentence_transformers.json", ["SentenceTransformer"])
        tokenizer = PlainTokenizer.load(folder / "tokenizer.json")
        try:
            return cls(table, tokenizer, normalize, tensors.get("mapping"), tensors.get("weights"), **library)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def is_static(directory: Path) -> bool:
    """Returns True for a directory with a table of token vectors, by modules.json, or without one by config.json."""
    with contextlib.suppress(InputError):  # other readers tell
        if kinds := [kind for kind, _ in read_modules(directory)]:
            return kinds[0] == STATIC
        return json_object(directory / "config.json").get("model_type") == "model2vec"
    return False


def refuse_for_tables(model: str, options: Mapping[str, object]) -> None:
    """Raises InputError where one of these options of a command is set, which only encoders have."""
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise InputError(f"{model} is a table of token vectors, which has no {', '.join(given)}: leave it out")
