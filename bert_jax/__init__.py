"""BERT for JAX: pretrain from raw text, load, predict, and use the encoder from other JAX code."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bert_jax.errors import InputError as InputError
    from bert_jax.finetuning.finetune import finetune as finetune
    from bert_jax.inference import Answerer as Answerer
    from bert_jax.inference import Classifier as Classifier
    from bert_jax.inference import Embedder as Embedder
    from bert_jax.inference import FillMask as FillMask
    from bert_jax.inference import MultiVector as MultiVector
    from bert_jax.inference import Reranker as Reranker
    from bert_jax.inference import SparseEmbedder as SparseEmbedder
    from bert_jax.inference import Tagger as Tagger
    from bert_jax.inference import nearest as nearest
    from bert_jax.inference import open_vectors as open_vectors
    from bert_jax.inference import quantize as quantize
    from bert_jax.inference import to_static as to_static
    from bert_jax.model.config import BertConfig as BertConfig
    from bert_jax.model.config import ComputeConfig as ComputeConfig
    from bert_jax.model.heads import Bert as Bert
    from bert_jax.pooling import Pooling as Pooling
    from bert_jax.pooling import SparsePooling as SparsePooling
    from bert_jax.pooling import TokenVectors as TokenVectors
    from bert_jax.pretrain import train as train
    from bert_jax.pretrained import Model as Model
    from bert_jax.pretrained import load as load
    from bert_jax.pretrained import save as save
    from bert_jax.static import StaticEmbedder as StaticEmbedder

# Names are imported when first used: a process that tokenizes text needs no jax.
_HOME = {
    "BertConfig": "model.config", "ComputeConfig": "model.config", "Bert": "model.heads", "InputError": "errors",
    "Pooling": "pooling", "SparsePooling": "pooling", "TokenVectors": "pooling",
    "Model": "pretrained", "load": "pretrained", "save": "pretrained",
    "Answerer": "inference", "Classifier": "inference", "Embedder": "inference", "FillMask": "inference",
    "MultiVector": "inference", "Reranker": "inference", "SparseEmbedder": "inference", "Tagger": "inference",
    "nearest": "inference", "open_vectors": "inference", "quantize": "inference", "to_static": "inference",
    "StaticEmbedder": "static",
    "train": "pretrain", "finetune": "finetuning.finetune",
}  # fmt: skip
__all__ = list(_HOME)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bert_jax' has no attribute {name!r}")
    return getattr(import_module(f"bert_jax.{_HOME[name]}"), name)
