"""Low-rank adapters: what fine-tuning adds to the attention's query and value, instead of changing the encoder."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bert_jax.model.convert import Params, flatten, unflatten

_ADAPTED = re.compile(r"encoder/layer_\d+/attention/(query|value)/kernel")  # Hu et al., 2021, section 7.1


def initialize(params: Params, rank: int, seed: ArrayLike) -> dict[str, dict[str, jax.Array]]:
    """Path of a kernel [I, O] -> its adapter {a [I, rank], b [rank, O]}: a random, b zero, so that nothing changes at first."""
    keys = jax.random.key(seed)
    kernels = {path: x for path, x in flatten(params).items() if _ADAPTED.fullmatch(path)}
    return {
        path: {
            "a": jax.random.normal(jax.random.fold_in(keys, number), (x.shape[0], rank)) * x.shape[0] ** -0.5,
            "b": jnp.zeros((rank, x.shape[1])),
        }
        for number, (path, x) in enumerate(kernels.items())
    }


def merge(params: Params, adapters: dict[str, dict[str, jax.Array]], scale: float) -> Params:
    """Parameters of the plain model: kernel + scale * a @ b (Hu et al., 2021, equation 3)."""
    flat = dict(flatten(params))
    for path, pair in adapters.items():
        flat[path] = flat[path] + scale * (pair["a"] @ pair["b"])
    return unflatten(flat)
