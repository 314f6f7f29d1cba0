# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import jsonargparse
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medvlt.__main__ import main
from medvlt.curation import m23k
from medvlt.curation.ledger import COUNTS, Ledger, Probe
from medvlt.curation.m23k import EXPECTED, LEFT_OUT, M23k, build_m23k, from_m1, split_prompt
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.samples import Source
from medvlt.data.sources import JSONLines, SavedDataset
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION
from medvlt.types import Sample

MEDQA, MEDMCQA = "GBaker/MedQA-USMLE-4-options", "openlifescienceai/medmcqa"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def m1_row(number: int, source: str = MEDMCQA, **changes: Any) -> dict[str, Any]:
    """A row as `UCSC-VLAA/m23k-tokenized` has it."""
    return {
        "answer_idx": 1,
        "source": source,
        "metadata": "{'question': ..., 'exp': None}",
        "prompt": f"Größe {number}?\nA. größer\nB. kleiner {number}\nC. A. gleich\nD. N/A",
        "answer_letter": "B",
        "answer_string": f"kleiner {number}",
        "reasoning": f"\nOkay, {number}.\n",
        "distilled_answer_string": "\n\n**Answer:** \\boxed{B}",
        "text": "<|im_start|>user\n...",
    } | changes


def store(rows: list[dict[str, Any]], form: str, folder: Path) -> Path:
    if form == "jsonl":
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return folder / "rows.jsonl"
    table = datasets.Dataset.from_list(rows)
    if form == "saved":
        table.save_to_disk(str(folder / "rows"))
        return folder / "rows"
    (folder / "data").mkdir()
    table.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return folder if form == "hub" else folder / "data"


FORMS = ["jsonl", "parquet", "saved", "hub"]


def unified(number: int, source: str = MEDMCQA) -> dict[str, Any]:
    """A row as `UCSC-VLAA/MedVLThinker-m23k-tokenized` has it."""
    return {
        "images": None,
        "question": f"Größe {number}?",
        "options": json.dumps({"A": "größer", "B": f"kleiner {number}", "C": "A. gleich", "D": "N/A"}),
        "answer_label": "B",
        "answer": f"kleiner {number}",
        "reasoning": f"\nOkay, {number}.\n",
        "dataset_name": source,
        "dataset_index": number,
    }


@pytest.mark.parametrize("form", FORMS)
def test_both_published_forms_give_the_same_questions(form: str, tmp_path: Path) -> None:
    sources = [MEDQA, MEDQA, LEFT_OUT, MEDMCQA]
    for name in ("m1", "unified"):
        (tmp_path / name).mkdir()
    rows = [m1_row(number, source) for number, source in enumerate(sources)]
    records = [unified(number, source) for number, source in enumerate(sources) if source != LEFT_OUT]
    if form == "jsonl":
        records = [record | {"images": []} for record in records]
    from_rows = M23k(source=store(rows, form, tmp_path / "m1")).load()
    from_records = M23k(source=str(store(records, form, tmp_path / "unified"))).load()
    assert [sample.dataset_index for sample in from_rows] == [0, 1, 3]
    assert from_rows.uids == from_records.uids
    for one, other in zip(from_rows, from_records, strict=True):
        assert one.extra == {"teacher_reply": "\n\n**Answer:** \\boxed{B}"}
        assert [getattr(one, name) for name in Sample.__dataclass_fields__ if name != "extra"] == [
            getattr(other, name) for name in Sample.__dataclass_fields__ if name != "extra"
        ]


TEXT = st.text(alphabet="ABC. xy\n", max_size=8).map(str.strip)
LINE = TEXT.map(lambda text: text.replace("\n", " "))


def render(question: str, options: list[str]) -> str:
    return "\n".join([question, *(f"{'ABCDEFGHIJ'[i]}. {text}" for i, text in enumerate(options))])


@given(TEXT, st.lists(LINE, min_size=2, max_size=10, unique=True), st.integers(0, 9))
def test_prompts_are_taken_apart_as_they_were_put_together(question: str, options: list[str], right: int) -> None:
    right %= len(options)
    letter = "ABCDEFGHIJ"[right]
    found = split_prompt(render(question, options), letter, options[right])
    assert found == (question, dict(zip("ABCDEFGHIJ", options, strict=False)))


