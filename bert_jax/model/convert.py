"""Converts parameters and configs to and from the Hugging Face layout, by the table in families.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bert_jax.errors import InputError, did_you_mean
from bert_jax.model.config import OF_FORM, OPTIONAL, BertConfig
from bert_jax.model.families import ALIASES, FAMILIES, Family, Head, Names, join_fused, split_fused
from bert_jax.model.families.row import Fields, Values

Params = dict[str, Any]
_ONLY: dict[str, tuple[object, ...]] = {  # keys of config.json with the values that are covered, in all families
    "position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,),
    "partial_rotary_factor": (1.0, None),
}  # fmt: skip
_TOKEN_TYPES = "encoder/embeddings/token_type_embeddings/embedding"
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_OLD_LEAVES = {"gamma": "weight", "beta": "bias"}  # LayerNorm's, in files of 2018 and 2019


def flatten(params: Params, prefix: str = "") -> Params:
    """Returns the leaves of a nested dict by path: {"a/b/c": leaf}."""
    flat: Params = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


def unflatten(flat: Mapping[str, object]) -> Params:
    """Returns the nested dict of leaves by path: the inverse of `flatten`."""
    params: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        at = params
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = value
    return params


def names(cfg: BertConfig, head: Head) -> Names:
    """Returns our path -> their name, for each module or single array that an encoder with `head` may have."""
    family = FAMILIES[cfg.model_type]
    groups = cfg.num_hidden_groups or cfg.num_hidden_layers
    encoder = {f"encoder/{ours}": family.prefix + theirs for ours, theirs in family.embeddings.items()}
    layers = {
        f"encoder/layer_{i}/{ours}": f"{family.prefix}{family.layer_prefix.format(i=i)}{theirs}"
        for i in range(groups)
        for ours, theirs in family.layer.items()
    }
    return encoder | layers | family.head(head) | (_untied_output(family, head) if not cfg.tie_word_embeddings else {})


def _untied_output(family: Family, head: Head) -> Names:
    if not any(name.startswith("masked_lm/") for name in family.head(head)):
        return {}
    return {"masked_lm/decoder/embedding": next(theirs for theirs in family.tied if theirs.endswith("weight"))}


def twins(cfg: BertConfig) -> Names:
    """Returns the tensors that files may repeat: their name -> the name that it must equal; not an output layer of its own."""
    tied = FAMILIES[cfg.model_type].tied
    return {theirs: name for theirs, name in tied.items() if cfg.tie_word_embeddings or theirs.endswith("bias")}


def their_names(paths: Iterable[str], cfg: BertConfig, head: Head) -> dict[str, str]:
    """Returns our path -> their name, for each leaf of a flat parameter tree."""
    table = names(cfg, head)

    def name(path: str) -> str:
        module, leaf = path.rsplit("/", 1)
        return table[path] if path in table else f"{table[module]}.{_LEAVES[leaf]}"

    return {path: name(path) for path in paths}


def saved_names(paths: Iterable[str], cfg: BertConfig, head: Head) -> dict[str, str]:
    """Returns `their_names` as files have them: those of an encoder alone have no prefix."""
    prefix = FAMILIES[cfg.model_type].prefix if head == "encoder" else ""
    return {path: name.removeprefix(prefix) for path, name in their_names(paths, cfg, head).items()}


def to_hugging_face(params: Params, cfg: BertConfig, head: Head) -> dict[str, np.ndarray]:
    """Returns our parameters under their names; kernels are transposed to [out, in]."""
    flat = flatten(params)
    theirs = saved_names(flat, cfg, head)
    arrays = ((path, np.asarray(leaf)) for path, leaf in flat.items())
    tensors = {theirs[p]: np.ascontiguousarray(leaf.T if p.endswith("/kernel") else leaf) for p, leaf in arrays}
    if not cfg.tie_word_embeddings:  # then transformers does not tie the bias either
        tensors |= {twin: tensors[name].copy() for twin, name in twins(cfg).items() if name in tensors}
    prefix = FAMILIES[cfg.model_type].prefix if head != "encoder" else ""
    constants = FAMILIES[cfg.model_type].constants(cfg)
    return join_fused(tensors) | {prefix + name: array for name, array in constants.items()}


@dataclass(frozen=True)
class Converted:
    """The parameters made of a file's tensors, and what was found on the way.

    Attributes:
      params: The parameter tree.
      sources: Our path -> the name that the file has for its tensor.
      fresh: Our paths without a tensor; these parameters have their initial values.
      left_out: Names of tensors that belong to another head.
      unused: Names of tensors that no head of the family has.
      broken: Names of tensors with NaN or infinite values.
      notes: Lines for the user about other choices that were made.
    """

    params: Params
    sources: dict[str, str]
    fresh: list[str]
    left_out: list[str]
    unused: list[str]
    broken: list[str]
    notes: list[str]


def from_hugging_face(
    tensors: Mapping[str, np.ndarray],
    like: Params,
    cfg: BertConfig,
    head: Head,
    where: str,
    initial: Callable[[list[str]], Mapping[str, ArrayLike]],
    put: Callable[[np.ndarray], Any] = lambda x: x,
) -> Converted:
    """Converts tensors under their names to float32 parameters of the tree `like`.

    Names may come with or without the encoder's prefix, with `gamma` and `beta` for `weight` and `bias`, and in any order. One
    tensor at a time is read, transposed and handed to `put`, so that a model is never held twice. A missing table of token types
    becomes zeros. Where a file holds two output biases that differ, the output layer's own counts, as in transformers; both are
    noted.

    Args:
      tensors: Tensors by name; their values are read when asked for.
      like: A tree of arrays or ShapeDtypeStructs.
      cfg: The model.
      head: The head of the model.
      where: The name of the file, for errors.
      initial: Returns the initial values of parameters by path; called only where a head lacks some.
      put: Receives each parameter as an array of its own, for example to copy it to a device; its result stands in the tree.

    Raises:
      InputError: a shape differs, a tensor of the encoder is missing or has no place, there are more layers than the config
        says, or an output layer differs from the embedding table that it is tied to. The message lists both sides.
    """
    family = FAMILIES[cfg.model_type]
    shapes = {path: leaf.shape for path, leaf in flatten(like).items()}
    wanted = their_names(shapes, cfg, head)
    there = _by_full_name(tensors, family)
    notes = _choose_between_twins(there, tensors, wanted, cfg)
    used = {path: there[name] for path, name in wanted.items() if name in there}
    fresh = [path for path in wanted if path not in used]
    left_out, unused = _not_wanted(there, wanted, family, family.constants(cfg))
    _check_fit(where, _misfits(there, tensors, wanted, shapes, family, cfg), fresh, unused, wanted, family)

    flat: Params = {}
    if _TOKEN_TYPES in fresh:
        fresh.remove(_TOKEN_TYPES)
        flat[_TOKEN_TYPES] = put(np.zeros(shapes[_TOKEN_TYPES], np.float32))
        notes.append("no table of token types: zeros stand for it")
    if fresh:
        flat |= {path: put(np.asarray(x, np.float32)) for path, x in initial(fresh).items()}
    broken = []
    for path, name in used.items():
        array = np.array(tensors[name].T if path.endswith("/kernel") else tensors[name], np.float32, order="C")
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            broken.append(name)
        flat[path] = put(array)
    params = unflatten({path: flat[path] for path in shapes})
    return Converted(params, used, fresh, list(left_out.values()), list(unused.values()), broken, notes)


def _by_full_name(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, str]:
    """Returns name with prefix and today's leaf names -> name in the file, for all tensors that are weights."""
    bare = not any(name.startswith(family.prefix) for name in tensors)
    outside = tuple(name for name in _head_prefixes(family) if not name.startswith(family.prefix))
    full: dict[str, str] = {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if leaf in ("position_ids", "token_type_ids", "inv_freq"):  # buffers in older files
            continue
        renamed = f"{module}.{_OLD_LEAVES.get(leaf, leaf)}" if module else leaf
        full[renamed if not bare or renamed.startswith(outside) else family.prefix + renamed] = name
    return full


def _head_prefixes(family: Family) -> tuple[str, ...]:
    """Returns the beginnings of the names of tensors that belong to a head of the family or to its pooler."""
    inside = (f"{family.prefix}{name}" for name in ("pooler", *family.left_out))
    return (*dict.fromkeys(family.head_names()), *inside)


def _choose_between_twins(
    there: dict[str, str], tensors: Mapping[str, np.ndarray], wanted: Mapping[str, str], cfg: BertConfig
) -> list[str]:
    """Lets `there` name, for each tied tensor of `wanted`, the one of its two copies that counts; returns notes."""
    notes = []
    for twin, name in twins(cfg).items():
        if twin not in there or name not in wanted.values():
            continue
        if name not in there:
            there[name] = there[twin]
        elif name.endswith("bias") and not np.array_equal(tensors[there[twin]], tensors[there[name]]):
            if cfg.tie_word_embeddings:  # else transformers keeps both, and uses the first
                notes.append(f"{there[twin]} differs from {there[name]}: the first is used")
            there[name] = there[twin]
    return notes


def _not_wanted(
    there: Mapping[str, str], wanted: Mapping[str, str], family: Family, constants: Iterable[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the tensors that this model has no place for: those of other heads, and those of no head of the family."""
    spare = sorted(set(there) - {*wanted.values(), *family.tied, *(family.prefix + name for name in constants)})
    prefixes = _head_prefixes(family)
    of_heads = {name: there[name] for name in spare if name.startswith(prefixes)}
    return of_heads, {name: there[name] for name in spare if name not in of_heads}


def _check_fit(
    where: str, misfits: list[str], fresh: list[str], unused: dict[str, str], wanted: Mapping[str, str], family: Family
) -> None:
    """Raises the InputError that lists what does not fit, what the encoder lacks, and what has no place in it."""
    lacking = [path for path in fresh if path.startswith("encoder/") and path != _TOKEN_TYPES]
    strange = [theirs for name, theirs in unused.items() if name.startswith(family.prefix)]
    if misfits or lacking or strange:
        lines = [
            *_first(misfits),
            *_first([f"no tensor {wanted[path]} for {path}" for path in lacking]),
            *_first([f"no place for the tensor {name}" for name in strange or (unused.values() if lacking else [])]),
        ]
        raise InputError(f"{where} does not hold this model:\n  " + "\n  ".join(lines))


def _first(lines: list[str], most: int = 8) -> list[str]:
    return lines[:most] + [f"... ({len(lines)} in all)"] * (len(lines) > most)


def _misfits(
    there: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    cfg: BertConfig,
) -> list[str]:
    """Returns a line for each tensor that does not fit."""
    wrong = []
    for path, theirs in wanted.items():
        if theirs in there:
            name, tensor = there[theirs], tensors[there[theirs]]
            if tensor.dtype.kind in "biuc":
                wrong.append(f"{name} is of {tensor.dtype}, as quantized files have it; weights are floating-point numbers")
            if (tensor.shape[::-1] if path.endswith("/kernel") else tensor.shape) != shapes[path]:
                wrong.append(f"{name} is {list(tensor.shape)}, which does not fit {path} {list(shapes[path])}")
    masked_lm = any(path.startswith("masked_lm/") for path in wanted)  # only its output layer is tied
    for theirs, tied in twins(cfg).items():
        if masked_lm and theirs in there and tied in there and not np.array_equal(tensors[there[theirs]], tensors[there[tied]]):
            wrong.append(
                f"{there[theirs]} differs from {there[tied]}, to which this model ties it; if it is an output layer of its own, "
                "config.json says tie_word_embeddings: false"
            )
    for name, constant in family.constants(cfg).items():
        found = there.get(family.prefix + name)
        if found and not (tensors[found].shape == constant.shape and np.allclose(tensors[found], constant, atol=0.01)):
            wrong.append(f"{found} is not the constant table of this family, {list(constant.shape)}: it would have been trained")
    if cfg.num_hidden_groups is None:
        pattern = re.compile(re.escape(family.prefix + family.layer_prefix).replace(r"\{i\}", r"(\d+)"))
        layers = max((int(found[1]) for found in map(pattern.match, there) if found), default=-1) + 1
        if layers > cfg.num_hidden_layers:
            wrong.append(f"there are tensors of {layers} layers, but num_hidden_layers={cfg.num_hidden_layers}")
    return wrong


def as_named(tensors: Mapping[str, np.ndarray], family: Family) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a file under the names of the family: no wrapper's prefix, fused tensors as their parts."""
    for other in family.other_prefixes:
        if any(name.startswith(other) for name in tensors):
            tensors = {re.sub(f"^{re.escape(other)}", family.prefix, name): tensor for name, tensor in tensors.items()}
    for begin, ours in family.renamed_tensors.items():
        if any(name.startswith(begin) for name in tensors):
            tensors = {re.sub(f"^{re.escape(begin)}", ours, name): tensor for name, tensor in tensors.items()}
    tensors = without_wrapper(tensors, family)
    for table, other in family.folded.items():
        for prefix in ("", family.prefix):
            if prefix + table in tensors and prefix + other in tensors:
                tensors = {name: tensors[name] for name in tensors if name != prefix + table} | {
                    prefix + other: tensors[prefix + other] + tensors[prefix + table][:1]
                }
    return split_fused(tensors, family)


def without_wrapper(tensors: Mapping[str, np.ndarray], family: Family) -> Mapping[str, np.ndarray]:
    """Returns the tensors without the prefix that a wrapping class adds to every name: `module.`, `_orig_mod.`, `model.`.

    >>> sorted(without_wrapper({"model.bert.embeddings.word_embeddings.weight": 1, "model.classifier.bias": 2}, FAMILIES["bert"]))
    ['bert.embeddings.word_embeddings.weight', 'classifier.bias']
    """
    table = family.embeddings["embeddings/word_embeddings/embedding"]
    before = [name.removesuffix(table) for name in tensors if f".{name}".endswith(f".{table}")]
    wrapper = before[0].removesuffix(family.prefix) if len(before) == 1 else ""
    if not wrapper or not all(name.startswith(wrapper) for name in tensors):
        return tensors
    return {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}


def check_size(tensors: Mapping[str, np.ndarray], cfg: BertConfig, where: str) -> None:
    """Raises InputError for a config with more layers than the file can hold, before they are built."""
    layers = cfg.num_hidden_groups or cfg.num_hidden_layers
    if layers > max(64, len(tensors)):
        raise InputError(f"{where} holds {len(tensors)} tensors, too few for num_hidden_layers={cfg.num_hidden_layers}")


def from_tf1(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns variables of google-research/bert under the names of the Hugging Face layout.

    Variables of optimizers are left out: NAME/SLOT beside a variable NAME (moments, moving averages), and counters, which are
    scalars.

    >>> {k: v.shape for k, v in from_tf1({"bert/encoder/layer_3/output/dense/kernel": np.ones((4, 2))}).items()}
    {'bert.encoder.layer.3.output.dense.weight': (2, 4)}
    """
    renamed = {}
    for variable, tensor in tensors.items():
        *modules, leaf = variable.split("/")
        if "/".join(modules) in tensors or tensor.ndim == 0:
            continue
        if leaf.startswith("output_"):  # cls/predictions/output_bias, cls/seq_relationship/output_weights, heads of fine-tuning
            modules, leaf = {(): ["classifier"], ("cls", "squad"): ["qa_outputs"]}.get(tuple(modules), modules), leaf[7:]
        leaf = {"kernel": "weight", "weights": "weight"}.get(leaf, leaf)
        name = ".".join([re.sub(r"^layer_(\d+)$", r"layer.\1", module) for module in modules] + [leaf])
        name += ".weight" if leaf.endswith("_embeddings") else ""
        renamed[name] = tensor.T if variable.endswith("/kernel") else tensor
    return renamed


def from_flax(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns the tensors of transformers' Flax models under the names of its PyTorch models; other tensors as they are.

    Flax names weights by their kind (`kernel`, `scale`, `embedding`), joins names by `/` (.msgpack) or `.` (.safetensors), and
    stores kernels as [in, out].

    >>> {k: v.shape for k, v in from_flax({"bert/encoder/layer/3/output/dense/kernel": np.ones((4, 2))}).items()}
    {'bert.encoder.layer.3.output.dense.weight': (2, 4)}
    """
    parts = {name: name.replace("/", ".").rpartition(".") for name in tensors}
    leaves = {leaf for _, _, leaf in parts.values()}
    if "weight" in leaves or not leaves & {"kernel", "embedding"}:
        return tensors
    theirs = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
    return {
        f"{module}{dot}{theirs.get(leaf, leaf)}": tensors[name].T if leaf == "kernel" else tensors[name]
        for name, (module, dot, leaf) in parts.items()
    }


def guess_head(tensor_names: Iterable[str], family: Family) -> Head:
    """Returns the head that the names of a file's tensors show; "encoder" for `classifier`, which texts and tokens share."""
    heads: tuple[Head, ...] = ("pretraining", "masked_lm", "replaced_token", "question_answering")
    for head in heads:
        parts = [theirs for ours, theirs in family.heads.get(head, {}).items() if not ours.startswith("pooler")]
        if parts and all(any(name.startswith(part) for name in tensor_names) for part in parts):
            return head
    return "encoder"


def config_from_hugging_face(values: Values, where: str) -> BertConfig:
    """Returns the model that a config.json describes; one without a model_type (Google's bert_config.json) describes BERT.

    Raises:
      InputError: the model_type is not in the table of families, or a value is not supported.
    """
    said = values.get("model_type", "bert")
    model_type = ALIASES.get(said, said) if isinstance(said, str) else said
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{where}: model_type {model_type!r} is not known{did_you_mean(str(model_type), FAMILIES)}; "
            f"known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    for name, covered in (_ONLY | dict(family.only)).items():
        if covered and name in values and values[name] not in covered:
            raise InputError(f"{where}: {name}={values[name]!r} is not supported, only {covered[0]!r}")
    fields: Fields = {"model_type": model_type}
    for f in dataclasses.fields(BertConfig):
        key = next((key for key in family.keys(f.name) if key in values), None)
        if f.name in family.fixed:
            fields[f.name] = family.fixed[f.name]
        elif f.name in OPTIONAL and f.name not in family.optional:
            continue  # without meaning in this family, whatever the file says
        elif key is not None:
            fields[f.name] = values[key]
        elif f.name in family.defaults:
            fields[f.name] = family.defaults[f.name]
    width = fields.get("hidden_size", BertConfig.hidden_size)
    if "embedding_size" not in family.needs and fields.get("embedding_size") == width:
        fields["embedding_size"] = None  # then there is no projection
    if fields.get("pad_token_id") == 1:
        fields["pad_token_id"] = None  # the default by its one spelling, so that equal models have equal configs
    try:
        fields |= family.read(values)
        for name, value in list(fields.items()):
            if name in OF_FORM and value == getattr(family.form, name):
                fields[name] = None  # likewise
        return BertConfig(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def config_to_hugging_face(cfg: BertConfig, head: Head, pad_id: int) -> Fields:
    """Returns the config.json of a model, with the keys that transformers needs."""
    family = FAMILIES[cfg.model_type]
    values = dataclasses.asdict(cfg) | {name: getattr(cfg.form, name) for name in family.optional & OF_FORM}
    if "embedding_size" in family.optional:
        values["embedding_size"] = cfg.embedding_size or cfg.hidden_size
    fields = {
        key: value
        for name, value in values.items()
        if name not in family.fixed and (name in family.optional or name not in OPTIONAL)
        for key in family.keys(name)[:1]
    }
    return {
        "architectures": [family.architecture(head)],
        **fields,
        **family.write(cfg),
        "pad_token_id": pad_id,
        "dtype": "float32",
    }
