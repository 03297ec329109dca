"""Makes the token cache by the workers of Apache Beam, with the same bytes as `corpus.make` on one machine.

A pipeline returns nothing to the process that launched it. The items for the workers and their results therefore pass through
files in a folder of the cache directory, which all of them see:

    beam-ID/tokenizer/*         the tokenizer, from the launcher's disk
    beam-ID/scan/items-0.pkl    names of files to scan, some hundreds a file (a job's own description must be small)
    beam-ID/scan/7.json         the result for item 7, or the error in its text
    beam-ID/tokenize/...        the same for shards

A call that is made twice (a bundle is retried, or slow) writes the same bytes to the same names; a lost one writes nothing.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from bert_jax.config import DataConfig
from bert_jax.data import corpus, store
from bert_jax.data.store import AnyPath, RemotePath, as_path
from bert_jax.errors import InputError

if TYPE_CHECKING:
    from apache_beam import Pipeline

T = TypeVar("T")
R = TypeVar("R")
_ITEMS_A_FILE = 500
_IN_PROCESS = "--runner=FnApiRunner"  # Beam's DirectRunner would first fetch another from the network


def check(cache_dir: str | Path, flags: Sequence[str]) -> None:
    """Raises InputError if Beam is not installed or refuses `flags`, or its workers would not see `cache_dir`."""
    from_flags = _pipeline(flags)
    shutil.rmtree(from_flags.local_tempdir, ignore_errors=True)
    runner = type(from_flags.runner).__name__
    if "Dataflow" in runner and not isinstance(as_path(cache_dir), RemotePath):
        raise InputError(f"{runner}'s workers do not see {cache_dir}: set --data.cache-dir gs://BUCKET/FOLDER")


def make(cfg: DataConfig, tokenizer_folder: Path, cache_dir: str | Path, flags: Sequence[str]) -> AnyPath:
    """Makes the cache by the workers of Beam's runner, and returns its folder.

    Args:
      cfg: the workers must see its files by the same names.
      tokenizer_folder: a tokenizer that Tokenizer.save wrote, on this machine's disk.
      cache_dir: a local folder or URL that this machine and the workers see.
      flags: Beam's own (`["--runner", "DataflowRunner", ...]`); without any, it runs in this process.
    """
    passage = as_path(cache_dir) / f"beam-{uuid.uuid4().hex}"
    try:
        store.make_folder(passage / "tokenizer")
        for file in tokenizer_folder.iterdir():
            store.write(passage / "tokenizer" / file.name, partial(_copy, file))
        return corpus.make(cfg, str(passage / "tokenizer"), cache_dir, partial(_run, passage=passage, flags=flags))[0]
    finally:
        store.remove_folder(passage)


def _copy(path: Path, file: IO[bytes]) -> None:
    file.write(path.read_bytes())


def _pipeline(flags: Sequence[str]) -> Pipeline:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError("this needs apache-beam, which is not installed: pip install 'bert_jax[beam]'") from None
    try:
        return beam.Pipeline(options=PipelineOptions([_IN_PROCESS, *flags]))
    except (ValueError, ImportError) as error:  # an unknown runner, flags that it lacks, libraries that it needs
        raise InputError(f"Beam: {str(error).strip()}") from None


def _run(function: Callable[[T], R], items: Sequence[T], what: str, passage: AnyPath, flags: Sequence[str]) -> Sequence[R | None]:
    """Computes `workers.Run` by Beam's workers. Results pass through JSON."""
    if not items:
        return []
    pipeline = _pipeline(flags)
    import apache_beam as beam

    folder = passage / what
    store.make_folder(folder)
    numbered = list(enumerate(items))
    files = [folder / f"items-{first}.pkl" for first in range(0, len(items), _ITEMS_A_FILE)]
    for i, file in enumerate(files):
        store.write(file, partial(pickle.dump, numbered[i * _ITEMS_A_FILE : (i + 1) * _ITEMS_A_FILE]))
    environment = {name: os.environ[name] for name in ("TFDS_DATA_DIR",) if name in os.environ}
    print(f"{what}: {len(items):,} pieces of work for {type(pipeline.runner).__name__}", file=sys.stderr)
    (
        pipeline
        | "files" >> beam.Create([str(file) for file in files])
        | "items" >> beam.FlatMap(_read_items)
        | "spread" >> beam.Reshuffle()
        | what >> beam.Map(_call, function, str(folder), environment)
    )
    try:
        pipeline.run().wait_until_finish()
    except Exception:  # each runner has errors of its own; lost results are missed below
        traceback.print_exc()
    return _results(folder, len(items))


def _read_items(file: str) -> Iterator[tuple[int, object]]:
    yield from pickle.loads(as_path(file).read_bytes())


def _call(numbered: tuple[int, T], function: Callable[[T], object], folder: str, environment: dict[str, str]) -> None:
    """Writes the result of one call. An error in the text is a result too, because another try would find the same."""
    number, item = numbered
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        result: dict[str, object] = {"value": function(item)}
    except InputError as error:
        result = {"error": str(error)}
    store.write(as_path(folder) / f"{number}.json", lambda f: f.write(json.dumps(result).encode()))


def _results(folder: AnyPath, count: int) -> list:
    """Returns the results in the order of the items, None for a lost one. Raises the InputError of the first item with one."""
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    numbers = [int(file.name.removesuffix(".json")) for file in files]
    found = dict(zip(numbers, store.each(lambda file: json.loads(file.read_bytes()), files), strict=True))
    for number in sorted(found):
        if "error" in found[number]:
            raise InputError(found[number]["error"])
    return [found.get(i, {}).get("value") for i in range(count)]
