"""Predictions: lists in, lists out in the same order, any length mix; few compiled shapes and little padding."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import InputError
from bert_jax.data.batching import Example, PackedBatch, batches, exact_batches
from bert_jax.data.layout import Layout, Reading, Text, Window, cut_windows, most_context, read_windows
from bert_jax.data.tags import entity_tags
from bert_jax.data.tokenizer import Encoding
from bert_jax.model.heads import TORCH_ACTIVATIONS, pool
from bert_jax.pooling import Pooling, activation_name
from bert_jax.pretrained import Model, ProblemType

_MASKS = 4  # of a text that are filled at once
_IN_FLIGHT = 4  # batches that are sent ahead of the one whose results are read


class Predictor:
    """What all predictors share: the jitted function, the tokenizer's layout of an example, and running a list of them.

    Predictors can be pickled, to be sent to other processes; each of those compiles for itself.

    A subclass gives `_outputs(params, batch)`: float arrays by name, [B, S, ...] for the places that the head runs at, or
    [B, L, ...] for every token if the name is in `per_token`.

    With `exact`, what is said of a text depends, to the last bit, on the model, the text and the machine alone, never on the
    other texts of a list, their order, or the number of threads and devices. Every text is then computed in a row of its own,
    in a batch whose shape follows from the text's length. docs/numerics.md says what it costs and what is not promised.

    `max_length`: tokens that are read at a time, special ones included; default: as many as in fine-tuning, else as many as the
    model takes.
    """

    per_token: frozenset[str] = frozenset()
    most_places = 1  # of an example, that the head runs at
    needs: tuple[str, ...] = ()  # heads that it works with; empty: all

    def __init__(self, model: Model, exact: bool = False, max_length: int | None = None) -> None:
        tokenizer = model.need_tokenizer()
        if self.needs and model.head not in self.needs:
            heads, advice = " or ".join(self.needs), "" if "masked_lm" in self.needs else ": finetune.py makes such a model of it"
            raise InputError(f"{type(self).__name__} needs a model with the head {heads}; this one has {model.head!r}{advice}")
        if self.needs and model.untrained and (warning := model.untrained.warning(model.params)):
            warnings.warn(warning, stacklevel=3)
        self.model, self.tokenizer = model, tokenizer
        self._layout = Layout(tokenizer, model.config)
        if max_length is not None and max_length <= len(self.tokenizer.pair):
            raise InputError(f"max_length={max_length} leaves no room for a text")
        self._longest = min(max_length or model.max_length, model.config.max_length)
        self._compile()
        self.exact, on_cpu = exact, jax.default_backend() == "cpu"
        self._tokens = 1024 if on_cpu else 16384  # a batch; on CPUs it should stay in the caches
        self._exact_tokens = 256 if on_cpu else 2048  # fewer: a lone text takes a whole batch

    def _compile(self) -> None:
        self._params = jax.device_put(self.model.params)
        self._run_batch = jax.jit(self._outputs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_params", "_run_batch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        raise NotImplementedError

    def _slots(self, length: int) -> int:
        """Places of a row of `length` tokens that the head runs at."""
        return max(1, length // 4)

    def run(self, examples: Sequence[Example], params: Any = None) -> list[dict[str, np.ndarray]]:
        """What `_outputs` says of each example: [k, ...] at its places, [n, ...] for its tokens.

        `params` are used instead of the model's, as while it is trained.
        """
        params = self._params if params is None else params
        results: list[dict[str, np.ndarray]] = [{} for _ in examples]
        flying: deque[tuple[PackedBatch, dict[str, jax.Array]]] = deque()

        def land() -> None:
            batch, outputs = flying.popleft()
            arrays = jax.device_get(outputs)
            for place in batch.places:
                results[place.example] = {
                    name: array[place.row, place.tokens if name in self.per_token else place.slots].copy()  # not the whole batch
                    for name, array in arrays.items()
                }

        cfg, pad_id = self.model.config, self.tokenizer.pad_id
        pad_id = pad_id if pad_id < cfg.vocab_size else 0  # one past the table would be NaN, and spread
        # float32 means float32: TPUs and GPUs would multiply in less, and the numbers would not be those of the model's makers
        precise = jax.default_matmul_precision("highest") if cfg.dtype == "float32" else contextlib.nullcontext()
        packed = batches(examples, self._longest, self._tokens, self._slots, pad_id)
        for batch in exact_batches(examples, self._exact_tokens, self.most_places, pad_id) if self.exact else packed:
            with precise:
                outputs = self._run_batch(params, batch.arrays | {"places": batch.positions})
            flying.append((batch, outputs))
            if len(flying) > _IN_FLIGHT:
                land()
        while flying:
            land()
        return results

    def _encode(self, texts: Sequence[Text], limit: int | None = None) -> list[Example]:
        """An example each, cut to what the model takes with a warning that says how many were."""
        for i, text in enumerate(texts):
            if isinstance(text, (tuple, list)) and not _is_pair(text):
                raise InputError(f"texts[{i}] is {str(text)[:60]!r}; expected a text, or a tuple of two texts")
        limit = min(limit or self._longest, self.model.config.max_length)
        examples, lost = self._layout.examples(texts, limit)
        if lost:
            warnings.warn(
                f"{lost} of {len(texts)} texts have more than {limit} tokens; what is past them was not read", stacklevel=3
            )
        return examples


def _is_pair(text: Any) -> bool:
    return isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text)


def _as_list(texts: Any, what: str = "texts") -> list[Any]:
    """The list; a lone text would be read as a list of its letters."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise InputError(f"{what} is a {type(texts).__name__}; expected a list, such as [{'text'!r}]")
    return list(texts)


