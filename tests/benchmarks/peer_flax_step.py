"""One pretraining step of FlaxBertForMaskedLM, as run_mlm_flax.py takes it, timed on request (protocol.py).

    python tests/benchmarks/peer_flax_step.py --layers 4 --hidden 256 --heads 4 --intermediate 1024 \
        --batch 16 --length 128 --predictions 20 --threads 2 --steps 5

Needs its own environment: transformers 4.57.6 is the last one with Flax models. As in that script: logits at every
position, one-hot cross-entropy, optax.adamw without clipping and without decay on biases and LayerNorms, dropout 0.1,
the state donated. Unlike it: `jax.jit` in place of `pmap` over the one device.
"""

from __future__ import annotations

import protocol

args = protocol.arguments(__doc__)

import jax  # noqa: E402  (after the limit on cores)
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
import transformers  # noqa: E402
from flax import traverse_util  # noqa: E402
from flax.training import train_state  # noqa: E402
from flax.training.common_utils import onehot  # noqa: E402

config = transformers.BertConfig(
    vocab_size=protocol.VOCAB_SIZE,
    hidden_size=args.hidden,
    num_hidden_layers=args.layers,
    num_attention_heads=args.heads,
    intermediate_size=args.intermediate,
    max_position_embeddings=max(512, args.length),
)
model = transformers.FlaxBertForMaskedLM(config, input_shape=(1, args.length), seed=0)
flat = traverse_util.flatten_dict(model.params)
decay = traverse_util.unflatten_dict({k: k[-1] != "bias" and k[-2:] != ("LayerNorm", "scale") for k in flat})
optimizer = optax.adamw(protocol.LEARNING_RATE, weight_decay=protocol.WEIGHT_DECAY, mask=decay)
state = train_state.TrainState.create(apply_fn=model.__call__, params=model.params, tx=optimizer)
arrays = protocol.random_batch(args)
batch = dict(
    input_ids=arrays["input_ids"],
    attention_mask=arrays["input_ids"] * 0 + 1,
    token_type_ids=arrays["input_ids"] * 0,
    labels=arrays["labels"],
)


def train_step(state, batch, dropout_rng):
    """One update: (state, loss, the next step's key)."""
    dropout_rng, next_rng = jax.random.split(dropout_rng)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    weights = jnp.where(batch["labels"] > 0, 1.0, 0.0)

    def loss_fn(params):
        logits = state.apply_fn(**inputs, params=params, dropout_rng=dropout_rng, train=True)[0]
        losses = optax.softmax_cross_entropy(logits, onehot(batch["labels"], logits.shape[-1])) * weights
        return losses.sum() / weights.sum()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss, next_rng


jitted = jax.jit(train_step, donate_argnums=(0,))
dropout_rng = jax.random.PRNGKey(0)


def step() -> float:
    """One update; returns the loss when the whole update has finished."""
    global state, dropout_rng
    state, loss, dropout_rng = jitted(state, batch, dropout_rng)
    jax.block_until_ready(state.params)
    return float(loss)


protocol.serve(
    step,
    args.steps,
    at_work=3,
    parameters=sum(x.size for x in flat.values()),
    versions={"jax": jax.__version__, "transformers": transformers.__version__},
)
