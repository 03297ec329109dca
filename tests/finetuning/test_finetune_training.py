"""Options of training: frozen layers, adapters, weights of classes, early stopping, batches, devices."""

from pathlib import Path

import numpy as np
import pytest
from finetune_cases import NO_CHANGE, WORDS, rows_of, sst2, table, tune, weights

from bert_jax.config import InputError
from bert_jax.finetuning.runs import _best
from bert_jax.training import writer


def losses_of(workdir):
    return [v["train/loss"] for v in writer.read(Path(workdir) / "metrics.jsonl") if "train/loss" in v]


def test_frozen_layers_stay_to_the_bit_and_lower_layers_learn_more_slowly(model, finished, tmp_path):
    """The first update of Adam is as large as the learning rate, whatever the gradient."""
    options = {"freeze_layers": 1, "layer_decay": 0.25, "num_epochs": 0.1, "weight_decay": 0, "eps": 1e-12}
    start = finished(sst2).export
    tune(start, "sst2", finished(sst2).workdir.parent, tmp_path, **options)
    before, after = weights(start), weights(tmp_path / "export")
    for path, value in before.items():
        moved = np.abs(after[path] - value).max()
        if path.startswith("encoder/layer_1"):
            assert moved == pytest.approx(1e-2 / 4, rel=1e-3) or path.endswith("key/bias"), path  # no gradient but rounding
        elif path.startswith("encoder/"):
            assert moved == 0, path
        else:
            assert moved == pytest.approx(1e-2, rel=1e-3), path


def test_by_muon_the_layers_kernels_take_steps_of_their_own_and_all_else_those_of_adamw(finished, tmp_path):
    """The first update: of kernels, a matrix whose singular values are about 1, with the root mean square 0.2."""
    options = {"optimizer": "muon", "freeze_layers": 1, "num_epochs": 0.1, "weight_decay": 0, "eps": 1e-12}
    start = finished(sst2).export
    tune(start, "sst2", finished(sst2).workdir.parent, tmp_path, **options)
    before, after = weights(start), weights(tmp_path / "export")
    for path, value in before.items():
        moved = after[path] - value
        if path.startswith("encoder/layer_1") and path.endswith("kernel"):
            values = np.linalg.svd(moved, compute_uv=False) / (1e-2 * 0.2 * max(value.shape) ** 0.5)
            assert 0.7 < values.max() < 1.3, path
        elif path.startswith("encoder/layer_1") or not path.startswith("encoder/"):
            assert np.abs(moved).max() == pytest.approx(1e-2, rel=1e-3) or path.endswith("key/bias"), path
        else:
            assert np.abs(moved).max() == 0, path


def test_adapters_are_trained_instead_of_the_encoder_and_merged_in_the_export(finished, tmp_path):
    run = finished(sst2)
    found = tune(run.export, "sst2", run.workdir.parent, tmp_path, lora_rank=2, num_epochs=1, eval_every=6)
    before, after = weights(run.export), weights(tmp_path / "export")
    moved = {path for path, value in before.items() if not np.array_equal(after[path], value)}
    adapted = {f"encoder/layer_{i}/attention/{name}/kernel" for i in range(2) for name in ("query", "value")}
    assert {path for path in moved if path.startswith("encoder/")} == adapted
    assert {path for path in before if not path.startswith("encoder/")} <= moved
    assert all(np.linalg.matrix_rank(after[path] - before[path], tol=1e-4) <= 2 for path in adapted)
    assert found["exported"]["dev"] == pytest.approx(found["metrics"]["dev"], abs=1e-5)


def test_label_smoothing_leaves_doubt(model, finished, tmp_path):
    run = finished(sst2)
    tune(model, "sst2", run.workdir.parent, tmp_path, label_smoothing=0.8)
    sure, smooth = (
        np.mean([max(float(row["negative"]), float(row["positive"])) for row in rows_of(d / "predictions" / "dev.tsv")])
        for d in (run.workdir, tmp_path)
    )
    assert sure > 0.8 > smooth


