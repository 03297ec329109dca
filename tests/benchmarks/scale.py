"""What grows with the data: peak memory and CPU seconds of each part that reads it, at several sizes, each in a fresh process.

    python tests/benchmarks/scale.py vocabulary prepare start document rows --sizes 10 100 400 --json scale.json
    python tests/benchmarks/scale.py files --sizes 20000
    python tests/benchmarks/scale.py documents --sizes 1 20
    python tests/benchmarks/scale.py search search_int8 search_binary --sizes 0.1 1

Sizes are megabytes of text (`files`: files of 2 kB; `documents`: millions of documents of a few words; `search`: millions of
vectors of 384 values in a file, among which the best 1,000 for each of 10,000 queries are found, as `bert_jax mine` does; their
`own_mb` is the peak without the pages of the file, which the system takes back when it needs them). Text is made of
random words of Zipf's distribution, or is that of `--text`, again and again. `start` opens the cache that `prepare` made of as
much text, as a second run does, and asks the doctor. Peak memory is of the largest process; `bytes_a_byte` is the memory beyond
that of the smallest size for each byte of text beyond it.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

MB = 1_000_000
WIDTH = 384  # of vectors, as MiniLM's
SEARCHES = {"search": "float32", "search_int8": "int8", "search_binary": "binary"}


def sentences(seed: int, text: list[str]) -> Iterator[str]:
    """Sentences of about 80 characters, without end."""
    while text:
        for path in text:
            yield from (line for line in Path(path).read_text(errors="replace").split("\n\n") if line.strip())
    words, rng = _words(), np.random.default_rng(seed)
    while True:
        ranks = np.minimum(rng.zipf(1.2, 1_300) - 1, len(words) - 1)
        for row in words[ranks].reshape(-1, 13):
            yield " ".join(row).capitalize() + "."


@functools.cache
def _words() -> np.ndarray:
    """50,000 random words, the same in all texts."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    return np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(50_000)])


def write_text(path: Path, size: float, text: list[str], between: str = "\n\n", each: int = 8, seed: int = 0) -> None:
    """`size` MB of documents of `each` sentences."""
    made, source = 0, sentences(seed, text)
    with open(path, "w") as file:
        while made < size * MB:
            made += file.write(" ".join(next(source) for _ in range(each)) + between)


def config(folder: Path, **data: Any) -> Any:
    from bert_jax.config import BertConfig, DataConfig, TrainConfig

    given = dict(source=(str(folder / "text"),), max_seq_length=128, eval_fraction=0.01) | data
    model = BertConfig(vocab_size=4000, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
    return TrainConfig(workdir=str(folder / "run"), model=model, data=DataConfig(**given))


def quiet(items: Any, *_: Any) -> Any:
    return items


def vocabulary(folder: Path, size: float, text: list[str]) -> None:
    from bert_jax.data.corpus import read_texts
    from bert_jax.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(read_texts(config(folder).data, quiet), 4000, "unigram")
    held_out = " ".join(next(source) for source in [sentences(1, text)] for _ in range(5000))
    ids = tokenizer.encode_batch(held_out.split(". "))
    print(json.dumps({"tokens_a_word": sum(map(len, ids)) / len(held_out.split())}))


def prepare(folder: Path, *_: Any) -> None:
    from bert_jax.data.pretraining import load_data

    load_data(config(folder, tokenizer=str(folder / "tokenizer")), quiet)


def start(folder: Path, *_: Any) -> None:
    from bert_jax.data import doctor
    from bert_jax.data.pretraining import load_data

    cfg = config(folder, tokenizer=str(folder / "tokenizer"))
    data = load_data(cfg, quiet)
    doctor.examine(data, cfg, {})


def document(folder: Path, *_: Any) -> None:
    from bert_jax.data.pretraining import load_data

    load_data(config(folder, tokenizer=str(folder / "tokenizer"), documents="file", eval_fraction=0.0, num_workers=1), quiet)


def documents(folder: Path, *_: Any) -> None:
    from bert_jax.data.pretraining import load_data

    load_data(config(folder, tokenizer=str(folder / "tokenizer"), documents="line"), quiet)
    start_of_lines(folder)


def start_of_lines(folder: Path) -> None:
    from bert_jax.data import doctor
    from bert_jax.data.pretraining import load_data

    begun = time.process_time()
    cfg = config(folder, tokenizer=str(folder / "tokenizer"), documents="line")
    data = load_data(cfg, quiet)
    doctor.examine(data, cfg, {})
    print(json.dumps({"cpu_seconds_of_a_second_start": round(time.process_time() - begun, 2)}))


def rows(folder: Path, *_: Any) -> None:
    from bert_jax.data.finetuning import Batches
    from bert_jax.data.layout import Layout
    from bert_jax.data.tokenizer import Tokenizer
    from bert_jax.tasks.splits import load_splits
    from bert_jax.tasks.table import find_task
    from bert_jax.tasks.task import TaskData

    task = find_task("classification")
    splits = load_splits(task, TaskData(data=str(folder / "text" / "train.csv")))
    layout = Layout(Tokenizer.load(folder / "tokenizer"), config(folder).model, 128)
    encoded = task.kind.encode(splits.train, splits.labels, layout)
    batches = Batches(encoded.items, 32, "packed", 384, 0)
    batches.train([0], 0)


def search(folder: Path, size: float, text: list[str], precision: str = "float32") -> None:
    """Searches in 10 portions; in less precision, the best 1,000 candidates are scored again for 250."""
    from bert_jax.inference import nearest, open_vectors

    watch = Watch()
    path = folder / "text" / ("vectors.npy" if precision == "float32" else f"{precision}.safetensors")
    vectors, rng = open_vectors(path), np.random.default_rng(1)
    rescore = None if precision == "float32" else open_vectors(folder / "text" / "vectors.npy").array
    begun = time.perf_counter()
    for _ in range(10):
        nearest(rng.standard_normal((1000, WIDTH), np.float32), vectors, 1000 if rescore is None else 250, rescore=rescore)
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 1), "own_mb": watch.peak()}))


