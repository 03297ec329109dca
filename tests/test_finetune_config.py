"""The command line of fine-tuning: what is read, what is filled in, what is refused, and that a folder holds one run."""

import dataclasses
import json
import re

import pytest

from bert_jax.config import InputError, ParallelConfig
from bert_jax.data.records import Record
from bert_jax.finetuning import finetune
from bert_jax.finetuning.config import FinetuneConfig, claim_workdir, load_finetune_config
from bert_jax.tasks.table import KINDS, TASKS, find_task
from bert_jax.tasks.task import Options, TaskData
from bert_jax.workdir import Reached

COMMAND = ["model", "--task", "sst2", "--data", "glue/SST-2"]


def records(*labels, texts=("a", "b")):
    return [Record(texts, label, str(i), f"f:{i}") for i, label in enumerate(labels)]


# ---- values


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(batch_size=0), "batch_size=0 is below 1"),
        (dict(seeds=0), "seeds=0 is below 1"),
        (dict(eval_every=0), "eval_every=0 is below 1"),
        (dict(early_stopping=0), "early_stopping=0 is below 1"),
        (dict(log_every=0), "log_every=0 is below 1"),
        (dict(num_epochs=-1.0), "num_epochs=-1.0 is negative"),
        (dict(num_epochs=float("inf")), "num_epochs=inf is not finite"),
        (dict(max_seq_length=7), "max_seq_length=7 is below 8"),
        (dict(learning_rates=(1e-5, 0.0)), "learning_rates=(1e-05, 0.0) must be positive"),
        (dict(learning_rates=(1e-5, float("nan"))), "learning_rates=(1e-05, nan) is not finite"),
        (dict(learning_rates=(1e-5, 2e-5, 1e-5)), "learning_rates=(1e-05, 2e-05, 1e-05) has the same rate twice"),
        (
            dict(learning_rates=(1e-5, 1.0000001e-5)),
            "learning_rates=(1e-05, 1.0000001e-05) has the same rate twice",
        ),  # one folder
        (dict(learning_rates=3e-5), "learning_rates=3e-05 is a float"),
        (dict(seed=-1), "seed=-1 is not in [0, 2**31)"),
        (dict(seed=2**31), "seed=2147483648 is not in [0, 2**31)"),
        (dict(warmup_ratio=1.1), "warmup_ratio=1.1 is not in [0, 1]"),
        (dict(weight_decay=-0.1), "weight_decay=-0.1 is negative"),
        (dict(eps=0.0), "eps=0.0 must be positive"),
        (dict(clip_norm=0.0), "clip_norm=0.0 must be positive"),
        (dict(layer_decay=0.0), "layer_decay=0.0 is not in (0, 1]"),
        (dict(layer_decay=1.1), "layer_decay=1.1 is not in (0, 1]"),
        (dict(freeze_layers=-1), "freeze_layers=-1 is negative"),
        (dict(label_threshold=1.5), "label_threshold=1.5 is not in [0, 1]"),
        (dict(label_smoothing=1.0), "label_smoothing=1.0 is not in [0, 1)"),
        (dict(dropout=1.0), "dropout=1.0 is not in [0, 1)"),
        (dict(temperature=0.0), "temperature=0.0 must be positive"),
        (dict(temperature=0.005, learn_temperature=True), "temperature=0.005 is below 0.01, the least of learn_temperature"),
        (dict(null_threshold=float("nan")), "null_threshold=nan is not finite"),
        (dict(select="last", early_stopping=2), "early_stopping keeps the best weights: it needs select='best'"),
        (dict(optimizer="muon", lora_rank=2), "lora_rank leaves no kernels of layers to optimizer='muon'"),
        (dict(batching="pakced"), "batching='pakced' is a str"),
        (dict(seeds=True), "seeds=True is a bool"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=re.escape(f"FinetuneConfig: {message}")):
        FinetuneConfig(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        *((dict(dev_size=x), f"dev_size={x} is neither a share below 1 nor a number of rows")
          for x in (0.0, -0.5, 1.5, float("nan"), float("inf"))),
        (dict(max_train_rows=0), "max_train_rows=0 is below 1"),
        (dict(label_separator=""), "label_separator is empty"),
    ],
)  # fmt: skip
def test_data_options_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=re.escape(f"TaskData: {message}")):
        TaskData(**options)
    for size in (0.5, 1.0, 200.0, 3, 1e12):
        assert TaskData(dev_size=size).dev_size == size


