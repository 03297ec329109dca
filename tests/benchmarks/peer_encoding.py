"""Sentence embeddings (the mean over real tokens, normalised) by a peer, one pass over a file timed on request (protocol.py).

    python tests/benchmarks/peer_encoding.py --participant torch --model DIR --texts sentences.txt --threads 2 --steps 5
    python tests/benchmarks/peer_encoding.py --participant onnxruntime --model DIR --texts sentences.txt --graphs OUT --tune
    python tests/benchmarks/peer_encoding.py --participant onnxruntime --model DIR --texts sentences.txt --graphs OUT \
        --graph fused.onnx --batch-size 16 --steps 5

Participants:

  pipeline               transformers' pipeline("feature-extraction") at batch size 32 over the list in its order, each batch
                         padded to its longest text, results as tensors; NumPy makes the means
  pipeline-lists         the same with its default results, nested Python lists
  torch                  transformers' AutoTokenizer and AutoModel, texts sorted by their number of tokens
  sentence-transformers  SentenceTransformer.encode at batch size 32: it sorts by length itself
  onnxruntime            the same encoder exported from PyTorch, `tokenizers`, texts sorted by their number of tokens

--tune tries the batch sizes 16, 32 and 64 (onnxruntime: each with the exported graph, which the session optimises, and with
the one that onnxruntime.transformers.optimizer fused) on every fourth batch, and says which is the fastest; the exported
graphs are written to --graphs. Where onnxruntime is not installed or cannot export the encoder, it says so instead.
Needs transformers >= 5 and PyTorch, sentence-transformers, onnxruntime and onnx.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import protocol

BATCH_SIZE = 32
BATCH_SIZES = (16, 32, 64)
GRAPHS = ("exported.onnx", "fused.onnx")
MOST_TOKENS = 512
TRIALS = 2

Batches = Iterator[tuple[list[int], np.ndarray, np.ndarray]]
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--participant", choices=PARTICIPANTS, required=True)
    parser.add_argument("--tune", action="store_true", help="find the best batch size, say it and leave")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="torch, onnxruntime")
    parser.add_argument("--graphs", type=Path, help="onnxruntime: directory of the exported graphs")
    parser.add_argument("--graph", choices=GRAPHS, default=GRAPHS[0], help="onnxruntime: the file of it to run")


def normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def limit_torch() -> Any:
    import torch

    torch.set_num_threads(args.threads)
    return torch


# --- libraries that batch by themselves ---


def pipeline(**form: Any) -> None:
    torch = limit_torch()
    import transformers

    extract = transformers.pipeline("feature-extraction", model=str(args.model), device="cpu")
    masks: list[Any] = []  # which tokens of a result are real: a pipeline does not say, so those that it gave the model are kept
    extract.model.register_forward_pre_hook(lambda _, __, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True)

    def encode(texts: list[str]) -> np.ndarray:
        masks.clear()
        results = extract(texts, batch_size=BATCH_SIZE, **form)
        real = (int(count) for mask in masks for count in mask.sum(1))
        return normalized(np.stack([np.asarray(x[0], np.float32)[:n].mean(axis=0) for x, n in zip(results, real, strict=True)]))

    protocol.serve_encoding(encode, args, batch_size=BATCH_SIZE, versions=versions(torch, transformers))


def sentence_transformers() -> None:
    torch = limit_torch()
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(args.model), device="cpu")

    def encode(texts: list[str]) -> np.ndarray:
        return model.encode(texts, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)

    protocol.serve_encoding(encode, args, batch_size=BATCH_SIZE, versions=versions(torch, sentence_transformers))


# --- batches by length ---


class Encoder:
    """Texts -> vectors, in batches of texts of like lengths: `tokenize` says their ids, `run` the vectors of a batch."""

    def __init__(self, tokenize: Callable[[list[str]], Sequence[list[int]]], run: Run, batch_size: int):
        self.tokenize, self.run, self.batch_size = tokenize, run, batch_size

    def __call__(self, texts: list[str]) -> np.ndarray:
        rows: list[Any] = [None] * len(texts)
        for indices, input_ids, mask in batches(self.tokenize(texts), self.batch_size):
            for index, vector in zip(indices, self.run(input_ids, mask), strict=True):
                rows[index] = vector
        return normalized(np.stack(rows))

    def seconds_per_token(self, ids: Sequence[list[int]]) -> float:
        """The least of some trials over every fourth batch."""
        some = list(batches(ids, self.batch_size))[::4]
        fastest = min(protocol.timed(lambda: [self.run(*arrays) for _, *arrays in some])[0] for _ in range(TRIALS))
        return fastest / sum(int(mask.sum()) for _, _, mask in some)


def batches(ids: Sequence[list[int]], size: int) -> Batches:
    """(indices, ids, mask), int64 [B, L] padded to the longest of each batch, the longest batch first.

    Padding is 0, whatever the vocabulary has there: nothing attends to it.
    """
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        input_ids = np.zeros((len(indices), len(ids[indices[0]])), np.int64)
        mask = np.zeros_like(input_ids)
        for row, index in enumerate(indices):
            input_ids[row, : len(ids[index])] = ids[index]
            mask[row, : len(ids[index])] = 1
        yield indices, input_ids, mask


def tune(tokenize: Callable[[list[str]], Sequence[list[int]]], runs: dict[str, Run]) -> None:
    """Says the fastest of `runs` and of the batch sizes, and the seconds a token of all."""
    ids = tokenize(args.texts.read_text(encoding="utf-8").splitlines())
    trials = {(g, size): Encoder(tokenize, run, size).seconds_per_token(ids) for g, run in runs.items() for size in BATCH_SIZES}
    graph, batch_size = min(trials, key=lambda key: trials[key])
    protocol.say(
        ready=True,
        graph=graph,
        batch_size=batch_size,
        lengths=[len(x) for x in ids],
        trials={f"{graph} {size}".strip(): seconds for (graph, size), seconds in trials.items()},
    )


def torch_by_length() -> None:
    torch = limit_torch()
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModel.from_pretrained(args.model).eval()

    def tokenize(texts: list[str]) -> list[list[int]]:
        options = dict(truncation=True, max_length=MOST_TOKENS, return_attention_mask=False, return_token_type_ids=False)
        return tokenizer(texts, **options)["input_ids"]

    @torch.inference_mode()
    def run(input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        attention_mask = torch.from_numpy(mask)
        hidden = model(input_ids=torch.from_numpy(input_ids), attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.to(hidden.dtype)[:, :, None]
        return ((hidden * weights).sum(1) / weights.sum(1)).numpy()

    if args.tune:
        tune(tokenize, {"": run})
        return
    facts = dict(batch_size=args.batch_size, attention=model.config._attn_implementation)
    encode = Encoder(tokenize, run, args.batch_size)
    protocol.serve_encoding(encode, args, **facts, versions=versions(torch, transformers))


def onnxruntime() -> None:
    if args.tune:
        try:
            export()
        except Exception as error:  # whatever an exporter raises for an encoder that it does not know
            protocol.say(ready=True, absent=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    def runner(graph: str) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(str(args.graphs / graph), options, providers=["CPUExecutionProvider"])

        names = {x.name for x in session.get_inputs()}

        def run(input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            inputs = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": np.zeros_like(input_ids)}
            hidden = session.run(None, {name: inputs[name] for name in names})[0]
            return np.stack([row[:n].mean(axis=0) for row, n in zip(hidden, mask.sum(1), strict=True)])

        return run

    if args.tune:
        tune(tokenize, {graph: runner(graph) for graph in GRAPHS})
        return
    facts = dict(batch_size=args.batch_size, graph=args.graph)
    encode = Encoder(tokenize, runner(args.graph), args.batch_size)
    protocol.serve_encoding(encode, args, **facts, versions=versions(onnxruntime))


def export() -> None:
    """The encoder as ONNX graphs with batch and length left open: as exported, and fused for BERT."""
    import inspect

    torch = limit_torch()
    import transformers
    from onnxruntime.transformers import optimizer

    model = transformers.AutoModel.from_pretrained(args.model, attn_implementation="eager").eval()

    class HiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, *values: Any) -> Any:
            return self.encoder(**dict(zip(inputs, values, strict=True)))[0]

    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    inputs = dict(input_ids=mask * 5, attention_mask=mask, token_type_ids=mask * 0)
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        del inputs["token_type_ids"]
    open_axes = {name: {0: "batch", 1: "length"} for name in (*inputs, "last_hidden_state")}
    exported, fused = (str(args.graphs / name) for name in GRAPHS)
    torch.onnx.export(
        HiddenStates(),
        tuple(inputs.values()),
        exported,
        dynamo=False,
        opset_version=17,
        input_names=list(inputs),
        output_names=["last_hidden_state"],
        dynamic_axes=open_axes,
    )
    config = model.config
    optimizer.optimize_model(
        exported, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    ).save_model_to_file(fused)


def versions(*modules: Any) -> dict[str, str]:
    return {module.__name__: module.__version__ for module in modules}


PARTICIPANTS: dict[str, Callable[[], None]] = {
    "pipeline": lambda: pipeline(return_tensors=True),
    "pipeline-lists": pipeline,
    "torch": torch_by_length,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
}

if __name__ == "__main__":
    args = protocol.encoding_arguments(__doc__, add_arguments)
    PARTICIPANTS[args.participant]()
