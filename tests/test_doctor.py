"""Each thing the doctor warns of is provoked; good text gives no warning."""

import json
import re

import pytest
from helpers import make_documents, quiet, write_documents

from bert_jax.config import BertConfig, DataConfig, MaskingConfig, OptimConfig, Phase, TrainConfig
from bert_jax.data import doctor, heldout
from bert_jax.data.pretraining import load_data

GOOD = make_documents(80, seed=7)


@pytest.fixture
def examine(tmp_path, tokenizer_dir):
    """(files: name -> documents or bytes, changes to the config) -> the doctor's diagnosis."""

    def examine(files, **changes):
        for name, own in files.items():
            if isinstance(own, bytes):
                (tmp_path / name).write_bytes(own)
            else:
                write_documents(tmp_path / name, own)
        data = dict(source=tuple(str(tmp_path / name) for name in files), tokenizer=str(tokenizer_dir))
        data |= dict(max_seq_length=64, eval_fraction=0.1, num_workers=1) | changes.pop("data", {})
        cfg = TrainConfig(
            **{
                "workdir": str(tmp_path / "run"),
                "num_steps": 100,
                "batch_size": 4,
                "model": BertConfig(vocab_size=300),
                "data": DataConfig(**data),
                "optim": OptimConfig(warmup_steps=0),
                **changes,
            }
        )
        made = load_data(cfg, quiet)
        return doctor.examine(made, cfg, heldout.corpora(cfg, quiet))

    return examine


def warning(diagnosis):
    """The one warning."""
    assert len(diagnosis.warnings) == 1, diagnosis.warnings
    return diagnosis.warnings[0]


@pytest.mark.parametrize("data", [{}, {"examples": "sentence_pairs"}], ids=["full sentences", "sentence pairs"])
def test_good_text_gives_facts_and_no_warning(examine, data):
    diagnosis = examine({"good.txt": GOOD}, data=data)
    assert diagnosis.warnings == []
    facts = dict(diagnosis.facts)
    assert facts["files"] == "1"
    assert facts["documents"].startswith("80, ")
    assert facts["unknown tokens"] == "0.00%"
    assert facts["duplicated documents"] == "0"
    shares = [float(x) for x in re.findall(r"([\d.]+)%", facts["predicted"])]
    assert abs(shares[0] - 15) < 2
    assert abs(shares[1] - 80) < 12
    assert abs(shares[2] - 10) < 8
    rows = int(re.match(r"\d+", facts["rows"])[0])
    assert facts["epochs"] == f"{400 / rows:.2f}"


def test_copied_documents_are_counted_and_the_worst_file_named_first(examine):
    said = warning(examine({"a.txt": [*GOOD, GOOD[0]], "b.txt": [*make_documents(20, seed=8), *GOOD[1:4]]}))
    assert re.fullmatch(r"4 documents \(3\.8%\) are copies of earlier ones, most in .*b\.txt \(3\), .*a\.txt \(1\)", said)


def test_boilerplate_sentences_are_counted_and_their_file_named(examine):
    spam = [[*doc, *["Bako tine rodusi."] * 10] for doc in make_documents(30, seed=8)]
    diagnosis = examine({"a.txt": GOOD, "spam.txt": spam}, data={"eval_fraction": 0.0})
    said = warning(diagnosis)
    repeated = re.match(r"299 of ([\d,]+) sentences \(\d+%\) are repetitions, most in .*spam\.txt \(299\)", said)
    assert repeated
    assert int(repeated[1].replace(",", "")) == sum(map(len, GOOD + spam))


def test_unknown_tokens_are_counted_and_their_file_named(examine):
    greek = [[*doc, "Ω bako ψ tine ξ."] for doc in make_documents(30, seed=8)]
    said = warning(examine({"a.txt": GOOD, "greek.txt": greek}))
    assert re.match(r"90 tokens \([\d.]+%\) are unknown, most in .*greek\.txt \(90\): is this the text's vocabulary", said)