def test_unset_values_are_the_tasks_then_the_general_ones():
    cfg = FinetuneConfig().resolved(TASKS["sst2"])
    assert (cfg.num_epochs, cfg.batch_size, cfg.learning_rates, cfg.max_seq_length) == (3, 32, (3e-5,), 128)
    assert cfg.workdir == "runs/sst2"
    squad = FinetuneConfig(batch_size=7).resolved(TASKS["squad2"])
    assert (squad.num_epochs, squad.batch_size, squad.max_seq_length, squad.workdir) == (2, 7, 384, "runs/squad2")
    given = dict(num_epochs=0, batch_size=1, learning_rates=(1.0,), max_seq_length=8, workdir="w")
    kept = FinetuneConfig(**given).resolved(TASKS["squad"])
    assert {name: getattr(kept, name) for name in given} == given
    assert kept.resolved(TASKS["squad"]) == kept


def test_every_tasks_usual_values_are_fields_that_may_be_set():
    for name, task in TASKS.items():
        cfg = FinetuneConfig().resolved(task)
        assert None not in (cfg.num_epochs, cfg.batch_size, cfg.max_seq_length, cfg.workdir), name
        assert all(getattr(cfg, field) == value for field, value in task.defaults.items())


# ---- what the data asks for


SIMILARITY = KINDS["similarity"]


@pytest.mark.parametrize(
    "train, loss, chosen",
    [
        (records(0.5, 0.7), "auto", "cosine"),
        (records(None), "auto", "ranking"),
        (records(None, texts=("a", "b", "c")), "auto", "triplet"),
        (records(None, texts=("a", "b", "c")), "ranking", "ranking"),
        (records(0.5), "cosine", "cosine"),
    ],
)
def test_the_loss_of_similarity_is_what_the_data_is_for(train, loss, chosen):
    assert SIMILARITY.settle(Options(loss=loss), train)[0].loss == chosen


@pytest.mark.parametrize(
    "train, loss, fitting",
    [
        (records(0.5), "ranking", "cosine"),
        (records(0.5), "triplet", "cosine"),
        (records(None), "cosine", "ranking"),
        (records(None), "triplet", "ranking"),
        (records(None, texts=("a", "b", "c")), "cosine", "ranking or triplet"),
    ],
)
def test_a_loss_that_the_data_is_not_for_is_refused(train, loss, fitting):
    with pytest.raises(InputError, match=f"loss='{loss}' does not fit the training data: give --loss {fitting}$"):
        SIMILARITY.settle(Options(loss=loss), train)


def test_options_of_other_kinds_of_tasks_are_refused():
    for options, message in (
        (dict(loss="cosine"), "loss='cosine' is for similarity, reranking, not for classification"),
        (dict(null_threshold=1.0), "null_threshold=1.0 is for question_answering, not for classification"),
        (dict(null_threshold=0.0), "null_threshold=0.0 is for question_answering, not for classification"),
        (dict(label_threshold=0.4), "label_threshold=0.4 is for multi_label, not for classification"),
    ):
        with pytest.raises(InputError, match=message):
            FinetuneConfig(**options).options(KINDS["classification"])
    owners = "similarity, retrieval --form dense, retrieval --form multi_vector"
    for task in (find_task("reranking"), find_task("retrieval", "sparse")):
        with pytest.raises(InputError, match=f"learn_temperature=True is for {owners}, not for {task.name}"):
            FinetuneConfig(learn_temperature=True).options(task.kind)
    with pytest.raises(InputError, match="learn_temperature: the cosine loss has no temperature, only loss='ranking'"):
        SIMILARITY.settle(Options(learn_temperature=True), records(0.5))
    assert SIMILARITY.settle(Options(learn_temperature=True), records(None))[0].learn_temperature
    with pytest.raises(
        InputError, match=r"label_smoothing=0.1 is for classification, tagging, multiple_choice, not for regression"
    ):
        FinetuneConfig(label_smoothing=0.1).options(KINDS["regression"])
    for kind in ("classification", "tagging", "multiple_choice"):
        assert FinetuneConfig(label_smoothing=0.1).options(KINDS[kind]).label_smoothing == 0.1
    assert FinetuneConfig(null_threshold=1.0).options(KINDS["question_answering"]).null_threshold == 1


