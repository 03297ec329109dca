"""Imports point down: a short table of who may import what, held against the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "bert_jax").rglob("*.py"), ROOT / "train.py", ROOT / "finetune.py"])

# module: the only places (prefixes of paths) that may import it
ONLY_IN = {
    "flax": ["bert_jax/model/"],
    "orbax": ["bert_jax/training/checkpoint.py"],
    "optax": ["bert_jax/training/"],
    "grain": ["bert_jax/data/pretraining.py", "bert_jax/data/order.py", "bert_jax/data/finetuning.py"],
    "tensorflow_datasets": ["bert_jax/data/files/"],
    "sentencepiece": ["bert_jax/data/tokenizer_training.py"],
    "apache_beam": ["bert_jax/beam.py"],
    "tensorboardX": ["bert_jax/training/writer.py"],
    "torch": [],
    "tensorflow": [],
    "transformers": [],
}
PROGRAMS = [
    "bert_jax.finetuning",
    "bert_jax.report",
    "bert_jax.beam",
    "bert_jax.pretrain",
    "bert_jax.program",
    "bert_jax.plan",
    "bert_jax.commands",
]
# place: what it may not import
NEVER = {
    "bert_jax/errors.py": ["jax", "bert_jax."],
    "bert_jax/config/": ["jax", "bert_jax.data", "bert_jax.formats", "bert_jax.training", *PROGRAMS],
    "bert_jax/model/config.py": ["jax", "bert_jax.config"],
    "bert_jax/hub.py": ["jax", "bert_jax.model.heads", "bert_jax.training"],
    "bert_jax/static.py": ["jax", "bert_jax.model", "bert_jax.training", "bert_jax.inference", *PROGRAMS],
    "bert_jax/workdir.py": ["jax", "bert_jax.data", "bert_jax.model", "bert_jax.training", "bert_jax.inference", *PROGRAMS],
    "bert_jax/data/": ["jax", "bert_jax.model", "bert_jax.training", "bert_jax.inference", "bert_jax.tasks", *PROGRAMS],
    "bert_jax/model/": ["bert_jax.data", "bert_jax.training", "bert_jax.inference", *PROGRAMS],
    "bert_jax/training/": ["bert_jax.inference", "bert_jax.data", *PROGRAMS],
    "bert_jax/tasks/": PROGRAMS,
    "bert_jax/report/": ["bert_jax.commands", "bert_jax.finetuning", "bert_jax.pretrain", "bert_jax.plan"],
    "bert_jax/finetuning/": ["bert_jax.commands", "bert_jax.pretrain"],
    "bert_jax/inference/": ["bert_jax.training"],
    "bert_jax/formats/": ["jax", "bert_jax.model", "bert_jax.training", "bert_jax.inference"],
}


def imported(path):
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def breaches(path, names):
    """The rules that importing `names` in `path` (relative to the root) breaks."""
    found = []
    for name in names:
        top = name.split(".")[0]
        if top in ONLY_IN and not any(path.startswith(place) for place in ONLY_IN[top]):
            found.append(f"{path} imports {name}")
        for place, forbidden in NEVER.items():
            for module in forbidden:
                if path.startswith(place) and (name == module.rstrip(".") or name.startswith(module.rstrip(".") + ".")):
                    found.append(f"{path} imports {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert breaches(str(path.relative_to(ROOT)), imported(path)) == []


def test_the_table_names_what_exists():
    modules = {module for forbidden in NEVER.values() for module in forbidden if module.startswith("bert_jax.")} - {"bert_jax."}
    places = [*NEVER, *(place for allowed in ONLY_IN.values() for place in allowed)]
    assert [place for place in places if not (ROOT / place).exists()] == []
    paths = {module: ROOT / module.replace(".", "/") for module in modules}
    assert [module for module, path in paths.items() if not (path.is_dir() or path.with_suffix(".py").exists())] == []


def test_only_the_program_imports_the_commands():
    users = [path for path in FILES if any(name.startswith("bert_jax.commands") for name in imported(path))]
    inside = ROOT / "bert_jax/commands"
    own = {ROOT / "bert_jax/__main__.py", ROOT / "train.py", ROOT / "finetune.py"}
    assert [path for path in users if path not in own and inside not in path.parents] == []


def test_a_breach_is_seen():
    assert breaches("bert_jax/data/corpus.py", ["jax.numpy"])
    assert breaches("bert_jax/training/steps.py", ["flax.struct"])
    assert not breaches("bert_jax/model/heads.py", ["flax.linen", "jax"])


def modules_after(statement):
    command = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_brings_in_no_heavy_library():
    assert not modules_after("import bert_jax") & {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "torch"}


def test_predicting_brings_in_no_training_library_and_neither_torch_nor_tensorflow():
    loaded = modules_after("import bert_jax; bert_jax.load; bert_jax.FillMask")
    assert not loaded & {"optax", "orbax", "grain", "tensorflow_datasets", "torch", "tensorflow"}


def test_a_process_that_tokenizes_needs_no_jax():
    assert "jax" not in modules_after("import bert_jax.data.corpus")


def test_a_model_and_its_steps_need_few_packages():
    """With jax, flax, optax, jaxtyping, numpy, safetensors, tokenizers and ml_dtypes installed, these can be imported."""
    brought = modules_after("import jax, flax.linen, optax, jaxtyping, numpy, safetensors, tokenizers, ml_dtypes")
    modules = ["encoder", "heads", "convert", "lora"], ["steps", "losses", "optim"]
    names = [f"bert_jax.{place}.{name}" for place, group in zip(("model", "training"), modules, strict=True) for name in group]
    names += ["bert_jax.program", "bert_jax.inference.embedder"]  # tests/benchmarks/gpu.py
    more = {name.split(".")[0] for name in modules_after(f"import {', '.join(names)}") - brought}
    assert more - set(sys.stdlib_module_names) <= {
        "bert_jax",
        "jax",
        "jaxtyping",
        "safetensors",
        "wadler_lindig",
    }  # the last is jaxtyping's
