"""One command for an NVIDIA GPU: are the numbers right, and how fast are they beside PyTorch's?

    python tests/benchmarks/gpu.py --json gpu.json                     # all of it, at most six minutes
    python tests/benchmarks/gpu.py --sections correctness
    python tests/benchmarks/gpu.py --device cpu --tiny                 # the same code at toy sizes, in under a minute
    python tests/benchmarks/gpu.py --write-curve                       # the losses of CPUs that `curve` compares with

It needs jax, flax, optax, jaxtyping, numpy, safetensors, tokenizers and ml_dtypes, and nothing from the network: weights are
random and data is made here. A section whose peer lacks a library (torch, transformers, sentence-transformers) measures ours
alone and says so. Each section is a process with a time limit of its own; a result is printed, and --json is rewritten, as soon
as it is there. The exit status is 1 if a check failed or a section did not end.

Sections:
  correctness  packed rows = separate rows, gradients, jit = pmap, a curve of losses, exact predictions
  pretraining  BERT-base at 128 and 512 (with and without dropout on attention's probabilities), BERT-large at 512,
               ModernBERT-base at 1,024
  embedding    MiniLM and BERT-base: sentences of 23 tokens from text to vectors, and rows of 512 tokens from ids
  finetuning   BERT-base on sentences as short as SST-2's, packed

Tokens are real ones: padding is not counted. MFU is the FLOPs of the matrix products that a program asks for, over its time and
the best matrix product of the same process. Peers compute in bfloat16 (autocast in training) with scaled_dot_product_attention
and, where it works, torch.compile; they take turns with ours. Peak memory is the compiler's for ours, the allocator's for theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import protocol

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # the package need not be installed

from bert_jax.config import MaskingConfig  # noqa: E402
from bert_jax.data import masking, packing  # noqa: E402
from bert_jax.data.batching import Example, fill_rows, pack_rows  # noqa: E402

CURVE = Path(__file__).with_name("gpu_curve.json")
SIZES = {  # layers, hidden size, heads, intermediate size
    "base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096), "minilm": (6, 384, 12, 1536), "modernbert": (22, 768, 12, 1152),
    "tiny": (2, 64, 2, 128),
}  # fmt: skip
PRETRAINING = {  # size, rows, length, dropout on attention's probabilities, layers by a scan, share of tokens predicted
    "base 128": ("base", 256, 128, 0.1, False, 0.15),
    "base 512": ("base", 64, 512, 0.0, False, 0.15),
    "base 512, dropout on attention": ("base", 64, 512, 0.1, False, 0.15),
    "large 512": ("large", 32, 512, 0.0, True, 0.15),
    "modernbert 1024": ("modernbert", 32, 1024, 0.0, True, 0.3),
}
EMBEDDING = {  # size, texts, words of a text, from text
    "minilm, sentences": ("minilm", 20_000, 21, True),
    "minilm, rows of 512": ("minilm", 2_048, 510, False),
    "base, sentences": ("base", 20_000, 21, True),
    "base, rows of 512": ("base", 2_048, 510, False),
}
FINETUNING = {"base, sentences": ("base", 256)}  # size, sentences of a batch
STEPS, ROUNDS = 10, 3  # training steps of a timed turn, and turns


# --- data, the same for ours and the peers: NumPy alone ---


def vocab_size(tiny: bool) -> int:
    """Ids 0, 100, 101, 102 and 103 are [PAD], [UNK], [CLS], [SEP] and [MASK], as in BERT's own vocabulary."""
    return 1200 if tiny else protocol.VOCAB_SIZE


def sequences(rng: np.random.Generator, count: int, longest: int, vocab: int) -> list[np.ndarray]:
    """`[CLS] x [SEP]` of 8 to `longest` tokens; the next id follows from the last one and a little chance."""
    found = []
    for size in rng.integers(8, longest + 1, count):
        steps = 7 + np.cumsum(rng.integers(0, 3, size - 2))
        found.append(np.concatenate([[101], 110 + steps * 7 % (vocab - 110), [102]]).astype(np.int32))
    return found