# ---- the command line


@pytest.mark.parametrize(
    "words, rates",
    [
        (["--learning-rates", "2e-5,3e-5"], (2e-5, 3e-5)),
        (["--learning-rates", "0.0001"], (1e-4,)),
        (["--learning-rates", "2E-5, 3e-05,", "1e+0"], (2e-5, 3e-5, 1.0)),
        (["--learning-rates=2e-5,3e-5"], (2e-5, 3e-5)),
        (["--learning_rates", "1,2"], (1.0, 2.0)),
        ([], ()),
    ],
)
def test_learning_rates_may_stand_between_commas(words, rates):
    assert load_finetune_config([*COMMAND, *words]).learning_rates == rates


def test_commas_elsewhere_are_left_alone():
    cfg = load_finetune_config(
        [
            "model",
            "--learning-rates",
            "1,2",
            "--task",
            "sst2",
            "--data",
            "1.0,2.0",
            "--label-separator",
            ",",
            "--text-column",
            "a,b",
            "c",
        ]
    )
    assert (cfg.task_data.data, cfg.task_data.label_separator, cfg.task_data.text_column) == ("1.0,2.0", ",", ("a,b", "c"))


def test_the_data_options_have_no_prefix_and_the_rest_is_as_it_is_called():
    cfg = load_finetune_config([*COMMAND, "--dev", "d.tsv", "--label-column", "-1", "--dev-size", "5", "--clip-norm", "None",
                                "--init-head", "keep", "--num-epochs", "0.5", "--via", "mnli=glue/MNLI"])  # fmt: skip
    data = TaskData(data="glue/SST-2", dev="d.tsv", label_column="-1", dev_size=5.0)
    assert cfg == FinetuneConfig(model="model", task="sst2", task_data=data, clip_norm=None, init_head="keep", num_epochs=0.5,
                                 via="mnli=glue/MNLI")  # fmt: skip


@pytest.mark.parametrize(
    "argv, missing",
    [(COMMAND[1:], "MODEL"), (["model", "--data", "d"], "--task"), (["model", "--task", "sst2"], "--data"), ([], "MODEL")],
)
def test_what_is_missing_is_named(argv, missing):
    with pytest.raises(InputError, match=f"^{missing} is missing: bert_jax finetune MODEL --task NAME --data PATH"):
        load_finetune_config(argv)


def test_the_columns_of_a_first_task_are_its_own(monkeypatch, tmp_path):
    argv = [*COMMAND, "--text-column", "sentence", "--via", "multi_label=a=b.csv", "--workdir", str(tmp_path)]
    cfg = load_finetune_config([*argv, "--via-text-column", "Review Text", "--via-label-column", "good", "bad"])
    seen = []

    def run(cfg, task, command):
        seen.append((task.name, cfg.model, cfg.task_data))
        return Reached({}, None)

    monkeypatch.setattr(finetune, "run", run)
    assert finetune.finetune(cfg, "the command").status == 0
    first = TaskData(data="a=b.csv", text_column=("Review Text",), label_column=("good", "bad"))
    assert seen == [("multi_label", "model", first), ("sst2", str(tmp_path / "via" / "export"), cfg.task_data)]
    for name in ("via_text_column", "via_label_column"):
        with pytest.raises(InputError, match=rf"{name}=\('x',\) is for the data of via: give via as well"):
            FinetuneConfig(**{name: ("x",)})


def test_a_first_task_without_its_data_is_refused():
    with pytest.raises(InputError, match="--via mnli: expected TASK=DATA"):
        load_finetune_config([*COMMAND, "--via", "mnli"])