class Watch:
    """The peak of the memory of this process that is no page of a file, in MB, looked at twenty times a second."""

    def __init__(self) -> None:
        self._peak, self._done = 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self._peak = max(self._peak, int(lines["RssAnon"].split()[0]))

    def peak(self) -> float:
        self._done.set()
        return self._peak * 1024 / 1e6


def write_vectors(folder: Path, count: int) -> None:
    """Random vectors of length 1 in float32, int8 and binary."""
    from bert_jax.inference import vectors

    rng = np.random.default_rng(0)
    array = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (count, WIDTH))
    for start in range(0, count, 10_000):
        block = rng.standard_normal((min(10_000, count - start), WIDTH), np.float32)
        array[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    for precision in ("int8", "binary"):
        vectors.write_vectors(folder / f"{precision}.safetensors", array, precision)


MADE: dict[str, Callable[[Path, float, list[str]], None]] = {  # what is written before the clock starts
    "files": lambda folder, size, text: [write_text(folder / f"{i}.txt", 0.002, text, seed=i) for i in range(int(size))] and None,
    "document": lambda folder, size, text: write_text(folder / "a.txt", size, text, " "),
    "documents": lambda folder, size, text: write_lines(folder / "a.txt", int(size * 1_000_000)),
    "rows": lambda folder, size, text: write_rows(folder / "train.csv", size, text),
    **dict.fromkeys(SEARCHES, lambda folder, size, text: write_vectors(folder, int(size * 1_000_000))),
}
CASES: dict[str, Callable[..., None]] = {
    "vocabulary": vocabulary, "prepare": prepare, "start": start, "files": prepare, "document": document,
    "documents": documents, "rows": rows,
    **{name: functools.partial(search, precision=precision) for name, precision in SEARCHES.items()},
}  # fmt: skip


def write_lines(path: Path, count: int) -> None:
    """Documents of three words, nearly all different."""
    source = np.random.default_rng(0)
    with open(path, "w") as file:
        for _ in range(0, count, 100_000):
            numbers = source.integers(0, 2**31, 100_000)
            file.writelines(f"number {n % 1000} of {n}\n" for n in numbers[: min(100_000, count)])


def write_rows(path: Path, size: float, text: list[str]) -> None:
    made, source = 0, sentences(0, text)
    with open(path, "w") as file:
        file.write("text,label\n")
        while made < size * MB:
            made += file.write(f'"{next(source).replace(chr(34), "")}",{"yes" if made % 3 else "no"}\n')


def child(case: str, folder: Path, size: float, text: list[str]) -> None:
    """Runs a case, and prints what it took."""
    CASES[case](folder, size, text)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    took = {"peak_mb": max(u.ru_maxrss for u in used) / 1000, "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in used)}
    print(json.dumps(took))


def measure(case: str, size: float, text: list[str]) -> dict[str, Any]:
    """Makes the data, runs the case in a fresh process, and gives what it printed."""
    from bert_jax.data.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").mkdir()
        MADE.get(case, lambda folder, size, text: write_text(folder / "a.txt", size, text))(folder / "text", size, text)
        source = sentences(2, text)
        Tokenizer.train((next(source) for _ in range(10_000)), 4000, "unigram").save(folder / "tokenizer")
        command = [sys.executable, __file__, "--child", case, str(folder), str(size), *text]
        if case == "start":
            subprocess.run([*command[:3], "prepare", *command[4:]], check=True, stdout=subprocess.PIPE)
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = {"case": case, "size": size}
    for line in printed.splitlines():
        found |= json.loads(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--sizes", nargs="+", type=float, default=[10, 100, 400])
    parser.add_argument("--text", default="", help="a pattern of .txt files to be used instead of random words")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    text, all_found = sorted(glob.glob(args.text)) if args.text else [], []
    for case in args.cases:
        first: dict[str, Any] = {}
        for size in args.sizes:
            found = measure(case, size, text)
            first = first or found
            if size > first["size"] and case not in ("files", "documents", *SEARCHES):
                found["bytes_a_byte"] = (found["peak_mb"] - first["peak_mb"]) / (size - first["size"])
            all_found.append(found)
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(all_found, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
    else:
        main()
