"""Predictions of a split, put together from its sequences, and their scores against scikit-learn and by hand."""

import dataclasses
import math
from functools import cache

import jax
import numpy as np
import pytest
import sklearn.metrics
from helpers import make_words
from scipy import stats

from bert_jax.config import BertConfig, InputError
from bert_jax.data.finetuning import IGNORED
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.inference import Answer
from bert_jax.inference.predictor import Predictor
from bert_jax.model.heads import Bert, initialize
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model
from bert_jax.tasks.question_answering import answers
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.table import KINDS, TASKS
from bert_jax.tuned import Tuned

CFG = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                 max_position_embeddings=64)  # fmt: skip
HEADS = {
    "classification": "sequence_classification", "multi_label": "sequence_classification",
    "regression": "sequence_classification", "tagging": "token_classification", "similarity": "encoder",
    "question_answering": "question_answering", "multiple_choice": "multiple_choice",
}  # fmt: skip
WORDS = make_words()
LABELS = ("O", "B-X", "I-X")
NAMED = ("classification", "multi_label", "tagging")  # kinds whose classes have names


@cache
def params_of(head, num_labels):
    """Random ones, large enough that every token counts."""
    shapes = jax.eval_shape(lambda: initialize(Bert(CFG, head, num_labels), 0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (rng.standard_normal(x.shape) * 0.2).astype(np.float32), shapes)
    params["encoder"]["embeddings"]["norm"]["scale"] += 1
    return params


def model_of(kind, tokenizer, labels=LABELS, pooling=None):
    labels = labels if kind in NAMED else ()
    params = params_of(HEADS[kind], max(1, len(labels)))
    problem_type = "regression" if kind == "regression" else None
    return Model(CFG, params, tokenizer, HEADS[kind], labels, problem_type, pooling or Pooling(normalize=False))


def evaluator_of(kind, tokenizer, labels=LABELS, limit=64, null_threshold=None, pooling=None, label_threshold=None):
    return Evaluator(TASKS[kind], model_of(kind, tokenizer, labels, pooling), limit, null_threshold, label_threshold)


def split_of(kind, records, tokenizer, labels=LABELS, limit=64, **stride):
    return Split("dev", records, KINDS[kind].encode(records, labels, Layout(tokenizer, CFG, limit), **stride))


def labelled(*labels, texts=("a", "b")):
    return [Record(texts, label, str(i), f"dev.tsv:{i + 2}") for i, label in enumerate(labels)]


def plain(*labels):
    """A split of which only the labels matter."""
    return Split("dev", labelled(*labels), None)


def random_records(kind, count=7, seed=0):
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(1, 8)))

    labels = {
        "classification": lambda: str(rng.choice(LABELS)),
        "multi_label": lambda: tuple(name for name in LABELS if rng.random() < 0.5),
        "regression": lambda: float(rng.normal()),
        "multiple_choice": lambda: int(rng.integers(3)),
        "similarity": lambda: float(rng.random()),
    }
    records = []
    for i in range(count):
        texts, label = [text() for _ in range({"similarity": 2, "multiple_choice": 4}.get(kind, 1))], None
        if kind == "tagging":
            texts = " ".join([text() for _ in range(4)]).split()
            label = tuple(rng.choice(LABELS, len(texts)))
        elif kind == "question_answering":
            words = " ".join([text() for _ in range(6)]).split()
            at = int(rng.integers(len(words)))
            texts, answer = [text(), " ".join(words)], " ".join(words[at : at + 2])
            label = ((answer, len(" ".join([*words[:at], ""]))),) if i % 3 else ()
        else:
            label = labels[kind]()
        records.append(Record(tuple(texts), label, f"q{i}", f"dev.tsv:{i + 2}"))
    return records


# ---- predictions