def test_lists_inside_the_question_and_breaks_inside_options() -> None:
    question = "Given:\nA. fever\nB. cough\nwhich one?"
    prompt = render(question, ["flu", "a cold\nor two", "both", "none"])
    assert split_prompt(prompt, "B", "a cold\nor two") == (
        question, {"A": "flu", "B": "a cold\nor two", "C": "both", "D": "none"}
    )  # fmt: skip
    prompt = render(question, ["flu", "a cold", "both"])  # from the first "A. ..." on, C would be right as well
    assert split_prompt(prompt, "C", "both") == (question, {"A": "flu", "B": "a cold", "C": "both"})
    # the last line "A. ..." is inside an option, so the right letter decides
    prompt = render("Which?", ["one", "two\nA. odd", "three"])
    assert split_prompt(prompt, "C", "three") == ("Which?", {"A": "one", "B": "two\nA. odd", "C": "three"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "no options at all"}, DropReason.BAD_OPTIONS),
        ({"prompt": "A. only\nB. options"}, DropReason.BAD_OPTIONS),
        ({"answer_string": "another"}, DropReason.ANSWER_MISMATCH),
        ({"answer_letter": "A"}, DropReason.ANSWER_MISMATCH),
        ({"prompt": None}, DropReason.NO_QUESTION),
        ({"answer_letter": " "}, DropReason.NO_QUESTION),
        ({"prompt": 3}, DropReason.BAD_FIELD),
        ({"prompt": "Q?\nA. one\nB. kleiner 0\nD. four"}, DropReason.BAD_OPTIONS),
        ({"prompt": "Q?\nA. one\nB. kleiner 0\nC.\nD. four"}, DropReason.BAD_OPTIONS),
        ({"prompt": "Q?\nA. one\nB. kleiner 0\nD."}, DropReason.BAD_OPTIONS),
    ],
)
def test_rows_that_cannot_be_read(changes: dict[str, Any], reason: DropReason) -> None:
    with pytest.raises(RecordError) as caught:
        from_m1(m1_row(0, **changes), 0)
    assert caught.value.reason is reason


def test_other_columns_stay_and_an_own_index_counts() -> None:
    record = from_m1(m1_row(0, domain_code="x", dataset_index=77), 5)
    assert (record["domain_code"], record["dataset_index"]) == ("x", 77)
    assert set(record) - {"domain_code", "teacher_reply"} == {
        "question", "options", "answer_label", "answer", "reasoning", "dataset_name", "dataset_index"
    }  # fmt: skip


def test_a_build_ends_with_a_set_and_what_is_unusual_about_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [m1_row(number) for number in range(40)] + [m1_row(40, MEDQA), m1_row(41, LEFT_OUT)]
    rows[3]["prompt"] = "broken"
    rows[5]["distilled_answer_string"] = "\\boxed{größer}"
    rows[6]["answer_string"], rows[6]["prompt"] = "größer", "Größe 6?\nA. größer\nB. größer"
    with caplog.at_level(logging.WARNING):
        build_m23k(tmp_path / "out", source=store(rows, "saved", tmp_path), drop_log=tmp_path / "log")
    said = capsys.readouterr().out
    assert "39 questions: openlifescienceai/medmcqa 38, GBaker/MedQA-USMLE-4-options 1" in said
    assert f"bad_options 1, equal_options 1, source {LEFT_OUT} 1" in said
    assert f"{MEDMCQA}: 38 questions, the published set has 21,628" in caplog.text
    assert "openlifescienceai/headqa: 0 questions, the published set has 209" in caplog.text
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "In 1 of 39 traces" in card
    assert "38 questions, the published set has 21,628" in card
    assert "42 records read" in card
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    samples = M23k(source=tmp_path / "out").load()
    assert [sample.dataset_index for sample in samples] == [n for n in range(41) if n not in (3, 6)]
    assert samples[0].reasoning == "\nOkay, 0.\n"
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["left_out"] == {f"source {LEFT_OUT}": 1}


def test_the_published_counts_pass_without_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sum(EXPECTED.values()) == 23_465 == 23_493 - 28
    monkeypatch.setattr(m23k, "EXPECTED", {MEDMCQA: 3, MEDQA: 1})
    rows = [m1_row(number) for number in range(3)] + [m1_row(3, MEDQA)]
    build_m23k(tmp_path / "out", source=store(rows, "parquet", tmp_path))
    assert "published set has" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_too_many_broken_rows_and_places_without_rows(tmp_path: Path) -> None:
    rows = [m1_row(number, prompt="broken") for number in range(3)] + [m1_row(3)]
    place = store(rows, "saved", tmp_path)
    with pytest.raises(DataError, match=r"3 of 4 .*bad_options 3"):
        build_m23k(tmp_path / "out", source=place)
    build_m23k(tmp_path / "out", source=place, max_drop_share=0.8)
    with pytest.raises(DataError, match="overwrite"):
        build_m23k(tmp_path / "out", source=place)
    with pytest.raises(ConfigurationError, match="revision"):
        M23k(source=place, revision="main").load()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        M23k(source=tmp_path / "empty.jsonl").load()


def test_a_name_that_is_nowhere_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert M23k().source == "UCSC-VLAA/MedVLThinker-m23k-tokenized"
    with pytest.raises(DataError, match=r"'nobody/nothing'.*no network.*gated"):
        M23k(source="nobody/nothing").load()


