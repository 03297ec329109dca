"""Features of each token."""

from collections import Counter

import numpy as np
import pytest
from inference_models import TEXTS, alone, run

from bert_jax.data.batching import Example, batches
from bert_jax.data.layout import cut_windows


def test_hidden_states_and_attentions_of_packed_rows_are_those_of_each_alone(embedder):
    model = embedder.model
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(5, 280, n).astype(np.int32), np.zeros(n, np.int32), np.zeros(1, np.int32)) for n in (70, 9, 10, 7)
    ]
    (batch,) = batches(examples, 96, 2048, lambda n: n // 4, 0)
    assert len({place.row for place in batch.places}) == 1
    flags = dict(output_hidden_states=True, output_attentions=True)
    packed = run(model, batch.arrays, **flags)
    assert len(packed["hidden_states"]) == 3
    assert len(packed["attentions"]) == 2
    for place in batch.places:
        size = len(examples[place.example].input_ids)
        single = run(model, alone(examples[place.example].input_ids), **flags)
        for mine, its in zip(packed["hidden_states"], single["hidden_states"], strict=True):
            np.testing.assert_allclose(mine[place.row, place.tokens], its[0, :size], atol=1e-5)
        for mine, its in zip(packed["attentions"], single["attentions"], strict=True):
            np.testing.assert_allclose(mine[place.row, :, place.tokens, place.tokens], its[0, :, :size, :size], atol=1e-5)
            np.testing.assert_allclose(mine[place.row, :, place.tokens].sum(), 2 * size, rtol=1e-5)  # nothing outside
            np.testing.assert_allclose(mine[place.row, :, place.tokens, place.tokens].sum(), 2 * size, rtol=1e-5)
    np.testing.assert_array_equal(packed["hidden_states"][-1], packed["last_hidden_state"])


def test_windows_hold_every_token_and_are_of_the_size():
    for size, room, stride in [(0, 5, 2), (5, 5, 2), (6, 5, 2), (100, 7, 7), (100, 7, 1), (3, 7, 3)]:
        windows = cut_windows(4, size, room, stride)
        seen = Counter(i for w in windows for i in range(w.start, w.stop))
        assert set(seen) == set(range(size))
        assert all(w.stop - w.start <= room and w.text == 4 for w in windows)


def every_answer(predictor, question, context):
    """What run_squad.py would rank, from the model itself: each span of each window whose start has most context there."""
    model, t = predictor.model, predictor.tokenizer
    (question_ids,) = t.encode_batch([question])
    (encoding,) = t.encode_with_offsets([context])
    room = predictor.max_length - len(question_ids) - 3
    starts = [0]
    while starts[-1] + room < len(encoding.ids):
        starts.append(starts[-1] + predictor.stride)
    windows = [(a, min(a + room, len(encoding.ids))) for a in starts]
    found = {}
    for number, (a, b) in enumerate(windows):
        ids = np.array([t.cls_id, *question_ids, t.sep_id, *encoding.ids[a:b], t.sep_id])
        behind = len(question_ids) + 2
        types = (np.arange(96) >= behind) & (np.arange(96) < len(ids))
        outputs = run(model, alone(ids) | {"token_type_ids": types[None].astype(np.int32)})
        start, end = (outputs[name][0, behind : behind + b - a] for name in ("start_logits", "end_logits"))
        for i in range(b - a):
            context_of = [min(a + i - c, d - 1 - a - i) if c <= a + i < d else -1 for c, d in windows]
            if int(np.argmax(context_of)) != number:
                continue
            for j in range(i, min(i + predictor.max_answer_length, b - a)):
                span = int(encoding.offsets[a + i, 0]), int(encoding.offsets[a + j, 1])
                if span[0] < span[1]:
                    found[span] = max(found.get(span, -np.inf), float(start[i] + end[j]))
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("length", [1, 3, 9], ids=["one window", "some", "many"])
def test_answers_are_those_that_a_search_through_all_spans_finds(answerer, length):
    question, context = "bako tine rodusi?", " ".join(TEXTS[4 : 4 + length])
    expected = every_answer(answerer, question, context)[:3]
    (got,) = answerer([(question, context)])
    assert [(answer.start, answer.end) for answer in got] == [span for span, _ in expected]
    np.testing.assert_allclose([answer.logit for answer in got], [logit for _, logit in expected], atol=1e-4)
