"""The optimizer of a run."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from bert_jax.config.base import Group
from bert_jax.errors import InputError


@dataclass(frozen=True)
class OptimConfig(Group):
    """The optimizer and the schedule of its learning rate."""

    name: Literal["adamw_bert", "adamw", "stable_adamw", "lamb", "muon"] = "adamw_bert"
    (
        "`adamw_bert`: google-research/bert's, without bias correction. `adamw`: the usual AdamW. `stable_adamw`: AdamW whose "
        "updates are clipped where a gradient exceeds its history. `lamb`: for large batches. `muon`: Muon for the kernels of "
        "the layers, AdamW for everything else."
    )
    learning_rate: float = 1e-4
    """Peak learning rate."""
    muon_learning_rate: float = 0.02
    """muon: peak learning rate of the kernels of the layers, with the schedule of learning_rate."""
    muon_momentum: float = 0.95
    """muon: decay rate of the momentum."""
    muon_iterations: int = 5
    """muon: Newton-Schulz iterations that orthogonalise an update."""
    muon_coefficients: Literal["jordan", "polar_express"] = "jordan"
    (
        "muon: polynomials of the iterations. `jordan`: one for all of them, usually 5. `polar_express`: the best ones for 3, 4 "
        "or 5 iterations; 3 are 60 % of the work of 5 of `jordan`."
    )
    muon_scale: Literal["shape", "adamw"] = "shape"
    (
        "muon: factor of an orthogonalised update. `shape`: max(1, out / in)^0.5, which changes a layer's output by about the "
        "rate. `adamw`: 0.2 max(in, out)^0.5, as large as an update of AdamW, so that muon_learning_rate may be AdamW's."
    )
    muon_dtype: Literal["float32", "bfloat16"] = "float32"
    """muon: type of the iterations' products, and of the matrices that cross devices. bfloat16 is fast on TPUs and GPUs only."""
    schedule: Literal["linear", "bert_tf", "cosine", "warmup_stable_decay"] = "linear"
    """Decay after the warm-up. `bert_tf` is that of google-research/bert, which drops a little where the warm-up ends."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up."""
    decay_steps: int | None = None
    """warmup_stable_decay: steps of the final decay. Default: a tenth of num_steps."""
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    """warmup_stable_decay: shape of the final decay, a line or 1 minus the square root of its share that is over."""
    weight_decay: float = 0.01
    """Decoupled weight decay, not applied to biases and norms."""
    b1: float = 0.9
    """Decay rate of the first moment."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    eps: float = 1e-6
    """Added to the square root of the second moment."""
    clip_norm: float | None = 1.0
    """Clip gradients to this global norm. None: no clipping."""
    average: str | None = None
    (
        "Weights that are evaluated and exported: `ema:0.999`, an exponential moving average; `last:5`, the mean of the last "
        "five checkpoints, at the end of the run. Default: those of the last step."
    )
    max_skipped: int = 10
    """Stop after this many consecutive non-finite updates; fewer are skipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("learning_rate", "muon_learning_rate", "eps", "clip_norm")
        self._require_least(0, "warmup_steps", "weight_decay", "decay_steps")
        self._require_least(1, "max_skipped", "muon_iterations")
        self._require_owner("decay_", "schedule", "warmup_stable_decay")
        self._require_owner("muon_", "name", "muon")
        self._require(
            self.muon_coefficients == "jordan" or 3 <= self.muon_iterations <= 5,
            f"muon_coefficients='polar_express' is for 3, 4 or 5 iterations, not for muon_iterations={self.muon_iterations}",
        )
        form = r"ema:0?\.\d+|last:[1-9]\d*"
        valid = self.average is None or re.fullmatch(form, self.average) is not None
        self._require(valid, f"average={self.average!r} is neither ema:DECAY, such as ema:0.999, nor last:NUMBER")
        for name in ("b1", "b2", "muon_momentum"):
            self._require(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} is not in [0, 1)")

    def final_decay(self, num_steps: int) -> int:
        """Returns the steps of the final decay of `warmup_stable_decay` in a run of `num_steps`.

        Raises:
            InputError: Warm-up and decay are longer than the run.
        """
        steps = num_steps // 10 if self.decay_steps is None else self.decay_steps
        if steps > num_steps - self.warmup_steps:
            raise InputError(
                f"optim.warmup_steps={self.warmup_steps} and optim.decay_steps={steps} sum to more than num_steps={num_steps}: "
                "lower them"
            )
        return steps

    @property
    def ema(self) -> float | None:
        """The decay of the moving average of the weights, if `average` asks for one."""
        return float(self.average.removeprefix("ema:")) if self.average and self.average.startswith("ema:") else None

    @property
    def last(self) -> int | None:
        """The number of checkpoints whose weights are averaged, if `average` asks for that."""
        return int(self.average.removeprefix("last:")) if self.average and self.average.startswith("last:") else None

    def _require_owner(self, prefix: str, owner: str, value: str) -> None:
        """Requires `owner` to be `value`, which alone uses the fields that begin with `prefix`, if one of them is set."""
        if getattr(self, owner) == value:
            return
        for f in dataclasses.fields(self):
            given = getattr(self, f.name)
            unset = given == f.default or not f.name.startswith(prefix)
            self._require(unset, f"{f.name}={given!r} needs {owner}={value!r}, not {getattr(self, owner)!r}")
