"""The cache that Beam's workers make is the one of this machine, byte for byte; what is lost on the way is noticed."""

import json
import os
import subprocess
import sys

import pytest
from helpers import make_documents, quiet, write_documents

from bert_jax.config import DataConfig, InputError

pytest.importorskip("apache_beam")

from bert_jax import beam
from bert_jax.data import corpus, shards
from bert_jax.data.store import RemotePath

pytestmark = [pytest.mark.beam, pytest.mark.filterwarnings("ignore:::apache_beam")]
L = 32
MAKE_SHARD = corpus.make_shard
TASKS = []  # of make_shard_and_remember


def make_shard_and_remember(task):
    """A function of a module: Beam pickles it by name, and not what it remembers with it."""
    TASKS.append(task)
    MAKE_SHARD(task)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_BYTES", 3000)
    monkeypatch.setattr(beam, "_ITEMS_A_FILE", 3)
    TASKS.clear()
    yield
    corpus._open_rows.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """A .txt of several shards, two that share one, and a .jsonl."""
    many = make_documents(60, seed=2)
    for name, own in (("a", many[:30]), ("b", many[30:35]), ("c", many[35:40])):
        write_documents(tmp_path / "text" / f"{name}.txt", own)
    records = [{"text": "\n".join(doc)} for doc in many[40:]]
    (tmp_path / "text" / "d.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return tmp_path


@pytest.fixture
def config(folder):
    return DataConfig(source=(str(folder / "text"),), max_seq_length=L, eval_fraction=0.2, num_workers=1)


def content(folder):
    """name -> bytes, of all files in a folder at any depth."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def expected(config, tokenizer_dir, folder):
    """What one machine makes of `config`."""
    corpus.prepare(config, tokenizer_dir, folder / "local", quiet)
    return content(folder / "local")


# ---- the same cache


@pytest.mark.parametrize("options", [{}, dict(examples="sentence_pairs", dupe_factor=2), dict(documents="line")], ids=str)
def test_beams_cache_is_the_local_one_byte_for_byte(config, tokenizer_dir, folder, options):
    cfg = config.replace(**options)
    local = corpus.prepare(cfg, tokenizer_dir, folder / "local", quiet)
    made = beam.make(cfg, tokenizer_dir, folder / "cache", [])
    assert made == folder / "cache" / local.summary["key"]
    assert len(local.summary["rows"]) >= 5
    assert content(folder / "cache") == content(folder / "local")


def test_processes_of_their_own_make_the_same_cache(config, tokenizer_dir, folder, monkeypatch):
    """Workers share neither memory nor the launcher's variables: all that they need is in their items."""
    monkeypatch.setattr(corpus, "SHARD_BYTES", 4 << 20)
    corpus.prepare(config, tokenizer_dir, folder / "local", quiet)
    beam.make(config, tokenizer_dir, folder / "cache", ["--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    assert content(folder / "cache") == content(folder / "local")


def test_bundles_that_run_twice_change_nothing(config, tokenizer_dir, folder, expected, monkeypatch):
    monkeypatch.setattr(corpus, "make_shard", make_shard_and_remember)
    beam.make(config, tokenizer_dir, folder / "cache", ["--direct_runner_bundle_repeat=1"])
    numbers = [task.number for task in TASKS]
    assert len(numbers) > len(set(numbers)) >= 5
    assert content(folder / "cache") == expected


def test_a_bundle_that_dies_and_is_tried_again_changes_nothing(config, tokenizer_dir, folder, expected, monkeypatch):
    """It dies between a shard's two files."""
    original = shards.write

    def dying(path, save):
        if path.name == "shard-00002.npz":
            raise RuntimeError("the worker is gone")
        original(path, save)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", dying)
        with pytest.raises(InputError, match=r"shards 2\b.* of \d+: the result was lost"):
            beam.make(config, tokenizer_dir, folder / "cache", [])
    assert not list((folder / "cache").glob("*/index.json"))
    beam.make(config, tokenizer_dir, folder / "cache", [])
    assert content(folder / "cache") == expected


def test_a_late_bundle_leaves_a_finished_cache_alone(config, tokenizer_dir, folder, expected, monkeypatch):
    monkeypatch.setattr(corpus, "make_shard", make_shard_and_remember)
    beam.make(config, tokenizer_dir, folder / "cache", [])
    assert len(TASKS) >= 5
    for task in TASKS:
        MAKE_SHARD(task)
    assert content(folder / "cache") == expected


def test_what_is_unchanged_is_neither_read_nor_tokenized_again(config, tokenizer_dir, folder, monkeypatch):
    first = beam.make(config, tokenizer_dir, folder / "cache", [])
    monkeypatch.setattr(beam, "_call", None)
    assert beam.make(config, tokenizer_dir, folder / "cache", []) == first


def test_each_machine_goes_on_where_the_other_stopped(config, tokenizer_dir, folder, expected, monkeypatch):
    """A cache begun here is finished by Beam."""
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_index", None)
        with pytest.raises(TypeError):
            corpus.prepare(config, tokenizer_dir, folder / "cache", quiet)
    paths = sorted((folder / "cache").glob("*/shard-*.npy"))
    for path in paths:
        os.utime(path, ns=(1, 1))
    beam.make(config, tokenizer_dir, folder / "cache", [])
    assert content(folder / "cache") == expected
    assert {path.stat().st_mtime_ns for path in paths} == {1}


# ---- what goes wrong


def test_a_shard_that_is_lost_is_named_and_made_the_next_time(config, tokenizer_dir, folder, expected, monkeypatch):
    original = beam._call

    def losing(numbered, function, *where):
        if function is not corpus.make_shard or numbered[0] not in (1, 4):
            original(numbered, function, *where)

    with monkeypatch.context() as patch:
        patch.setattr(beam, "_call", losing)
        with pytest.raises(InputError, match=r"shards 1, 4 of \d+: .*run the same command again"):
            beam.make(config, tokenizer_dir, folder / "cache", [])
    assert not list((folder / "cache").glob("*/index.json"))
    assert len(list((folder / "cache").glob("*/shard-*.npz"))) >= 3
    beam.make(config, tokenizer_dir, folder / "cache", [])
    assert content(folder / "cache") == expected


def test_a_scan_that_is_lost_is_noticed(config, tokenizer_dir, folder, monkeypatch):
    original = beam._call
    monkeypatch.setattr(beam, "_call", lambda numbered, *rest: numbered[0] == 1 or original(numbered, *rest))
    with pytest.raises(InputError, match=r"1 of 4 files were read, .*b\.txt first, .*run the same command again"):
        beam.make(config, tokenizer_dir, folder / "cache", [])
    assert content(folder / "cache") == {}


@pytest.mark.parametrize(("name", "bad"), [("a.txt", b"\xff\n"), ("d.jsonl", b'{"text": 3}\n'), ("b.txt", None)])
def test_bad_text_is_the_same_input_error_as_here(config, tokenizer_dir, folder, name, bad, capfd):
    path = folder / "text" / name
    path.write_bytes(path.read_bytes()[:-1] + b"\n" + bad if bad else b" \n")
    said = []
    for make in (
        lambda: corpus.prepare(config, tokenizer_dir, folder / "local", quiet),
        lambda: beam.make(config, tokenizer_dir, folder / "cache", []),
    ):
        with pytest.raises(InputError, match=name) as error:
            make()
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "Traceback" not in capfd.readouterr().err
    assert not list((folder / "cache").glob("beam-*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runner", "NoSuchRunner"], r"Beam: .*NoSuchRunner"),
        (["--runner=DataflowRunner", "--project=some-project"], r"Beam: .*region|Beam: .*apache_beam\[gcp\]"),
    ],
)
def test_flags_that_beam_refuses_are_an_input_error(tmp_path, flags, said):
    with pytest.raises(InputError, match=f"(?s){said}"):
        beam.check(tmp_path, flags)


def test_a_cache_that_dataflow_would_not_see_is_refused(tmp_path, monkeypatch):
    class DataflowRunner:
        pass

    made = beam._pipeline([])
    made.runner = DataflowRunner()
    monkeypatch.setattr(beam, "_pipeline", lambda flags: made)
    with pytest.raises(InputError, match=r"DataflowRunner's workers do not see .*--data\.cache-dir gs://"):
        beam.check(tmp_path, [])
    beam.check("gs://bucket/cache", [])


# ---- a remote cache


@pytest.fixture
def bucket():
    fs = pytest.importorskip("fsspec").filesystem("memory")
    yield "memory://bucket"
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


def remote_content(url, fs):
    return {name.removeprefix("/bucket/cache/"): fs.cat_file(name) for name in fs.find(url)}


def test_a_remote_cache_of_remote_text_is_the_same_too(config, tokenizer_dir, folder, bucket, tmp_path):
    fs = RemotePath(bucket).files
    for path in (folder / "text").iterdir():
        fs.pipe_file(f"/bucket/text/{path.name}", path.read_bytes())
    cfg = config.replace(source=(f"{bucket}/text",))
    local = corpus.prepare(cfg, tokenizer_dir, folder / "local", quiet)
    made = beam.make(cfg, tokenizer_dir, f"{bucket}/cache", [])
    assert str(made) == f"{bucket}/cache/{local.summary['key']}"
    assert remote_content(f"{bucket}/cache", fs) == content(folder / "local")


# ---- the command


CONFIG = """
from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig

def get_config():
    return TrainConfig(
        workdir={workdir!r}, batch_size=8, num_steps=10, model=BertConfig(vocab_size=300, max_position_embeddings=64),
        data=DataConfig(source=({source!r},), tokenizer="bpe", max_seq_length=32, eval_fraction=0.2, num_workers=1),
        optim=OptimConfig(warmup_steps=1))
"""


def test_the_command_makes_the_cache_of_prepare(folder):
    """With Beam's flags behind `--`, the vocabulary trained here, and held-out text of its own."""
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(CONFIG.format(workdir=str(folder / name), source=str(folder / "text" / "*.txt")))
    held_out = ["--data.eval-source", str(folder / "text" / "d.jsonl")]
    flags = ["--", "--direct_running_mode=multi_threading"]
    for line in (["prepare", "one.py", *held_out], ["prepare-beam", "two.py", *held_out, *flags]):
        done = subprocess.run([sys.executable, "-m", "bert_jax", *line], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("the token cache is") == 2
    one, two = content(folder / "one"), content(folder / "two")
    for name in ("config.json", ".lock"):  # of the folder, and of who works in it
        assert one.pop(name) != two.pop(name)
    assert one == two
    assert sum(name.endswith("index.json") for name in one) == 2