def pretraining_batch(rows: int, length: int, vocab: int, seed: int = 0, rate: float = 0.15) -> dict[str, np.ndarray]:
    """A batch as `data.pretraining` makes it: sequences packed in rows, tokens masked."""
    examples = sequences(np.random.default_rng(seed), rows * 4, length, vocab)
    packed = packing.pack([len(example) for example in examples], length)[:rows]
    input_ids = packing.to_rows(examples, packed, length, 0)
    starts = np.arange(vocab) >= 0  # each token is a word
    vocabulary = masking.Vocabulary(vocab, 103, (0, 100, 101, 102, 103), starts)
    batch = packing.describe(input_ids, 101, 102, 0)
    return batch | masking.mask_rows(input_ids, vocabulary, MaskingConfig(rate=rate), seed, 0)


def sentences(count: int, words: int, vocab: int) -> list[str]:
    """Texts of about `words` words, each of which is a token; exactly as many where that fills a row."""
    rng = np.random.default_rng(1)
    sizes = np.full(count, words) if words > 100 else rng.integers(words // 2, words + words // 2 + 1, count)
    return [" ".join(f"w{i}" for i in rng.integers(110, vocab, size)) for size in sizes]


def labelled(count: int, vocab: int) -> tuple[list[Example], np.ndarray]:
    """Sentences of 8 to 40 tokens, most of them short, with a label."""
    rng = np.random.default_rng(2)
    examples = [example[: max(8, int(8 + 8 * rng.exponential()))] for example in sequences(rng, count, 40, vocab)]
    at_first = np.zeros(1, np.int32)
    return [Example(ids, np.zeros_like(ids), at_first) for ids in examples], rng.integers(0, 2, count).astype(np.int32)


# --- ours ---


def model_config(size: str, tiny: bool, **changes: Any) -> Any:
    """The BertConfig of a size."""
    from bert_jax.config import BertConfig

    layers, hidden, heads, intermediate = SIZES["tiny" if tiny else size]
    shape = dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=intermediate)
    family = "modernbert" if size == "modernbert" else "bert"
    return BertConfig.of_family(family, **{"vocab_size": vocab_size(tiny), **shape, **changes})


def pretraining_program(
    model: Any, rows: int, length: int, compute: Any, strategy: str = "mesh", devices: int | None = 1, rate: float = 0.15
) -> Any:
    """The program of a pretraining run, as `bert_jax train` builds it."""
    from bert_jax.config import DataConfig, OptimConfig, ParallelConfig, TrainConfig
    from bert_jax.program import build
    from bert_jax.training import memory, parallel

    cfg = TrainConfig(
        model=model, compute=compute, data=DataConfig(max_seq_length=length), batch_size=rows, num_steps=10**6,
        masking=MaskingConfig(rate=rate),
        optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=0, weight_decay=protocol.WEIGHT_DECAY, eps=1e-8),
    )  # fmt: skip
    found = parallel.make_devices(ParallelConfig(strategy=strategy, num_devices=devices))
    return build(cfg, found, memory.device_bytes(found.mesh.devices.flat[0]))


def numpy_params(shapes: Any) -> Any:
    """Parameters drawn by NumPy: the same numbers on every platform and in every version of JAX."""
    import jax

    rng = np.random.default_rng(0)

    def values(path: Any, x: Any) -> np.ndarray:
        if len(x.shape) > 1:
            return (rng.standard_normal(x.shape) * 0.05).astype(x.dtype)
        return np.full(x.shape, path[-1].key == "scale", x.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


def numpy_state(shapes: Any) -> Any:
    """A training state before the first step, with `numpy_params`; its moments are zeros. Nothing is compiled for it."""
    import jax

    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)._replace(params=numpy_params(shapes.params))


