"""The command `titles`: a retrieval data set from texts with headings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bert_jax.errors import InputError


def titles(
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")],
    out: str,
    title_column: str = "title",
    text_column: str = "text",
    min_words: int = 10,
    dev_size: float = 0.1,
    test_size: float = 0.1,
    on_error: Literal["raise", "skip"] = "raise",
) -> None:
    """Write a retrieval data set from texts with headings: each heading is a query, the text below it its document.

    A heading is a line that begins with #, or a short line between blank lines that does not end as a sentence does. Queries are
    headings after the title of their text, which is its first heading: "Wings: Drag". The folder is in BEIR's layout, for
    finetune --task retrieval, mine and evaluate. Queries of one title are in one split.

    Args:
        sources: Files, patterns such as 'text/**/*.txt', folders or URLs: a text in each .txt or .md, or rows of .jsonl, .csv,
            .tsv or .parquet.
        out: Folder to write.
        title_column: Column of the title in tables. Where it is missing or empty, the first heading is the title.
        text_column: Column of the text in tables.
        min_words: Words of a document at least. Shorter ones are left out and counted.
        dev_size: Share (below 1) or number of titles whose queries are in qrels/dev.tsv.
        test_size: Share (below 1) or number of titles whose queries are in qrels/test.tsv.
        on_error: On a text that cannot be read: stop, or skip and count it.
    """
    from bert_jax.data import files
    from bert_jax.disk import write_text
    from bert_jax.tasks import titles as texts
    from bert_jax.tasks.beir import HEADER, SPLITS
    from bert_jax.tasks.labels import few

    for name, size in (("dev", dev_size), ("test", test_size)):
        if not (0 < size < 1 or (size >= 1 and size % 1 == 0)):
            raise InputError(f"--{name}-size {size:g} is neither a share below 1 nor a number of titles")
    if min_words < 1:
        raise InputError(f"--min-words {min_words} is below 1")
    folder, skipped = Path(out), list[str]()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {out} is there already: give a new folder, or delete it")
    paths = files.list_files(sources)
    found = texts.Collected(min_words)

    def corpus() -> Iterator[str]:
        for id, text in found.documents(texts.read(paths, title_column, text_column, skipped if on_error == "skip" else None)):
            yield json.dumps({"_id": id, "title": "", "text": text}, ensure_ascii=False) + "\n"
        if not found.queries:
            unread = f"; {len(skipped)} texts cannot be read: {few(skipped)}" * bool(skipped)
            raise InputError(f"{', '.join(sources)}: no headings with {min_words} words below them{unread}")
        parts.update(texts.split(found.titles.values(), dev_size, test_size))

    parts: dict[str, str] = {}  # filled before the corpus is whole, so that data that cannot be split leave no file
    write_text(folder / "corpus.jsonl", corpus())
    lines = (json.dumps({"_id": f"q{n}", "text": query}, ensure_ascii=False) + "\n" for query, n in found.queries.items())
    write_text(folder / "queries.jsonl", lines)
    for split in SPLITS:
        own = [query for query in found.queries if parts[found.titles[query]] == split]
        judged = [f"q{found.queries[query]}\t{id}\t1\n" for query in own for id in found.answers[query]]
        write_text(folder / "qrels" / f"{split}.tsv", ["\t".join(HEADER) + "\n", *judged])
        print(f"{split}: {len(own)} queries with {len(judged)} documents")
    said = (
        (skipped, "texts left out that cannot be read"),
        (found.short, f"documents left out with fewer than {min_words} words (--min-words)"),
        (found.untitled, "documents without a heading, which answer no query"),
        (found.copies, "copies of documents left out"),
    )
    for places, what in said:
        if places:
            print(f"{len(places)} {what}: {few(places)}")
    print(f"{out}: {len(found.queries)} queries of {len(parts)} titles")