def test_held_out_sentences_that_are_trained_on_are_counted_and_their_file_named(examine):
    shared = [[*doc, *GOOD[0]] for doc in make_documents(60, seed=8, sentences=(20, 30))]
    diagnosis = examine({"a.txt": GOOD, "shared.txt": shared})
    (said,) = [w for w in diagnosis.warnings if "held-out" in w]
    found = re.match(r"(\d+) of (\d+) held-out sentences \((\d+)%\) are also in the training text, most from .*shared\.txt", said)
    assert found
    assert int(found[1]) % len(GOOD[0]) == 0
    assert round(100 * int(found[1]) / int(found[2])) == int(found[3])


def test_held_out_files_that_are_trained_on_are_named(examine, tmp_path):
    other = write_documents(tmp_path / "other.txt", GOOD[:10])
    said = warning(examine({"a.txt": GOOD}, data={"eval_source": (other,)}))
    count = sum(map(len, GOOD[:10]))
    end = f"(100%) are also in the training text, most from {other} ({count})"
    assert said == f"{count} of {count} held-out sentences {end}"
    further = dict(data={"eval_fraction": 0.0}, eval_sources=(f"law={other}", f"news={tmp_path / 'news.txt'}"))
    write_documents(tmp_path / "news.txt", make_documents(9, seed=8))
    assert warning(examine({"a.txt": GOOD}, **further)) == f"{count} of {count} held-out sentences of law (eval_sources) {end}"


def test_skipped_documents_are_counted_and_the_first_named(examine):
    text = "\n\n".join("\n".join(doc) for doc in GOOD).encode() + b"\n\n\xff\xfe\n\n\xfd\n"
    said = warning(examine({"a.txt": text}, data={"on_error": "skip"}))
    line = text[: text.index(b"\xff")].count(b"\n") + 1
    assert re.match(rf"2 documents of .*a\.txt were skipped; the first: .*a\.txt:{line} ", said)


def test_records_without_a_text_are_counted(examine):
    lines = [json.dumps({"text": "\n".join(doc)}) for doc in GOOD]
    for number, none in ((3, "null"), (9, '""'), (9, '" "')):
        lines.insert(number, f'{{"text": {none}}}')
    said = warning(examine({"a.jsonl": "\n".join(lines).encode()}))
    assert re.fullmatch(r"3 records of .*a\.jsonl have no text \(null, empty or blank\) and are left out", said)


def test_many_epochs_are_counted(examine):
    diagnosis = examine({"a.txt": GOOD}, num_steps=10_000)
    rows = re.match(r"\d+", dict(diagnosis.facts)["rows"])[0]
    assert warning(diagnosis).startswith(f"the run goes {40_000 / int(rows):.0f} times through its {rows} rows")


def test_epochs_of_a_small_source_are_counted_by_its_name(examine, tmp_path):
    data = {"source": tuple(f"{name}={tmp_path / name}.txt" for name in "ab"), "mixture": "a=1,b=1"}
    diagnosis = examine({"a.txt": GOOD, "b.txt": make_documents(12, seed=8)}, num_steps=4000, data=data)
    assert re.match(r"the run goes \d{3,} times through the \d{1,2} rows of b: it may learn them by heart", warning(diagnosis))


def test_too_few_slots_are_told_by_what_they_cut_off(examine):
    diagnosis = examine({"a.txt": GOOD}, masking=MaskingConfig(max_predictions_per_seq=2))
    assert re.match(r"\d\.\d+% of the tokens are predicted; masking\.rate=0\.15 asks for more", warning(diagnosis))
    assert float(dict(diagnosis.facts)["predictions cut by P"][:-1]) > 50
    phases = Phase(until=50), Phase(until=100, mask_rate=0.5)
    said = warning(examine({"a.txt": GOOD}, phases=phases, masking=MaskingConfig(max_predictions_per_seq=10)))
    assert re.match(r"phases\[1\] \(steps 50 to 100\): 1\d\.\d+% of the tokens are predicted; .*=0\.5 asks for more", said)


def test_more_predictions_than_asked_for_are_told_too(examine):
    diagnosis = examine({"a.txt": GOOD}, data={"max_seq_length": 8}, masking=MaskingConfig(rate=0.01))
    assert re.match(r"1\d\.\d+% of the tokens are predicted; masking\.rate=0\.01 asks for fewer", warning(diagnosis))