def losses(program: Any, batches: list[dict[str, np.ndarray]]) -> list[float]:
    """The losses of a step on each of the batches, from `numpy_state`."""
    state, found = program.devices.place(numpy_state(program.abstract_state)), []
    for batch in batches:
        state, metrics = program.train_step(state, program.devices.put(batch))
        found.append(float(metrics["masked_lm_loss"]))
    return found


def curve_losses(dtype: str) -> list[float]:
    """The losses of 100 steps of a small BERT without dropout, products in full precision where it computes in float32."""
    import jax

    from bert_jax.config import BertConfig, ComputeConfig

    model = BertConfig(
        vocab_size=300, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    program = pretraining_program(model, 4, 64, ComputeConfig(dtype=dtype))
    with jax.default_matmul_precision("highest"):
        return losses(program, [pretraining_batch(4, 64, 300, seed) for seed in range(100)])


def matmul_peak(tiny: bool) -> float:
    """FLOP/s of the best of a few bfloat16 matrix products (float32 on CPUs, which have no faster type)."""
    import jax
    import jax.numpy as jnp

    size = 512 if tiny else 8192
    a = jnp.ones((size, size), jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()

    def several() -> None:
        x = a
        for _ in range(5):
            x = product(x, a)
        x.block_until_ready()

    return 5 * 2 * size**3 / min(protocol.timed(several)[0] for _ in range(5))


# --- correctness ---


def report(case: str, value: float, limit: float, **facts: Any) -> None:
    """A check: it holds if `value` is at most `limit`, and not if it is NaN."""
    protocol.say(section="correctness", case=case, value=float(value), limit=limit, ok=bool(value <= limit), **facts)


def correctness(args: argparse.Namespace, _: Any) -> None:
    """All checks; each is reported by itself."""
    for check in (packed_is_separate, gradients, jit_is_pmap, curve, exact_predictions):
        check(args.tiny)


def packed_is_separate(tiny: bool) -> None:
    """Hidden states of packed sequences against those of each alone in its row, through the kernel that is chosen.

    The error is a share of what attention across sequences would change: 1 for a mask that has no effect.
    """
    import jax

    from bert_jax.config import ComputeConfig
    from bert_jax.model import attention
    from bert_jax.model.encoder import Encoder

    cfg = model_config("base", tiny, num_hidden_layers=2 if tiny else 4)
    length, longest = (64, 24) if tiny else (512, 200)
    found = sequences(np.random.default_rng(3), 12, longest, cfg.vocab_size)
    examples = [Example(ids, np.zeros_like(ids), np.zeros(1, np.int32)) for ids in found]
    rows = [indices for _, indices in pack_rows(examples, [length], lambda n: n)]
    packed = fill_rows(examples, rows, len(examples), length, 16, 0)  # as many rows as separate ones: one compilation for both
    alone = fill_rows(examples, [[i] for i in range(len(examples))], len(examples), length, 1, 0)
    head_size = cfg.hidden_size // cfg.num_attention_heads
    names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")

    shapes = jax.eval_shape(Encoder(cfg).init, jax.random.key(0), *(packed.arrays[name] for name in names))
    params = numpy_params(shapes)

    def tokens(encode: Any, arrays: dict[str, np.ndarray], places: Any) -> np.ndarray:
        """Hidden states of the tokens of each example in turn."""
        with jax.default_matmul_precision("highest"):
            hidden = np.asarray(encode(params, *(arrays[name] for name in names))["last_hidden_state"], np.float32)
        at = {place.example: (place.row, place.tokens) for place in places}
        return np.concatenate([hidden[at[i]] for i in range(len(examples))])

    for dtype in ("float32", "bfloat16"):
        encode = jax.jit(Encoder(cfg, ComputeConfig(dtype=dtype)).apply)
        kernel, why = attention.choose("auto", jax.default_backend(), length, head_size, dtype, 0.0)
        together, apart = (tokens(encode, batch.arrays, batch.places) for batch in (packed, alone))
        one_sequence = packed.arrays | {"sequence_ids": np.minimum(packed.arrays["sequence_ids"], 1)}
        across = tokens(encode, one_sequence, packed.places)
        changed = np.sqrt(np.mean((across - apart) ** 2))
        error = np.sqrt(np.mean((together - apart) ** 2)) / max(changed, 1e-9)
        limit = {"float32": 1e-3, "bfloat16": 0.1}[dtype]
        report(f"packed = separate, {dtype}", error, limit, kernel=kernel, why=why, changed_by_attending_across=float(changed))


def gradients(tiny: bool) -> None:
    """The gradients of a step by the kernel that is chosen in bfloat16, against XLA's attention in float32.

    The error is relative, over all parameters; it may be twice that of XLA's attention in bfloat16.
    """
    import jax

    from bert_jax.config import ComputeConfig

    dropped = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    cfg = model_config("base", tiny, num_hidden_layers=2 if tiny else 4, **dropped)
    rows, length = (4, 64) if tiny else (8, 512)
    batch = pretraining_batch(rows, length, cfg.vocab_size)

    def gradient(dtype: str, kernel: str) -> tuple[list[np.ndarray], str]:
        program = pretraining_program(cfg, rows, length, ComputeConfig(dtype=dtype, attention=kernel))

        def loss(params: Any) -> Any:
            return program.sums(params, batch, None)["masked_lm_loss"].mean()

        with jax.default_matmul_precision("highest"):
            found = jax.jit(jax.grad(loss))(numpy_params(program.abstract_state.params))
        return [np.asarray(x, np.float64) for x in jax.tree.leaves(found)], program.describe()

    def error(found: list[np.ndarray]) -> float:
        squares = sum(float(np.sum((a - b) ** 2)) for a, b in zip(found, exact, strict=True))
        return (squares / sum(float(np.sum(b**2)) for b in exact)) ** 0.5

    exact, _ = gradient("float32", "xla")
    chosen, how = gradient("bfloat16", "auto")
    xla = chosen if "attention by xla" in how else gradient("bfloat16", "xla")[0]
    report("gradients, bfloat16 against float32", error(chosen), 2 * error(xla), kernel=how)
    report("gradients, error of XLA's attention in bfloat16", error(xla), 0.1)


def jit_is_pmap(tiny: bool) -> None:
    """The losses of three steps, on all devices, by a mesh and by pmap."""
    import jax

    from bert_jax.config import ComputeConfig

    dropped = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    cfg = model_config("base", tiny, num_hidden_layers=1 if tiny else 4, **dropped)
    rows, length = jax.device_count() * 4, 64 if tiny else 512
    batches = [pretraining_batch(rows, length, cfg.vocab_size, seed) for seed in range(3)]
    with jax.default_matmul_precision("highest"):
        by = {
            strategy: losses(pretraining_program(cfg, rows, length, ComputeConfig(), strategy, None), batches)
            for strategy in ("mesh", "pmap")
        }
    report("jit = pmap", np.max(np.abs(np.subtract(by["mesh"], by["pmap"]))), 2e-4, devices=jax.device_count(), losses=by["mesh"])


def curve(_: bool) -> None:
    """The losses of 100 steps, against those of CPUs in float32."""
    stored = json.loads(CURVE.read_text())["losses"]
    for dtype, limit in (("float32", 5e-3), ("bfloat16", 0.05)):
        found = curve_losses(dtype)
        report(f"100 steps' losses, {dtype}", np.max(np.abs(np.subtract(found, stored))), limit, first=found[0], last=found[-1])


def exact_predictions(tiny: bool) -> None:
    """`Embedder(exact=True)` gives a text the same bits alone, among others and in another order."""
    from bert_jax.inference.embedder import Embedder

    embed = Embedder(random_model("minilm", tiny, "float32"), exact=True)
    texts = sentences(20, 21, vocab_size(tiny))
    together = embed(texts)
    same = [np.array_equal(embed([text])[0], vector) for text, vector in zip(texts[:5], together, strict=False)]
    same.append(np.array_equal(embed(texts[::-1])[::-1], together))
    report("exact predictions: results that differ", same.count(False), 0)


# --- speed ---


def turns(peer: Peer, case: str, prepare: Callable[[], tuple[Callable[[], Any], dict[str, Any]]], options: Any = None) -> None:
    """Times ours and the peer's in turns, and says both. `prepare` returns the timed function and facts of ours."""
    peer.begin(case, options)
    run, facts = prepare()
    peer_facts = peer.ready()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(facts.pop("rounds", ROUNDS)):
        seconds["ours"].append(protocol.timed(run)[0])
        if peer_facts is not None:
            seconds["peer"].append(peer.step()["seconds"])
    row = say_speed(peer.section, case, "ours", seconds["ours"], facts)
    if peer_facts is None:
        protocol.say(section=peer.section, case=case, who="peer", skipped=peer.reason)
    else:
        same = {name: row[name] for name in ("units", "unit", "rows", "peak_flops") if name in row}
        ratio = median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
        say_speed(peer.section, case, "peer", seconds["peer"], {**same, **peer_facts, "times_ours": ratio})


def say_speed(section: str, case: str, who: str, seconds: list[float], facts: dict[str, Any]) -> dict[str, Any]:
    """Says and returns a row of the table."""
    row = dict(section=section, case=case, who=who, seconds=seconds, **facts)
    row["per_second"] = row["units"] / median(seconds)
    row["rows_per_second"] = row["rows"] / median(seconds) if "rows" in row else None
    row["mfu"] = row["flops"] / median(seconds) / row["peak_flops"] if "flops" in row else None
    protocol.say(**row)
    return row


def compiled_step(jitted: Any, *shapes: Any) -> tuple[Any, float, float | None]:
    """The compiled step, the seconds that this took, and its peak bytes."""
    seconds, compiled = protocol.timed(lambda: jitted.lower(*shapes).compile())
    analysis = compiled.memory_analysis()
    return compiled, seconds, getattr(analysis, "peak_memory_in_bytes", None)


def repeated(compiled: Any, state: Any, batch: Any, steps: int) -> Callable[[], float]:
    """A function that makes some steps and waits for the last; it has warmed up."""
    import jax

    def run() -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        return float(metrics["loss"])

    run()
    return run


def pretraining(args: argparse.Namespace, peer: Peer) -> None:
    """A training step with dropout on hidden states, on packed rows."""
    from bert_jax.config import ComputeConfig
    from bert_jax.training import flops

    peak = matmul_peak(args.tiny)

    def prepare(
        size: str, rows: int, length: int, dropout: float, scan: bool, rate: float
    ) -> tuple[Callable[[], Any], dict[str, Any]]:
        model = model_config(size, args.tiny, attention_probs_dropout_prob=dropout)
        compute = ComputeConfig(dtype=half(), scan_layers=scan)
        program = pretraining_program(model, rows, length, compute, rate=rate)
        batch = program.devices.put(pretraining_batch(rows, length, model.vocab_size, rate=rate))
        state = program.devices.place(numpy_state(program.abstract_state))
        compiled, seconds, peak_bytes = compiled_step(program.train_step, state, batch)
        steps = 1 if args.tiny else STEPS
        facts = dict(
            units=steps * int((batch["sequence_ids"] > 0).sum()), unit="tokens", flops=steps * flops.step_flops(program.cfg),
            peak_flops=peak, compile_seconds=seconds, peak_bytes=peak_bytes, how=program.describe(), rows=steps * rows,
            fill=float((batch["sequence_ids"] > 0).mean()),
        )  # fmt: skip
        return repeated(compiled, state, batch, steps), facts

    for case, shape in cases(PRETRAINING, args.tiny).items():
        turns(peer, case, partial(prepare, *shape))


def half() -> str:
    """The compute type: bfloat16, or float32 on CPUs, where bfloat16 is emulated."""
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def cases(table: dict[str, tuple[Any, ...]], tiny: bool) -> dict[str, tuple[Any, ...]]:
    """The cases at their own sizes, or at toy ones: counts over 40 become a sixteenth, and at least 8."""
    if not tiny:
        return table
    shrunk = lambda x: max(8, x // 16) if type(x) is int and x > 40 else x  # noqa: E731
    return {case: tuple(min(64, shrunk(x)) if type(x) is int else x for x in shape) for case, shape in table.items()}


def random_model(size: str, tiny: bool, dtype: str) -> Any:
    """An encoder with random weights, mean pooling and a tokenizer for `sentences`."""
    import bert_jax
    from bert_jax.config import ComputeConfig
    from bert_jax.data.tokenizer import Tokenizer
    from bert_jax.model.heads import parameter_shapes

    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    with tempfile.TemporaryDirectory() as directory:
        words = "\n".join(special.get(i, f"w{i}") for i in range(vocab_size(tiny)))
        (Path(directory) / "vocab.txt").write_text(words + "\n")
        tokenizer = Tokenizer.load(directory)
    config, pooling = model_config(size, tiny), bert_jax.Pooling(max_length=512)
    params = numpy_params(parameter_shapes(bert_jax.Bert(config, "encoder")))
    compute = ComputeConfig(dtype=dtype)
    return bert_jax.Model(config, params, tokenizer, "encoder", pooling=pooling, compute=compute)


def embedding(args: argparse.Namespace, peer: Peer) -> None:
    """Vectors of sentences from text, tokenization included, and of full rows from token ids."""
    import bert_jax
    from bert_jax.inference.embedder import Embedder

    peak = matmul_peak(args.tiny)
    with tempfile.TemporaryDirectory() as directory:
        saved: dict[str, Any] = {}
        for case, (size, count, words, from_text) in cases(EMBEDDING, args.tiny).items():
            if size not in saved:
                saved[size] = random_model(size, args.tiny, half())
                bert_jax.save(saved[size], Path(directory) / size)

            def prepare(
                model: Any = saved[size], count: int = count, words: int = words, from_text: bool = from_text
            ) -> tuple[Callable[[], Any], dict[str, Any]]:
                embed = Embedder(model)
                texts = sentences(count, words, model.config.vocab_size)
                examples, _ = embed._layout.examples(texts, 512)
                tokens = sum(len(example.input_ids) for example in examples)

                def run() -> np.ndarray:
                    return embed(texts) if from_text else np.array([each["vectors"][0] for each in embed.run(examples)])

                seconds, _ = protocol.timed(run)
                d, m, lengths = model.config.hidden_size, model.config.intermediate_size, [len(e.input_ids) for e in examples]
                layer = sum(2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d for n in lengths)
                how = f"{model.compute.dtype}, from {'text' if from_text else 'ids'}"
                return run, dict(
                    units=tokens, unit="tokens", texts=count, flops=float(layer * model.config.num_hidden_layers),
                    peak_flops=peak, compile_seconds=seconds, how=how,
                )  # fmt: skip

            turns(peer, case, prepare, str(Path(directory) / size))


def packed_labels(batch: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of `fill_rows` with the labels and weights of its places."""
    arrays = batch.arrays | {"cls_positions": batch.positions}
    arrays["labels"], weights = np.zeros_like(batch.positions), np.zeros(batch.positions.shape, np.float32)
    for place in batch.places:
        arrays["labels"][place.row, place.slots] = labels[place.example]
        weights[place.row, place.slots] = 1
    return arrays | {"weights": weights}


def finetuning(args: argparse.Namespace, peer: Peer) -> None:
    """A step on a batch of labelled sentences, packed in rows of 128 tokens."""
    import jax

    from bert_jax.config import ComputeConfig, OptimConfig
    from bert_jax.model import heads
    from bert_jax.model.heads import Bert, initialize
    from bert_jax.training import losses, optim, steps

    peak = matmul_peak(args.tiny)

    def prepare(size: str, count: int) -> tuple[Callable[[], Any], dict[str, Any]]:
        module = Bert(model_config(size, args.tiny), "sequence_classification", 2, ComputeConfig(dtype=half()))
        examples, labels = labelled(count, module.cfg.vocab_size)
        rows = [indices for _, indices in pack_rows(examples, [128], lambda n: 16)]
        batch = packed_labels(fill_rows(examples, rows, len(rows), 128, 16, 0), labels)
        optimizer = optim.make_optimizer(OptimConfig(name="adamw", weight_decay=protocol.WEIGHT_DECAY, eps=1e-8))

        def sums(params: Any, batch: Any, key: Any) -> dict[str, losses.Sum]:
            logits = heads.apply(module, params, batch, key, head_only=True)["logits"]
            return {"classification_loss": losses.cross_entropy(logits, batch["labels"], batch["weights"])}

        step = jax.jit(steps.make_train_step(sums, optimizer, lambda step: 1e-5, 0), donate_argnums=0)
        state = jax.device_put(numpy_state(jax.eval_shape(lambda: steps.init_state(initialize(module, 0), optimizer))))
        device_batch = jax.device_put(batch)
        compiled, seconds, peak_bytes = compiled_step(step, state, device_batch)
        repeats = 1 if args.tiny else STEPS
        facts = dict(units=repeats * count, unit="sentences", peak_flops=peak, compile_seconds=seconds, peak_bytes=peak_bytes,
                     how=f"{half()}, {len(rows)} rows of 128", fill=float((batch["sequence_ids"] > 0).mean()))  # fmt: skip
        return repeated(compiled, state, device_batch, repeats), facts

    for case, shape in cases(FINETUNING, args.tiny).items():
        turns(peer, case, partial(prepare, *shape))


class Peer:
    """PyTorch's side of a section, in a process of its own (peer_gpu.py); absent, with a reason, where a library is."""

    def __init__(self, section: str, args: argparse.Namespace):
        self.section, self.reason, self._process = section, "", None
        needed = ("torch", "sentence_transformers" if section == "embedding" else "transformers")
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing or args.participants == "ours":
            self.reason = f"{', '.join(missing)} not installed" if missing else "--participants ours"
            return
        command = [sys.executable, str(Path(__file__).with_name("peer_gpu.py")), section, args.device, *["--tiny"] * args.tiny]
        self._process = protocol.Participant("PyTorch", command, dict(os.environ), wait=False)

    def begin(self, case: str, options: Any = None) -> None:
        """Asks for a case; it is prepared while ours is."""
        if self._process:
            self._process.send(json.dumps({"case": case, "options": options}))

    def ready(self) -> dict[str, Any] | None:
        """Facts of the case when it can be timed; None where there is no peer."""
        if not self._process:
            return None
        facts = self._process.answer()
        self.reason = facts.pop("failed", "")
        return None if self.reason else facts

    def step(self) -> dict[str, float]:
        """A timed turn."""
        return self._process.step()

    def stop(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.stop()


# --- the driver ---


SECTIONS: dict[str, tuple[int, Callable[[argparse.Namespace, Any], None]]] = {  # seconds, function
    "correctness": (110, correctness), "pretraining": (140, pretraining), "embedding": (70, embedding),
    "finetuning": (40, finetuning),
}  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--participants", choices=("all", "ours"), default="all")
    parser.add_argument("--json", type=Path, help="everything measured, rewritten after each result")
    parser.add_argument("--write-curve", action="store_true", help=f"write {CURVE.name} on this machine's CPU, and leave")
    parser.add_argument("--in-process", choices=SECTIONS, help=argparse.SUPPRESS)  # a section's own process
    return parser.parse_args(argv)


def environment(device: str, tiny: bool) -> dict[str, str]:
    """Variables for a section: the device, two simulated ones of a CPU, and memory left for PyTorch on a GPU."""
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        fast = {"XLA_FLAGS": "--xla_backend_optimization_level=0"} if tiny else {}  # compilation is most of the time
        return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "NPROC": str(max(4, os.cpu_count() or 1)), **fast, **quiet}
    return {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.55", "TOKENIZERS_PARALLELISM": "true", **quiet}


def run_section(name: str, args: argparse.Namespace, seen: Callable[[dict[str, Any]], None]) -> str | None:
    """Runs a section in a process and shows each result as it comes; returns what went wrong with the process, if anything."""
    command = [sys.executable, __file__, "--in-process", name, "--device", args.device, "--participants", args.participants]
    command += ["--tiny"] * args.tiny
    began, limit = time.monotonic(), SECTIONS[name][0] * (1 if args.device == "gpu" else 5)
    variables = os.environ | environment(args.device, args.tiny)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True) as process:
        timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))  # the peer too
        timer.start()
        for line in process.stdout or ():
            if line.startswith("{"):
                seen(json.loads(line))
        code = process.wait()
        timer.cancel()
    if code == 0:
        return None
    return f"stopped after its {limit} s" if time.monotonic() - began >= limit else f"ended with code {code}"


def in_process(args: argparse.Namespace) -> None:
    """The work of a section's process."""
    import jax

    name = args.in_process
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    protocol.say(section=name, case="device", device=device.device_kind, jax=jax.__version__, limit_bytes=limit)
    peer = None if name == "correctness" else Peer(name, args)
    try:
        SECTIONS[name][1](args, peer)
    finally:
        if peer:
            peer.stop()


def line(row: dict[str, Any]) -> str:
    """A result as a line of the table."""
    name = f"{row['section']:<12} {row['case']:<48}"
    if "ok" in row:
        verdict = "ok    " if row["ok"] else "FAILED"
        return f"{name} {verdict} {row['value']:.3g} (limit {row['limit']:.3g}) {row.get('kernel', '')}".rstrip()
    if "per_second" not in row:
        told = {k: v for k, v in row.items() if k not in ("section", "case", "who") and v is not None}
        return f"{name} {', '.join(f'{k} {v}' for k, v in told.items())}"
    parts = [f"{row['who']:<5}{row['per_second']:>12,.0f} {row['unit']}/s"]
    parts += [f"{row['rows_per_second']:,.0f} rows/s"] if row.get("rows_per_second") else []
    parts += [f"MFU {row['mfu']:.0%}"] if row.get("mfu") else []
    parts += [f"{row['peak_bytes'] / 2**30:.2f} GiB"] if row.get("peak_bytes") else []
    parts += [f"compiled in {row['compile_seconds']:.0f} s"] if row.get("compile_seconds") else []
    parts += [f"{row['times_ours']:.2f} x ours' time"] if "times_ours" in row else []
    return f"{name} {', '.join(parts)}"


def main(argv: list[str] | None = None) -> int:
    """Runs the sections; returns the exit status."""
    args = parse(argv)
    if args.write_curve:
        os.environ.update(environment("cpu", tiny=False))
        CURVE.write_text(json.dumps({"losses": [round(loss, 6) for loss in curve_losses("float32")]}) + "\n")
        return 0
    if args.in_process:
        in_process(args)
        return 0
    began = time.time()
    record: dict[str, Any] = dict(argv=sys.argv[1:], machine=platform.machine(), python=platform.python_version(), rows=[])
    lock = threading.Lock()

    def seen(row: dict[str, Any]) -> None:
        with lock:
            record["rows"].append(row)
            record["seconds"] = time.time() - began
            print(line(row), flush=True)
            if args.json:
                args.json.write_text(json.dumps(record, indent=1) + "\n")

    def run(name: str) -> None:
        if problem := run_section(name, args, seen):
            seen({"section": name, "case": "the section", "failed": problem})

    with ThreadPoolExecutor(2 if args.tiny else 1) as pool:  # toy sizes are mostly compiled, each on one core; times need all
        list(pool.map(run, args.sections))
    bad = [row for row in record["rows"] if "failed" in row or row.get("ok") is False]
    print(f"\n{len(bad)} of {len(record['rows'])} results are failures; {time.time() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
