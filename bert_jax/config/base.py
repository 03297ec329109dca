"""The base of the groups of fields."""

from __future__ import annotations

from dataclasses import dataclass

from bert_jax.errors import Checked


@dataclass(frozen=True)
class Group(Checked):
    """Base of the groups of fields, with checks of ranges. None is always in range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_finite()

    def _require_least(self, least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or value >= least, f"{name}={value} is below {least}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or value > 0, f"{name}={value} must be positive")
