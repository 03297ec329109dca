"""One pretraining step of bert_jax, timed on request (protocol.py).

    python tests/benchmarks/ours_step.py --layers 4 --hidden 256 --heads 4 --intermediate 1024 \
        --batch 16 --length 128 --predictions 20 --threads 2 --steps 5

The step that train.py runs: forward and backward with dropout 0.1, the last layer and logits at the masked positions only,
gradients clipped to norm 1, AdamW without decay on biases and LayerNorms, the state donated, memory in huge pages.
"""

from __future__ import annotations

import protocol

from bert_jax import hugepages

hugepages.use()
args = protocol.arguments(__doc__)

import jax  # noqa: E402  (after the limit on cores)
import numpy as np  # noqa: E402

from bert_jax.config import BertConfig, DataConfig, OptimConfig, ParallelConfig, TrainConfig  # noqa: E402
from bert_jax.program import build  # noqa: E402
from bert_jax.training import parallel  # noqa: E402

size = dict(
    hidden_size=args.hidden,
    num_hidden_layers=args.layers,
    num_attention_heads=args.heads,
    intermediate_size=args.intermediate,
)
if args.family == "modernbert":  # its published dropout is 0
    model = BertConfig.of_family("modernbert", vocab_size=protocol.MODERN_VOCAB_SIZE, **size)
else:
    model = BertConfig(vocab_size=protocol.VOCAB_SIZE, max_position_embeddings=max(512, args.length), **size)
config = TrainConfig(
    model=model,
    optim=OptimConfig(
        name="adamw",
        learning_rate=protocol.LEARNING_RATE,
        warmup_steps=0,
        weight_decay=protocol.WEIGHT_DECAY,
        clip_norm=protocol.CLIP_NORM,
        eps=1e-8,
    ),
    data=DataConfig(max_seq_length=args.length),
    batch_size=args.batch,
    num_steps=10**6,
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
program = build(config, parallel.make_devices(ParallelConfig(num_devices=1)), None)
batch = program.devices.put(batch)
state = program.initial_state()
compiled = program.train_step.compile(state, batch)


def step() -> None:
    """One update; returns when the whole update has finished."""
    global state
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))


protocol.serve(
    step,
    args.steps,
    at_work=3,
    parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    versions={"jax": jax.__version__},
)