def alone(model, sequence):
    """The model's outputs for one sequence in a row of its own."""
    size = len(sequence.input_ids)
    pad = ((0, 0), (0, 64 - size))
    batch = {
        "input_ids": np.pad([sequence.input_ids], pad), "token_type_ids": np.pad([sequence.token_type_ids], pad),
        "attention_mask": np.pad(np.ones((1, size), np.int32), pad),
    }  # fmt: skip
    return {name: array[0] for name, array in jax.device_get(compiled(model)(model.params, batch)).items()}, size


@cache
def _compiled(module):
    return jax.jit(module.apply)


def compiled(model):
    return lambda params, batch: _compiled(model.module)({"params": params}, batch)


@pytest.mark.parametrize("kind", ["classification", "regression", "multiple_choice", "tagging", "similarity"])
def test_predictions_are_the_models_own_for_each_record_in_order(kind, tokenizer):
    model, split = model_of(kind, tokenizer), split_of(kind, random_records(kind), tokenizer)
    predicted = evaluator_of(kind, tokenizer).predict(split, model.params)
    assert len(predicted) == len(split.records)
    for prediction, item, record in zip(predicted, split.encoded.items, split.records, strict=True):
        outputs = [alone(model, sequence) for sequence in item.sequences]
        if kind == "tagging":
            logits = outputs[0][0]["logits"]
            right = [LABELS[logits[i].argmax()] for i in np.flatnonzero(item.target != IGNORED)]
            assert prediction == right
            assert len(prediction) == len(record.texts)
            continue
        if kind == "similarity":
            expected = [out["last_hidden_state"][:size].mean(0) for out, size in outputs]
        else:
            expected = np.squeeze([out["logits"] for out, _ in outputs])
        np.testing.assert_allclose(prediction, expected, atol=1e-5)
        assert np.shape(prediction) == {"regression": (), "similarity": (2, 32)}.get(kind, (3,))


def knowing(kind, split):
    """What the head would say of each sequence, did it know the target."""
    said = []
    for item in split.encoded.items:
        for number, sequence in enumerate(item.sequences):
            size, target = len(sequence.input_ids), item.target
            if kind == "question_answering":
                said.append({"start": 9.0 * (np.arange(size) == target[0]), "end": 9.0 * (np.arange(size) == target[1])})
            elif kind == "tagging":
                said.append({"logits": 9 * np.eye(3)[np.maximum(target, 0)]})
            elif kind == "classification":
                said.append({"logits": 9 * np.eye(3)[[target]]})
            elif kind == "multi_label":
                said.append({"logits": 9 * target[None] - 4})
            elif kind == "regression":
                said.append({"logits": target.reshape(1, 1)})
            elif kind == "multiple_choice":
                said.append({"logits": np.array([9.0 * (number == target)])})
            else:
                angle = number * math.acos(target)
                said.append({"vectors": 3 * np.array([[math.cos(angle), math.sin(angle)]])})
    return said


@pytest.mark.parametrize("kind", HEADS)
def test_a_model_that_knows_the_targets_has_the_best_scores(kind, tokenizer, monkeypatch):
    limit, stride = (40, {"stride": 8}) if kind == "question_answering" else (24, {})  # a few windows each
    split = split_of(kind, random_records(kind, 12), tokenizer, limit=limit, **stride)
    evaluator = evaluator_of(kind, tokenizer, limit=limit)
    monkeypatch.setattr(Predictor, "run", lambda self, sequences, params: knowing(kind, split))
    scores = evaluator.scores(split, evaluator.predict(split, {}))
    if kind in ("tagging", "question_answering"):
        assert len(split.encoded.windows) > len(split.records)
    threshold, loss = scores.pop("null_threshold", -1.0), scores.pop("loss", 0.0)
    assert set(TASKS[kind].metrics) <= set(scores)
    assert scores == {name: pytest.approx(1) for name in scores}
    assert -18 < threshold < 18
    assert 0 <= loss < 0.02


