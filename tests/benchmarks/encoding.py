"""Sentence embeddings by bert_jax beside transformers, sentence-transformers and onnxruntime, in turns on the same cores.

    python tests/benchmarks/encoding.py --make-texts 'text/**/*.txt' --seed 0 --tokenizer-of DIR --texts sentences.txt
    python tests/benchmarks/encoding.py --model DIR --texts sentences.txt --rounds 7 --threads 2 --json encoding.json
    python tests/benchmarks/encoding.py --model base --tokenizer-of DIR --texts sentences.txt --json encoding_base.json
    python tests/benchmarks/encoding.py --model modern-minilm --tokenizer-of DIR --texts sentences.txt --json modern.json
    python tests/benchmarks/encoding.py --model mpnet-base --tokenizer-of DIR --texts sentences.txt --json mpnet.json
    python tests/benchmarks/encoding.py --startup --model DIR --rounds 5 --json startup.json

The first writes sentences of their natural length, at most 256 tokens, to --texts. The second times passes over them, from
strings to mean-pooled normalised vectors, tokenization included; --model base is a random encoder of 12 layers of 768 in
DIR's vocabulary, modern-minilm a ModernBERT of 6 layers of 384, mpnet-base an encoder of all-mpnet-base's shape. --startup
times whole processes from their start to the first embedding of one sentence, imports included; ours without a persistent
compilation cache (jax's default), with an empty one and with a filled one.
--peer-python is the interpreter of the peers (peer_encoding.py says who they are and what they need); none looks for
anything on the network.

Every participant lives in its own process, limited to the same cores; a round asks each for one pass while the others
sleep. Peers whose batch size is theirs to choose choose it first, in processes of their own. Medians over rounds; ratios
(how many times ours) round by round, then their median. "cold" is a process's first pass, "second" its second.
All vectors must equal those of `torch` to 1e-3.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import platform
import random
import re
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import protocol

PEERS = ("pipeline", "torch", "sentence-transformers", "onnxruntime")
OURS = {"ours": (), "ours-exact": ("--exact",)}  # flags of ours_encoding.py
ALSO = ("ours-exact", "pipeline-lists")  # only where asked for: pipeline-lists is slower than `pipeline` by the conversion
TUNED = ("torch", "onnxruntime")
STARTERS = ("ours", "ours, empty cache", "ours, warm cache", "torch", "sentence-transformers")
REFERENCE, TOLERANCE = "torch", 1e-3
MOST_TOKENS = 256
_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)([.!?][\"”’')\]]*)\s+")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"directory, or random weights: {', '.join(protocol.ENCODERS)}")
    parser.add_argument("--tokenizer-of", type=Path, help="directory of the tokenizer for random weights and --make-texts")
    parser.add_argument("--texts", type=Path, help="text file, one text a line")
    parser.add_argument("--participants", nargs="+", choices=(*PEERS, *ALSO), default=PEERS, help="besides ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--startup", action="store_true", help="time the start of processes instead")
    parser.add_argument("--make-texts", nargs="+", metavar="GLOB", help="write --texts from these files, and leave")
    parser.add_argument("--count", type=int, default=2000, help="sentences of --make-texts")
    parser.add_argument("--seed", type=int, default=0, help="of --make-texts")
    parser.add_argument("--json", type=Path, default=None, help="write everything measured to this file")
    args = parser.parse_args()
    if args.make_texts and not (args.texts and args.tokenizer_of):
        parser.error("--make-texts needs --texts and --tokenizer-of")
    if not args.make_texts and (not args.model or not (args.texts or args.startup)):
        parser.error("--model and --texts say what to encode with what")
    if args.model in protocol.ENCODERS and not args.tokenizer_of:
        parser.error(f"--model {args.model} needs --tokenizer-of")
    return args


def make_texts(args: argparse.Namespace) -> None:
    """Writes a random choice of the sentences of some files."""
    from bert_jax.data.tokenizer import Tokenizer

    sentences = []
    for path in sorted({path for pattern in args.make_texts for path in glob.glob(pattern, recursive=True)}):
        for paragraph in re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8")):
            sentences += _END.sub(r"\1\n", " ".join(paragraph.split())).split("\n")
    sentences = [sentence for sentence in sentences if re.search(r"\w", sentence)]
    chosen = random.Random(args.seed).sample(sentences, min(len(sentences), args.count + args.count // 10 + 10))
    lengths = [len(ids) + 2 for ids in Tokenizer.load(args.tokenizer_of).encode_batch(chosen)]
    kept = [(text, n) for text, n in zip(chosen, lengths, strict=True) if n <= MOST_TOKENS][: args.count]
    if len(kept) < args.count:
        raise SystemExit(f"{len(kept)} sentences in {' '.join(args.make_texts)}; --count={args.count}")
    args.texts.write_text("".join(text + "\n" for text, _ in kept), encoding="utf-8")
    print(f"{len(kept)} of {len(sentences)} sentences; {describe([n for _, n in kept])}")


def describe(lengths: list[int]) -> str:
    return f"tokens: mean {mean(lengths):.1f}, median {median(lengths):.0f}, most {max(lengths)}"


class Commands:
    """How the participants are started."""

    def __init__(self, args: argparse.Namespace, directory: Path):
        self.args, self.directory = args, directory
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        self.environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.model = args.model
        if args.model in protocol.ENCODERS:
            self.model = str(directory / args.model)
            self.once("ours", "--random", args.model, "--tokenizer-of", str(args.tokenizer_of))

    def start(self, name: str, *flags: str, **environment: str) -> protocol.Participant:
        """The process of participant `name`, once it is ready."""
        script = Path(__file__).with_name("ours_encoding.py" if name in OURS else "peer_encoding.py")
        command = [sys.executable if name in OURS else self.args.peer_python, str(script)]
        command += OURS.get(name, ["--participant", name])
        command += ["--model", self.model, "--threads", str(self.args.threads), *flags]
        return protocol.Participant(name, command, self.environment | environment)

    def once(self, name: str, *flags: str, **environment: str) -> dict[str, Any]:
        """What a process says that leaves by itself, and the seconds until it said so."""
        participant = self.start(name, *flags, **environment)
        participant.process.communicate()
        return participant.facts


def encoding(args: argparse.Namespace, commands: Commands) -> tuple[list[str], dict[str, Any]]:
    """The table of passes over --texts, and all that was measured."""
    texts, graphs = ["--texts", str(args.texts)], ["--graphs", str(commands.directory)]
    tuned = {name: commands.once(name, *texts, *graphs, "--tune") for name in args.participants if name in TUNED}
    absent = {name: facts["absent"] for name, facts in tuned.items() if "absent" in facts}
    tuned = {name: facts for name, facts in tuned.items() if name not in absent}
    names = ("ours", *(name for name in args.participants if name not in absent))
    running: list[protocol.Participant] = []
    try:
        for name in names:
            flags = [*texts, "--vectors", str(commands.directory / f"{name}.npy")]
            if name in tuned:
                flags += ["--batch-size", str(tuned[name]["batch_size"])]
            if name == "onnxruntime":
                flags += [*graphs, "--graph", tuned[name]["graph"]]
            running.append(commands.start(name, *flags))
        answers = [{p.name: p.step() for p in running} for _ in range(args.rounds)]
        facts = {p.name: p.facts for p in running}
    finally:
        for participant in running:
            participant.stop()

    vectors = {name: np.load(commands.directory / f"{name}.npy") for name in names}
    reference = vectors[REFERENCE if REFERENCE in vectors else "ours"]
    seconds = {name: [answer[name]["seconds"] for answer in answers] for name in names}
    lengths = next((facts["lengths"] for facts in tuned.values()), [])
    results = {
        name: {
            "median_seconds": median(seconds[name]),
            "fastest_seconds": min(seconds[name]),
            "ratio": median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)),
            "cold_seconds": facts[name]["cold_seconds"],
            "second_seconds": facts[name]["second_seconds"],
            "peak_rss_mb": answers[-1][name]["peak_rss_mb"],
            "difference": float(np.abs(vectors[name] - reference).max()),
        }
        for name in names
    }
    lines = [
        f"{args.model}: {len(reference)} texts{f' ({describe(lengths)})' if lengths else ''}",
        "",
        "| | median s | fastest s | x ours | texts/s | cold s | second s | peak RSS MB | difference | settings |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, row in results.items():
        settings = f"batch {facts[name]['batch_size']}" if "batch_size" in facts[name] else ""
        settings += f", {facts[name]['graph']}" if "graph" in facts[name] else ""
        lines.append(
            f"| {name} | {row['median_seconds']:.3f} | {row['fastest_seconds']:.3f} | {row['ratio']:.2f} "
            f"| {len(reference) / row['median_seconds']:.0f} | {row['cold_seconds']:.3f} | {row['second_seconds']:.3f} "
            f"| {row['peak_rss_mb']:.0f} | {row['difference']:.1e} | {settings} |"
        )
    lines += [f"\n{name}: absent, {why}" for name, why in absent.items()]
    trials = {name: facts["trials"] for name, facts in tuned.items()}
    return lines, dict(results=results, facts=facts, trials=trials, answers=answers, lengths=lengths, absent=absent)


def startup(args: argparse.Namespace, commands: Commands) -> tuple[list[str], dict[str, Any]]:
    """The table of processes' starts, and all that was measured. The first of each is not counted: it fills the disk's caches."""
    answers = []
    for number in range(args.rounds + 1):
        answer = {}
        for name in STARTERS:
            environment = {}
            if name != "ours" and name.startswith("ours"):
                cache = str(commands.directory / (f"cache{number}" if "empty" in name else "cache"))
                environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            answer[name] = commands.once(name.split(",")[0], "--first", **environment)["start_seconds"]
        answers.append(answer)
    seconds = {name: [answer[name] for answer in answers[1:]] for name in STARTERS}
    results = {
        name: {
            "median_seconds": median(seconds[name]),
            "fastest_seconds": min(seconds[name]),
            "ratio": median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)),
        }
        for name in STARTERS
    }
    lines = [f"{args.model}: start of a process to its first embedding", ""]
    lines += ["| | median s | fastest s | x ours |", "|---|--:|--:|--:|"]
    for name, row in results.items():
        lines.append(f"| {name} | {row['median_seconds']:.2f} | {row['fastest_seconds']:.2f} | {row['ratio']:.2f} |")
    return lines, dict(results=results, answers=answers)


def main() -> None:
    args = parse()
    if args.make_texts:
        make_texts(args)
        return
    load = os.getloadavg()[0]  # of other work: near 0 where the numbers are worth keeping
    with tempfile.TemporaryDirectory() as directory:
        measure = startup if args.startup else encoding
        lines, record = measure(args, Commands(args, Path(directory)))
    lines[0] += f"; {args.threads} cores, {args.rounds} rounds; load before {load:.2f}"
    print("\n".join(lines))
    if args.json:
        machine = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
        shape = dict(model=args.model, threads=args.threads, rounds=args.rounds, load_before=load)
        args.json.write_text(json.dumps({**shape, **machine, **record}, indent=1) + "\n")
    wrong = [name for name, row in record["results"].items() if row.get("difference", 0.0) > TOLERANCE]
    if wrong:
        raise SystemExit(f"vectors differ from those of {REFERENCE} by more than {TOLERANCE}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
