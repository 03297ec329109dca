"""One pretraining step of bert_jax, timed on request (protocol.py).

    python tests/benchmarks/ours_step.py --layers 4 --hidden 256 --heads 4 --intermediate 1024 \
        --batch 16 --length 128 --predictions 20 --threads 2 --steps 5

The step that training runs: forward and backward with dropout 0.1, logits at the masked positions only, gradients clipped
to norm 1, AdamW without decay on biases and LayerNorms, the state donated.
"""

from __future__ import annotations

from collections.abc import Callable

import protocol

args = protocol.arguments(__doc__)

import jax  # noqa: E402  (after the limit on cores)
import numpy as np  # noqa: E402

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


def build() -> tuple[Callable[[], None], int]:
    """The step (one update, returning when the whole update has finished) and the number of parameters."""
    # TO FILL with bert_jax.model.encoder and bert_jax.training.steps: the model from `args` (vocabulary
    # protocol.VOCAB_SIZE, dropout 0.1), the optimizer from protocol.LEARNING_RATE, WEIGHT_DECAY and CLIP_NORM, the state, and
    #
    #     def step():
    #         nonlocal state
    #         state, metrics = train_step(state, batch)
    #         jax.block_until_ready((state, metrics))
    raise SystemExit("ours_step.py: bert_jax has no training step yet; run the driver with --participants torch flax")


step, parameters = build()
protocol.serve(step, args.steps, parameters=parameters, versions={"jax": jax.__version__})
