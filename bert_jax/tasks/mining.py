"""Hard negatives: documents that a model ranks high for a query, and that are not known to answer it. No jax in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bert_jax.data.records import Record
from bert_jax.tasks.beir import Judged
from bert_jax.tasks.ranking import Ranking


def mine(
    records: Sequence[Record], rankings: Sequence[Ranking], negatives: int, skip_top: int, margin: float
) -> Iterator[dict[str, str]]:
    """Yields `query`, `positive` and `negative_1`, ... for each query and relevant document; missing negatives are empty.

    The negatives are the first documents of the ranking after the first `skip_top` whose score is at most `margin` times that of
    the positive (Moreira et al., 2024, section 3.2), as others may answer the query without being known to. A positive that the
    ranking lacks scores below all of it, and gets none.
    """
    for record, (documents, scores) in zip(records, rankings, strict=True):
        judged = record.label
        assert isinstance(judged, Judged)
        texts, own = judged.collection.records, dict(zip(documents.tolist(), scores.tolist(), strict=True))
        relevant = [document for document, relevance in judged.relevances.items() if relevance > 0]
        known = {texts[document].texts[0] for document in relevant} | {record.texts[0]}
        for document in relevant:
            most = margin * own[document] if document in own else float("-inf")
            found = list[str]()
            for other in documents[skip_top:].tolist():
                text = texts[other].texts[0]
                if own[other] <= most and text not in known and text not in found and text:
                    found.append(text)
                if len(found) == negatives:
                    break
            named = {f"negative_{i}": text for i, text in enumerate([*found, *[""] * (negatives - len(found))], 1)}
            yield {"query": record.texts[0], "positive": texts[document].texts[0], **named}
