"""Ten steps of fine-tuning give the losses of transformers under torch.optim.AdamW, for every kind that has a head there."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import make_words

from bert_jax import pretrained
from bert_jax.config import BertConfig, ParallelConfig
from bert_jax.data.records import Record
from bert_jax.finetuning import runs, stages
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.model.heads import Bert, initialize
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.table import TASKS
from bert_jax.training.contrastive import contrastive_loss, known_of_pairs

pytestmark = pytest.mark.parity
WORDS = make_words(60)
STEPS, RATE = 10, 2e-3
CFG = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                 initializer_range=0.1)  # fmt: skip


def text(rng, least=2):
    return " ".join(rng.choice(WORDS, rng.integers(least, 9)))


def record(kind, rng, number):
    if kind == "question_answering":
        context = text(rng, 4)
        answer = context.split()[1]
        return Record((text(rng), context), ((answer, context.index(answer)),), str(number), f"row {number}")
    if kind == "tagging":
        words = tuple(text(rng).split())
        return Record(words, tuple(rng.choice(["O", "B-X", "I-X"], len(words))), str(number), f"row {number}")
    labels = {
        "classification": lambda: str(rng.choice(["a", "b", "c"])),
        "multi_label": lambda: tuple(name for name in "abc" if rng.random() < 0.5),
        "regression": lambda: float(rng.random() * 5),
        "multiple_choice": lambda: int(rng.integers(3)),
    }
    texts = {"multiple_choice": 4, "regression": 2}.get(kind, 1)
    return Record(tuple(text(rng) for _ in range(texts)), labels[kind](), str(number), f"row {number}")


def prepare(kind, tokenizer, folder):
    """The trainer of a run of ten steps on a small model, with the losses' rows as they come."""
    rng = np.random.default_rng(1)
    records = [record(kind, rng, number) for number in range(24)]
    labels = {"classification": ("a", "b", "c"), "multi_label": ("a", "b", "c"), "tagging": ("O", "B-X", "I-X")}.get(kind, ())
    params = jax.jit(lambda: initialize(Bert(CFG, "masked_lm"), 0))()
    pretrained.save(pretrained.Model(CFG, params, tokenizer, "masked_lm"), folder / "model")
    cfg = FinetuneConfig(
        model=str(folder / "model"), task=kind, batch_size=8, num_epochs=STEPS / 3, learning_rates=(RATE,), max_seq_length=48,
        dropout=0.0, warmup_ratio=0.2, eps=1e-8, weight_decay=0.0, parallel=ParallelConfig(num_devices=1), workdir=str(folder),
    )  # fmt: skip
    splits = Splits(records, {}, {}, labels, [], "")
    setting, _ = stages.prepare(cfg, TASKS[kind], splits, lambda line: None)
    assert setting.num_steps == STEPS
    return setting


def our_losses(setting, folder):
    run = runs.Runs(setting, [runs.Member(0, RATE)], folder / "run")
    state, step, losses = run.initial(), run.train_step(), []
    for number in range(STEPS):
        state, metrics = step(state, setting.batches.train([0], number))
        losses.append(float(metrics["loss"]))
    return losses


def padded(sequences, pad_id):
    """input_ids, attention_mask and token_type_ids of sequences, as tensors [B, L]."""
    import torch

    longest = max(len(s.input_ids) for s in sequences)

    def rows(name, fill):
        values = [np.pad(getattr(s, name), (0, longest - len(s.input_ids)), constant_values=fill) for s in sequences]
        return torch.from_numpy(np.stack(values)).long()

    mask = torch.tensor([[1] * len(s.input_ids) + [0] * (longest - len(s.input_ids)) for s in sequences])
    return {"input_ids": rows("input_ids", pad_id), "token_type_ids": rows("token_type_ids", 0), "attention_mask": mask}


def their_loss(model, kind, items, pad_id):
    import torch

    batch = padded([s for item in items for s in item.sequences], pad_id)
    targets = [torch.from_numpy(np.asarray(item.target)) for item in items]
    if kind == "multiple_choice":
        choices = {name: value.reshape(len(items), -1, value.shape[-1]) for name, value in batch.items()}
        return model(**choices, labels=torch.stack(targets).long()).loss
    if kind == "tagging":
        labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100).long()
        return model(**batch, labels=labels).loss
    if kind == "question_answering":  # by hand: transformers' own loss gives padding a share
        out = model(**batch)
        hidden = (1 - batch["attention_mask"]) * -1e9
        where = torch.stack(targets).long()
        logits = (out.start_logits + hidden, out.end_logits + hidden)
        return sum(torch.nn.functional.cross_entropy(x, where[:, i]) for i, x in enumerate(logits)) / 2
    labels = torch.stack(targets)
    return model(**batch, labels=labels.long() if kind == "classification" else labels.float()).loss


def their_losses(setting, folder):
    import torch
    import transformers

    model = dataclasses.replace(setting.start.model, params=setting.start.params(0))
    pretrained.save(model, folder / "headed")
    kinds = {"tagging": "TokenClassification", "question_answering": "QuestionAnswering", "multiple_choice": "MultipleChoice"}
    kind = setting.task.kind.name
    auto = getattr(transformers, f"AutoModelFor{kinds.get(kind, 'SequenceClassification')}")
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs = auto.from_pretrained(folder / "headed", **no_dropout).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=RATE, eps=1e-8, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.2 * STEPS), STEPS)
    losses = []
    for number in range(STEPS):
        items = [setting.batches.items[i] for i in setting.batches.order(0, number)]
        loss = their_loss(theirs, kind, items, model.tokenizer.pad_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


KINDS = ("classification", "tagging", "question_answering")
MORE_KINDS = ("multi_label", "regression", "multiple_choice")  # whose losses test_losses.py holds against NumPy, too


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.parity_more) for kind in MORE_KINDS)])
def test_losses_of_ten_steps_are_those_of_transformers(kind, tokenizer, tmp_path: Path):
    setting = prepare(kind, tokenizer, tmp_path)
    ours, theirs = our_losses(setting, tmp_path), their_losses(setting, tmp_path)
    assert abs(ours[-1] - ours[0]) > 1e-3  # it moved
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize("columns", [2, 3])
def test_the_ranking_loss_of_a_batch_without_copies_is_that_of_sentence_transformers(columns):
    """A batch as NoDuplicatesBatchSampler makes it; of copies, tests/test_losses.py has what is left of the softmax."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    vectors = np.random.default_rng(0).normal(size=(columns, 6, 16)).astype(np.float32)
    loss = theirs.MultipleNegativesRankingLoss(model=None, scale=20.0)
    expected = loss.compute_loss_from_embeddings(list(map(torch.from_numpy, vectors)), None)
    known = known_of_pairs(np.arange(columns * 6, dtype=np.int32).reshape(6, columns))
    found = contrastive_loss(vectors[0], np.stack(vectors[1:], axis=1), np.ones(6, np.float32), known=known)
    np.testing.assert_allclose(found.mean(), expected.item(), rtol=1e-5)
