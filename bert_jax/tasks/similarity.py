"""The kind for pairs and triplets of texts: embeddings whose cosines are the similarity of the texts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.batching import PackedBatch
from bert_jax.data.finetuning import Item, per_item
from bert_jax.data.layout import Text
from bert_jax.data.records import Record, labels_of, numbered, texts_of, with_labels
from bert_jax.errors import InputError
from bert_jax.inference import Embedder, nearest, sentence_vectors
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.common import Numbers, by_item, check_same_size, of_items, one_place, temperature_of
from bert_jax.tasks.figures import Chart, Figure, Listing, example_cells, furthest, highest
from bert_jax.tasks.kind import Predict
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import PAIRS
from bert_jax.tasks.predictions import write_table
from bert_jax.tasks.split import Predicted, Predictions
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task
from bert_jax.training import losses
from bert_jax.training.contrastive import contrastive_loss, known_of_pairs
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch


class Similarity(Numbers[np.ndarray]):
    """Embeddings of texts. A prediction is float32 vectors [k, D], one for each of the k texts of a record."""

    name = "similarity"
    head = "encoder"
    options = frozenset(["loss", "chunk_size", "learn_temperature"])
    needs_all_rows = True
    reads_every_token = True
    scores_unlabelled = True
    num_texts = (2, 3)
    usual_texts = (("anchor", "positive", "negative"), ("anchor", "positive"), *PAIRS)
    unlabelled_texts: Mapping[int, str] = {3: "three texts are an anchor, a positive and a negative, and have no label"}
    labels_are_optional = True

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        """Chooses the loss for the rows, and scales the scores of pairs to the range of cosines."""
        check_same_size(train)
        if not train:
            return options, train, []
        options = dataclasses.replace(options, loss=_loss_for(train, options.loss))
        if options.learn_temperature and options.loss != "ranking":
            raise InputError(f"learn_temperature: the {options.loss} loss has no temperature, only loss='ranking': leave it out")
        scores = labels_of(train)
        if options.loss != "cosine" or (most := max(map(abs, scores))) <= 1:
            return options, train, []
        note = f"scores reach {most:g}: they are divided by it, because cosines reach 1"
        return options, with_labels(train, [score / most for score in scores]), [note]

    def adapt(self, model: Model, limit: int, task: Task, splits: Splits, options: Options) -> tuple[Model, list[str]]:
        """Returns the model with the length of training, which Embedder uses."""
        pooling = dataclasses.replace(pooling_of(model), max_length=limit)
        return dataclasses.replace(model, pooling=pooling), pooling_notes(pooling)

    def sequences(self, texts: tuple[str, ...]) -> list[Text]:
        return list(texts)

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        """Adds int32 `text_ids` [N, k]: texts of the batch with the same tokens have the same id, and -1 is no text."""
        ids = numbered(text.input_ids.tobytes() for item in items for text in item.sequences).reshape(len(items), -1)
        text_ids = np.pad(ids, ((0, count - len(items)), (0, 0)), constant_values=-1)
        return per_item(items, packed, count) | {"text_ids": text_ids}

    def reduce(self, outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
        """Returns `vectors` [B, S, D] of the sequences."""
        return sequence_vectors(outputs, rows, model)

    def least_batch(self, options: Options, train: Sequence[Record]) -> int:
        """Returns 2 for pairs that learn from the other rows of a batch."""
        return 2 if options.loss == "ranking" and len(next(texts_of(train))) == 2 else 1

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        parts = jnp.moveaxis(of_items(outputs["vectors"], batch), 1, 0)
        return {"similarity_loss": _loss(parts, batch, options)}

    def predictor(self, model: Model, limit: int) -> Predict[np.ndarray]:
        embedder = Embedder(model, dataclasses.replace(pooling_of(model), max_length=None))  # the texts are already cut
        return lambda split, params: Predictions(by_item(one_place(embedder, split, params), split))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[np.ndarray]:
        return Predictions(np.zeros((len(records), 2, 1)))

    def scores(self, predicted: Predicted[np.ndarray], metrics: Sequence[str]) -> dict[str, float]:
        """Scores labelled pairs by the correlation of their cosines, others by the rank of the partner of each text."""
        anchors, partners = (np.array([vectors[i] for vectors in predicted.values]) for i in (0, 1))
        anchors, partners = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (anchors, partners))
        if predicted.split.labelled:
            cosines = (anchors * partners).sum(axis=-1)
            return {name: scoring.METRICS[name](cosines, predicted.right) for name in ("spearman", "pearson")}
        return _ranks(anchors, partners, *([record.texts[i] for record in predicted.records] for i in (0, 1)))

    def write(self, folder: Path, predicted: Predicted[np.ndarray]) -> Path:
        """Writes NAME.tsv: the cosine of the first two texts of each row."""
        return write_table(folder, predicted, ((f"{_cosine(vectors[0], vectors[1]):.6g}", []) for vectors in predicted.values))

    def mistakes(self, predicted: Predicted[np.ndarray], details: Details) -> list[Figure]:
        """Returns the pairs whose cosines differ most in rank from the labels; without labels, those of the lowest cosine."""
        cosines = np.array([_cosine(vectors[0], vectors[1]) for vectors in predicted.values])
        records = predicted.records
        if not predicted.split.labelled:
            rows = [[*example_cells(records[i], records[i].texts[:2]), float(cosines[i])] for i in highest(cosines < 1, -cosines)]
            return [Listing("Pairs with the lowest cosine", ["id", "text", "cosine"], rows)]
        from scipy.stats import rankdata  # type: ignore[import-untyped]  # here: it takes half a second to import

        right = np.array(predicted.right, np.float64)
        off = (rankdata(cosines) - rankdata(right)) / len(right)
        table = furthest("Largest differences of ranks, as shares of all pairs", records, right, cosines, off)
        return [Chart(np.array([right, cosines]), "right", "cosine"), table]


def _loss_for(train: Sequence[Record], given: str) -> str:
    """Returns the loss for labelled pairs, other pairs or triplets. Raises InputError if `given` does not fit."""
    triplets = len(train[0].texts) == 3
    fitting = "cosine" if train[0].label is not None else "triplet" if triplets else "ranking"
    allowed = {fitting, "ranking"} if triplets else {fitting}
    loss = fitting if given == "auto" else given
    if loss not in allowed:
        raise InputError(f"loss={loss!r} does not fit the training data: give --loss {' or '.join(sorted(allowed))}")
    return loss


def _loss(parts: jax.Array, batch: Batch, options: Options) -> Sum:
    """Returns the loss of vectors [k, N, D]."""
    labels, weights = batch["labels"], batch["weights"]
    if options.loss == "cosine":
        return losses.cosine_error(parts[0], parts[1], labels, weights)
    if options.loss == "triplet":
        return losses.triplet_loss(parts[0], parts[1], parts[2], weights)
    known = known_of_pairs(batch["text_ids"])
    return contrastive_loss(parts[0], jnp.stack(parts[1:], axis=1), weights, temperature_of(batch, options), known=known)


def _ranks(anchors: np.ndarray, partners: np.ndarray, texts: list[str], own: list[str]) -> dict[str, float]:
    """Scores the ranks of the partners of each text among all partners; vectors are [N, D] and of length 1."""
    right: dict[str, set[str]] = {}  # all partners of a text are right, each as often as it occurs
    for text, partner in zip(texts, own, strict=True):
        right.setdefault(text, set()).add(partner)
    times, (_, found) = Counter(own), nearest(anchors, partners, 10)
    ranked = [[float(own[j] in right[text]) for j in row] for text, row in zip(texts, found.tolist(), strict=True)]
    judged = [[1.0] * sum(times[partner] for partner in right[text]) for text in texts]
    return {"ndcg_at_10": scoring.ndcg_at_10(ranked, judged), "mrr_at_10": scoring.mrr_at_10(ranked, judged)}


def sequence_vectors(outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
    """Returns `vectors` [B, S, D], pooled and not normalized: the losses do that."""
    pooling = dataclasses.replace(pooling_of(model), normalize=False)
    hidden, firsts = outputs["last_hidden_state"], rows["cls_positions"]
    return {"vectors": sentence_vectors(pooling, pooling.arrays, hidden, rows["sequence_ids"], firsts)}


def pooling_of(model: Model) -> Pooling:
    """Returns the pooling of a model that `load_for_task` read for embeddings."""
    assert isinstance(model.pooling, Pooling)
    return model.pooling


def pooling_notes(pooling: Pooling) -> list[str]:
    """Returns a line for each part of sentence-transformers' files around the encoder: what training does with it."""
    notes = []
    if pooling.dense:
        notes.append(f"{', '.join(map(str, pooling.dense))} after the pooling: used unchanged, not trained")
    if pooling.truncate_dim:
        notes.append(f"embeddings are cut to their first {pooling.truncate_dim} values (truncate_dim), also in training")
    if pooling.prompt:
        notes.append(f"the model's default prompt {pooling.prompt!r} is added before each text")
    if others := [name for name, prompt in pooling.prompts.items() if prompt and prompt != pooling.prompt]:
        notes.append(f"the model's prompts {', '.join(others)} are kept, but added to no text: give texts that have them")
    return notes


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the cosine of two vectors [D]."""
    return float(a @ b / max(1e-12, float(np.linalg.norm(a) * np.linalg.norm(b))))