@pytest.mark.parametrize(
    "words, hint",
    [(["--learning-rate", "1"], "--learning-rates"), (["--sed", "1"], "--seed"), (["--seeds", "0"], "seeds=0 is below 1")],
)
def test_a_misspelt_option_or_a_bad_value_ends_with_the_right_name(capsys, words, hint):
    with pytest.raises(SystemExit):
        load_finetune_config([*COMMAND, *words])
    assert hint in capsys.readouterr().err


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as ended:
        load_finetune_config(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    classes, groups = (FinetuneConfig, TaskData, ParallelConfig), ("model", "task_data", "parallel")
    fields = [f.name for cls in classes for f in dataclasses.fields(cls) if f.name not in groups]
    assert [name for name in fields if f"--{name.replace('_', '-')} " not in shown] == []


def test_the_table_of_tasks_is_the_one_that_the_help_lists(capsys):
    with pytest.raises(SystemExit):
        load_finetune_config(["--help"])
    listed = re.search(r"docs/finetune.md (.*?)\(default", capsys.readouterr().out, re.DOTALL)[1]
    assert {find_task(name).name for name in re.findall(r"\w+", listed) if name in TASKS} == set(TASKS)


# ---- the work directory


def run_in(folder, **options):
    return FinetuneConfig(model="m", task="sst2", workdir=str(folder), **options).resolved(TASKS["sst2"])


def begin(folder, where="checkpoints/10"):
    (folder / where).mkdir(parents=True)


def test_a_new_folder_gets_the_config_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "runs" / "sst2"
    cfg = run_in(folder)
    claim_workdir(cfg)
    written = json.loads((folder / "config.json").read_text())
    assert written["learning_rates"] == [3e-5]
    assert written["task_data"]["dev_size"] == 0.1
    begin(folder)
    claim_workdir(cfg)
    claim_workdir(cfg.replace(log_every=1, parallel=ParallelConfig(num_devices=1)))
    assert [path.name for path in sorted(folder.iterdir())] == [".lock", "checkpoints", "config.json"]


@pytest.mark.parametrize("where", ["checkpoints/10", "runs/checkpoints/10", "runs/seed0-lr3e-05/checkpoints/10", "results.json"])
def test_another_run_is_refused_with_all_that_differs(tmp_path, where):
    claim_workdir(run_in(tmp_path))
    begin(tmp_path, where)
    with pytest.raises(InputError) as caught:
        claim_workdir(run_in(tmp_path, seeds=3, learning_rates=(1e-5, 2e-5), task_data=TaskData(dev="d.tsv")))
    assert str(caught.value).splitlines() == [
        f"{tmp_path} holds another run:",
        "  dev: None there, 'd.tsv' here",
        "  learning_rates: [3e-05] there, [1e-05, 2e-05] here",
        "  seeds: 1 there, 3 here",
        "use another --workdir, or delete that folder",
    ]


def test_before_the_first_checkpoint_another_config_replaces_the_old_one(tmp_path):
    claim_workdir(run_in(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "runs" / "seed0-lr3e-05").mkdir(parents=True)
    claim_workdir(run_in(tmp_path, seeds=3))
    assert json.loads((tmp_path / "config.json").read_text())["seeds"] == 3


def test_a_field_that_is_newer_than_the_folder_has_had_its_default(tmp_path):
    claim_workdir(run_in(tmp_path))
    begin(tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["layer_decay"], old["task_data"]["quotes"]
    path.write_text(json.dumps(old))
    claim_workdir(run_in(tmp_path))
    path.write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"layer_decay: 1.0 there, 0.9 here"):
        claim_workdir(run_in(tmp_path, layer_decay=0.9))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"task": ', "config.json is not JSON"),
        (b"\xff\xfe", "config.json is not JSON"),
        (b"[]", "config.json holds a list, not an object"),
        (b'{"model_type": "bert", "hidden_size": 768}', "config.json is not a fine-tuning run's config"),
        (b'{"num_steps": 1000}', "config.json is not a fine-tuning run's config"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, content, message, begun):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    if begun:
        begin(tmp_path)
    with pytest.raises(InputError, match=f"{message}.*: use another --workdir, or delete that (file|folder)"):
        claim_workdir(run_in(tmp_path))
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        ("/proc/nowhere", ""),
    ):
        with pytest.raises(InputError, match=f"cannot use the work directory {place}: .*{why}"):
            claim_workdir(run_in(place))


@pytest.mark.parametrize("made", ["runs/seed0-lr1e-05/checkpoints/8", "runs/checkpoints/8", "checkpoints/8"])
def test_checkpoints_without_a_config_json_are_of_nobody_knows_what(tmp_path, made):
    claim_workdir(run_in(tmp_path))
    (config,) = tmp_path.rglob("config.json")
    (config.parent / made).mkdir(parents=True)
    claim_workdir(run_in(tmp_path))
    config.unlink()
    with pytest.raises(InputError, match=r"holds checkpoints, but the config.json of their run is gone: restore it"):
        claim_workdir(run_in(tmp_path))
    assert not config.exists()
