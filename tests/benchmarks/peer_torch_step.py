"""One pretraining step of PyTorch's BertForMaskedLM or ModernBertForMaskedLM (transformers v5), timed on request (protocol.py).

    python tests/benchmarks/peer_torch_step.py --layers 4 --hidden 256 --heads 4 --intermediate 1024 \
        --batch 16 --length 128 --predictions 20 --threads 2 --steps 5

What transformers' Trainer does in a step: forward and backward in train mode (dropout 0.1, its default attention,
logits at every position), gradients clipped to norm 1, `torch.optim.AdamW(fused=True)` (its default since torch 2.8),
no weight decay on biases and LayerNorms.
"""

from __future__ import annotations

from collections.abc import Callable

import protocol
import torch
import transformers
from peer_run_mlm import adamw


def training_step(model: torch.nn.Module, batch: dict[str, torch.Tensor], half: bool = False) -> Callable[[], torch.Tensor]:
    """A function that makes one update and returns the loss; `half`: bfloat16 by autocast."""
    model.train()
    optimizer = adamw(model, protocol.LEARNING_RATE, protocol.WEIGHT_DECAY)
    device = next(iter(batch.values())).device.type

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def main() -> None:
    args = protocol.arguments(__doc__)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = dict(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.intermediate,
    )
    if args.family == "modernbert":
        config = transformers.ModernBertConfig(vocab_size=protocol.MODERN_VOCAB_SIZE, **size)
        model = transformers.ModernBertForMaskedLM(config)
    else:
        positions = max(512, args.length)
        config = transformers.BertConfig(vocab_size=protocol.VOCAB_SIZE, max_position_embeddings=positions, **size)
        model = transformers.BertForMaskedLM(config)
    arrays = protocol.random_batch(args)
    input_ids, labels = (torch.from_numpy(arrays[name]).long() for name in ("input_ids", "labels"))
    others = dict(attention_mask=torch.ones_like(input_ids))
    if args.family == "bert":
        others["token_type_ids"] = torch.zeros_like(input_ids)
    step = training_step(model, dict(input_ids=input_ids, labels=labels, **others))
    protocol.serve(
        lambda: step().item(),
        args.steps,
        at_work=3,
        parameters=sum(p.numel() for p in model.parameters()),
        attention=config._attn_implementation,
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


if __name__ == "__main__":
    main()
