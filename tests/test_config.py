"""Configs refuse what cannot be, name what was meant, and a work directory belongs to one run."""

import ast
import json
import re
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from bert_jax.config import (
    BertConfig,
    ComputeConfig,
    DataConfig,
    InputError,
    MaskingConfig,
    OptimConfig,
    ParallelConfig,
    Phase,
    ReplacedTokensConfig,
    TrainConfig,
    did_you_mean,
    differences,
    from_dict,
    load_config_file,
    load_train_config,
    shipped_configs,
    spans,
    to_dict,
    upgrade,
)
from bert_jax.model.config import PRESETS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
CLASSES = (
    BertConfig, ComputeConfig, DataConfig, MaskingConfig, OptimConfig, ParallelConfig, Phase, ReplacedTokensConfig, TrainConfig,
)  # fmt: skip
DETECTION = dict(objective="replaced_tokens")


def config_file(folder, body="return TrainConfig(num_steps=50_000)"):
    path = folder / "mine.py"
    names = ", ".join(c.__name__ for c in CLASSES)
    path.write_text(f"from bert_jax.config import {names}\n\n\ndef get_config():\n    {body}\n")
    return str(path)


# ---- fields


@pytest.mark.parametrize("name", [c.__name__ for c in CLASSES])
def test_every_field_has_a_docstring_under_it(name):
    """But the groups of TrainConfig, whose classes have one."""
    module = sys.modules[next(cls for cls in CLASSES if cls.__name__ == name).__module__]
    tree = ast.parse(Path(module.__file__).read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    documented = set()
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            has = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if has or ast.unparse(node.annotation) in {c.__name__ for c in CLASSES}:
                documented.add(node.target.id)
    assert documented == {f.name for f in fields(getattr(module, name))}
    assert isinstance(body[0].value.value, str)


def test_a_config_cannot_be_changed_but_by_replace():
    cfg = TrainConfig()
    with pytest.raises(FrozenInstanceError):
        cfg.num_steps = 3
    assert cfg.replace(num_steps=20_000).num_steps == 20_000
    with pytest.raises(InputError, match="num_steps=0 is below 1"):
        cfg.replace(num_steps=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BertConfig(hidden_size=1.5), "BertConfig: hidden_size=1.5 is a float; expected int"),
        (lambda: BertConfig(hidden_size=True), "hidden_size=True is a bool; expected int"),
        (lambda: BertConfig(layer_norm_eps="1e-12"), "layer_norm_eps='1e-12' is a str; expected float"),
        (lambda: ComputeConfig(remat=1), "remat=1 is a int; expected Literal"),
        (lambda: BertConfig(hidden_act="mish"), "hidden_act='mish' .*'gelu', 'gelu_python'"),
        (lambda: DataConfig(source="a.txt"), r"source='a.txt' is a str; expected tuple\[str, ...\]"),
        (lambda: DataConfig(source=(3,)), r"source=\(3,\)"),
        (lambda: DataConfig(cache_dir=3), r"cache_dir=3 is a int; expected str \| None"),
        (lambda: TrainConfig(model=DataConfig()), r"model=DataConfig\(.* expected BertConfig"),
        (lambda: OptimConfig(clip_norm=None, learning_rate=None), "learning_rate=None is a NoneType; expected float"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_whole_numbers_are_floats_too():
    assert OptimConfig(learning_rate=1, clip_norm=2).clip_norm == 2


@pytest.mark.parametrize(
    ("build", "both"),
    [
        (lambda: BertConfig(hidden_size=768, num_attention_heads=10), ["hidden_size=768", "num_attention_heads=10"]),
        (lambda: DataConfig(dupe_factor=5), ["dupe_factor=5", "examples='sentence_pairs'"]),
        (lambda: MaskingConfig(mask_prob=0.8, random_prob=0.3), ["mask_prob=0.8", "random_prob=0.3"]),
        (lambda: MaskingConfig(whole_word=True, count="bernoulli"), ["whole_word=True", "count='exact'"]),
        (lambda: MaskingConfig(causal_share=1.5), ["causal_share=1.5 is not in [0, 1]"]),
        (lambda: MaskingConfig(spans=True, whole_word=True), ["spans=True", "whole_word=False"]),
        (lambda: TrainConfig(batch_size=10, gradient_accumulation_steps=3), ["batch_size=10", "gradient_accumulation_steps=3"]),
        (
            lambda: TrainConfig(data=DataConfig(max_seq_length=1024)),
            ["data.max_seq_length=1024", "model.max_position_embeddings=512"],
        ),
        (lambda: TrainConfig(num_steps=5), ["optim.warmup_steps=10000", "num_steps=5"]),
        (lambda: ReplacedTokensConfig(generator_depth=0.0), ["generator_depth=0.0 is not in (0, 1]"]),
        (lambda: ReplacedTokensConfig(temperature=0), ["temperature=0 is not in (0, 1e6)"]),
        (
            lambda: TrainConfig(replaced_tokens=ReplacedTokensConfig(temperature=2)),
            ["replaced_tokens.temperature=2 needs objective='replaced_tokens', not 'masked_lm'"],
        ),
        (
            lambda: TrainConfig(**DETECTION, masking=MaskingConfig(causal_share=0.5)),
            ["masking.causal_share=0.5", "objective='replaced_tokens'"],
        ),
        (
            lambda: TrainConfig(**DETECTION, data=DataConfig(examples="sentence_pairs")),
            ["data.examples='sentence_pairs'", "objective='replaced_tokens'"],
        ),
        (
            lambda: TrainConfig(**DETECTION, replaced_tokens=ReplacedTokensConfig(generator_width=0.5)),
            ["generator_width=0.5", "model_type='bert'"],
        ),
        (
            lambda: TrainConfig(
                **DETECTION,
                model=BertConfig(model_type="deberta-v2", conv_kernel_size=3, num_hidden_layers=2),
                replaced_tokens=ReplacedTokensConfig(generator_depth=0.5),
            ),
            ["the generator of this model is not possible", "conv_kernel_size=3"],
        ),
    ],
)
def test_a_contradiction_names_both_sides(build, both):
    with pytest.raises(InputError) as error:
        build()
    assert all(side in str(error.value) for side in both)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BertConfig(vocab_size=0), "vocab_size=0 must be positive"),
        (lambda: BertConfig(hidden_size=10**12), "hidden_size=1000000000000 is more than 1048576, the largest supported"),
        (lambda: BertConfig(vocab_size=10**12), "vocab_size=1000000000000 is more than"),
        (lambda: BertConfig(type_vocab_size=10**9), "type_vocab_size=1000000000 is more than"),
        (lambda: BertConfig(num_hidden_layers=10**9), "num_hidden_layers=1000000000 is more than 1024"),
        (lambda: BertConfig(layer_norm_eps=float("nan")), r"layer_norm_eps=nan is not in \[0, 1\]"),
        (lambda: BertConfig(layer_norm_eps=-1e-12), "layer_norm_eps=-1e-12 is not in"),
        (lambda: BertConfig(initializer_range=float("inf")), "initializer_range=inf is not in"),
        (lambda: BertConfig(model_type="roberta", pad_token_id=600), "max_position_embeddings=512 leaves no position"),
        (lambda: BertConfig(pad_token_id=3), "pad_token_id=3 does not fit model_type='bert'"),
        (lambda: BertConfig(hidden_dropout_prob=1.0), "hidden_dropout_prob=1.0 is not in"),
        (lambda: DataConfig(max_seq_length=7), "max_seq_length=7 is below 8"),
        (lambda: DataConfig(eval_fraction=1.0), "eval_fraction=1.0 is not in"),
        (lambda: DataConfig(num_workers=0), "num_workers=0 is below 1"),
        (lambda: MaskingConfig(rate=0.0), "rate=0.0 is not in"),
        (lambda: MaskingConfig(max_predictions_per_seq=0), "max_predictions_per_seq=0 is below 1"),
        (lambda: OptimConfig(learning_rate=-1.0), "learning_rate=-1.0 must be positive"),
        (lambda: OptimConfig(b2=1.0), "b2=1.0 is not in"),
        (lambda: OptimConfig(learning_rate=float("inf")), "learning_rate=inf is not finite"),
        (lambda: Phase(until=1, learning_rate_scale=float("inf")), "learning_rate_scale=inf is not finite"),
        (
            lambda: TrainConfig(num_steps=100, optim=OptimConfig(schedule="warmup_stable_decay", warmup_steps=95)),
            "optim.warmup_steps=95 and optim.decay_steps=10 sum to more than num_steps=100",
        ),
        (lambda: TrainConfig(seed=-1), r"seed=-1 is not in \[0, 2"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_presets_are_the_published_sizes():
    sizes = {
        name: (c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size)
        for name in PRESETS
        for c in [BertConfig.preset(name)]
    }
    assert sizes == {
        "tiny": (2, 128, 2, 512), "mini": (4, 256, 4, 1024), "small": (4, 512, 8, 2048), "medium": (8, 512, 8, 2048),
        "base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096),
    }  # fmt: skip
    assert BertConfig.preset("mini", vocab_size=8192, num_hidden_layers=3).num_hidden_layers == 3
    assert BertConfig.preset("base") == BertConfig()
    with pytest.raises(InputError, match=r"unknown preset 'bas'.*did you mean 'base'\?"):
        BertConfig.preset("bas")


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("hiden_size", ["hidden_size", "seed"]) == "; did you mean 'hidden_size'?"
    assert did_you_mean("xyz", ["hidden_size", "seed"]) == ""


# ---- dictionaries


def test_a_config_survives_json():
    cfg = TrainConfig(
        fill_masks=("a [MASK]",),
        data=DataConfig(source=("a", "b"), eval_source=("c",), cache_dir="d"),
        masking=MaskingConfig(max_predictions_per_seq=20),
        parallel=ParallelConfig(num_devices=2),
    )
    values = json.loads(json.dumps(to_dict(cfg)))
    assert values["data"]["source"] == ["a", "b"]
    assert from_dict(TrainConfig, values) == cfg
    assert from_dict(TrainConfig, {}) == TrainConfig()


def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_name():
    with pytest.raises(InputError, match=r"run/config\.json: model: unknown key 'hiden_size'; did you mean 'hidden_size'\?"):
        from_dict(TrainConfig, {"model": {"hiden_size": 3}}, "run/config.json")
    with pytest.raises(InputError, match="unknown key 'num_step'; did you mean 'num_steps'"):
        from_dict(TrainConfig, {"num_step": 3})


@pytest.mark.parametrize("values", [{"model": 3}, {"model": None}, [], 3])
def test_what_is_no_table_of_keys_is_refused(values):
    with pytest.raises(InputError, match="config"):
        from_dict(TrainConfig, values)


def test_differences_are_dotted_names_and_both_values():
    old, new = {"a": 1, "b": {"c": 2, "d": [3], "gone": 4}, "same": 5}, {"a": 1, "b": {"c": 6, "d": [7], "new": 8}, "same": 5}
    assert differences(old, new) == [("b.c", 2, 6), ("b.d", [3], [7]), ("b.gone", 4, None), ("b.new", None, 8)]
    assert differences(to_dict(TrainConfig()), to_dict(TrainConfig())) == []
    assert differences({"a": {"b": 1}}, {"a": 2}) == [("a", {"b": 1}, 2)]


# ---- files and the command line


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_file_loads_and_says_how_it_is_run(path):
    assert isinstance(load_config_file(path), TrainConfig)
    assert f"python train.py configs/{path.name}" in ast.get_docstring(ast.parse(path.read_text()))


def test_there_are_config_files():
    assert CONFIGS


def test_a_shipped_config_is_taken_by_name_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert set(shipped_configs()) == {path.stem for path in CONFIGS}
    for path in CONFIGS:
        assert load_train_config([path.stem]) == load_train_config([str(path)])
    with pytest.raises(InputError, match=r"no config file quickstrt; did you mean 'quickstart'\?; shipped configs: .*bert_mini"):
        load_train_config(["quickstrt"])


def test_a_missing_config_file_is_named_with_the_nearest_one(tmp_path):
    config_file(tmp_path)
    with pytest.raises(InputError, match=r"no config file .*mien\.py; did you mean '.*mine\.py'\?"):
        load_train_config([str(tmp_path / "mien.py")])
    with pytest.raises(InputError, match=r"no config file nowhere/at_all\.py$"):
        load_train_config(["nowhere/at_all.py"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return TrainConfig(num_step=3)", r"mine\.py:5: TrainConfig has no field 'num_step'; did you mean 'num_steps'\?"),
        ("return TrainConfig(model=BertConfig(hidden=3))", r"mine\.py:5: BertConfig has no field 'hidden'"),
        ("return TrainConfig(model=BertConfig.preset('tiny', hiden_size=3))", "'hiden_size'; did you mean 'hidden_size'"),
        ("return TrainConfig().replace(sede=3)", "TrainConfig has no field 'sede'; did you mean 'seed'"),
        ("return 3", r"mine\.py: get_config\(\) returned a int, not a TrainConfig"),
        ("return (", r"mine\.py:\d+: "),
        ("return TrainConfig(num_steps='many')", "num_steps='many' is a str; expected int"),
    ],
)
def test_a_mistake_in_a_config_file_is_told_with_its_place(tmp_path, body, message):
    with pytest.raises(InputError, match=message):
        load_config_file(config_file(tmp_path, body))


def test_a_file_that_is_no_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match=r"empty\.py has no get_config\(\)"):
        load_config_file(tmp_path / "empty.py")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt is not a Python file"):
        load_config_file(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 + ''", r"mine\.py:\d+: TypeError: unsupported operand type"),
        ("return TrainConfg()", r"mine\.py:5: NameError: name 'TrainConfg' is not defined"),
        ("import nowhere_to_be_found", r"mine\.py:5: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("return TrainConfig(num_steps=0)", r"mine\.py:5: TrainConfig: num_steps=0 is below 1"),
        ("return TrainConfig(model=BertConfig.preset('tiney'))", r"mine\.py:5: unknown preset 'tiney'"),
        ("return TrainConfig(sead=1)", r"mine\.py:5: TrainConfig has no field 'sead'"),
    ],
)
def test_an_error_of_a_config_files_own_code_is_told_with_its_line(tmp_path, body, message):
    with pytest.raises(InputError, match=message):
        load_config_file(config_file(tmp_path, body))


def test_the_command_line_overrides_the_file(tmp_path):
    path = config_file(tmp_path)
    assert load_train_config([path]) == TrainConfig(num_steps=50_000)
    cfg = load_train_config(
        [path, "--num-steps", "20_000", "--model.num-hidden-layers", "3", "--data.source", "a", "b", "--masking.rate", "0.3",
         "--extend", "--data.cache-dir", "c", "--optim.clip-norm", "None"]
    )  # fmt: skip
    assert (cfg.num_steps, cfg.model.num_hidden_layers, cfg.data.source) == (20_000, 3, ("a", "b"))
    assert (cfg.masking.rate, cfg.extend, cfg.data.cache_dir, cfg.optim.clip_norm) == (0.3, True, "c", None)


def said(capsys):
    """What was printed, without boxes and line breaks."""
    out, err = capsys.readouterr()
    return " ".join(re.sub(r"[─-╿]", " ", out + err).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-stepz", "3"], r"Unrecognized options: --num-stepz.* Perhaps you meant: --num-steps"),
        (["--model.num-atention-heads", "3"], r"Perhaps you meant: --model\.num-attention-heads"),
        (["--maskng.rate", "0.3"], r"Perhaps you meant: --masking\.rate"),
        (["--num-steps", "many"], r"--num-steps: .*'many'"),
        (["--data.examples", "pairs"], r"invalid choice 'pairs'.*full_sentences.*sentence_pairs"),
        (["--model.num-attention-heads", "10"], r"hidden_size=768 is not divisible by num_attention_heads=10"),
        (["--num-steps", "10"], r"optim\.warmup_steps=10000 is more than num_steps=10"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_with_what_was_meant(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        load_train_config([config_file(tmp_path), *arguments])
    assert stop.value.code == 2
    assert re.search(message, said(capsys))


def test_the_options_of_objectives_that_the_guide_lists_are_taken():
    guide = (Path(__file__).parent.parent / "docs" / "pretrain.md").read_text()
    options = re.findall(r"^\| .* \| `(--[^`]+)` \| ", guide, re.MULTILINE)
    assert len(options) == 5
    assert len({str(load_train_config(["quickstart", *each.split()])) for each in options}) == 5


def test_no_config_file_is_answered_with_the_usage():
    for arguments in ([], ["--num-steps", "3"]):
        with pytest.raises(InputError, match=r"usage: bert_jax train CONFIG "):
            load_train_config(arguments)


@pytest.mark.parametrize("has_file", [True, False])
def test_help_lists_every_field_with_its_docstring(tmp_path, capsys, has_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        load_train_config([*[config_file(tmp_path)][: int(has_file)], "--help"])
    assert stop.value.code == 0
    shown = said(capsys)
    for group, kind in (("", TrainConfig), *((f.name, c) for f in fields(TrainConfig) for c in CLASSES if f.type == c.__name__)):
        for f in fields(kind):
            if f.type not in {"tuple[Phase, ...]", *(c.__name__ for c in CLASSES)}:  # of a config file alone
                assert f"--{group}{'.' * bool(group)}{f.name}".replace("_", "-") in shown
    assert "Attention heads of a layer; must divide hidden_size." in shown
    assert ("default: 50000" in shown) == has_file


# ---- phases

PHASES = (
    Phase(until=40, mask_rate=0.4),
    Phase(until=80, mask_rate=0.4, final_mask_rate=0.1, batch_size=64, max_seq_length=512),
    Phase(until=100, random_prob=0.2, learning_rate_scale=0.1, learning_rate_shape="1-sqrt"),
)


def run_in(*phases, **more):
    return TrainConfig(num_steps=100, optim=OptimConfig(warmup_steps=10), phases=phases, **more)


def test_phases_are_spans_with_the_settings_that_they_change():
    cfg = run_in(*PHASES, masking=MaskingConfig(rate=0.2, final_rate=0.15))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(cfg)))) == cfg
    first, second, third = spans(cfg)
    assert [(span.begin, span.until, span.mask_line) for span in (first, second, third)] == [
        (0, 40, (0, 40)), (40, 80, (40, 80)), (80, 100, (0, 100)),
    ]  # fmt: skip
    assert first.cfg == cfg.replace(phases=(), masking=MaskingConfig(rate=0.4))
    longer = cfg.data.replace(max_seq_length=512)
    assert second.cfg == cfg.replace(phases=(), masking=MaskingConfig(rate=0.4, final_rate=0.1), batch_size=64, data=longer)
    assert third.cfg == cfg.replace(phases=(), masking=MaskingConfig(rate=0.2, final_rate=0.15, random_prob=0.2))
    assert [(span.name, span.begin, span.until, span.cfg) for span in spans(run_in())] == [("", 0, 100, run_in())]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: run_in(*PHASES[:2]), r"phases\[1\].until=80, but num_steps=100: the phases must cover the run"),
        (lambda: run_in(PHASES[1], PHASES[0], PHASES[2]), r"phases\[1\].until=40 is not past step 80, where the phase begins"),
        (lambda: run_in(PHASES[0], Phase(until=100, max_seq_length=1024)),
         r"phases\[1\] \(steps 40 to 100\): TrainConfig: data.max_seq_length=1024 is longer than the 512 tokens"),
        (lambda: run_in(PHASES[0], Phase(until=100, gradient_accumulation_steps=3)),
         r"phases\[1\] \(steps 40 to 100\): TrainConfig: batch_size=256 is not divisible by gradient_accumulation_steps=3"),
        (lambda: run_in(Phase(until=100, mask_rate=1.5)), r"phases\[0\] .*: MaskingConfig: rate=1.5 is not in \(0, 1\)"),
        (
            lambda: run_in(Phase(until=100, causal_share=0.5), data=DataConfig(examples="sentence_pairs")),
            r"phases\[0\] .*sentence_pairs' has no label for causal rows, and masking.causal_share=0.5: set it to 0",
        ),
        (lambda: run_in(Phase(until=100, mask_prob=0.95)), r"phases\[0\] .*shares that sum to at most 1"),
        (lambda: run_in(Phase(until=100, causal_share=0.5), **DETECTION), r"phases\[0\] .*causal_share=0.5 predicts next tokens"),
        (lambda: Phase(until=10, final_mask_rate=0.1), "Phase: final_mask_rate=0.1 needs mask_rate"),
        (lambda: Phase(until=10, learning_rate_scale=-1), "Phase: learning_rate_scale=-1 is below 0"),
        (lambda: Phase(until=10, learning_rate_shape="jump"), "learning_rate_shape='jump' needs learning_rate_scale"),
    ],
)  # fmt: skip
def test_phases_that_cannot_be_are_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_averages_of_what_is_not_kept_and_two_starts_are_refused():
    with pytest.raises(InputError, match=r"average='last:4', but the run makes 100 checkpoints and keeps keep_checkpoints=3"):
        TrainConfig(optim=OptimConfig(average="last:4"))
    with pytest.raises(InputError, match=r"average='last:2', but the run makes 1 checkpoints"):
        run_in().replace(optim=OptimConfig(warmup_steps=10, average="last:2"))
    phases = Phase(until=60), Phase(until=100)  # the first ends with a checkpoint, too
    run_in(*phases).replace(optim=OptimConfig(warmup_steps=10, average="last:2"))
    with pytest.raises(InputError, match=r"average='last:3', but the run makes 2 checkpoints"):
        run_in(*phases).replace(optim=OptimConfig(warmup_steps=10, average="last:3"))
    with pytest.raises(InputError, match=r"average='ema:2' is neither ema:DECAY, such as ema:0.999, nor last:NUMBER"):
        OptimConfig(average="ema:2")
    with pytest.raises(InputError, match="branch_from and init_from: give one of them"):
        TrainConfig(branch_from="runs/a@3", init_from="runs/b/export")


