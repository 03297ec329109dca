"""Replaced-token detection: samples, losses and gradients against NumPy, devices, and a run from text to both exports."""

import doctest
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import make_documents

import bert_jax
from bert_jax import pretrain, program
from bert_jax.config import (
    BertConfig,
    DataConfig,
    InputError,
    OptimConfig,
    ParallelConfig,
    ReplacedTokensConfig,
    TrainConfig,
    replaced_tokens,
)
from bert_jax.data.pretraining import BatchSource
from bert_jax.model.convert import flatten, unflatten
from bert_jax.model.heads import Bert
from bert_jax.training import parallel, writer
from bert_jax.training.objectives import objective_of
from bert_jax.training.replaced_tokens import corrupt, sample

V, L, P = 300, 16, 4
ELECTRA = BertConfig(
    model_type="electra", vocab_size=V, embedding_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=L, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    initializer_range=0.2,
)  # fmt: skip
CFG = TrainConfig(
    num_steps=4, batch_size=16, objective="replaced_tokens", model=ELECTRA, data=DataConfig(max_seq_length=L),
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=1), replaced_tokens=ReplacedTokensConfig(generator_width=0.5),
)  # fmt: skip


def make_batch(rows, seed=0):
    """Rows of two sequences and padding, with masks, some of whose slots are not used; and the tokens before masking."""
    rng, place = np.random.default_rng(seed), np.arange(L)
    ends = rng.integers(4, 8, (rows, 1)), rng.integers(10, L + 1, (rows, 1))
    sequence = np.where(place < ends[0], 1, np.where(place < ends[1], 2, 0))
    text = np.where(sequence, rng.integers(5, V, (rows, L)), 0)
    at = np.sort(1 + np.argsort(rng.random((rows, 9)), axis=1)[:, :P], axis=1)
    used = np.arange(P) < rng.integers(2, P + 1, (rows, 1))
    at, masked = np.where(used, at, 0), text.copy()
    for row, places, there in zip(masked, at, used, strict=True):
        row[places[there]] = 4
    batch = {
        "input_ids": masked,
        "token_type_ids": np.zeros((rows, L)),
        "position_ids": np.where(sequence == 2, place - ends[0], np.where(sequence == 1, place, 0)),
        "sequence_ids": sequence,
        "masked_positions": at,
        "masked_ids": np.where(used, np.take_along_axis(text, at, axis=1), 0),
    }
    batch = {name: values.astype(np.int32) for name, values in batch.items()}
    draws = (rng.integers(0, 2**23, (rows, P)) * 2.0**-23).astype(np.float32)
    return batch | {"masked_weights": used.astype(np.float32), "masked_draws": draws}, text


