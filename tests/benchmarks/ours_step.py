"""One pretraining step of bert_jax, timed on request (protocol.py).

    python tests/benchmarks/ours_step.py --layers 4 --hidden 256 --heads 4 --intermediate 1024 \
        --batch 16 --length 128 --predictions 20 --threads 2 --steps 5

The step that train.py runs: forward and backward with dropout 0.1, logits at the masked positions only, gradients
clipped to norm 1, AdamW without decay on biases and LayerNorms, the state donated.
"""

from __future__ import annotations

import protocol

args = protocol.arguments(__doc__)

import jax  # noqa: E402  (after the limit on cores)
import numpy as np  # noqa: E402

from bert_jax.config import BertConfig, OptimConfig, ParallelConfig  # noqa: E402
from bert_jax.model.heads import Bert  # noqa: E402
from bert_jax.training import losses, optim, parallel, steps  # noqa: E402

config = BertConfig(
    vocab_size=protocol.VOCAB_SIZE,
    hidden_size=args.hidden,
    num_hidden_layers=args.layers,
    num_attention_heads=args.heads,
    intermediate_size=args.intermediate,
    max_position_embeddings=max(512, args.length),
)
optimization = OptimConfig(
    name="adamw",
    learning_rate=protocol.LEARNING_RATE,
    warmup_steps=0,
    weight_decay=protocol.WEIGHT_DECAY,
    clip_norm=protocol.CLIP_NORM,
    eps=1e-8,
)
arrays = protocol.random_batch(args)
batch = dict(
    input_ids=arrays["input_ids"],
    token_type_ids=np.zeros_like(arrays["input_ids"]),
    position_ids=np.tile(np.arange(args.length, dtype=np.int32), (args.batch, 1)),
    sequence_ids=np.ones_like(arrays["input_ids"]),
    masked_positions=arrays["masked_positions"],
    masked_ids=arrays["masked_ids"],
    masked_weights=np.ones(arrays["masked_ids"].shape, np.float32),
)
model = Bert(config)
optimizer = optim.make_optimizer(optimization)
devices = parallel.make_devices(ParallelConfig(num_devices=1))


def sums(params, batch, key):
    """The batch's named sums; dropout is on where there is a key."""
    outputs = model.apply({"params": params}, batch, key is None, rngs={} if key is None else {"dropout": key})
    return losses.pretraining_sums(outputs, batch)


train_step = steps.make_train_step(sums, optimizer, optim.make_schedule(optimization, 10**6), 0, optimization.clip_norm)
batch = devices.put(batch)


def first_state() -> steps.TrainState:
    """The state before the first step, from random parameters."""
    return steps.init_state(model.init(jax.random.key(0), batch)["params"], optimizer)


state = jax.jit(first_state, out_shardings=devices.replicated)()
compiled = devices.jit(train_step, state=state).compile(state, batch)


def step() -> None:
    """One update; returns when the whole update has finished."""
    global state
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))


protocol.serve(
    step,
    args.steps,
    parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    versions={"jax": jax.__version__},
)
