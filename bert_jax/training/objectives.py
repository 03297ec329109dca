"""The objectives of pretraining, in a table: each says what is trained, by which losses, and which models come of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from bert_jax.config import BertConfig, TrainConfig
from bert_jax.model.convert import Params, flatten, unflatten
from bert_jax.model.families import FAMILIES, Head
from bert_jax.model.heads import Bert, Discriminator, apply, initialize, parameter_shapes
from bert_jax.training import losses, replaced_tokens
from bert_jax.training.steps import Batch, Sums


class Part(NamedTuple):
    """A model that a run trains.

    Attributes:
      folder: Its folder in the export; empty for the export itself.
      config: The encoder.
      head: The head that its files have.
      params: Its parameters, but for those of a pooler that is not trained.
    """

    folder: str
    config: BertConfig
    head: Head
    params: Params


@dataclass(frozen=True)
class Objective(ABC):
    """The base of the rows of the table.

    Attributes:
      cfg: The run; `cfg.compute` says how its models are computed.
    """

    cfg: TrainConfig

    @property
    def factors(self) -> Mapping[str, float]:
        """Factors of losses (see `steps.make_update`)."""
        return {}

    @property
    def untrained_loss(self) -> float | None:
        """The loss of a model that guesses at random; None if fresh parameters do not come near it."""
        return None

    @abstractmethod
    def initialize(self, seed: int) -> Params:
        """Returns fresh parameters. Pure."""

    @abstractmethod
    def sums(self, params: PyTree, batch: Batch, key: PRNGKeyArray | None) -> Sums:
        """Returns the losses of a batch; dropout is on if there is a key."""

    @abstractmethod
    def parts(self, params: Params) -> tuple[Part, ...]:
        """Returns the models in the parameters: first the one that the run is for, last one that predicts masked tokens."""

    @abstractmethod
    def joined(self, params: Params, parts: Sequence[Params]) -> Params:
        """Returns `params` with the parameters of the `parts`: the inverse of `parts`."""


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Masked-language modelling and, with sentence pairs, next-sentence prediction (Devlin et al., 2018)."""

    @property
    def untrained_loss(self) -> float:
        """The loss of guesses among all words and, with sentence pairs, of yes or no."""
        return math.log(self.cfg.model.vocab_size) + (math.log(2) if self.cfg.data.examples == "sentence_pairs" else 0)

    @cached_property
    def module(self) -> Bert:
        """The encoder with the head that is trained."""
        return Bert(self.cfg.model, self.cfg.head, compute=self.cfg.compute)

    def initialize(self, seed: int) -> Params:
        return initialize(self.module, seed)

    def sums(self, params: PyTree, batch: Batch, key: PRNGKeyArray | None) -> Sums:
        return losses.pretraining_sums(apply(self.module, params, batch, key, head_only=True, decode=False), batch)

    def parts(self, params: Params) -> tuple[Part, ...]:
        return (Part("", self.cfg.model, self.cfg.head, params),)

    def joined(self, params: Params, parts: Sequence[Params]) -> Params:
        return parts[0]


@dataclass(frozen=True)
class ReplacedTokens(Objective):
    """Replaced-token detection (Clark et al., 2020).

    A generator is trained to predict masked tokens; the model, a discriminator, to detect which tokens of a row were sampled from
    the generator's predictions. The parameters are those of the discriminator, {encoder, replaced_token}, and `generator`:
    {encoder, masked_lm} without the embeddings, which are the discriminator's where both have the same shape. Embeddings learn
    from both losses. No other parameter of the generator learns from the discriminator's: a sample has no gradient.
    """

    @property
    def factors(self) -> Mapping[str, float]:
        """The weight of the discriminator's loss."""
        return {"replaced_token_loss": float(self.cfg.replaced_tokens.discriminator_weight)}

    @cached_property
    def generator(self) -> Bert:
        """The generator, a masked LM."""
        return Bert(self.cfg.models[-1], "masked_lm", compute=self.cfg.compute)

    @cached_property
    def discriminator(self) -> Discriminator:
        """The model that the run is for."""
        return Discriminator(self.cfg.model, self.cfg.compute)

    @cached_property
    def _paths(self) -> dict[str, bool]:
        """The paths of the generator's parameters -> True for those that are the discriminator's, too."""
        own = flatten(parameter_shapes(self.generator))
        theirs = flatten(parameter_shapes(Bert(self.cfg.model, "masked_lm")))

        def shared(path: str) -> bool:
            return path.startswith("encoder/embeddings/") and path in theirs and theirs[path].shape == own[path].shape

        return {path: shared(path) for path in own}

    def initialize(self, seed: int) -> Params:
        key, batch = jax.random.key(seed), {"input_ids": jnp.zeros((1, 1), jnp.int32)}
        generator = self.generator.init(jax.random.fold_in(key, 1), batch)["params"]
        return self.joined({}, [self.discriminator.init(key, batch)["params"], generator])

    def sums(self, params: PyTree, batch: Batch, key: PRNGKeyArray | None) -> Sums:
        keys = [None if key is None else jax.random.fold_in(key, number) for number in (0, 1)]
        outputs = apply(self.generator, self._generator(params), batch, keys[0], head_only=True, decode=False)
        sums = losses.pretraining_sums(outputs, batch)
        drawn = replaced_tokens.samples(outputs["masked_lm_decoder"], batch["masked_draws"], self.cfg.replaced_tokens.temperature)
        ids, replaced = replaced_tokens.corrupt(batch, drawn)
        rows = {name: batch[name] for name in ("token_type_ids", "position_ids", "sequence_ids")} | {"input_ids": ids}
        rngs = None if keys[1] is None else {"dropout": keys[1]}
        logits = self.discriminator.apply({"params": params}, rows, key is None, rngs=rngs)
        return sums | replaced_tokens.detection_sums(cast(jax.Array, logits), replaced, batch["sequence_ids"])

    def _generator(self, params: Params) -> Params:
        """Returns the generator's parameters, with the embeddings."""
        own, theirs = flatten(params["generator"]), flatten({"encoder": params["encoder"]})
        return unflatten({path: (theirs if shared else own)[path] for path, shared in self._paths.items()})

    def parts(self, params: Params) -> tuple[Part, ...]:
        cfg, named = self.cfg.model, "replaced_token" in FAMILIES[self.cfg.model.model_type].heads
        model = {name: params[name] for name in ("encoder", *(["replaced_token"] if named else []))}
        discriminator = Part("", cfg, "replaced_token" if named else "encoder", model)
        return discriminator, Part("generator", self.generator.cfg, "masked_lm", self._generator(params))

    def joined(self, params: Params, parts: Sequence[Params]) -> Params:
        model, generator = parts
        own = {path: leaf for path, leaf in flatten(generator).items() if not self._paths[path]}
        return {**params, **model, "generator": unflatten(own)}


OBJECTIVES: dict[str, type[Objective]] = {"masked_lm": MaskedLM, "replaced_tokens": ReplacedTokens}


def objective_of(cfg: TrainConfig) -> Objective:
    """Returns the objective of a run."""
    return OBJECTIVES[cfg.objective](cfg)
