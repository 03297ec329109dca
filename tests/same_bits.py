"""What exact predictors say of many texts, as digests, in lists of several sizes and orders: for inference/test_exact.py.

    python tests/same_bits.py FOLDER COUNT SHUFFLES THREADS DEVICES SIZE...

prints the digests as JSON, computed by as many threads and simulated devices; FOLDER has a model for each of NAMES.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from helpers import make_documents

NAMES = {
    "Embedder": "encoder", "Classifier": "sequence_classification", "FillMask": "masked_lm", "Tagger": "token_classification",
    "Answerer": "question_answering",
}  # fmt: skip


def texts_of(name, count):
    """`count` inputs of many lengths, most of them short, some longer than the model takes."""
    rng = np.random.default_rng(3)
    texts = [" ".join(doc[: 1 + int(rng.exponential(2))]) for doc in make_documents(count, seed=5)]
    texts[::50] = [text[:4] for text in texts[::50]]
    if name == "FillMask":
        return [" ".join("[MASK]" if rng.random() < 0.2 else w for w in text.split()) + " [MASK]" for text in texts]
    if name == "Answerer":
        return [(text.split(".")[0] + "?", other) for text, other in zip(texts, reversed(texts), strict=True)]
    return texts


def predictors(folder, exact=True):
    """(name, predictor) of each kind."""
    import bert_jax

    more = {"Answerer": {"max_question_length": 24, "stride": 16, "top_k": 3}}
    for name, head in NAMES.items():
        yield name, getattr(bert_jax, name)(bert_jax.load(folder / head), **more.get(name, {}), exact=exact)


def said(predictor, inputs):
    """The bytes of what is said of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of those that are cut
        return [x.tobytes() if isinstance(x, np.ndarray) else repr(x).encode() for x in predictor(inputs)]


def digests(folder, count, shuffles, sizes, exact=True):
    """For each predictor a digest of what it says of `count` inputs. Raises AssertionError where a text's depends on its list."""
    found = {}
    for name, predictor in predictors(folder, exact):
        inputs = texts_of(name, count)
        whole = said(predictor, inputs)
        for size in sizes:
            for seed in range(shuffles if size > 1 else 1):  # alone, a text has no order
                order = np.random.default_rng(seed).permutation(count)
                for part in np.split(order, range(size, count, size)):
                    for i, one in zip(part, said(predictor, [inputs[i] for i in part]), strict=True):
                        assert one == whole[i], f"{name}: {inputs[i]!r} in a list of {size}, shuffle {seed}: {one} not {whole[i]}"
        found[name] = hashlib.sha256(b"\n".join(whole)).hexdigest()
    return found


def main() -> None:
    count, shuffles, threads, devices, *sizes = map(int, sys.argv[2:])
    os.environ |= {"NPROC": str(threads), "JAX_PLATFORMS": "cpu"}  # read by XLA's pools
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    print(json.dumps(digests(Path(sys.argv[1]), count, shuffles, sizes)))


if __name__ == "__main__":
    main()