def test_a_words_tag_is_that_of_its_first_token_in_the_window_with_the_most_context(tokenizer, monkeypatch):
    words = np.random.default_rng(0).choice(WORDS, 30).tolist()
    records = [Record(("bako",), None, "0", ""), Record(tuple(words), None, "1", "")]
    split = split_of("tagging", records, tokenizer, limit=20)
    windows, firsts = split.encoded.windows[1:], split.encoded.first_tokens[1]
    size = windows[-1].stop
    assert len(windows) > 3
    contexts = [[min(t - w.start, w.stop - 1 - t) if w.start <= t < w.stop else -1 for w in windows] for t in range(size)]
    homes = np.argmax(contexts, axis=1)
    tags = np.random.default_rng(1).integers(0, 3, size)

    def run(sequences, params):
        """Right at home, wrong elsewhere; special tokens, which do not count, say something too."""
        results = [{"logits": np.eye(3)[[1] * len(sequences[0].input_ids)]}]
        for number, window in enumerate(windows):
            right = [tags[t] if homes[t] == number else (tags[t] + 1) % 3 for t in range(window.start, window.stop)]
            results.append({"logits": np.eye(3)[[2, *right, 1]]})
        return results

    evaluator = evaluator_of("tagging", tokenizer, limit=20)
    monkeypatch.setattr(Predictor, "run", lambda self, *args: run(*args))
    assert evaluator.predict(split, {}) == [["B-X"], [LABELS[tags[t]] for t in firsts]]


@pytest.mark.parametrize("labels, outside", [(("B-X", "O"), "O"), (("NOUN", "VERB"), "NOUN")])
def test_words_without_tokens_are_outside(tokenizer, monkeypatch, labels, outside):
    records = [Record((" ", "bako", "\u00a0"), None, "0", ""), Record((" ",), None, "1", "")]
    split = split_of("tagging", records, tokenizer, labels)
    evaluator = evaluator_of("tagging", tokenizer, labels)
    run = lambda sequences, params: [{"logits": np.eye(2)[[labels.index(outside) ^ 1] * len(s.input_ids)]} for s in sequences]  # noqa: E731
    monkeypatch.setattr(Predictor, "run", lambda self, *args: run(*args))
    other = labels[labels.index(outside) ^ 1]
    assert evaluator.predict(split, {}) == [[outside, other, outside], [outside]]


def test_questions_are_read_by_a_model_that_is_shorter_than_the_limit(tokenizer):
    records = random_records("question_answering", 3)
    split = split_of("question_answering", records, tokenizer, limit=384)
    evaluator = evaluator_of("question_answering", tokenizer, limit=384)
    predicted = evaluator.predict(split, model_of("question_answering", tokenizer).params)
    assert all(answers[0].text in record.texts[1] for record, (answers, _) in zip(records, predicted, strict=True))


def test_texts_longer_than_the_models_pooling_reads_are_compared_whole(tokenizer):
    split = split_of("similarity", random_records("similarity"), tokenizer)
    params = model_of("similarity", tokenizer).params
    short, whole = (
        evaluator_of("similarity", tokenizer, pooling=Pooling(normalize=False, max_length=length)).predict(split, params)
        for length in (5, None)
    )
    np.testing.assert_array_equal(short, whole)


# ---- scores


def test_scores_of_classes_are_scikit_learns(tokenizer):
    rng = np.random.default_rng(0)
    logits, right = rng.normal(0, 2, (40, 2)), rng.integers(0, 2, 40)
    split = plain(*(("no", "yes")[i] for i in right))
    guessed = logits.argmax(axis=1)
    model = model_of("classification", tokenizer, ("no", "yes"))
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(right, guessed),
        "f1": sklearn.metrics.f1_score(right, guessed),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(right, guessed),
        "roc_auc": sklearn.metrics.roc_auc_score(right, logits[:, 1] - logits[:, 0]),
        "loss": sklearn.metrics.log_loss(right, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)),
    }
    scores = Evaluator(dataclasses.replace(TASKS["qqp"], metrics=tuple(expected)[:3]), model, 64).scores(split, list(logits))
    assert scores == pytest.approx(expected)
    assert list(scores) == list(expected)


