"""Random damage to each kind of file that is read: whatever comes, an answer or InputError, soon and in bounded memory.

    pip install -e '.[test,fuzz]'
    python tests/fuzz.py safetensors --seconds 300

Atheris (extra `fuzz`) changes small valid files, led by what code they reach. Any other exception, 10 seconds on one file or
2 GiB of memory ends the run and keeps the file that did it in --found. The last lines say how many files were read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import atheris
from safetensors.numpy import save_file

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
with atheris.instrument_imports(include=["bert_jax"]):
    import bert_jax
    from bert_jax import pretrained
    from bert_jax.config import InputError
    from bert_jax.data import sources
    from bert_jax.data.tokenizer import Tokenizer
    from bert_jax.formats import flax_msgpack, tensors, tf1, torch_bin
    from bert_jax.model import convert
    from bert_jax.model.heads import Bert, initialize
    from bert_jax.tasks import splits
    from bert_jax.tasks.table import find_task
    from bert_jax.tasks.task import TaskData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat", "##s", "of", "."]
CONFIG = dict(model_type="bert", vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "the cat of a", "qas": [
    {"id": "1", "question": "what?", "is_impossible": False, "answers": [{"text": "cat", "answer_start": 4}]}]}]}]}  # fmt: skip
NAMES = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
         "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
         "model.safetensors.index.json"]  # fmt: skip
WORDPIECE = dict(type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100)


def safetensors_header() -> list[bytes]:
    """The header of a file, without its length."""
    import numpy as np
    from safetensors.numpy import save

    file = save({"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16)}, {"format": "pt"})
    return [file[8 : 8 + int.from_bytes(file[:8], "little")]]


def read_safetensors_header(path: Path) -> None:
    """A file with this header, its length right, and 32 bytes of data."""
    header = path.read_bytes()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    for array in tensors.read_safetensors(path).values():
        assert array.nbytes <= 32


def torch() -> list[bytes]:
    """Of both of PyTorch's formats, if it is there (extra `parity`)."""
    try:
        import torch
    except ImportError:
        return [b"PK\3\4", b"\x80\2"]
    files = [io.BytesIO(), io.BytesIO()]
    for new, file in enumerate(files):
        torch.save({"a": torch.ones(2, 3), "b.c": torch.zeros(4).half()}, file, _use_new_zipfile_serialization=bool(new))
    return [file.getvalue() for file in files]


def flax() -> list[bytes]:
    """Small trees of arrays, one in pieces."""
    import numpy as np
    from flax import serialization

    pieces = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": np.ones(2), "1": np.zeros(2)}}
    return [serialization.to_bytes({"a": {"kernel": np.ones((2, 3), np.float32)}, "b": pieces, "step": 5})]


def read_flax_file(path: Path) -> None:
    for array in flax_msgpack.read_flax(path).values():
        assert array.nbytes <= path.stat().st_size


def tf1_blocks() -> list[bytes]:
    """The block of an index, before it is sealed by its checksum."""
    import tf1_writer as writer

    good = writer.bundle_entry(1, [2], size=8, crc=writer.stored_crc(bytes(8)))
    return [bytes(writer.block([(b"", writer.header()), (b"bert/a", good), (b"bert/b", good)]))]


def read_tf1_block(path: Path) -> None:
    """An index of this one block, its checksum right, beside 64 bytes of data."""
    import tf1_writer as writer

    block = path.read_bytes()
    prefix = path.with_name("model.ckpt")
    rows = [(b"zz", writer.varint(0) + writer.varint(len(block)))]
    Path(f"{prefix}.index").write_bytes(writer.finished(writer.sealed(block), rows))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(64))
    for array in tf1.read_tf1(prefix).values():
        assert array.nbytes <= 64


def sentencepiece_model() -> list[bytes]:
    import sentencepiece

    file, texts = io.BytesIO(), (" ".join(WORDS[5:]) * (n % 3 + 1) for n in range(200))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=file, vocab_size=24, pad_id=3, control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False, num_threads=1, minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    return [file.getvalue()]