# --- masked LM ---


class Filling(NamedTuple):
    """One candidate for a mask: the token, its probability, the text with it in place, and which mask of the text it is for."""

    token: str
    score: float
    text: str
    mask: int = 0


class FillMask(Predictor):
    """The likeliest tokens for each mask (`[MASK]`, `<mask>`: the tokenizer's `mask_token`) of each text.

    Special tokens in a text are read as such, whatever the tokenizer's `special_tokens`: the mask is one.
    """

    needs = ("masked_lm", "pretraining")
    most_places = _MASKS

    def __init__(
        self, model: Model, top_k: int = 5, targets: Sequence[str] | None = None, *, max_length: int | None = None,
        exact: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
          model: one with a masked-LM head.
          top_k: candidates for each mask; at most as many as there are.
          targets: the only candidates, each a token of the model, as a word, inside of one, or by its name in the vocabulary;
            their scores are shares of the whole vocabulary, as without targets. Default: every token.
          max_length: tokens that are read around a mask (`Predictor`).
          exact: same text, same bits (`Predictor`).

        Raises InputError for a target that is no single token.
        """
        super().__init__(model, exact, max_length)
        self.tokenizer = self.tokenizer.replace(special_tokens="read")
        self._layout = Layout(self.tokenizer, model.config)
        most = min(model.config.vocab_size, self.tokenizer.vocab_size)
        if not 1 <= top_k <= most:
            raise InputError(f"top_k={top_k} is not in [1, {most}]")
        self._allowed = np.arange(model.config.vocab_size) < most  # the table may be padded
        if targets is not None:
            ids = [id for target in _as_list(targets, "targets") for id in self._target_ids(target)]
            self._allowed &= np.isin(np.arange(len(self._allowed)), ids)
        self.top_k = min(top_k, int(self._allowed.sum()))

    def _target_ids(self, target: str) -> list[int]:
        read = self.tokenizer.encode_batch([target, f" {target}"])
        named = [id for id, name in enumerate(self.tokenizer.tokens(range(self.tokenizer.vocab_size))) if name == target]
        found = {int(ids[0]) for ids in read if len(ids) == 1 and ids[0] != self.tokenizer.unk_id} | set(named)
        if not found:
            pieces = ", ".join(map(repr, self.tokenizer.tokens(read[0]))) or "nothing"
            raise InputError(f"the target {target!r} is read as {pieces}; a mask stands for one token of the vocabulary")
        return sorted(found)

    def _slots(self, length: int) -> int:
        return max(_MASKS, length // 16)  # the head is as wide as the vocabulary: few masks a row are the rule

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        batch["masked_positions"] = batch.pop("places")
        logits = self.model.apply(params, batch, head_only=True)["masked_lm_logits"]
        best, ids = jax.lax.top_k(jnp.where(self._allowed, logits, -jnp.inf), self.top_k)
        scores = jnp.exp(best - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        return {"scores": scores, "ids": ids}

    def __call__(self, texts: Sequence[str]) -> list[list[Filling]]:
        """For each text its fillings: `top_k` for its first mask, the best first, then those for its second, ...

        Texts that are too long are read around their masks. Raises InputError for a text without a mask.
        """
        texts = _as_list(texts)
        examples, owners, around = [], [], self.tokenizer.single
        room = self._longest - len(around)
        for i, ids in enumerate(self.tokenizer.encode_batch(texts)):
            masks = np.flatnonzero(ids == self.tokenizer.mask_id).astype(np.int32)
            if not len(masks):
                raise InputError(f"texts[{i}] has no {self.tokenizer.mask_token}: {texts[i][:60]!r}")
            for group in _together(masks.tolist(), room):
                start, stop = _window(len(ids), group[0], group[-1], room)
                examples.append(self._layout.example([ids[start:stop]], np.array(group, np.int32) - start + len(around.ids[0])))
                owners.append(i)
        found: list[list[Filling]] = [[] for _ in texts]
        for i, result in zip(owners, self.run(examples), strict=True):
            for scores, ids in zip(result["scores"], result["ids"], strict=True):
                mask = len(found[i]) // self.top_k
                found[i] += [self._filling(texts[i], mask, int(id), float(score)) for id, score in zip(ids, scores, strict=True)]
        return found

    def _filling(self, text: str, mask: int, id: int, score: float) -> Filling:
        pieces = text.split(self.tokenizer.mask_token)
        left, right = (self.tokenizer.mask_token.join(part) for part in (pieces[: mask + 1], pieces[mask + 1 :]))
        once = self.tokenizer.decode([id])  # behind itself it loses the `##` of WordPiece; a `##` of byte-level BPE is text
        token = self.tokenizer.decode([id, id])[len(once) :].strip() or self.tokenizer.tokens([id])[0]
        if not self.tokenizer.starts_word[id]:
            left = left.rstrip()
        return Filling(token, score, left + token + right, mask)


def _together(masks: list[int], room: int) -> Iterator[list[int]]:
    """Masks in groups that one row has slots and room for."""
    group: list[int] = []
    for mask in masks:
        if group and (len(group) == _MASKS or mask - group[0] >= room):
            yield group
            group = []
        group.append(mask)
    yield group


def _window(size: int, first: int, last: int, room: int) -> tuple[int, int]:
    """(start, stop) of `room` of `size` tokens with first...last in the middle."""
    if size <= room:
        return 0, size
    start = min(max(0, (first + last + 1 - room) // 2), size - room)
    return start, start + room


# --- texts and pairs to classes ---


class Classification(NamedTuple):
    """What a text was taken for.

    Attributes:
      label: the likeliest class; for regression the name of the value.
      score: its probability; for regression the value.
      scores: those of all classes.
      labels: with several labels a text, all whose probability reaches their threshold; else `label` alone.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...]