def test_scores_of_choices_compare_the_choices_of_each_example(tokenizer):
    logits = [np.array([1.0, 3, 2]), np.array([5.0, 1, 1]), np.array([0.0, 0, 1])]
    scores = evaluator_of("multiple_choice", tokenizer).scores(plain(1, 1, 2), logits)
    losses = [math.log(sum(map(math.exp, row))) - row[i] for row, i in zip(logits, (1, 1, 2), strict=True)]
    assert scores == pytest.approx({"accuracy": 2 / 3, "loss": np.mean(losses)})


def test_scores_of_several_labels_are_scikit_learns(tokenizer):
    rng = np.random.default_rng(0)
    logits, right = rng.normal(0, 2, (40, 3)), rng.integers(0, 2, (40, 3))
    split = plain(*(tuple(np.array(LABELS)[row > 0]) for row in right))
    guessed, shares = (logits >= 0).astype(int), 1 / (1 + np.exp(-logits))
    expected = {
        "micro_f1": sklearn.metrics.f1_score(right, guessed, average="micro"),
        "macro_f1": sklearn.metrics.f1_score(right, guessed, average="macro"),
        "roc_auc": sklearn.metrics.roc_auc_score(right, shares, average="macro"),
        "loss": -np.mean(right * np.log(shares) + (1 - right) * np.log(1 - shares)),
    }
    evaluator = evaluator_of("multi_label", tokenizer, label_threshold=0.5)
    assert evaluator.scores(split, list(logits)) == pytest.approx(expected)


def test_thresholds_of_labels_are_tuned_on_the_dev_set_alone(tokenizer):
    """Of five rows with a label and three without each; x's logits are all low, y's are right as they are."""
    has = [("O", "B-X")] * 5 + [()] * 3
    logits = np.array([[-1.0, 3.0, -9.0]] * 5 + [[-3.0, -3.0, -9.0]] * 3)
    dev, evaluator = plain(*has), evaluator_of("multi_label", tokenizer)
    tuned = evaluator.tune([dev], {"dev": list(logits)})
    middle = np.mean(1 / (1 + np.exp([1.0, 3.0])))
    assert tuned.label_thresholds == pytest.approx((middle, 0.5, 0.5))
    assert evaluator.scores(dev, list(logits), tuned)["micro_f1"] == 1
    test = dataclasses.replace(plain(("O",), ("O",), ("O",), (), ()), name="test")
    others = list(np.array([[-1.0, -9, -9], [-1.5, -9, -9], *[[-9.0, -9, -9]] * 3]))
    assert evaluator.scores(test, others, tuned)["micro_f1"] == pytest.approx(0.8)
    given = evaluator_of("multi_label", tokenizer, label_threshold=0.3)
    assert given.tune([dev], {"dev": list(logits)}).label_thresholds == (0.3,) * 3


def test_scores_of_values_are_their_correlations_and_squared_error(tokenizer):
    rng = np.random.default_rng(0)
    right, guessed = rng.normal(size=(2, 30))
    expected = {
        "pearson": stats.pearsonr(guessed, right).statistic, "spearman": stats.spearmanr(guessed, right).statistic,
        "loss": sklearn.metrics.mean_squared_error(right, guessed),
    }  # fmt: skip
    scores = evaluator_of("regression", tokenizer).scores(plain(*right.tolist()), guessed.tolist())
    assert scores == pytest.approx(expected)


def test_scores_of_tags_are_those_of_whole_entities(tokenizer):
    split = plain(("B-X", "I-X", "O"), ("O", "B-X"))
    scores = evaluator_of("tagging", tokenizer).scores(split, [["B-X", "I-X", "O"], ["B-X", "O"]])
    assert scores == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5}