def random_params(objective):
    """Parameters large enough that every token counts."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: objective.initialize(0)))
    flat = {path: rng.normal(path.endswith("scale"), 0.2, x.shape).astype(np.float32) for path, x in shapes.items()}
    return unflatten(flat)


def cumulative_probabilities(logits, temperature=1.0):
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.cumsum(powers, -1) / powers.sum(-1, keepdims=True)


def first_above(logits, draws):
    """The first word whose cumulative probability exceeds the draw."""
    return (cumulative_probabilities(logits) <= draws[..., None]).sum(-1)


def test_a_sample_is_the_first_word_whose_cumulative_probability_exceeds_the_draw():
    rng, draw, rows = np.random.default_rng(0), jax.jit(sample, static_argnums=2), np.arange(2000)
    logits = rng.normal(0, 3, (2000, V)).astype(np.float32)
    draws = (rng.integers(0, 2**23, 2000) * 2.0**-23).astype(np.float32)
    for temperature in (0.5, 1.0):
        drawn, ends = np.asarray(draw(logits, draws, temperature)), cumulative_probabilities(logits, temperature)
        begins = np.pad(ends, ((0, 0), (1, 0)))
        assert (draws < ends[rows, drawn] + 1e-5).all()  # up to rounding
        assert (draws >= begins[rows, drawn] - 1e-5).all()
    assert (drawn == first_above(logits, draws)).mean() > 0.998
    logits[:, rng.permutation(V)[:200]] = -np.inf  # never drawn, not even by the least or the largest draw
    for value in (0.0, 1 - 2.0**-23, 0.5):
        drawn = np.asarray(draw(logits, np.full(2000, value, np.float32), 1.0))
        assert np.isfinite(logits[rows, drawn]).all()


def test_a_sampled_token_that_is_the_texts_own_is_not_replaced_and_unused_slots_change_nothing():
    batch = {"input_ids": [[2, 4, 7, 4, 3, 0]], "masked_positions": [[1, 3, 0]], "masked_ids": [[5, 6, 0]]}
    batch = {name: np.array(values, np.int32) for name, values in batch.items()}
    ids, replaced = corrupt(batch | {"masked_weights": np.array([[1, 1, 0]], np.float32)}, np.array([[5, 9, 9]], np.int32))
    assert ids.tolist() == [[2, 5, 7, 9, 3, 0]]
    assert replaced.tolist() == [[False, False, False, True, False, False]]


def test_losses_are_those_of_numpy_and_the_generator_learns_nothing_from_the_discriminators():
    objective, (batch, text) = objective_of(CFG), make_batch(16)
    params = random_params(objective)
    model, generator = objective.parts(params)

    @jax.jit
    def everything(params, batch):
        def loss(params):
            sums = objective.sums(params, batch, None)
            return sums["replaced_token_loss"].mean(), sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        logits = Bert(generator.config, generator.head).apply({"params": objective.parts(params)[1].params}, batch)
        return sums, grads, logits["masked_lm_logits"]

    sums, grads, logits = jax.device_get(everything(params, batch))
    weights, logits = batch["masked_weights"], np.float64(logits)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_words = np.take_along_axis(chances, batch["masked_ids"][..., None], axis=-1)[..., 0]
    means = {name: float(s.total / s.weight) for name, s in sums.items()}
    assert means["masked_lm_loss"] == pytest.approx(-(np.log(of_words) * weights).sum() / weights.sum(), rel=1e-5)

    ids = text.copy()
    for row, at, drawn, used in zip(
        ids, batch["masked_positions"], first_above(logits, batch["masked_draws"]), weights > 0, strict=True
    ):
        row[at[used]] = drawn[used]
    rows = {name: batch[name] for name in ("token_type_ids", "position_ids", "sequence_ids")} | {"input_ids": np.int32(ids)}
    told = jax.jit(Bert(model.config, model.head).apply)({"params": model.params}, rows)["replaced_token_logits"]
    told, replaced, real = np.float64(told), ids != text, batch["sequence_ids"] > 0
    loss = np.log1p(np.exp(np.where(replaced, -told, told)))[real].mean()
    said = told > 0
    expected = {
        "loss": loss, "accuracy": (said == replaced)[real].mean(), "share": replaced[real].mean(),
        "recall": said[replaced].mean(), "precision": replaced[said & real].mean(),
    }  # fmt: skip
    assert {name: means[f"replaced_token_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert sums["replaced_token_loss"].weight == real.sum()
    assert 0.1 < expected["share"] < 0.4
    assert 0 < expected["recall"] < 1

    own = {path for path in flatten(params) if path.startswith("generator/")}
    assert {path for path, x in flatten(grads).items() if np.any(x)} == flatten(params).keys() - own
    assert not any("embeddings" in path for path in own)
    assert {f"generator/encoder/projection/{leaf}" for leaf in ("kernel", "bias")} < own


@pytest.mark.parametrize(
    ("changes", "size", "own"),  # layers and width of the generator; its embeddings that are not the model's
    [
        pytest.param(dict(model_type="electra", embedding_size=16), (2, 16), set(),  # as wide as its embeddings: no projection
                     marks=pytest.mark.slow),
        (dict(model_type="modernbert", type_vocab_size=0), (1, 64), set()),
        pytest.param(dict(model_type="albert", embedding_size=8, num_hidden_groups=1), (2, 16), set(), marks=pytest.mark.slow),
        (dict(model_type="deberta-v2", type_vocab_size=0), (2, 16),
         {"projection/kernel", "norm/scale", "norm/bias"}),  # DeBERTa's projection comes before the norm
    ],
    ids=lambda changes: changes.get("model_type") if isinstance(changes, dict) else "",
)  # fmt: skip
def test_the_embeddings_are_those_of_both_where_they_have_one_shape_in_every_family(changes, size, own):
    model = BertConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
                       max_position_embeddings=L, **changes)  # fmt: skip
    objective = objective_of(CFG.replace(model=model, replaced_tokens=ReplacedTokensConfig()))
    params = jax.eval_shape(lambda: objective.initialize(0))
    encoder, generator = objective.parts(params)
    assert (generator.config.num_hidden_layers, generator.config.hidden_size) == size
    assert generator.config.hidden_size // generator.config.num_attention_heads == 16
    before = "encoder/embeddings/"
    assert {path.removeprefix(before) for path in flatten(params["generator"]) if path.startswith(before)} == own
    words = "embeddings", "word_embeddings", "embedding"
    tables = [part.params["encoder"][words[0]][words[1]][words[2]] for part in (encoder, generator)]
    assert tables[0] is tables[1]
    assert flatten(objective.joined(params, [part.params for part in objective.parts(params)])) == flatten(params)
    assert (encoder.head == "replaced_token") == (model.model_type == "electra")


def test_a_generator_has_the_size_that_its_documentation_shows():
    assert doctest.testmod(replaced_tokens).failed == 0


def test_the_program_of_a_run_is_traced_for_the_batches_of_its_text_and_says_what_its_generator_is(tokenizer):
    one = CFG.replace(parallel=ParallelConfig(num_devices=1))
    made = program.build(one, parallel.make_devices(one.parallel), None)
    batch = BatchSource.of(one, tokenizer, np.tile(np.arange(L), (16, 1))).train(0)
    shapes = {name: (x.shape, x.dtype) for name, x in batch.items()}
    assert {name: (x.shape, x.dtype) for name, x in made.abstract_batch.items()} == shapes
    _, metrics = jax.eval_shape(made.train_step.function, made.abstract_state, made.abstract_batch)
    assert {"loss", "masked_lm_loss", "replaced_token_loss", "replaced_token_recall"} < metrics.keys()
    assert made.describe().endswith(", a generator of 1 x 16")


def test_a_generator_that_does_not_divide_over_the_devices_is_refused_before_text_is_read():
    wide = CFG.replace(replaced_tokens=ReplacedTokensConfig(generator_width=0.25), parallel=ParallelConfig(tensor=2))
    with pytest.raises(InputError, match=r"the generator of objective='replaced_tokens': num_attention_heads=1 does not divide"):
        program.check(wide, parallel.make_devices(wide.parallel), begun=False)


LAYOUTS = {
    "8x1x1": ParallelConfig(), "2x2x2": ParallelConfig(fsdp=2, tensor=2), "pmap": ParallelConfig(strategy="pmap"),
    "microbatches": ParallelConfig(num_devices=1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_and_microbatches_train_as_one_device_does(layout):
    def trained(cfg):
        made = program.build(cfg, parallel.make_devices(cfg.parallel), None)
        state, found = made.initial_state(), []
        for seed in range(3):
            state, metrics = made.train_step(state, made.devices.put(make_batch(16, seed)[0]))
            found.append({name: float(value) for name, value in metrics.items()})
        return found, flatten(made.devices.gather(state.params))

    parts = 2 if layout == "microbatches" else 1
    one, params = trained(CFG.replace(parallel=ParallelConfig(num_devices=1)))
    many, others = trained(CFG.replace(parallel=LAYOUTS[layout], gradient_accumulation_steps=parts))
    assert one[-1]["loss"] != one[0]["loss"]
    for mine, theirs in zip(one, many, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for path, values in params.items():
        np.testing.assert_allclose(others[path], values, atol=1e-5, err_msg=path)


def run_config(folder, tokenizer_dir, **model):
    """A run of six steps on made-up text."""
    (folder / "text.txt").write_text("\n".join(" ".join(sentences) for sentences in make_documents(120)) + "\n")
    of_model = dict(vocab_size=280, hidden_dropout_prob=0.1, max_position_embeddings=32, initializer_range=0.02)
    return CFG.replace(
        workdir=str(folder / "run"), num_steps=6, batch_size=8, eval_every=3, checkpoint_every=3, log_every=1,
        model=ELECTRA.replace(**(of_model | model)), parallel=ParallelConfig(num_devices=1), fill_masks=("bako [MASK] bako.",),
        data=DataConfig(source=(str(folder / "text.txt"),), tokenizer=str(tokenizer_dir), max_seq_length=32, documents="line",
                        eval_fraction=0.2, num_workers=1),
    )  # fmt: skip


def recorded(cfg):
    """The lines of metrics.jsonl without those of times."""
    return [line for line in writer.read(Path(cfg.workdir) / "metrics.jsonl") if line.get("kind") != "timing"]


def assert_same(params, others):
    params, others = flatten(params), flatten(others)
    assert params.keys() == others.keys()
    for path, values in params.items():
        np.testing.assert_array_equal(values, others[path], err_msg=path)


@pytest.mark.slow
def test_a_run_trains_both_models_continues_to_the_bit_and_exports_both(tmp_path, tokenizer_dir, capfd):
    cfg = run_config(tmp_path, tokenizer_dir)
    reached = bert_jax.train(cfg)
    lines, (out, err) = recorded(cfg), capfd.readouterr()
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        both = line["train/masked_lm_loss"] + 50 * line["train/replaced_token_loss"]
        assert line["train/loss"] == pytest.approx(both, rel=1e-5)
    assert abs(steps[0]["train/replaced_token_loss"] - math.log(2)) < 0.1
    evaluated = [line for line in lines if "eval/masked_lm_loss" in line]
    assert [line["step"] for line in evaluated] == [3, 6]
    told = {f"eval/replaced_token_{name}" for name in ("loss", "accuracy", "precision", "recall", "share")}
    assert told < evaluated[-1].keys() - {"step"} == reached.metrics.keys()
    assert ", a generator of 1 x 16" in err
    for words in ("held-out loss of the generator 5.", "replaced tokens: 0.", "AutoModelForPreTraining", "export/generator"):
        assert words in out

    shutil.rmtree(Path(cfg.workdir) / "checkpoints" / "6")
    bert_jax.train(cfg)
    assert recorded(cfg) == lines
    with pytest.raises(InputError, match="objective: 'replaced_tokens' there, 'masked_lm' here"):
        bert_jax.train(cfg.replace(objective="masked_lm", replaced_tokens=ReplacedTokensConfig()))

    model, generator = (bert_jax.load(reached.export / folder) for folder in ("", "generator"))
    assert (model.head, generator.head) == ("replaced_token", "masked_lm")
    assert (model.config, generator.config) == cfg.models
    assert_same(*(each.params["encoder"]["embeddings"] for each in (model, generator)))
    assert_same(bert_jax.load(cfg.workdir).params, model.params)  # of the newest checkpoint
    objective = objective_of(cfg)
    fresh = jax.eval_shape(lambda: objective.initialize(0))
    started = objective.parts(pretrain.start_from(str(reached.export), objective, fresh))
    for part, each in zip(started, (model, generator), strict=True):
        assert_same(part.params, each.params)
    (reached.export / "generator" / "model.safetensors").unlink()
    started = pretrain.start_from(str(reached.export), objective, fresh)
    assert flatten(started["generator"]) == flatten(fresh["generator"])
    assert "has no folder generator: the generator is freshly initialised" in capfd.readouterr().err


def test_another_familys_model_is_exported_as_its_encoder(tmp_path, tokenizer, capsys):
    model = BertConfig(**{name: getattr(ELECTRA, name) for name in ("hidden_size", "num_attention_heads", "intermediate_size")},
                       vocab_size=280, num_hidden_layers=2, max_position_embeddings=L)  # fmt: skip
    cfg = CFG.replace(workdir=str(tmp_path), model=model, replaced_tokens=ReplacedTokensConfig())
    objective = objective_of(cfg)
    params = random_params(objective)
    for part in objective.parts(params):
        pretrain.export(cfg, part, tokenizer)
    assert "has no weights for pooler/dense: they are random" in capsys.readouterr().err
    encoder, generator = (bert_jax.load(tmp_path / "export" / folder) for folder in ("", "generator"))
    assert json.loads((tmp_path / "export" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert (encoder.head, generator.head, generator.config.num_hidden_layers) == ("encoder", "masked_lm", 1)
    assert_same(encoder.params["encoder"], params["encoder"])


CLASSES = {"replaced_token": "AutoModelForPreTraining", "encoder": "AutoModel", "masked_lm": "AutoModelForMaskedLM"}


@pytest.mark.parity
@pytest.mark.parametrize("family", ["electra", *(pytest.param(f, marks=pytest.mark.parity_more) for f in ("bert", "modernbert"))])
def test_transformers_loads_both_exports_key_by_key(family, tmp_path, tokenizer):
    import torch
    import transformers

    width = dict(embedding_size=8) if family == "electra" else {}
    model = BertConfig.of_family(family, vocab_size=280, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                 intermediate_size=64, max_position_embeddings=L, **width)  # fmt: skip
    cfg = CFG.replace(workdir=str(tmp_path), model=model, replaced_tokens=ReplacedTokensConfig())
    objective, ids = objective_of(cfg), np.arange(5, 15)[None]
    for part in objective.parts(random_params(objective)):
        ours = pretrain.export(cfg, part, tokenizer)
        load = getattr(transformers, CLASSES[part.head]).from_pretrained
        theirs, report = load(tmp_path / "export" / part.folder, output_loading_info=True)
        assert not any(report.values()), report
        with torch.no_grad():
            expected = theirs.eval()(input_ids=torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1].numpy()
        hidden = jax.jit(ours.encode)(ours.params, ids)
        np.testing.assert_allclose(hidden, expected, atol=1e-5 * np.abs(expected).max())