def _told_apart(labels: tuple[str, ...]) -> tuple[str, ...]:
    """("a", "b", "a") -> ("a (0)", "b", "a (2)"): classes of one name would be one entry of a dict."""
    told = tuple(f"{name} ({i})" if labels.count(name) > 1 else name for i, name in enumerate(labels))
    return told if len(set(told)) == len(told) else tuple(f"{name} ({i})" for i, name in enumerate(labels))


_ACTIVATIONS = {**TORCH_ACTIVATIONS, "Softmax": jax.nn.softmax}  # of logits


def _meaning(model: Model, labels: int) -> tuple[ProblemType, str]:
    """What the logits of `labels` classes mean, and which activation makes scores of them.

    One value goes through the activation of sentence-transformers' files; without that, it is itself where config.json says
    "regression", else a probability, as in transformers and sentence-transformers.
    """
    if isinstance(model.pooling, str):
        raise InputError(f"{model.pooling}; for scores of the head alone: Classifier(dataclasses.replace(model, pooling=None))")
    problem = model.problem_type
    named = None if model.activation is None else activation_name(model.activation, "the model's sentence-transformers files")
    if labels == 1 or problem == "regression":
        return problem or "regression", named or ("Identity" if problem == "regression" else "Sigmoid")
    if problem is None and named not in (None, "Identity", "Sigmoid"):
        raise InputError(f"the activation {model.activation!r} of {labels} labels is not supported, only Identity and Sigmoid")
    if problem == "multi_label_classification" or (problem is None and named == "Sigmoid"):
        return "multi_label_classification", "Sigmoid"
    return "single_label_classification", "Softmax"