def read_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    for ids in tokenizer.encode_batch(["the cats of [MASK]", ""]):
        tokenizer.decode(ids)


def read_documents(path: Path) -> None:
    for on_error in ("raise", "skip"):
        with contextlib.suppress(InputError):
            reader = sources.Reader(on_error=on_error)
            for segment in sources.scan(str(path), reader, 100)[0]:
                list(sources.read(segment, reader, sources.ReadReport()))


def read_task(name: str, path: Path) -> None:
    splits.load_splits(find_task(name), TaskData(data=str(path)))


def read_config(path: Path) -> None:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        convert.config_from_hugging_face(values, str(path))


def model_directory() -> list[bytes]:
    """File name -> what is in it (JSON, or text) of a small model of sentence-transformers' kind, as one JSON object."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = dict(
        model={**WORDPIECE, "vocab": vocab}, normalizer={"type": "BertNormalizer", "lowercase": True, "clean_text": True,
        "handle_chinese_chars": True, "strip_accents": None}, pre_tokenizer={"type": "BertPreTokenizer"}, post_processor=None,
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}, padding=None, truncation=None, version="1.0",
        added_tokens=[dict(id=i, content=word, special=True, single_word=False, lstrip=False, rstrip=False, normalized=False)
                      for i, word in enumerate(WORDS[:5])],
    )  # fmt: skip
    common = {
        "config.json": CONFIG | dict(max_position_embeddings=16, architectures=["BertForSequenceClassification"],
                                     id2label={"0": "no", "1": "yes"}, problem_type=None, pad_token_id=0),
        "tokenizer_config.json": dict(tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=16,
                                      mask_token="[MASK]", split_special_tokens=False),
        "special_tokens_map.json": dict(cls_token="[CLS]", additional_special_tokens=["[SEP]"]),
        "modules.json": [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                         for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("", "Normalize")])],
        "1_Pooling/config.json": dict(word_embedding_dimension=8, pooling_mode_mean_tokens=True, include_prompt=True),
        "sentence_bert_config.json": dict(max_seq_length=16, do_lower_case=False),
        "config_sentence_transformers.json": dict(prompts={"query": "a "}, default_prompt_name="query",
                                                  similarity_fn_name="cosine"),
    }  # fmt: skip
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights(), "weights.safetensors")}
    files = [
        common | {"tokenizer.json": tokenizer},
        common | {"vocab.txt": "\n".join(WORDS), "added_tokens.json": {"<ent>": 11}, "model.safetensors.index.json": index},
    ]
    return [line(each) for each in files]


def read_model_directory(path: Path) -> None:
    """The files that `path` holds, beside weights that fit the model that is not changed."""
    try:
        files = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    directory = path.parent / "model"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "1_Pooling").mkdir(parents=True)
    for name, content in files.items() if isinstance(files, dict) else ():
        if name in NAMES:
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / name).write_text(text, errors="replace")
    sharded = (directory / "model.safetensors.index.json").exists()
    save_file(weights(), directory / ("weights.safetensors" if sharded else "model.safetensors"))
    model = pretrained.load(directory)
    if model.tokenizer is not None:
        for ids in model.tokenizer.encode_batch(["the cats of [MASK]", ""]):
            model.tokenizer.decode(ids)
    bert_jax.Embedder(model)


@cache
def weights() -> dict[str, Any]:
    """Of `model_directory`, as a file has them."""
    import jax

    cfg = convert.config_from_hugging_face(CONFIG | dict(max_position_embeddings=16), "")
    params = jax.device_get(initialize(Bert(cfg, "sequence_classification", 2), 0))
    return convert.to_hugging_face(params, cfg, "sequence_classification")


def line(*values: object) -> bytes:
    return "\n".join(json.dumps(value) for value in values).encode()


def conll() -> list[bytes]:
    return [b"".join(b"%d\tO\ncat\tB-X\n\nof\tI-X\n%d\tO\n\n" % (i, i) for i in range(6))]


ROWS = b'sentence\tlabel\nthe cat\t0\na "cat\t1\nof\t0\n' + b"the\t1\n" * 8
TARGETS: dict[str, tuple[str, Callable[[], list[bytes]], Callable[[Path], object]]] = {  # name: (file, what is changed, reader)
    "safetensors": ("m.safetensors", safetensors_header, read_safetensors_header),
    "torch": ("m.bin", torch, torch_bin.read_torch),
    "flax": ("m.msgpack", flax, read_flax_file),
    "tf1": ("block", tf1_blocks, read_tf1_block),
    "vocab": ("vocab.txt", lambda: ["\n".join(WORDS).encode()], read_tokenizer),
    "tokenizer": (
        "tokenizer.json",
        lambda: [line(dict(model={**WORDPIECE, "vocab": {word: i for i, word in enumerate(WORDS)}}, added_tokens=[]))],
        read_tokenizer,
    ),
    "sentencepiece": ("spiece.model", sentencepiece_model, read_tokenizer),
    "text": ("a.txt", lambda: [b"The cat.\nOf a.\n\nThe other.\n"], read_documents),
    "jsonl": ("a.jsonl", lambda: [line({"text": "the cat"}, {"text": "of a"})], read_documents),
    "tsv": ("train.tsv", lambda: [ROWS], partial(read_task, "sst2")),
    "csv": ("train.csv", lambda: [ROWS.replace(b"\t", b",").replace(b'"', b"")], partial(read_task, "sst2")),
    "rows": ("train.jsonl", lambda: [line(*(dict(sentence=w, label=len(w) % 2) for w in WORDS))], partial(read_task, "sst2")),
    "conll": ("train.conll", conll, partial(read_task, "ner")),
    "squad": ("train.json", lambda: [line(SQUAD)], partial(read_task, "squad2")),
    "config": ("config.json", lambda: [line(CONFIG)], read_config),
    "directory": ("files.json", model_directory, read_model_directory),
}  # fmt: skip


ODD = [None, True, -1, 0, 3, 2**63, 1e308, 0.5, "", "a", "F32", "BF16", "O", [], [[]], {}, {"a": 1}, "9" * 5000, "\ud800"]


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time, JSON stays JSON: one value of one line becomes an odd one, or is left out, or put twice."""
    rng = random.Random(seed)
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number]) if rng.random() < 0.5 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict | list) or not value:
        return atheris.Mutate(data, max_size)
    node: Any = value
    while True:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        below = node[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.3:
            break
        node = below
    action = rng.randrange(4)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, list):
        node.append(below)
    elif action == 1:
        node[rng.choice(["a", "text", "label", "dtype", "shape", "type"])] = below
    else:
        node[key] = rng.choice(ODD)
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines)[:max_size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--found", type=Path, default=Path("runs/fuzz"), help="folder of the files that did harm")
    parser.add_argument("--again", type=Path, help="read this file once, as a file of --found")
    args = parser.parse_args()
    name, made, read = TARGETS[args.target]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name

        def one(data: bytes) -> None:
            path.write_bytes(data)
            with contextlib.suppress(InputError):
                read(path)

        if args.again:
            path.write_bytes(args.again.read_bytes())
            read(path)
            return
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(made()):
            (corpus / str(number)).write_bytes(data)
            path.write_bytes(data)
            if args.target != "squad":  # too few questions to hold some out
                read(path)  # what is changed is valid
        args.found.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        limits = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192", f"-max_total_time={args.seconds}", "-print_final_stats=1"]
        sys.stderr = open(os.devnull, "w")  # notes of the readers  # noqa: SIM115
        atheris.Setup(
            [sys.argv[0], *limits, f"-artifact_prefix={args.found}/{args.target}-", str(corpus)], one, custom_mutator=mutate
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