def test_named_in_yaml_with_a_selection(tmp_path: Path) -> None:
    place = store([m1_row(number) for number in range(4)], "saved", tmp_path)
    build_m23k(tmp_path / "out", source=place)
    counts = dict.fromkeys(COUNTS, 0) | {"n": 16}
    uids = M23k(source=place).load().uids
    rows = {uid: counts | {"strict": strict} for uid, strict in zip(uids, (2, 16, 0, 7), strict=True)}
    probe = Probe("p", model="m", prompt="reference", sampling={"n": 16}, seed=42, grader_version=GRADER_VERSION)
    Ledger().with_probe(probe, rows).write(tmp_path / "ledger.parquet")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    selection = {"ledger": str(tmp_path / "ledger.parquet"), "probe": "p", "low": 1, "high": 7}
    for source in (str(tmp_path / "out"), {"class_path": "SavedDataset", "init_args": {"path": str(tmp_path / "out")}}):
        settings = {"class_path": "M23k", "init_args": {"source": source, "selection": selection}}
        parsed = parser.parse_string(yaml.safe_dump({"source": settings}))
        assert parser.dump(parser.parse_string(parser.dump(parsed))) == parser.dump(parsed)
        samples = parser.instantiate(parsed).source.load()
        assert [(sample.dataset_index, sample.pass_count) for sample in samples] == [(0, 2), (3, 7)]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = store([m1_row(number) for number in range(4)], "jsonl", tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["data", "build", "m23k", "--source", str(place), "--output", str(tmp_path / "out")])
    assert caught.value.code == 0
    assert "4 questions" in capsys.readouterr().out
    assert len(SavedDataset(tmp_path / "out").load()) == 4


def test_real_questions_in_the_form_of_m1(tmp_path: Path, shared_data: Path) -> None:
    original = [
        *JSONLines(shared_data / "text_mcq_medqa_train.jsonl").load(),
        *JSONLines(shared_data / "text_mcq_medmcqa_dev.jsonl").load(),
        *JSONLines(shared_data / "text_mcq_medxpertqa_text.jsonl").load(),
    ]
    rows = [
        m1_row(
            number,
            prompt=render(sample.question, list(sample.options.values())),
            answer_letter=sample.answer_label,
            answer_string=sample.answer,
        )
        for number, sample in enumerate(original)
    ]
    again = M23k(source=store(rows, "saved", tmp_path)).load()
    assert len(again) == len(original) == 3969
    assert [(sample.question, dict(sample.options), sample.answer_label) for sample in again] == [
        (sample.question, dict(sample.options), sample.answer_label) for sample in original
    ]


@pytest.mark.parametrize("first", ["{broken", "[1]", '{"prompt": "no more than that"}'])
def test_a_broken_line_is_counted_wherever_it_stands(first: str, tmp_path: Path) -> None:
    rows = [m1_row(number) for number in range(1, 4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([first, *map(json.dumps, rows), "{broken"]), encoding="utf-8")
    with pytest.raises(DataError, match=r"2 of 5 records .*bad_json") as caught:
        M23k(source=path).load()
    assert "Hub" not in str(caught.value)
    build_m23k(tmp_path / "out", source=path, max_drop_share=0.4, drop_log=tmp_path / "log")
    assert [sample.dataset_index for sample in M23k(source=tmp_path / "out").load()] == [1, 2, 3]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "log").read_text().splitlines()]
    assert reasons == ["no_question" if "prompt" in first else "bad_json", "bad_json"]


@pytest.mark.parametrize("form", FORMS)
def test_the_bounds_hold_for_records_too(form: str, tmp_path: Path) -> None:
    rows = [unified(number) | {"images": []} for number in range(4)]
    rows[1]["answer_label"] = "Z"
    place = str(store(rows, form, tmp_path))
    with pytest.raises(DataError, match="max_drop_share"):
        build_m23k(tmp_path / "out", source=place)
    build_m23k(tmp_path / "out", source=place, max_drop_share=0.25, drop_log=tmp_path / "log")
    assert len(M23k(source=tmp_path / "out").load()) == 3
    assert len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize("options", [{"max_drop_share": 0.5}, {"drop_log": "log"}])
def test_a_source_has_its_own_bounds(options: dict[str, Any], tmp_path: Path) -> None:
    place = store([unified(number) for number in range(3)], "saved", tmp_path)
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        build_m23k(tmp_path / "out", source=SavedDataset(place), **options)
    build_m23k(tmp_path / "out", source=SavedDataset(place))


def test_a_damaged_local_file_is_no_matter_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"x\.parquet") as caught:
        M23k(source=tmp_path / "x.parquet").load()
    assert "Hub" not in str(caught.value)
