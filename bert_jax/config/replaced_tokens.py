"""Settings of replaced-token detection (ELECTRA): the generator's size and the weights of the losses. No jax in here."""

from __future__ import annotations

from dataclasses import dataclass

from bert_jax.errors import Checked, InputError
from bert_jax.model.config import BertConfig
from bert_jax.model.families import FAMILIES


@dataclass(frozen=True)
class ReplacedTokensConfig(Checked):
    """The generator of replaced tokens, and the weight of the loss of detecting them (Clark et al., 2020)."""

    generator_width: float | None = None
    (
        "Share of the model's width that the generator has. Default: 0.25 if the family can project its embeddings (ELECTRA), "
        "else 1, because both have the same embeddings."
    )
    generator_depth: float | None = None
    """Share of the model's layers that the generator has. Default: 1 for a narrower generator (ELECTRA), else 0.5 (DeBERTaV3)."""
    temperature: float = 1.0
    """Divides the generator's logits before tokens are sampled from them."""
    discriminator_weight: float = 50.0
    """Factor of the model's loss, which is added to the generator's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("generator_width", "generator_depth"):
            value = getattr(self, name)
            self._require(value is None or 0 < value <= 1, f"{name}={value} is not in (0, 1]")
        for name in ("temperature", "discriminator_weight"):
            value = getattr(self, name)
            self._require(0 < value < 1e6, f"{name}={value} is not in (0, 1e6)")

    def generator_of(self, model: BertConfig) -> BertConfig:
        """Returns the generator of a model. It has the same embeddings, and heads of the same size.

        >>> base = BertConfig(model_type="electra")
        >>> small = ReplacedTokensConfig(generator_width=1 / 3).generator_of(base)
        >>> small.hidden_size, small.num_attention_heads, small.intermediate_size, small.num_hidden_layers, small.embedding_size
        (256, 4, 1024, 12, 768)

        Raises:
            InputError: The family cannot have a narrower generator with the model's embeddings, or one with so few layers.
        """
        family = FAMILIES[model.model_type]
        projects = "embedding_size" in family.optional
        width = (0.25 if projects else 1.0) if self.generator_width is None else self.generator_width
        depth = (0.5 if width == 1 else 1.0) if self.generator_depth is None else self.generator_depth
        self._require(
            width == 1 or projects,
            f"generator_width={width} does not fit model_type={model.model_type!r}, whose embeddings have no projection: leave "
            "it out and set generator_depth, or take the family electra",
        )
        heads = max(1, round(width * model.num_attention_heads))
        hidden, layers = heads * (model.hidden_size // model.num_attention_heads), max(1, round(depth * model.num_hidden_layers))
        embedding = model.embedding_size or model.hidden_size
        changes = {
            "num_attention_heads": heads,
            "hidden_size": hidden,
            "intermediate_size": max(1, round(model.intermediate_size * hidden / model.hidden_size)),
            "num_hidden_layers": layers,
            "embedding_size": embedding if embedding != hidden or "embedding_size" in family.needs else None,
            "num_hidden_groups": model.num_hidden_groups and min(model.num_hidden_groups, layers),
            "layer_types": model.layer_types and model.layer_types[:layers],
        }
        try:
            return model.replace(**changes)
        except InputError as error:
            raise InputError(f"{type(self).__name__}: the generator of this model is not possible: {error}") from None