class Classifier(Predictor):
    """Classes of texts, or of pairs of texts; probabilities of several labels; a value, for regression and for cross-encoders.

    The scores of one class among several are probabilities, also where sentence-transformers' CrossEncoder would give logits
    (its Identity). A head with one value and no statement of what it means gives the sigmoid, as CrossEncoder and transformers'
    pipelines do; `problem_type` "regression" the value itself.
    """

    needs = ("sequence_classification", "next_sentence", "pretraining")

    def __init__(
        self, model: Model, threshold: float | None = None, *, max_length: int | None = None, exact: bool = False
    ) -> None:
        """`threshold`: probability from which on a text has a label, where it may have several; default: for each label the
        one that fine-tuning found best on its dev set, else 0.5. `max_length` and `exact`: `Predictor` says."""
        super().__init__(model, exact, max_length)
        in_order = ("in_order", "swapped") if model.config.model_type == "albert" else ("is_next", "random")
        self.labels = _told_apart(model.labels or (("LABEL_0",) if model.head == "sequence_classification" else in_order))
        self.problem_type, self._activation = _meaning(model, len(self.labels))
        own = model.tuned.label_thresholds if threshold is None else ()
        self.thresholds = own or (0.5 if threshold is None else threshold,) * len(self.labels)

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        batch["cls_positions"] = batch.pop("places")
        outputs = self.model.apply(params, batch, head_only=True)  # all but pretraining's, which reads every token
        logits = outputs["logits"] if self.model.head == "sequence_classification" else outputs["next_sentence_logits"]
        return {"scores": _ACTIVATIONS[self._activation](logits)}

    def __call__(self, texts: Sequence[Text]) -> list[Classification]:
        """A classification for each text, or tuple of two texts. Too long ones are cut, with a warning."""
        return [self._classification(result["scores"][0]) for result in self.run(self._encode(_as_list(texts)))]

    def _classification(self, scores: np.ndarray) -> Classification:
        best = int(np.argmax(scores))
        named = {name: float(score) for name, score in zip(self.labels, scores, strict=True)}
        reached = zip(self.labels, scores.tolist(), self.thresholds, strict=True)
        several = tuple(name for name, score, threshold in reached if score >= threshold)
        labels = several if self.problem_type == "multi_label_classification" else (self.labels[best],)
        return Classification(self.labels[best], float(scores[best]), named, labels)


# --- texts to vectors ---


