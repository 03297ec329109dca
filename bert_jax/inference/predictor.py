"""The base of all predictors: lists in, lists out in the same order, with few compiled shapes and little padding."""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TypeGuard, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.batching import Example, PackedBatch, batches, exact_batches
from bert_jax.data.layout import Layout, Text
from bert_jax.pretrained import Model

T = TypeVar("T")
_IN_FLIGHT = 4
"""Number of batches that are dispatched before the results of the first are read."""
_OF_THE_PROCESS = ("_devices", "_where", "_params", "_run_batch")  # what is not pickled


def devices() -> list[jax.Device]:
    """Returns the devices that predict: the one of `jax.default_device`, the accelerators of this process, or one CPU."""
    if (chosen := getattr(jax.config, "jax_default_device", None)) is not None:
        return jax.local_devices(backend=chosen)[:1] if isinstance(chosen, str) else [chosen]
    return jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]  # a CPU uses all cores


def place(params: PyTree) -> PyTree:
    """Returns parameters, arrays of NumPy or JAX, on all devices that predict."""
    return jax.device_put(params, _replicated(devices()))


def _replicated(devices: Sequence[jax.Device]) -> NamedSharding | SingleDeviceSharding:
    if len(devices) == 1:
        return SingleDeviceSharding(devices[0])
    return NamedSharding(Mesh(np.array(devices), "rows"), PartitionSpec())


class Predictor(ABC):
    """The compiled function of a predictor, and its batches.

    Each of several devices computes a share of the rows of a batch. Predictors can be pickled and sent to other processes; each
    process compiles for itself.

    Attributes:
      per_token: names of outputs that have a row for every token.
      most_places: the most places of an example at which the head runs.
      needs: heads that the predictor works with; empty: all.
    """

    per_token: frozenset[str] = frozenset()
    most_places = 1
    needs: tuple[str, ...] = ()

    def __init__(self, model: Model, exact: bool = False, max_length: int | None = None) -> None:
        """Puts the parameters on the devices.

        Args:
          model: the model, with its tokenizer.
          exact: make every bit of a prediction depend on the model, the text and the machine alone, not on the other texts of a
            list, their order, or the number of threads and devices. Each text is then computed in a row of its own, in a batch
            whose shape follows from the length of the text, on one device; docs/numerics.md has the cost and the limits.
          max_length: tokens that are read at a time, special tokens included; default: the length of fine-tuning, else the
            longest that the model takes.

        Raises:
          InputError: the model lacks a tokenizer or the head; `max_length` leaves no room for a text.
        """
        tokenizer = model.need_tokenizer()
        if self.needs and model.head not in self.needs:
            heads, advice = " or ".join(self.needs), "" if "masked_lm" in self.needs else "; `bert_jax finetune` trains one"
            raise InputError(f"{type(self).__name__} needs a model with the head {heads}; this one has {model.head!r}{advice}")
        if self.needs and model.untrained and (warning := model.untrained.warning(model.params)):
            warnings.warn(warning, stacklevel=3)
        if max_length is not None and max_length <= len(tokenizer.pair):
            raise InputError(f"max_length={max_length} leaves no room for a text: give more than {len(tokenizer.pair)}")
        self.model, self.tokenizer, self.exact = model, tokenizer, exact
        self._layout = Layout(tokenizer, model.config)
        self._longest = min(max_length or model.max_length, model.config.max_length)
        on_cpu = jax.default_backend() == "cpu"
        self._tokens = 1024 if on_cpu else 16384  # a batch should fit into the caches of a CPU
        self._exact_tokens = 256 if on_cpu else 2048  # fewer, because a single text takes a whole batch
        self._compile()

    def _compile(self) -> None:
        self._devices = devices()[: 1 if self.exact else None]
        self._where = _replicated(self._devices)
        self._params = jax.device_put(self.model.params, self._where)
        if isinstance(self._where, NamedSharding):  # a program of its own for the rows of each device: kernels are not cut
            mesh, rows = self._where.mesh, PartitionSpec(*self._where.mesh.axis_names)
            cut = jax.shard_map(self._outputs, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False)
            self._run_batch = jax.jit(cut, in_shardings=(self._where, NamedSharding(mesh, rows)))
        else:
            self._run_batch = jax.jit(self._outputs)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in _OF_THE_PROCESS}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._compile()

    @abstractmethod
    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns float arrays by name: [B, S, ...] for the places of the head, or [B, L, ...] for the names in `per_token`."""

    def _arguments(self, params: PyTree) -> PyTree:
        """Returns the first argument of `_outputs` for the parameters of the model."""
        return params

    def _slots(self, length: int) -> int:
        """Returns the number of places in a row of `length` tokens at which the head runs."""
        return max(1, length // 4)

    def run(self, examples: Sequence[Example], params: PyTree = None) -> list[dict[str, np.ndarray]]:
        """Returns the outputs of each example by name: [k, ...] at its k places, or [n, ...] for its n tokens.

        Args:
          examples: any number, of any lengths.
          params: parameters in place of the model's, for a model in training; fewer shapes are then compiled, with more padding.
        """
        few_shapes = params is not None
        params = self._arguments(self._params if params is None else jax.device_put(params, self._where))
        results: list[dict[str, np.ndarray]] = [{} for _ in examples]
        in_flight: deque[tuple[PackedBatch, dict[str, jax.Array]]] = deque()

        def collect() -> None:
            batch, outputs = in_flight.popleft()
            arrays = jax.device_get(outputs)
            for place in batch.places:
                results[place.example] = {
                    name: array[
                        place.row, place.tokens if name in self.per_token else place.slots
                    ].copy()  # does not keep the whole batch
                    for name, array in arrays.items()
                }

        cfg, pad_id = self.model.config, self.tokenizer.pad_id
        pad_id = pad_id if pad_id < cfg.vocab_size else 0  # an id past the table would give NaN
        # By default TPUs and GPUs multiply float32 with less precision, and would differ from published predictions.
        precise = jax.default_matmul_precision("highest") if self.model.compute.dtype == "float32" else contextlib.nullcontext()
        packed = batches(examples, self._longest, self._tokens, self._slots, pad_id, not few_shapes, len(self._devices))
        for batch in exact_batches(examples, self._exact_tokens, self.most_places, pad_id) if self.exact else packed:
            with precise:
                outputs = self._run_batch(params, batch.arrays | {"places": batch.positions})
            in_flight.append((batch, outputs))
            if len(in_flight) > _IN_FLIGHT:
                collect()
        while in_flight:
            collect()
        return results

    def _encode(self, texts: Sequence[Text], limit: int | None = None) -> list[Example]:
        """Returns an example of at most `limit` tokens for each text; warns of the number of texts that were cut."""
        for i, text in enumerate(texts):
            if isinstance(text, (tuple, list)) and not is_pair(text):
                raise InputError(f"texts[{i}] is {str(text)[:60]!r}; expected a text, or a tuple of two texts")
        limit = min(limit or self._longest, self.model.config.max_length)
        examples, cut = self._layout.examples(texts, limit)
        if cut:
            warnings.warn(f"{cut} of {len(texts)} texts have more than {limit} tokens; the rest was not read", stacklevel=3)
        return examples


def is_pair(text: object) -> TypeGuard[tuple[str, str]]:
    """Returns True for a tuple or list of two strings."""
    return isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text)


def as_list(texts: Sequence[T], what: str = "texts") -> list[T]:
    """Returns the list. Raises InputError for a single text, which would be read as a list of letters."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise InputError(f"{what} is a {type(texts).__name__}; expected a list, such as [{'text'!r}]")
    return list(texts)