@pytest.mark.parametrize(
    "labels, right, predicted, accuracy",
    [
        (("O", "I-PER", "I-LOC"), ("I-PER", "I-PER", "O"), ("I-PER", "O", "O"), None),
        (("O", "PER-B", "PER-I"), ("PER-B", "PER-I", "O"), ("PER-B", "O", "O"), None),
        (("O", "PER", "LOC"), ("PER", "PER", "O"), ("PER", "O", "O"), 2 / 3),
        (("O", "PER", "LOC"), ("PER", "PER"), ("PER", "LOC"), 0.5),
    ],
)
def test_entities_of_any_scheme_are_scored(tokenizer, labels, right, predicted, accuracy):
    evaluator = evaluator_of("tagging", tokenizer, labels)
    scores = evaluator.scores(plain(right, right), [list(right), list(predicted)])
    expected = dict.fromkeys(("entity_f1", "entity_precision", "entity_recall"), 0.5)
    if predicted == ("PER", "LOC"):
        expected = {"entity_f1": 0.4, "entity_precision": 1 / 3, "entity_recall": 0.5}
    if accuracy is not None:
        expected["tag_accuracy"] = (1 + accuracy) / 2
    assert scores == pytest.approx(expected)
    assert evaluator.main_score(scores, None) == scores["entity_f1"]


def test_tags_that_are_not_of_entities_have_their_accuracy_and_are_compared_by_it(tokenizer):
    evaluator = evaluator_of("tagging", tokenizer, ("NOUN", "VERB"))
    scores = evaluator.scores(plain(("NOUN", "VERB", "NOUN"), ("VERB",)), [["NOUN", "NOUN", "NOUN"], ["VERB"]])
    assert scores == {"tag_accuracy": 0.75}
    assert evaluator.main_score(scores, None) == 0.75


def test_scored_pairs_have_the_correlations_of_their_cosines(tokenizer):
    vectors = [np.array(pair, float) for pair in ([[1, 0], [2, 0]], [[1, 0], [1, 1]], [[0, 1], [3, 0]], [[1, 0], [-1, 0]])]
    labels = (0.9, 0.3, 0.5, 0.1)
    scores = evaluator_of("similarity", tokenizer).scores(plain(*labels), vectors)
    cosines = [1, 2**-0.5, 0, -1]
    assert scores == pytest.approx(
        {"spearman": stats.spearmanr(cosines, labels).statistic, "pearson": stats.pearsonr(cosines, labels).statistic}
    )


def test_pairs_without_scores_are_ranked_among_all_partners(tokenizer):
    """The first finds its own first, the second its own second, the third the other copy of its own."""
    partners = ("x", "y", "z", "z")
    records = [Record((str(i), partner), None, str(i), "") for i, partner in enumerate(partners)]
    vectors = [([1, 0, 0], [9, 0, 0]), ([2, 1, 0], [0, 1, 0]), ([0, 0, 1], [0, 0, -1]), ([0, 0, 5], [0, 0, 1])]
    predicted = [np.array(pair, float) for pair in vectors]
    scores = evaluator_of("similarity", tokenizer).scores(Split("dev", records, None), predicted)
    discount = 1 / np.log2(np.arange(2, 6))
    of_copies = (discount[0] + discount[3]) / (discount[0] + discount[1])
    assert scores == pytest.approx({
        "ndcg_at_10": np.mean([1, discount[1], of_copies, of_copies]), "mrr_at_10": np.mean([1, 1 / 2, 1, 1]),
    })  # fmt: skip


def test_every_partner_of_an_anchor_is_right_for_it(tokenizer):
    """The first two rows are one anchor with two partners, which it finds in places 1 and 3 of three."""
    records = [Record(pair, None, str(i), "") for i, pair in enumerate([("a", "x"), ("a", "y"), ("b", "z")])]
    vectors = [([1, 0], [1, 0]), ([1, 0], [-1, 0.1]), ([0.0, 1], [0.1, 1])]
    scores = evaluator_of("similarity", tokenizer).scores(Split("dev", records, None), [np.array(pair) for pair in vectors])
    two_of_three = (1 + 1 / 2) / (1 + 1 / np.log2(3))
    assert scores == pytest.approx({"ndcg_at_10": (2 * two_of_three + 1) / 3, "mrr_at_10": 1})