def sentence_vectors(
    pooling: Pooling, dense: Sequence[Sequence[Any]], hidden: jax.Array, sequence_ids: jax.Array, first: jax.Array
) -> jax.Array:
    """Embeddings [B, S, E], float32, of hidden states [B, L, D]; `first` [B, S] is where the tokens that count begin.

    `dense`: the arrays of `pooling.dense`, which are arguments as parameters are: constants would be compiled in.
    """
    vectors = pool(hidden, sequence_ids, first, pooling.modes).astype(jnp.float32)
    for layer, (kernel, *bias) in zip(pooling.dense, dense, strict=True):
        vectors = jnp.matmul(vectors, kernel, precision="highest")
        vectors = TORCH_ACTIVATIONS[layer.activation](vectors + bias[0] if bias else vectors)
    if pooling.normalize:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors[..., : pooling.truncate_dim]


class Embedder(Predictor):
    """One vector a text, for similarity, clustering and search."""

    def __init__(self, model: Model, pooling: Pooling | None = None, *, exact: bool = False) -> None:
        """`pooling` says how; default: what the model's sentence-transformers files say, else the mean, normalised.

        Raises InputError where those files ask for what is not supported.
        """
        super().__init__(model, exact)
        chosen = pooling or model.pooling or Pooling()
        if isinstance(chosen, str):
            raise InputError(f"{chosen}; for other embeddings of this model say which: Embedder(model, Pooling(...))")
        self.pooling = chosen
        self._width = chosen.width(model.config.hidden_size)
        self._longest = min(self.pooling.max_length or self._longest, model.config.max_length)

    def run(self, examples: Sequence[Example], params: Any = None) -> list[dict[str, np.ndarray]]:
        return super().run(examples, (self._params if params is None else params, jax.device_put(self.pooling.arrays)))

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        first, (params, dense) = batch.pop("places"), params
        hidden = self.model.apply(params, batch)["last_hidden_state"].astype(jnp.float32)
        return {"vectors": sentence_vectors(self.pooling, dense, hidden, batch["sequence_ids"], first)}

    def __call__(self, texts: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        """float32 [N, E], a row each text. Too long texts are cut, with a warning.

        Args:
          texts: N of them.
          prompt_name: the prompt put before each, one of `pooling.prompts`, such as "query"; default: `pooling.prompt`.
        """
        pooling = self.pooling if prompt_name is None else self.pooling.with_prompt(prompt_name)
        texts = [pooling.read(text) if isinstance(text, str) else text for text in _as_list(texts)]
        first = pooling.first_place(self._layout)
        results = self.run([example.read_from(first) for example in self._encode(texts, pooling.max_length)])
        return np.array([result["vectors"][0] for result in results], np.float32).reshape(-1, self._width)


def nearest(queries: np.ndarray, corpus: np.ndarray, top_k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The `top_k` vectors of `corpus` [N, D] with the largest inner product with each of `queries` [Q, D].

    Inner products of normalised embeddings are cosine similarities. Exact. Returns (scores float32 [Q, k], indices [Q, k]), the
    best first, ties by index; k is at most N. Raises InputError where the widths differ.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k} is below 1")
    queries, corpus = (np.atleast_2d(np.asarray(x, np.float32)) for x in (queries, corpus))
    if queries.shape[1] != corpus.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} dimensions and the corpus {corpus.shape[1]}: they are of two models")
    top_k = min(top_k, len(corpus))
    scores = np.empty((len(queries), top_k), np.float32)
    indices = np.empty((len(queries), top_k), np.int64)
    block = max(1, 2**26 // max(1, len(corpus)))  # 256 MB of scores at a time
    for start in range(0, len(queries) if top_k else 0, block):
        some = queries[start : start + block] @ corpus.T
        best = _best_columns(some, top_k)
        order = np.lexsort((best, -np.take_along_axis(some, best, axis=1)), axis=1)
        best = np.take_along_axis(best, order, axis=1)
        indices[start : start + block] = best
        scores[start : start + block] = np.take_along_axis(some, best, axis=1)
    return scores, indices


def _best_columns(scores: np.ndarray, top_k: int) -> np.ndarray:
    """The columns of the `top_k` largest of each row, in any order; of equal ones the first."""
    if top_k == scores.shape[1]:
        return np.broadcast_to(np.arange(top_k), scores.shape)
    best = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
    values = np.take_along_axis(scores, best, axis=1)
    least = values.min(axis=1, keepdims=True)
    some_left_out = (scores == least).sum(axis=1) > (values == least).sum(axis=1)
    for row in np.flatnonzero(some_left_out):
        above, equal = np.flatnonzero(scores[row] > least[row]), np.flatnonzero(scores[row] == least[row])
        best[row] = np.concatenate([above, equal])[:top_k]
    return best


# --- texts to spans ---


class Entity(NamedTuple):
    """A stretch of a text with a label: text[start:end]."""

    label: str
    start: int
    end: int
    text: str
    score: float


class Tagger(Predictor):
    """Entities of texts, by a token classifier whose labels are entities in any scheme (`tags.entity_tags`); where they are none,
    as parts of speech, each word is found with its own label."""

    needs = ("token_classification",)
    per_token = frozenset(["scores"])

    def __init__(
        self, model: Model, aggregation: Literal["simple", "first", "average", "max"] = "first", outside: str = "O", *,
        max_length: int | None = None, exact: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
          model: a token classifier.
          aggregation: the label of a word of several tokens: each token's own (`simple`), that of its first token, that of
            the mean of their probabilities, or that of the token that is surest.
          outside: the label of what is no entity; a word with it is not found.
          max_length: tokens of a window (`Predictor`).
          exact: same text, same bits (`Predictor`).
        """
        super().__init__(model, exact, max_length)
        if aggregation not in (known := ("simple", "first", "average", "max")):
            raise InputError(f"aggregation={aggregation!r} is not known; known: {', '.join(known)}")
        self.aggregation, self.outside = aggregation, outside

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        del batch["places"]
        return {"scores": jax.nn.softmax(self.model.apply(params, batch)["logits"])}

    def __call__(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The entities of each text in the order they stand in. Long texts are read in windows that overlap by half."""
        texts = _as_list(texts)
        encodings = self.tokenizer.encode_with_offsets(texts)
        around = self.tokenizer.single
        room = self._longest - len(around)
        windows = [w for i, e in enumerate(encodings) for w in cut_windows(i, len(e.ids), room, max(1, room // 2))]
        results = self.run([self._layout.example([encodings[w.text].ids[w.start : w.stop]]) for w in windows])
        found: list[list[tuple[Window, np.ndarray]]] = [[] for _ in texts]
        for window, result in zip(windows, results, strict=True):
            found[window.text].append((window, result["scores"][len(around.ids[0]) :][: window.stop - window.start]))
        return [self._entities(*each) for each in zip(texts, encodings, found, strict=True)]

    def _entities(self, text: str, encoding: Encoding, found: list[tuple[Window, np.ndarray]]) -> list[Entity]:
        size = len(encoding.ids)
        if not size:
            return []
        best = most_context([window for window, _ in found], size)
        scores = np.stack([found[w][1][i - found[w][0].start] for i, w in enumerate(best)])
        words = self._words(encoding, scores)
        groups: list[list[tuple[int, int, str, float]]] = []
        for (_, _, before, _), word in pairwise([(0, 0, self.outside, 0.0), *words]):
            if groups and self._continues(before, word[2]):
                groups[-1].append(word)
            elif word[2] != self.outside:
                groups.append([word])
        return [
            Entity(self._split(group[0][2])[1], group[0][0], group[-1][1], text[group[0][0] : group[-1][1]],
                   float(np.mean([score for *_, score in group])))
            for group in groups
            if group[0][0] < group[-1][1]  # a lone `▁` is no text
        ]  # fmt: skip

    def _words(self, encoding: Encoding, scores: np.ndarray) -> list[tuple[int, int, str, float]]:
        """(start, end, label, score) of each word, or of each token where tokens stand for themselves."""
        if self.aggregation == "simple":
            spans = [(i, i + 1) for i in range(len(encoding.ids))]
        else:
            cuts = [0, *(np.flatnonzero(np.diff(encoding.word_ids)) + 1).tolist(), len(encoding.ids)]
            spans = list(pairwise(cuts))
        words = []
        for first, last in spans:
            part = scores[first:last]
            if self.aggregation == "average":
                row = part.mean(axis=0)
            elif self.aggregation == "max":
                row = part[np.argmax(part.max(axis=1))]
            else:
                row = part[0]
            best = int(np.argmax(row))
            offsets = encoding.offsets[first:last]
            words.append((int(offsets[0, 0]), int(offsets[-1, 1]), self.model.labels[best], float(row[best])))
        return words

    def _continues(self, before: str, label: str) -> bool:
        """Whether a word with `label` belongs to the entity of the word before it."""
        (prefix_before, kind_before), (prefix, kind) = self._split(before), self._split(label)
        return "O" not in (prefix, prefix_before) and kind == kind_before and prefix not in "BS" and prefix_before not in "ES"

    @cached_property
    def _tags(self) -> dict[str, str] | None:
        if self.outside in self.model.labels:
            return entity_tags(self.model.labels, self.outside)
        usual = entity_tags(self.model.labels)  # words outside are wanted too: runs of them are of a type like others
        return usual and usual | {"O": "I-O"}

    def _split(self, label: str) -> tuple[str, str]:
        """(prefix, kind) of a label: `B-PER` is (`B`, `PER`); a type alone continues itself, as with `I-`, a word's class not."""
        if self._tags is None:
            return ("O" if label == self.outside else "S"), label
        prefix, _, kind = self._tags[label].partition("-")
        return prefix, kind or "_"


class Answer(NamedTuple):
    """An answer: context[start:end], its share of the probability of all candidates, and the sum of its two logits.

    No answer is the empty text at 0.
    """

    text: str
    start: int
    end: int
    score: float
    logit: float


class Answerer(Predictor):
    """Answers to questions as stretches of a context (Devlin et al., 2018, section 4.2; run_squad.py)."""

    needs = ("question_answering",)
    per_token = frozenset(["start", "end"])

    def __init__(
        self, model: Model, top_k: int = 1, no_answer: bool | None = None, null_threshold: float | None = None,
        max_answer_length: int = 30, max_length: int | None = None, stride: int = 128, max_question_length: int | None = None,
        n_best: int = 20, *, exact: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
          model: a span classifier.
          top_k: answers returned for each question.
          no_answer: whether "there is no answer" is a candidate (SQuAD 2.0); default: where fine-tuning found a threshold for it.
          null_threshold: no answer is given where its logit is above the best answer's by more than this; default: that
            threshold, else 0.
          max_answer_length: tokens.
          max_length: tokens of a window: question, stretch of the context and special ones; default: as many as in
            fine-tuning, of other models 384.
          stride: tokens from the start of one window to the next.
          max_question_length: tokens of a question that are read; default: 64, or half of a shorter window.
          n_best: candidates kept.
          exact: same text, same bits (`Predictor`).
        """
        super().__init__(model, exact)
        tuned = model.tuned
        self.top_k, self.no_answer = top_k, tuned.null_threshold is not None if no_answer is None else no_answer
        self.null_threshold = (tuned.null_threshold or 0.0) if null_threshold is None else null_threshold
        self.max_answer_length, self.stride, self.n_best = max_answer_length, stride, max(n_best, top_k)
        if max_length is None:
            max_length = model.window
        self.max_length = self._longest = min(max_length, model.config.max_length)
        if max_question_length is None:
            max_question_length = self._layout.longest_question(self.max_length)
        self.max_question_length = max_question_length
        least = max_question_length + 1 + len(self.tokenizer.pair)
        for name, value in (("top_k", top_k), ("stride", stride), ("max_answer_length", max_answer_length)):
            if value < 1:
                raise InputError(f"{name}={value} is below 1")
        if self.max_length <= least:
            raise InputError(
                f"max_length={self.max_length} leaves no room for a context behind max_question_length={max_question_length}"
            )

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        del batch["places"]
        outputs = self.model.apply(params, batch)
        return {"start": outputs["start_logits"], "end": outputs["end_logits"]}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[list[Answer]]:
        """For each (question, context) the `top_k` answers, the best first. Long contexts are read in windows."""
        pairs = _as_list(pairs, "pairs")
        for i, pair in enumerate(pairs):
            if not _is_pair(pair):
                raise InputError(f"pairs[{i}] is {str(pair)[:60]!r}; expected (question, context)")
        reading = self.read(pairs)
        if reading.long_questions:
            warnings.warn(
                f"{reading.long_questions} of {len(pairs)} questions have more than {self.max_question_length} tokens; "
                "the rest was not read",
                stacklevel=2,
            )
        return [self._ranked(answers, null) for answers, null in self.candidates(reading, self.run(reading.examples))]

    def read(self, pairs: Sequence[tuple[str, str]]) -> Reading:
        """The windows that (question, context) pairs are read in."""
        return read_windows(self._layout, pairs, self.max_length, self.stride, self.max_question_length)

    def candidates(self, reading: Reading, results: Sequence[dict[str, np.ndarray]]) -> list[tuple[list[Answer], float]]:
        """For each pair its `n_best` answers, the best first, with `score` left at 0, and the logit of no answer.

        `results` are what `run` says of the windows.
        """
        found: list[list[tuple[Window, dict[str, np.ndarray]]]] = [[] for _ in reading.pairs]
        for window, result in zip(reading.windows, results, strict=True):
            found[window.text].append((window, result))
        return [
            self._candidates(context, encoding, self._layout.before([question, encoding.ids]), each)
            for (_, context), encoding, question, each in zip(
                reading.pairs, reading.contexts, reading.questions, found, strict=True
            )
        ]

    def _candidates(
        self, context: str, encoding: Encoding, before: int, found: list[tuple[Window, dict[str, np.ndarray]]]
    ) -> tuple[list[Answer], float]:
        """`before`: tokens before the context in each window."""
        size = len(encoding.ids)
        home = most_context([window for window, _ in found], size) if size else np.zeros(0, np.int64)
        logits: dict[tuple[int, int], float] = {}
        for number, (window, result) in enumerate(found):
            inside = slice(before, before + window.stop - window.start)
            start, end = result["start"][inside], result["end"][inside]
            own = np.flatnonzero(home[window.start : window.stop] == number)
            for i in own[np.argsort(-start[own])[: self.n_best]].tolist():
                for j in i + np.argsort(-end[i : i + self.max_answer_length])[: self.n_best]:
                    span = (int(encoding.offsets[window.start + i, 0]), int(encoding.offsets[window.start + j, 1]))
                    if span[0] < span[1]:
                        logits[span] = max(logits.get(span, -np.inf), float(start[i] + end[j]))
        ranked = sorted(logits.items(), key=lambda item: -item[1])[: self.n_best]
        null = min(float(result["start"][0] + result["end"][0]) for _, result in found)
        return [Answer(context[a:b], a, b, 0.0, logit) for (a, b), logit in ranked], null

    def _ranked(self, answers: list[Answer], null: float) -> list[Answer]:
        """The `top_k` best with their scores, no answer among them where that is allowed, or nothing else is there."""
        if self.no_answer or not answers:
            answers = self._with_null(answers, null)
        logits = np.array([answer.logit for answer in answers])
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        return [answer._replace(score=float(share)) for answer, share in zip(answers, shares, strict=True)][: self.top_k]

    def _with_null(self, answers: list[Answer], null: float) -> list[Answer]:
        """The candidates with no answer in its place: first where it wins by the threshold, else behind the best answer."""
        nothing = Answer("", 0, 0, 0.0, null)
        if not answers or null - answers[0].logit > self.null_threshold:
            return [nothing, *answers]
        behind = sorted([*answers[1:], nothing], key=lambda answer: -answer.logit)
        return [answers[0], *behind]
