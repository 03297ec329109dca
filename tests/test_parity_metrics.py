"""Entities and their scores against seqeval's, in its default mode and, for BILOU, its strict one."""

import random
import warnings

import pytest

from bert_jax.tasks.metrics import entities, entity_f1, entity_precision, entity_recall, entity_report, tag_accuracy

pytestmark = pytest.mark.parity

TYPES = ["", "-", "-PER", "-LOC", "-work-of-art", "-work", "-B", "--", "-_", "-O"]


def random_tags(rng, prefixes="BIES"):
    """Up to 12 tags, any after any, few types in one sentence so that neighbours often have the same."""
    types = rng.sample(TYPES, rng.randint(1, 3))
    return [rng.choice(["O", *(prefix + rng.choice(types) for prefix in prefixes)]) for _ in range(rng.randint(0, 12))]


def well_formed_bilou(rng):
    """A sentence in BILOU and its entities."""
    tags, found = [], []
    for _ in range(rng.randint(0, 6)):
        kind, length = rng.choice(["PER", "LOC", "work-of-art"]), rng.randint(0, 4)
        if length == 0:
            tags.append("O")
            continue
        found.append((kind, len(tags), len(tags) + length - 1))
        tags += [f"U-{kind}"] if length == 1 else [f"B-{kind}", *[f"I-{kind}"] * (length - 2), f"L-{kind}"]
    return tags, found


def test_entities_of_random_tags_are_those_of_seqeval():
    from seqeval.metrics.sequence_labeling import get_entities

    rng = random.Random(0)
    sentences = [random_tags(rng, prefixes) for prefixes in ("BI", "I", "BIES", "ES") for _ in range(5000)]
    assert len({tuple(tags) for tags in sentences}) > 10_000
    for tags in sentences:
        assert entities(tags) == get_entities(tags), tags


def test_malformed_bilou_is_taken_as_seqeval_takes_bioes():
    from seqeval.metrics.sequence_labeling import get_entities

    rng = random.Random(1)
    for _ in range(5000):
        tags = random_tags(rng, "BILU")
        assert entities(tags) == get_entities([{"L": "E", "U": "S"}.get(tag[0], tag[0]) + tag[1:] for tag in tags]), tags


def test_entities_of_well_formed_bilou_are_those_of_seqevals_strict_mode():
    from seqeval.scheme import BILOU, Entities

    rng = random.Random(2)
    for _ in range(2000):
        tags, expected = well_formed_bilou(rng)
        theirs = [(entity.tag, entity.start, entity.end - 1) for entity in Entities([tags], BILOU).entities[0]]
        assert entities(tags) == theirs == expected, tags


def test_scores_of_random_tags_are_those_of_seqeval():
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support

    rng = random.Random(3)
    for _ in range(500):
        targets = [random_tags(rng) for _ in range(rng.randint(1, 5))] + [["O"]]
        predictions = [[rng.choice([tag, tag, tag, "O", "B-PER", "I-LOC"]) for tag in tags] for tags in targets]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where a score is 0 / 0
            micro = precision_recall_fscore_support(targets, predictions, average="micro")
            each = precision_recall_fscore_support(targets, predictions, average=None)
        ours = [metric(predictions, targets) for metric in (entity_precision, entity_recall, entity_f1)]
        assert ours == pytest.approx(micro[:3])
        assert tag_accuracy(predictions, targets) == pytest.approx(accuracy_score(targets, predictions))
        report = list(entity_report(predictions, targets).values())
        for i, name in enumerate(("precision", "recall", "f1", "support")):
            assert [scores[name] for scores in report] == pytest.approx(list(each[i]))