def test_classes_count_by_their_weights_and_other_weights_are_another_run(finished, tmp_path):
    """Of a model that knows nothing the loss is what each class's own rows give, by weight."""
    rows, path = [(WORDS[9], i % 4 == 0) for i in range(16)], tmp_path / "weights.json"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(table(["sentence", "label"], [(t, int(c)) for t, c in rows]))
    path.write_text('{"positive": 5}')
    options = {"learning_rates": NO_CHANGE, "num_epochs": 1, "batch_size": 16, "eval_every": 1, "class_weights": path}
    export = finished(sst2).export
    found = tune(export, "sst2", tmp_path, tmp_path / "run", **options)
    (row, *_) = rows_of(tmp_path / "run" / "predictions" / "dev.tsv")
    no, yes = (-np.log(float(row[name])) for name in ("negative", "positive"))
    assert losses_of(tmp_path / "run") == pytest.approx([(12 * no + 4 * 5 * yes) / (12 + 4 * 5)], rel=1e-4)
    assert found["exported"]["dev"]["loss"] == pytest.approx((12 * no + 4 * yes) / 16, rel=1e-4)
    path.write_text('{"positive": 6}')
    with pytest.raises(InputError, match="the data differs from that of"):
        tune(export, "sst2", tmp_path, tmp_path / "run", **options)


@pytest.mark.parametrize("select", [pytest.param("best", marks=pytest.mark.slow), "last"])
def test_the_weights_of_the_best_or_the_last_evaluation_are_kept(finished, tmp_path, select):
    """Trained on wrong labels, a model that knows the right ones is the best at first."""
    for name, content in sst2().files.items():
        flipped = content.replace("\t1\n", "\t?\n").replace("\t0\n", "\t1\n").replace("\t?\n", "\t0\n")
        (tmp_path / name).write_text(flipped if name == "train.tsv" else content)
    options = {"eval_every": 14, "learning_rates": "1e-3", "select": select}
    found = tune(finished(sst2).export, "sst2", tmp_path, tmp_path / "run", **options)
    history = found["runs"][0]["history"]
    assert [e["step"] for e in history] == [14, 28, 36]
    assert history[0]["score"] > history[-1]["score"]
    kept = history[0 if select == "best" else -1]
    assert (found["best"]["step"], found["metrics"]) == (kept["step"], kept["scores"])
    assert found["exported"]["dev"] == pytest.approx(kept["scores"]["dev"], abs=1e-5)


def history(*scores_and_losses):
    return [{"score": score, "scores": {"dev": {} if loss is None else {"loss": loss}}} for score, loss in scores_and_losses]


def test_of_equal_scores_the_one_with_the_lower_loss_is_kept_then_the_first():
    assert _best(history((0.5, 0.7), (0.5, 0.6), (0.5, 0.65))) == 1
    assert _best(history((0.5, 0.7), (0.6, 0.9), (0.5, 0.1))) == 1
    assert _best(history((0.5, 0.7), (0.5, 0.7))) == 0
    assert _best(history((0.5, None), (0.5, None))) == 0
    assert _best(history((0.5, 0.7), (0.5, float("nan")), (float("-inf"), 0.1))) == 0


def test_early_stopping_goes_on_while_scores_are_equal_and_the_loss_falls(finished, tmp_path):
    """A model that knows the right ones already: its accuracy stays at 1."""
    run = finished(sst2)
    options = {"learning_rates": "1e-5", "eval_every": 6, "early_stopping": 1}
    found = tune(run.export, "sst2", run.workdir.parent, tmp_path, **options)
    evaluated = found["runs"][0]["history"]
    losses = [each["scores"]["dev"]["loss"] for each in evaluated]
    assert {each["score"] for each in evaluated} == {1.0}
    assert losses == sorted(losses, reverse=True)
    assert len(evaluated) == 6
    assert found["best"]["step"] == 36


def test_padded_batches_give_the_losses_of_packed_ones(model, finished, tmp_path):
    run = finished(sst2)
    tune(model, "sst2", run.workdir.parent, tmp_path, batching="padded")
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(run.workdir), rtol=2e-4, atol=2e-4)


def test_batches_of_like_lengths_learn_in_another_order(model, finished, tmp_path):
    run = finished(sst2)
    found = tune(model, "sst2", run.workdir.parent, tmp_path, batching="by_length")
    assert found["metrics"]["dev"]["accuracy"] > 0.9
    assert losses_of(tmp_path)[0] != pytest.approx(losses_of(run.workdir)[0], rel=1e-3)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({}, id="8x1x1", marks=pytest.mark.slow),
        pytest.param({"strategy": "pmap"}, id="pmap", marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "tensor": 2}, id="2x2x2"),
    ],
)
def test_eight_devices_give_the_losses_and_scores_of_one(model, finished, tmp_path, layout):
    run = finished(sst2)
    found = tune(model, "sst2", run.workdir.parent, tmp_path, num_devices=8, **layout)
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(run.workdir), rtol=2e-4, atol=2e-4)
    assert found["metrics"]["dev"] == pytest.approx(run.results["metrics"]["dev"], abs=2e-4)
