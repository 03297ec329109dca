r"""Retrieval quality: every form before and after training beside sentence-transformers, reranking, distillation and Matryoshka.

    python tests/benchmarks/retrieval_quality.py --data DATA/retrieval/cranfield --model MINILM --sparse-model TINY \
        --out runs/quality --cores 0 1
    python tests/benchmarks/retrieval_quality.py --tiny --out runs/quality-tiny --seeds 0

Two sets: --data, a folder in BEIR's layout or the files of Cranfield, and a synthetic one, whose documents name a customer where
the queries give a profession, which can only be learnt from pairs. A fifth of the queries, by number, is the test, unless the
folder has judgements for training and for the test. On each set, for each of --forms and --seeds, `bert_jax finetune` and
sentence-transformers (peer_retrieval_quality.py) train from the same weights on the same table at equal steps, batch size, rate,
schedule and loss. `bert_jax evaluate` scores both: nDCG@10 of the test queries in the whole corpus.

  sparse        starts from --sparse-model, which has a masked-LM head
  multi_vector  starts with a projection drawn by seed 0; no markers
  cross         learns, by the pointwise loss, from 3 negatives that the untrained dense model ranks below each document
                (`bert_jax mine`); reranks the first --depth documents of that model, and of the dense model that the seed trained

--extras of bert_jax alone:

  distilled     dense on the mined negatives, without and with the scores of the cross-encoder of the seed (`bert_jax score`)
  matryoshka    dense with --dimensions, scored whole and cut to the smallest

The last weights of a run count: nothing is chosen by scores. OUT/quality.json has all of it, and the tables are printed in
Markdown. A run that is there already is not repeated. Runs go side by side, one on each of --cores. Needs PyTorch and
sentence-transformers, unless --no-peers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import protocol
import retrieval_sets
from retrieval_sets import NEGATIVES
from side_by_side import Cores

HERE = Path(__file__).parent
FORMS = ("dense", "multi_vector", "sparse", "cross")
EXTRAS = ("distilled", "matryoshka")
METRIC = "ndcg_at_10"
Job = Callable[[Cores], None]
Make = Callable[[Path], dict[str, Any]]  # the folder of a run -> what it measured


class Recipe(NamedTuple):
    """How a form is trained: steps, rows of a batch, peak learning rate, and tokens of a text (cross: of a pair)."""

    steps: int
    batch_size: int
    rate: float
    length: int


# `hard` is the dense form on mined negatives, with 1 + NEGATIVES documents in a row.
LONG_TEXTS = {
    "dense": Recipe(60, 16, 5e-5, 64), "multi_vector": Recipe(60, 16, 1e-4, 64), "sparse": Recipe(120, 16, 1e-4, 64),
    "cross": Recipe(120, 4, 1e-4, 96), "hard": Recipe(60, 8, 5e-5, 64),
}  # fmt: skip
SHORT_TEXTS = {
    "dense": Recipe(100, 32, 1e-4, 32), "multi_vector": Recipe(100, 32, 1e-4, 32), "sparse": Recipe(100, 16, 3e-4, 32),
    "cross": Recipe(150, 8, 1e-4, 48), "hard": Recipe(100, 16, 1e-4, 32),
}  # fmt: skip


@dataclass(frozen=True)
class Set:
    """A data set and the runs on it, each in a folder of its own in `folder`."""

    name: str
    folder: Path
    model: Path
    sparse_model: Path
    recipes: Mapping[str, Recipe]
    args: argparse.Namespace

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def start(self, form: str) -> Path:
        """Returns the model that both sides start from."""
        return self.model if form == "dense" else self.folder / f"start-{form}" / "model"

    def result(self, name: str) -> dict[str, Any]:
        """Returns what a run measured."""
        return json.loads((self.folder / name / "result.json").read_text())

    def scores(self, name: str, which: str = METRIC, seeds: Sequence[int] | None = None) -> list[float]:
        """Returns the scores of runs whose name holds `{}` in place of the seed."""
        return [self.result(name.format(seed))["scores"][which] for seed in seeds or self.args.seeds]

    def once(self, name: str, make: Make, *settings: object) -> None:
        """Keeps what `make` measures, unless that is there already. Raises SystemExit if it is of other settings."""
        folder, own = self.folder / name, [str(self.model), *settings]
        path, unfinished = folder / "result.json", folder / "result.unfinished"
        if path.exists():
            if (there := self.result(name)["settings"]) != own:
                raise SystemExit(f"{path} is of the settings {there}, not {own}: give another --out, or delete {folder}")
            return
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"settings": own, **make(folder)}, indent=1) + "\n")
        unfinished.replace(path)
        scores = self.result(name)["scores"].items()
        print(f"{self.name} {name}: {', '.join(f'{which} {score:.4f}' for which, score in scores) or 'done'}", flush=True)


# --- the programs ---


def call(cores: Cores, folder: Path, *command: object) -> str:
    """Runs Python on a core; returns what it printed. Errors and progress go to a log in the folder."""
    with (folder / "log.txt").open("a") as log:
        try:
            return cores.call(*command, log=log, stdout=subprocess.PIPE, text=True).stdout
        except subprocess.CalledProcessError:
            raise SystemExit(f"{' '.join(map(str, command))}: failed, see {log.name}") from None


def ours(cores: Cores, folder: Path, *command: object) -> str:
    return call(cores, folder, "-m", "bert_jax", *command)


def evaluated(cores: Cores, on: Set, folder: Path, model: Path, length: int, out: str = "evaluation") -> float:
    """Returns the score of a retriever on the test queries."""
    words = ["--task", "retrieval", "--data", on.folder / "data", "--max-seq-length", length, "--out", folder / out]
    ours(cores, folder, "evaluate", model, *words)
    return json.loads((folder / out / "results.json").read_text())["exported"]["test"][METRIC]


def reranked(cores: Cores, on: Set, folder: Path, model: Path, first: str) -> tuple[float, float]:
    """Returns the score of a dense run, and that after the cross-encoder ordered its first documents."""
    run, out = on.folder / first / "evaluation" / "predictions" / "test.trec", folder / f"over-{first}.trec"
    words = ["--data", on.folder / "data", "--run", run, "--out", out, "--depth", on.args.depth]
    printed = ours(cores, folder, "rerank", model, *words, "--max-seq-length", on.recipes["cross"].length)
    lines = {line.partition(": ")[0]: line.partition(": ")[2].split() for line in printed.splitlines()}
    before, after = (float(lines[str(path)][lines[str(path)].index(METRIC) + 1]) for path in (run, out))
    return before, after


def tuned(
    cores: Cores, on: Set, folder: Path, form: str, recipe: Recipe, seed: int, table: str = "pairs", more: Sequence[object] = ()
) -> tuple[Path, float]:  # fmt: skip
    """Trains ours for the steps of a recipe; returns the export and the seconds of training."""
    epochs = recipe.steps / -(-len(protocol.read_lines(on.table(table))) // recipe.batch_size)
    task = ["reranking", "--loss", "pointwise"] if form == "cross" else ["retrieval", "--form", form]
    ours(
        cores, folder, "finetune", on.start(form), "--task", *task, "--data", on.table(table), "--dev", on.table("dev"),
        "--num-epochs", epochs, "--batch-size", recipe.batch_size, "--learning-rates", recipe.rate, "--max-seq-length",
        recipe.length, "--eval-every", recipe.steps, "--select", "last", "--seed", seed, "--workdir", folder / "work", *more,
    )  # fmt: skip
    (run,) = json.loads((folder / "work" / "results.json").read_text())["runs"]
    if run["steps"] != recipe.steps:
        raise SystemExit(f"{folder}: {run['steps']} steps, not {recipe.steps}")
    return folder / "work" / "export", run["seconds"]


# --- jobs ---


def prepare(cores: Cores, on: Set, form: str) -> None:
    """Makes the model that both sides start from, and scores it; for cross, mines the negatives."""
    recipe, model = on.recipes[form], on.sparse_model if form == "sparse" else on.model

    def make(folder: Path) -> dict[str, Any]:
        if form == "cross":
            words = ["--negatives", NEGATIVES, "--skip-top", 0, "--margin", 1, "--max-seq-length", on.recipes["dense"].length]
            ours(cores, folder, "mine", model, "--data", on.folder / "data", "--out", on.table("mined"), *words)
        if form != "dense":
            words = ["--form", form, "--model", model, "--out", on.start(form)]
            call(cores, folder, HERE / "ours_retrieval_quality.py", *words)
        return {"scores": {} if form == "cross" else {METRIC: evaluated(cores, on, folder, on.start(form), recipe.length)}}

    on.once(f"start-{form}", make, *recipe, *[str(on.sparse_model)] * (form == "sparse"))


def scores_of(cores: Cores, on: Set, folder: Path, form: str, model: Path) -> dict[str, float]:
    """Returns the scores of a trained model by name; those of a cross-encoder over the untrained dense model."""
    if form != "cross":
        return {METRIC: evaluated(cores, on, folder, model, on.recipes[form].length)}
    before, after = reranked(cores, on, folder, model, "start-dense")
    return {"first stage": before, METRIC: after}


def train_ours(cores: Cores, on: Set, form: str, seed: int) -> None:
    """Trains a form by bert_jax, and scores it."""

    def make(folder: Path) -> dict[str, Any]:
        export, seconds = tuned(cores, on, folder, form, on.recipes[form], seed, "mined" if form == "cross" else "pairs")
        scores = scores_of(cores, on, folder, form, export)
        if form == "cross" and "dense" in on.args.forms:
            before, after = reranked(cores, on, folder, export, f"dense-{seed}-ours")
            scores |= {"trained first stage": before, "over trained": after}
        return {"scores": scores, "seconds": seconds}

    on.once(f"{form}-{seed}-ours", make, *on.recipes[form], *[on.args.depth] * (form == "cross"))


def train_peer(cores: Cores, on: Set, form: str, seed: int) -> None:
    """Trains a form by sentence-transformers, and scores it as ours."""
    recipe = on.recipes[form]

    def make(folder: Path) -> dict[str, Any]:
        out, table = folder / "model", on.table("mined" if form == "cross" else "pairs")
        printed = call(
            cores, folder, HERE / "peer_retrieval_quality.py", "--form", form, "--model", on.start(form), "--table", table,
            "--out", out, "--steps", recipe.steps, "--batch-size", recipe.batch_size, "--rate", recipe.rate, "--length",
            recipe.length, "--seed", seed,
        )  # fmt: skip
        return {"scores": scores_of(cores, on, folder, form, out), **json.loads(printed.splitlines()[-1])}

    on.once(f"{form}-{seed}-peer", make, *recipe, *[on.args.depth] * (form == "cross"))


def distil(cores: Cores, on: Set, seed: int, taught: bool) -> None:
    """Trains the dense form on mined negatives, without or with the scores of the cross-encoder of the seed."""
    recipe = on.recipes["hard"]

    def make(folder: Path) -> dict[str, Any]:
        table, more = "mined", list[str]()
        if taught:
            table, more = f"scored-{seed}", ["--score-column", "scores"]
            teacher, length = on.folder / f"cross-{seed}-ours" / "work" / "export", on.recipes["cross"].length
            words = ["--data", on.table("mined"), "--out", on.table(table), "--max-seq-length", length]
            ours(cores, folder, "score", teacher, *words)
        export, seconds = tuned(cores, on, folder, "dense", recipe, seed, table, more)
        return {"scores": {METRIC: evaluated(cores, on, folder, export, recipe.length)}, "seconds": seconds}

    on.once(f"{'distilled' if taught else 'hard'}-{seed}", make, *recipe)


def matryoshka(cores: Cores, on: Set, seed: int) -> None:
    """Trains embeddings that can be cut, and scores them whole and cut."""
    recipe, width = on.recipes["dense"], json.loads((on.model / "config.json").read_text())["hidden_size"]
    small = min(64, width // 2)
    sizes = [width, *(size for size in (256, 128) if small < size < width), small]

    def make(folder: Path) -> dict[str, Any]:
        more = ["--dimensions", ",".join(map(str, sizes))]
        export, seconds = tuned(cores, on, folder, "dense", recipe, seed, more=more)
        cut = shutil.copytree(export, folder / "cut", dirs_exist_ok=True)
        path = cut / "config_sentence_transformers.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": small}) + "\n")
        whole, part = (evaluated(cores, on, folder, model, recipe.length, f"evaluation-{model.name}") for model in (export, cut))
        return {"scores": {METRIC: whole, "cut": part}, "seconds": seconds, "sizes": sizes}

    on.once(f"matryoshka-{seed}", make, *recipe)


def stages(sets: Sequence[Set], args: argparse.Namespace) -> list[list[Job]]:
    """Returns the jobs; those of a stage need those of the stages before."""
    sides, each = (train_ours,) if args.no_peers else (train_ours, train_peer), list(product(sets, args.seeds))
    retrievers, crosses = ([form for form in args.forms if (form == "cross") == is_cross] for is_cross in (False, True))
    extras = [
        *(partial(distil, on=on, seed=seed, taught=taught) for on, seed in each for taught in (False, True)
          if "distilled" in args.extras),
        *(partial(matryoshka, on=on, seed=seed) for on, seed in each if "matryoshka" in args.extras),
    ]  # fmt: skip
    return [
        [partial(prepare, on=on, form=form) for on in sets for form in dict.fromkeys(["dense", *args.forms])],
        *([partial(side, on=on, form=form, seed=seed) for on, seed in each for form in forms for side in sides]
          for forms in (retrievers, crosses)),
        extras,
    ]  # fmt: skip


def run_all(jobs: Iterable[Job], cores: Cores) -> None:
    """Runs jobs. Raises what the first that fails raises; no other begins after that."""
    futures = [cores.submit(job, cores) for job in jobs]
    try:
        for future in futures:
            future.result()
    except BaseException:
        cores.shutdown(wait=False, cancel_futures=True)
        raise


# --- tables ---


def shown(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def forms_table(on: Set, args: argparse.Namespace) -> list[list[str]]:
    """Returns a row for each form; the sd of both sides is pooled, and needs two seeds."""
    peers = ["sentence-transformers", "difference", "pooled sd", "within 2 sd"]
    rows = [["form", "before", "bert_jax", "every seed higher", *peers * (not args.no_peers)]]
    for form in args.forms:
        own = on.scores(f"{form}-{{}}-ours")
        before = on.scores(f"{form}-{{}}-ours", "first stage")[0] if form == "cross" else on.scores(f"start-{form}", seeds=[0])[0]
        row = [form, f"{before:.4f}", shown(own), "yes" if min(own) > before else "no"]
        if not args.no_peers:
            theirs = on.scores(f"{form}-{{}}-peer")
            apart, sd = mean(own) - mean(theirs), protocol.pooled_sd(own, theirs) if len(own) > 1 else 0.0
            row += [shown(theirs), f"{apart:+.4f}", f"{sd:.4f}", "yes" if abs(apart) <= 2 * sd else "no"]
        rows.append(row)
    return rows


def claims_table(on: Set, args: argparse.Namespace) -> list[list[str]]:
    """Returns a row for each comparison of means among ours."""
    rows = [["", "without", "with", "holds"]]

    def add(name: str, without: list[float], having: list[float], share: float = 1.0) -> None:
        holds = mean(having) > mean(without) if share == 1 else mean(having) >= share * mean(without)
        rows.append([name, shown(without), shown(having), "yes" if holds else "no"])

    if "cross" in args.forms:
        own = "cross-{}-ours"
        add("reranking the untrained dense model", on.scores(own, "first stage"), on.scores(own))
        if "dense" in args.forms:
            add("reranking the trained one", on.scores(own, "trained first stage"), on.scores(own, "over trained"))
    if "distilled" in args.extras:
        add("distilling the cross-encoder", on.scores("hard-{}"), on.scores("distilled-{}"))
    if "matryoshka" in args.extras:
        width, *_, small = on.result(f"matryoshka-{args.seeds[0]}")["sizes"]
        scores = on.scores("matryoshka-{}"), on.scores("matryoshka-{}", "cut")
        add(f"{small} of {width} values: at least 95 %", *scores, share=0.95)
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


# --- the whole ---


def make_sets(args: argparse.Namespace, cores: Cores) -> list[Set]:
    """Writes the data, and with --tiny a model of random weights."""
    found = {"synthetic": (retrieval_sets.synthetic(*((4, 6, 2) if args.tiny else (16, 12, 3))), SHORT_TEXTS)}
    if args.data is not None:
        found = {args.data.resolve().name: (retrieval_sets.read(args.data), LONG_TEXTS)} | found
    sets = []
    for name, (collection, recipes) in found.items():
        folder, model = args.out / name, args.model
        retrieval_sets.write(collection, folder)
        if args.tiny:
            model = folder / "random"
            recipes = {form: recipe._replace(steps=2, batch_size=4) for form, recipe in recipes.items()}
            if not (model / "config.json").exists():
                words = ["--form", "random", "--texts", folder / "corpus.txt", "--out", model]
                call(cores, folder, HERE / "ours_retrieval_quality.py", *words)
        if args.steps is not None:
            recipes = {form: recipe._replace(steps=args.steps) for form, recipe in recipes.items()}
        sets.append(Set(name, folder, model, args.sparse_model or model, recipes, args))
    return sets


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder in BEIR's layout, or with cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--model", type=Path, help="directory of the model that is trained")
    parser.add_argument("--sparse-model", type=Path, help="directory of the model that the sparse form is trained from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--extras", nargs="*", choices=EXTRAS, default=list(EXTRAS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of every training, in place of those of its recipe")
    parser.add_argument("--depth", type=int, default=20, help="cross: documents of a query that are reranked")
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="numbers of the cores to use")
    parser.add_argument("--no-peers", action="store_true", help="bert_jax alone")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights and 2 steps, to see that all of it runs")
    args = parser.parse_args()
    if args.model is None and not args.tiny:
        parser.error("--model is missing")
    if "distilled" in args.extras and "cross" not in args.forms:
        parser.error("--extras distilled needs its teacher: add cross to --forms, or give --extras without distilled")
    if args.sparse_model is None and "sparse" in args.forms and not args.tiny:
        parser.error("--sparse-model is missing: give it, or --forms without sparse")
    return args


def main() -> None:
    load = os.getloadavg()[0]  # of other work; it changes seconds, and no score
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    with Cores(args.cores) as cores:
        sets = make_sets(args, cores)
        for jobs in stages(sets, args):
            run_all(jobs, cores)
    content: dict[str, Any] = {"load_before": load, "seeds": args.seeds}
    for on in sets:
        tables = {"forms": forms_table(on, args), "claims": claims_table(on, args)}
        runs = {path.parent.name: on.result(path.parent.name) for path in sorted(on.folder.glob("*/result.json"))}
        content[on.name] = {"tables": tables, "runs": runs}
        print(f"\n{on.name}, nDCG@10 of the test queries:\n")
        print("\n\n".join(map(markdown, tables.values())))
    (args.out / "quality.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
