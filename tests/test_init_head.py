"""The start of a task from a pretrained model: the head that is kept or drawn."""

import json

import jax
import numpy as np
import pytest
from pretrained_files import TINY, assert_params, family, params_of, saved, start, write

from bert_jax.config import InputError
from bert_jax.directory import LABELLED_HEADS
from bert_jax.model import convert
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model, save

# ---- starting a task


CLASSIFIER = ("sequence_classifier/bias", "sequence_classifier/kernel")


def flat(start, seed=0):
    return {path: np.asarray(leaf) for path, leaf in convert.flatten(start.params(seed)).items()}


def test_a_new_head_is_drawn_by_the_seed_and_all_else_is_the_files(tmp_path, tokenizer, capsys):
    begun = start(saved(tmp_path, tokenizer), ("no", "maybe", "yes"))
    assert sorted(begun.fresh) == list(CLASSIFIER)
    assert (begun.note, capsys.readouterr().err) == ("", "")
    model = begun.model
    assert (model.labels, model.head) == (("no", "maybe", "yes"), "sequence_classification")
    assert model.problem_type == "single_label_classification"
    assert model.tokenizer.fingerprint() == tokenizer.replace(special_tokens="text").fingerprint()  # as fine-tuning reads them
    first, again, other = flat(begun, 1), flat(begun, 1), flat(begun, 2)
    theirs = convert.flatten(params_of(TINY, "pretraining"))
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
        if path not in CLASSIFIER:
            np.testing.assert_array_equal(first[path], theirs[path], err_msg=path)
            np.testing.assert_array_equal(first[path], other[path], err_msg=path)
    kernel = "sequence_classifier/kernel"
    assert first[kernel].shape == (32, 3)
    assert np.abs(first[kernel] - other[kernel]).max() > 0.01
    assert 0.01 < first[kernel].std() < 0.03
    assert not first["sequence_classifier/bias"].any()
    assert list(first) == list(convert.flatten(params_of(TINY, "sequence_classification", 3)))


def test_a_pooler_that_the_file_lacks_is_said_and_drawn_by_the_seed(tmp_path, tokenizer, capsys):
    begun = start(saved(tmp_path, tokenizer, "masked_lm"))
    assert sorted(begun.fresh) == ["pooler/dense/bias", "pooler/dense/kernel", *CLASSIFIER]
    error = capsys.readouterr().err
    assert "no weights for pooler/dense/bias, pooler/dense/kernel: freshly initialised" in error
    assert "sequence_classifier" not in error
    assert np.abs(flat(begun, 0)["pooler/dense/kernel"] - flat(begun, 1)["pooler/dense/kernel"]).max() > 0.01


def test_what_a_run_draws_is_normal_and_not_cut_as_transformers_has_it(tmp_path, tokenizer):
    begun = start(saved(tmp_path, tokenizer, "masked_lm", cfg=TINY.replace(initializer_range=0.1)))
    kernel = flat(begun)["pooler/dense/kernel"] / 0.1
    assert abs(kernel.std() - 1) < 5 / (2 * kernel.size) ** 0.5  # cut at two sigma it is 0.88
    assert abs(kernel.mean()) < 5 / kernel.size**0.5
    assert 2.5 < np.abs(kernel).max() < 5
    both = np.corrcoef(kernel.ravel()[: 2 * len(kernel)], flat(begun)["sequence_classifier/kernel"].ravel())[0, 1]
    assert abs(both) < 5 / (2 * len(kernel)) ** 0.5  # draws of their own


THREE = ("a", "b", "c")

OTHERS = {"head": "token_classification"}, {"head": "question_answering", "labels": ()}, {"head": "multiple_choice", "labels": ()}


@pytest.mark.parametrize("options", [{}, *OTHERS], ids=lambda options: options.get("head", "sequence_classification"))
@pytest.mark.parametrize("init_head", ["auto", "keep"])
def test_the_head_of_the_same_task_is_kept(tmp_path, tokenizer, options, init_head):
    options = {"labels": THREE, "head": "sequence_classification"} | options
    begun = start(saved(tmp_path, tokenizer, **options), init_head=init_head, **options)
    assert begun.fresh == ()
    assert begun.note.endswith(": is kept")
    assert_params(begun.params(5), params_of(TINY, options["head"], max(1, len(options["labels"]))))


@pytest.mark.parametrize("labels", [(), ("LABEL_0",)])
@pytest.mark.parametrize("theirs", [(), ("score",)])
def test_a_regressors_head_is_kept_whatever_its_value_is_called(tmp_path, tokenizer, labels, theirs):
    folder = saved(tmp_path, tokenizer, "sequence_classification", theirs, problem_type="regression")
    begun = start(folder, labels, problem="regression")
    assert (begun.fresh, begun.model.labels) == ((), labels)


def test_the_same_head_starts_anew_where_that_is_asked_for_or_the_classes_are_others(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, "sequence_classification", THREE)
    for labels, init_head in ((THREE, "fresh"), (("a", "b"), "auto"), (("c", "b", "a"), "auto"), (("x", "y", "z"), "auto")):
        begun = start(folder, labels, init_head)
        assert sorted(begun.fresh) == list(CLASSIFIER)
        assert begun.note == f"classifier of {folder} (a, b, c): is replaced by a fresh one"
        assert np.abs(flat(begun)["sequence_classifier/kernel"]).max() < 0.05