def test_vectors_of_nothing_have_no_direction_and_no_warning(tokenizer):
    vectors = [np.zeros((2, 3)), np.ones((2, 3)), np.array([[1, 0, 0], [0, 1.0, 0]])]
    scores = evaluator_of("similarity", tokenizer).scores(plain(0.1, 0.9, 0.2), vectors)
    assert scores["spearman"] == pytest.approx(stats.spearmanr([0, 1, 0], [0.1, 0.9, 0.2]).statistic)


@pytest.mark.parametrize("kind", HEADS)
def test_scores_of_a_split_that_is_labelled_in_part_are_those_of_that_part(kind, tokenizer):
    records = random_records(kind, 9)
    partly = [dataclasses.replace(record, label=None) if i in (1, 4, 8) else record for i, record in enumerate(records)]
    of_part = [record for record in partly if record.label is not None]
    evaluator, params = evaluator_of(kind, tokenizer), params_of(HEADS[kind], len(LABELS) if kind in NAMED else 1)
    splits = [split_of(kind, some, tokenizer) for some in (partly, of_part)]
    assert [split.labelled for split in splits] == [6, 6]
    found, expected = (evaluator.scores(split, evaluator.predict(split, params)) for split in splits)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert ("loss" in found) == (kind != "similarity")


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "similarity"])
def test_a_split_without_any_label_cannot_be_scored(kind, tokenizer):
    records = [dataclasses.replace(record, label=None) for record in random_records(kind, 3)]
    with pytest.raises(InputError, match=r"dev.tsv:2 has no label, nor has any other row: dev cannot be scored"):
        evaluator_of(kind, tokenizer).scores(Split("dev", records, None), [None] * 3)
    assert not Split("dev", records, None).labelled


def test_a_prediction_too_few_is_never_passed_over(tokenizer):
    with pytest.raises(AssertionError, match="2 predictions of 3 examples"):
        evaluator_of("regression", tokenizer).scores(plain(1.0, 2.0, 3.0), [1.0, 2.0])


# ---- questions


def answered(*odds, texts=("a", "b", "c", "d")):
    """For each question its candidates, the best a text, and a logit of no answer that is above its by `odds`."""
    return [([Answer(text, 0, 1, 0.0, 1.0), Answer("zzz", 0, 1, 0.0, 0.0)], 1.0 + x) for text, x in zip(texts, odds, strict=True)]


def questions(*answers):
    return Split("dev", labelled(*(tuple((text, 0) for text in each) for each in answers)), None)


def test_where_all_dev_questions_have_answers_no_answer_is_never_given_unless_asked_for(tokenizer):
    split, predicted = questions(["a"], ["b", "x"], ["y"], ["d d"]), answered(9, 9, 9, 9)
    scores = evaluator_of("question_answering", tokenizer).scores(split, predicted)
    assert scores == pytest.approx({"exact_match": 0.5, "f1": (1 + 1 + 0 + 2 / 3) / 4})
    given = evaluator_of("question_answering", tokenizer, null_threshold=5.0).scores(split, predicted)
    assert given == {"exact_match": 0.25, "f1": 0.25, "null_threshold": 5.0}  # an article is no answer


def test_the_threshold_of_no_answer_is_the_best_on_the_split_unless_it_is_given(tokenizer):
    split, predicted = questions(["a"], ["b"], [], []), answered(-1, 1, 3, 2)
    tuned = evaluator_of("question_answering", tokenizer).scores(split, predicted)
    assert tuned["null_threshold"] == 1.5
    assert (tuned["f1"], tuned["HasAns_f1"], tuned["NoAns_f1"]) == (1, 1, 1)
    given = evaluator_of("question_answering", tokenizer, null_threshold=0.0).scores(split, predicted)
    assert given["null_threshold"] == 0
    assert (given["f1"], given["HasAns_f1"], given["NoAns_f1"]) == (0.75, 0.5, 1)