# ---- compute: its fields were once part of the model


@pytest.mark.parametrize(
    "form", [["--model.dtype", "bfloat16"], ["--model.dtype=bfloat16"], ["--compute.dtype", "bfloat16"]], ids=" ".join
)
def test_fields_of_compute_go_by_their_old_flags_too(tmp_path, form):
    scan = ["--model.scan_layers", "True", "--model.remat", "full", "--model.attention", "xla", "--model.hidden-size", "24"]
    cfg = load_train_config([config_file(tmp_path), *form, *scan])
    assert cfg.compute == ComputeConfig(dtype="bfloat16", remat="full", attention="xla", scan_layers=True)
    assert cfg.model.hidden_size == 24


def test_a_config_of_before_there_was_compute_is_read_as_it_was_meant():
    cfg = TrainConfig(compute=ComputeConfig(dtype="bfloat16", scan_layers=True), model=BertConfig.preset("mini"))
    new = to_dict(cfg)
    old = {**new, "model": {**new["model"], **new["compute"]}}
    del old["compute"]
    assert upgrade(old) == upgrade(new) == new
    assert from_dict(TrainConfig, upgrade(old)) == cfg
    del old["model"]["remat"]  # of a version that did not have it
    assert from_dict(TrainConfig, upgrade(old)) == cfg
    assert upgrade({"num_steps": 3}) == {"num_steps": 3}