def test_classes_that_both_have_keep_their_rows_and_the_others_start_anew(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, "sequence_classification", THREE)
    begun = start(folder, ("c", "new", "a"), "match")
    assert begun.note == f"classifier of {folder} (a, b, c): the rows of c, a are kept, the others are fresh"
    theirs = convert.flatten(params_of(TINY, "sequence_classification", 3))
    first, other = flat(begun, 0), flat(begun, 1)
    for path in CLASSIFIER:
        for params in (first, other):
            np.testing.assert_array_equal(params[path].T[[0, 2]], theirs[path].T[[2, 0]], err_msg=path)
    kernel = "sequence_classifier/kernel"
    assert np.abs(first[kernel][:, 1] - other[kernel][:, 1]).max() > 0.01
    assert start(folder, THREE, "match").fresh == ()


A_HEAD = "a head for the classes a, b, c; the classes of this task are"


@pytest.mark.parametrize(
    "options, init_head, message",
    [
        (
            {"labels": ("c", "b", "a")},
            "keep",
            f"{A_HEAD} c, b, a. Use --init-head fresh, or match to keep the classes that they share",
        ),
        ({"labels": ("x", "y")}, "keep", f"{A_HEAD} x, y. Use --init-head fresh$"),
        ({"labels": ("x", "y")}, "match", f"{A_HEAD} x, y: they share none. Use --init-head fresh"),
        (
            {"labels": THREE, "head": "token_classification"},
            "keep",
            "no head of this kind; the classes of this task are a, b, c. Use --init-head fresh$",
        ),
        (
            {"labels": (), "head": "question_answering"},
            "keep",
            "no head of this kind; this task has no classes. Use --init-head fresh$",
        ),
        ({"labels": (), "head": "multiple_choice"}, "match", "no head of this kind; this task has no classes"),
    ],
)
def test_a_head_that_is_not_the_tasks_cannot_be_kept(tmp_path, tokenizer, options, init_head, message):
    folder = saved(tmp_path, tokenizer, "sequence_classification", THREE)
    with pytest.raises(InputError, match=f"--init-head {init_head}: {folder} has {message}"):
        start(folder, init_head=init_head, **options)


@pytest.mark.parametrize("theirs", ["sequence_classification", "token_classification"])
def test_another_tasks_head_of_the_same_name_starts_anew(tmp_path, tokenizer, theirs):
    """`classifier.weight` is what four heads of BERT call theirs."""
    folder = saved(tmp_path, tokenizer, theirs, ("a",))
    for head, labels in (("multiple_choice", ()), *((head, ("a",)) for head in LABELLED_HEADS if head != theirs)):
        begun = start(folder, labels, head=head)
        assert {path for path in begun.fresh if "pooler" not in path} == {
            path for path in convert.flatten(params_of(TINY, head)) if path.split("/")[0].endswith("_classifier")
        }
        assert begun.note == f"classifier of {folder}: is replaced by a fresh one"


def test_of_a_head_of_two_layers_only_the_last_is_of_one_task(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, "sequence_classification", THREE, cfg=family("electra"))
    begun = start(folder, ("x", "y"))
    assert sorted(begun.fresh) == list(CLASSIFIER)
    theirs = params_of(family("electra"), "sequence_classification", 3)["pooler"]["dense"]["kernel"]
    np.testing.assert_array_equal(flat(begun)["pooler/dense/kernel"], theirs)


def test_classes_that_are_not_as_many_as_the_heads_are_refused(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, "sequence_classification", THREE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(InputError, match=r"classifier.weight has 3 classes, but config.json names a, b: correct config.json"):
        start(folder, ("b", "z"), "match")


def test_weights_that_are_no_numbers_are_said_before_a_task_too(tmp_path, tokenizer, capsys):
    model = Model(TINY, jax.tree.map(np.copy, params_of(TINY, "encoder")), tokenizer, "encoder")
    model.params["encoder"]["layer_0"]["mlp_norm"]["bias"][0] = np.nan
    save(model, tmp_path)
    start(tmp_path)
    assert "NaN or infinite weights in: encoder.layer.0.output.LayerNorm.bias (1 tensors)" in capsys.readouterr().err


def test_a_task_needs_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer: put its tokenizer.json or vocab.txt beside its config.json"):
        start(write(tmp_path))


def test_similarity_goes_on_with_the_models_pooling_or_the_mean(tmp_path, tokenizer):
    pooling = Pooling("cls", False, 48, True)
    theirs = saved(tmp_path / "theirs", tokenizer, "encoder", pooling=pooling)
    assert start(theirs, (), head="encoder").model.pooling == pooling
    assert start(saved(tmp_path / "plain", tokenizer), (), head="encoder").model.pooling == Pooling()
    assert start(theirs).model.pooling is None
    assert start(theirs).model.activation is None
    value = start(theirs, ("score",), problem="regression").model
    assert value.activation == "torch.nn.modules.linear.Identity"  # or sentence-transformers' CrossEncoder gives a sigmoid