def test_the_threshold_of_no_answer_is_tuned_on_dev_and_holds_for_test(tokenizer):
    evaluator = evaluator_of("question_answering", tokenizer)
    dev, test = questions(["b"], []), dataclasses.replace(questions(["b"], []), name="test")
    tuned = evaluator.tune([dev], {"dev": answered(-6, -4, texts=("b", "c"))})
    assert tuned.null_threshold == -5
    scores = evaluator.scores(test, answered(-3, -1, texts=("b", "c")), tuned)
    assert scores == {
        "exact_match": 0.5, "f1": 0.5, "HasAns_exact_match": 0, "HasAns_f1": 0, "NoAns_exact_match": 1, "NoAns_f1": 1,
        "null_threshold": -5,
    }  # fmt: skip


def test_a_question_without_any_candidate_has_no_answer(tokenizer):
    split, predicted = questions(["a"], []), [*answered(-1, texts=("a",)), ([], -3.0)]
    assert answers(Predicted(split, predicted, (), Tuned())) == ({"0": "a", "1": ""}, {"0": -1.0, "1": 1e9})
    assert evaluator_of("question_answering", tokenizer).scores(split, predicted)["f1"] == 1


def test_tags_and_answers_have_their_mean_loss_too(tokenizer, monkeypatch):
    """Of each word once, and of both ends of an answer in each window; a model that knows nothing gives log(n)."""
    for kind, limit, stride in (("tagging", 12, {}), ("question_answering", 40, {"stride": 8})):
        split = split_of(kind, random_records(kind), tokenizer, limit=limit, **stride)
        evaluator = evaluator_of(kind, tokenizer)
        sizes = [len(item.sequences[0].input_ids) for item in split.encoded.items]
        assert len(sizes) > len(split.records)
        logits = {"logits": 3} if kind == "tagging" else {"start": (), "end": ()}
        known = [{name: np.zeros((size, of) if of else size, np.float32) for name, of in logits.items()} for size in sizes]
        monkeypatch.setattr(Predictor, "run", lambda self, sequences, params, known=known: known)
        expected = math.log(3) if kind == "tagging" else np.mean(np.log(sizes))
        assert evaluator.scores(split, evaluator.predict(split, {}))["loss"] == pytest.approx(expected)
        if kind == "tagging":  # e to one tag, of which the words that have it count
            rows = np.concatenate([item.target for item in split.encoded.items])
            known[:] = [{"logits": np.eye(3, dtype=np.float32)[np.zeros(size, int)]} for size in sizes]
            share = np.mean(rows[rows != IGNORED] == 0)
            assert evaluator.predict(split, {}).loss == pytest.approx(math.log(math.e + 2) - share)
            assert np.sum(rows != IGNORED) == sum(len(record.texts) for record in split.records)
        none = [dataclasses.replace(record, label=None) for record in split.records]
        unlabelled = split_of(kind, none, tokenizer, limit=limit, **stride)
        assert evaluator.predict(unlabelled, {}).loss is None


# ---- what checkpoints are compared by


def test_checkpoints_are_compared_by_the_mean_of_the_tasks_metrics_or_the_one_that_is_named(tokenizer):
    evaluator = evaluator_of("regression", tokenizer)
    scores = {"pearson": 0.5, "spearman": 0.7, "loss": 2.0}
    assert evaluator.main_score(scores, None) == pytest.approx(0.6)
    assert evaluator.main_score(scores, "spearman") == 0.7
    assert evaluator.main_score(scores, "loss") == -2.0
    with pytest.raises(InputError, match=r"--metric f1 is not among the metrics of this task: pearson, spearman, loss"):
        evaluator.main_score(scores, "f1")


def test_pairs_without_scores_are_compared_by_their_ranking(tokenizer):
    assert evaluator_of("similarity", tokenizer).main_score({"ndcg_at_10": 0.4, "mrr_at_10": 0.3}, None) == 0.4
    assert evaluator_of("similarity", tokenizer).main_score({"spearman": 0.8, "pearson": 0.3}, None) == 0.8