def test_a_config_file_that_gives_the_model_a_field_of_compute_is_told_where_it_goes(tmp_path):
    path = config_file(tmp_path, "return TrainConfig(model=BertConfig.preset('mini', dtype='bfloat16'))")
    said = (
        r"py:5: BertConfig has no field 'dtype': give TrainConfig\(compute=ComputeConfig\(dtype=\.\.\.\)\), or --compute\.dtype"
    )
    with pytest.raises(InputError, match=said):
        load_config_file(path)


# ---- --init-from: the model's architecture, unless the command line says otherwise


def written(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from bert_jax.config import *\n"
        "model = BertConfig.preset('mini', hidden_dropout_prob=0.0, max_position_embeddings=128)\n"
        "def get_config():\n"
        "    half = ComputeConfig(dtype='bfloat16')\n"
        "    return TrainConfig(model=model, compute=half, data=DataConfig(max_seq_length=128))\n"
    )
    return str(path)


@pytest.mark.parametrize("form", [["--init-from", "model"], ["--init_from=model"]])
def test_with_init_from_the_architecture_is_the_models_and_dropout_and_types_the_files(tmp_path, form):
    asked = []

    def architecture(*of):
        asked.append(of)
        return BertConfig.preset("tiny", vocab_size=77, hidden_dropout_prob=0.3)

    cfg = load_train_config([written(tmp_path), *form, "--workdir", "w", "--model.num-hidden-layers", "3"], "x", architecture)
    wanted = BertConfig.preset("tiny", vocab_size=77, hidden_dropout_prob=0.0, num_hidden_layers=3)
    assert (cfg.model, cfg.init_from, asked) == (wanted, "model", [("model", "w")])
    assert cfg.compute == ComputeConfig(dtype="bfloat16")
    assert load_train_config([written(tmp_path)], "x", architecture).model.num_hidden_layers == 4
    assert len(asked) == 1


def test_rows_longer_than_the_model_of_init_from_allows_are_refused_unless_shorter_ones_are_asked_for(tmp_path):
    command = [written(tmp_path), "--init-from", "model"]
    short = lambda *of: BertConfig.preset("tiny", max_position_embeddings=64)  # noqa: E731
    with pytest.raises(InputError, match=r"data\.max_seq_length=128 is longer than --init-from model allows: give .* 64 or less"):
        load_train_config(command, "x", short)
    assert load_train_config([*command, "--data.max-seq-length", "32"], "x", short).data.max_seq_length == 32
    with pytest.raises(SystemExit):  # past the position table
        load_train_config([*command, "--data.max-seq-length", "65"], "x", short)
