"""Eight simulated devices for every test, and a compilation cache that all runs share."""

import os
from pathlib import Path

os.environ.setdefault("NPROC", "16")  # XLA's pools: twice the devices, or its collectives deadlock (JAX 0.10.2)
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's tiny models, and BLAS, are slower on several threads
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")  # arrays of different ranks meet by explicit axes

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Types and shapes in signatures are checked. Not in model/config.py: its own checks, which tests match, name the field.
MODEL = Path(__file__).parent.parent / "bert_jax" / "model"
CHECKED = [f"bert_jax.model.{path.stem}" for path in MODEL.iterdir() if path.stem not in ("__init__", "__pycache__", "config")]
install_import_hook([*CHECKED, "bert_jax.training"], "typechecker.checked")


@pytest.fixture(scope="session")
def tokenizer():
    """A Unigram tokenizer of 280 pieces, trained on the made-up language of helpers.py."""
    from helpers import make_documents

    from bert_jax.data.tokenizer import Tokenizer

    return Tokenizer.train(["\n".join(doc) for doc in make_documents(300, seed=1)], 280, "unigram")


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer, tmp_path_factory):
    """The folder that `tokenizer` is saved in."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


def group_of(path):
    """Returns the name of the tests that share runs and programs with those of a file: its folder's, or its own."""
    if path.parent.name != "tests":
        return path.parent.name
    return {"test_parallel": "test_steps"}.get(path.stem, path.stem)


# Groups whose time is that of the compiler, for their programs run a few times only. LLVM does not optimize these programs, which
# saves a third: what is tested is what we ask XLA for. Other comparisons with PyTorch and tests of bits compile as users do.
COMPILED_QUICKLY = {
    "inference", "test_attention", "test_commands", "test_contrastive", "test_evaluation", "test_families", "test_init_head",
    "test_lora", "test_losses", "test_model", "test_optim", "test_plan", "test_readme", "test_replaced_tokens", "test_steps",
    "test_train",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Sets how a test's programs are compiled, here and in the processes that it starts."""
    quickly = group_of(item.path) in COMPILED_QUICKLY and not item.get_closest_marker("bits")
    jax.config.update("jax_disable_most_optimizations", quickly)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))


# The groups that take longest start first, so that no process is left alone with one of them.
LONGEST = (
    "finetuning", "test_notebooks", "inference", "test_steps", "test_train", "test_parity_families", "test_parity_predictions",
    "test_families", "test_model", "test_multihost", "test_readme", "test_parity_sentence_transformers",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Returns the schedule of `--dist loadfile`, in the order of the tests, with groups in place of files."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return group_of(Path(nodeid.partition("::")[0]))

    config.option.loadscopereorder = False
    return LoadGroups(config, log)


# Families that CI compares with transformers in one or two heads; `-m parity_more` runs the rest of their tests.
LESS_OFTEN = {"camembert", "data2vec-text", "ernie", "megatron-bert", "xlm-roberta-xl", "rembert-cut"}
LESS_OFTEN_BY_TEXT = LESS_OFTEN | {
    "nomic_bert",
    "eurobert",
    "gte",
    "esm",
    "rembert",
    "roformer",
    "electra",
    "distilbert",
    "albert",
    "xlm-roberta",
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LONGEST, group_of(item.path)).index(group_of(item.path)))
    for item in items:
        names = {value for value in getattr(getattr(item, "callspec", None), "params", {}).values() if isinstance(value, str)}
        if names & (LESS_OFTEN_BY_TEXT if item.path.name == "test_parity_predictions.py" else set()) or (
            names & LESS_OFTEN and item.path.name == "test_parity_tokenizer.py"
        ):
            item.add_marker(pytest.mark.parity_more)
