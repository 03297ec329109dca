"""Predictions: lists in, lists out in the same order, any length mix; few compiled shapes and little padding."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.config import InputError
from bert_jax.data.batching import Example, PackedBatch, batches, exact_batches
from bert_jax.data.layout import Layout, Text
from bert_jax.pretrained import Model

_IN_FLIGHT = 4  # batches that are sent ahead of the one whose results are read


class Predictor:
    """What all predictors share: the jitted function, the tokenizer's layout of an example, and running a list of them.

    Predictors can be pickled, to be sent to other processes; each of those compiles for itself.

    A subclass gives `_outputs(params, batch)`: float arrays by name, [B, S, ...] for the places that the head runs at, or
    [B, L, ...] for every token if the name is in `per_token`.

    With `exact`, what is said of a text depends, to the last bit, on the model, the text and the machine alone, never on the
    other texts of a list, their order, or the number of threads and devices. Every text is then computed in a row of its own,
    in a batch whose shape follows from the text's length. docs/numerics.md says what it costs and what is not promised.

    `max_length`: tokens that are read at a time, special ones included; default: as many as in fine-tuning, else as many as the
    model takes.
    """

    per_token: frozenset[str] = frozenset()
    most_places = 1  # of an example, that the head runs at
    needs: tuple[str, ...] = ()  # heads that it works with; empty: all

    def __init__(self, model: Model, exact: bool = False, max_length: int | None = None) -> None:
        tokenizer = model.need_tokenizer()
        if self.needs and model.head not in self.needs:
            heads, advice = " or ".join(self.needs), "" if "masked_lm" in self.needs else ": finetune.py makes such a model of it"
            raise InputError(f"{type(self).__name__} needs a model with the head {heads}; this one has {model.head!r}{advice}")
        if self.needs and model.untrained and (warning := model.untrained.warning(model.params)):
            warnings.warn(warning, stacklevel=3)
        self.model, self.tokenizer = model, tokenizer
        self._layout = Layout(tokenizer, model.config)
        if max_length is not None and max_length <= len(self.tokenizer.pair):
            raise InputError(f"max_length={max_length} leaves no room for a text")
        self._longest = min(max_length or model.max_length, model.config.max_length)
        self._compile()
        self.exact, on_cpu = exact, jax.default_backend() == "cpu"
        self._tokens = 1024 if on_cpu else 16384  # a batch; on CPUs it should stay in the caches
        self._exact_tokens = 256 if on_cpu else 2048  # fewer: a lone text takes a whole batch

    def _compile(self) -> None:
        self._params = jax.device_put(self.model.params)
        self._run_batch = jax.jit(self._outputs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_params", "_run_batch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        raise NotImplementedError

    def _slots(self, length: int) -> int:
        """Places of a row of `length` tokens that the head runs at."""
        return max(1, length // 4)

    def run(self, examples: Sequence[Example], params: Any = None) -> list[dict[str, np.ndarray]]:
        """What `_outputs` says of each example: [k, ...] at its places, [n, ...] for its tokens.

        `params` are used instead of the model's, as while it is trained.
        """
        params = self._params if params is None else params
        results: list[dict[str, np.ndarray]] = [{} for _ in examples]
        flying: deque[tuple[PackedBatch, dict[str, jax.Array]]] = deque()

        def land() -> None:
            batch, outputs = flying.popleft()
            arrays = jax.device_get(outputs)
            for place in batch.places:
                results[place.example] = {
                    name: array[place.row, place.tokens if name in self.per_token else place.slots].copy()  # not the whole batch
                    for name, array in arrays.items()
                }

        cfg, pad_id = self.model.config, self.tokenizer.pad_id
        pad_id = pad_id if pad_id < cfg.vocab_size else 0  # one past the table would be NaN, and spread
        # float32 means float32: TPUs and GPUs would multiply in less, and the numbers would not be those of the model's makers
        precise = jax.default_matmul_precision("highest") if cfg.dtype == "float32" else contextlib.nullcontext()
        packed = batches(examples, self._longest, self._tokens, self._slots, pad_id)
        for batch in exact_batches(examples, self._exact_tokens, self.most_places, pad_id) if self.exact else packed:
            with precise:
                outputs = self._run_batch(params, batch.arrays | {"places": batch.positions})
            flying.append((batch, outputs))
            if len(flying) > _IN_FLIGHT:
                land()
        while flying:
            land()
        return results

    def _encode(self, texts: Sequence[Text], limit: int | None = None) -> list[Example]:
        """An example each, cut to what the model takes with a warning that says how many were."""
        for i, text in enumerate(texts):
            if isinstance(text, (tuple, list)) and not is_pair(text):
                raise InputError(f"texts[{i}] is {str(text)[:60]!r}; expected a text, or a tuple of two texts")
        limit = min(limit or self._longest, self.model.config.max_length)
        examples, lost = self._layout.examples(texts, limit)
        if lost:
            warnings.warn(
                f"{lost} of {len(texts)} texts have more than {limit} tokens; what is past them was not read", stacklevel=3
            )
        return examples


def is_pair(text: Any) -> bool:
    return isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text)


def as_list(texts: Any, what: str = "texts") -> list[Any]:
    """The list; a lone text would be read as a list of its letters."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise InputError(f"{what} is a {type(texts).__name__}; expected a list, such as [{'text'!r}]")
    return list(texts)
