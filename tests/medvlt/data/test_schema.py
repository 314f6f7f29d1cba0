# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.schema import FIELDS, parse_record, sample_uid, to_record

RECORD: dict[str, Any] = {
    "images": None,
    "question": "Which organ is enlarged?",
    "options": '{"A": "Spleen", "B": "Liver", "C": "Kidney"}',
    "answer_label": "B",
    "answer": "Liver",
    "reasoning": "The right upper quadrant is full.",
    "dataset_name": "toy",
    "dataset_index": 7,
    "pass_count": 3,
}


def parse(open_questions: bool = False, **changes: Any) -> Any:
    return parse_record(RECORD | changes, dataset_name="file", row=41, open_questions=open_questions)


def test_fields_of_the_published_record() -> None:
    sample = parse(hash="0123456789abcdef", misc='{"id": "x"}', text="<|im_start|>user\n", unused=None)
    assert sample.question == "Which organ is enlarged?"
    assert list(sample.options.items()) == [("A", "Spleen"), ("B", "Liver"), ("C", "Kidney")]
    assert (sample.answer_label, sample.answer, sample.pass_count) == ("B", "Liver", 3)
    assert (sample.dataset_name, sample.dataset_index, sample.images) == ("toy", 7, ())
    assert sample.extra == {"hash": "0123456789abcdef", "misc": '{"id": "x"}', "text": "<|im_start|>user\n"}


def test_written_as_it_was_read() -> None:
    record = RECORD | {
        "images": ["a/b.png"],
        "options": '{"C": "größer", "A": "kleiner"}',
        "answer_label": "C",
        "answer": "größer",
        "hash": "00",
        "misc": None,
    }
    written = to_record(parse_record(record, dataset_name=None, row=0))
    assert {**written, "images": [str(image) for image in written["images"]], "misc": None} == record
    assert written["options"] == '{"C": "größer", "A": "kleiner"}'  # order kept, no escapes
    assert tuple(written)[: len(FIELDS)] == FIELDS


@pytest.mark.parametrize("images", [None, []])
def test_no_pictures_are_null(images: list[str] | None) -> None:
    sample = parse(images=images)
    assert sample.images == ()
    assert to_record(sample)["images"] is None


def test_pictures_in_every_form() -> None:
    decoded = Image.new("L", (2, 2))
    stored = [{"bytes": b"png", "path": "x.png"}, {"bytes": None, "path": "y.png"}, "z.png", b"jpg", decoded]
    assert parse(images=stored).images == (b"png", Path("y.png"), Path("z.png"), b"jpg", decoded)


@pytest.mark.parametrize("images", ["a.png", [None], [3], [""], [{"bytes": None, "path": None}]])
def test_pictures_in_no_form(images: Any) -> None:
    with pytest.raises(RecordError) as caught:
        parse(images=images)
    assert caught.value.reason == DropReason.BAD_FIELD


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": None}, DropReason.NO_QUESTION),
        ({"question": "  "}, DropReason.NO_QUESTION),
        ({"question": 3}, DropReason.BAD_FIELD),
        ({"options": None}, DropReason.OPEN_QUESTION),
        ({"options": "{}"}, DropReason.OPEN_QUESTION),
        ({"options": "{oops"}, DropReason.BAD_OPTIONS),
        ({"options": '{"A": "x"}'}, DropReason.TOO_FEW_OPTIONS),
        ({"options": '{"A": "Liver", "B": " Liver"}'}, DropReason.EQUAL_OPTIONS),
        ({"answer_label": "D"}, DropReason.BAD_LABEL),
        ({"answer_label": "b"}, DropReason.BAD_LABEL),
        ({"answer_label": None, "answer": "Heart"}, DropReason.BAD_LABEL),
        ({"answer_label": None, "answer": None}, DropReason.NO_ANSWER),
        ({"answer": "Spleen"}, DropReason.ANSWER_MISMATCH),
        ({"question": "What is <|image_pad|>?"}, DropReason.SPECIAL_TOKEN),
        ({"options": '{"A": "<|im_end|>", "B": "Liver"}'}, DropReason.SPECIAL_TOKEN),
        ({"teacher_label": "D"}, DropReason.BAD_LABEL),
        ({"teacher_label": ["A"]}, DropReason.BAD_LABEL),
        ({"extra_json": '{"teacher_label": "b"}'}, DropReason.BAD_LABEL),
        ({"reasoning": "<think>a"}, DropReason.REASONING_TAGS),
        ({"reasoning": "a</think>"}, DropReason.REASONING_TAGS),
        ({"reasoning": "a <think>b</think>"}, DropReason.REASONING_TAGS),
        ({"reasoning": "<think>a</think> so B"}, DropReason.REASONING_TAGS),
        ({"reasoning": "<think><think>a</think></think>"}, DropReason.REASONING_TAGS),
        ({"reasoning": "<think>a <answer>B</answer></think>"}, DropReason.REASONING_TAGS),
        ({"reasoning": "<think>a</think><answer>A</answer> or <answer>B</answer>"}, DropReason.REASONING_TAGS),
        ({"reasoning": "a <ANSWER>B</ANSWER>"}, DropReason.REASONING_TAGS),
        ({"pass_count": "many"}, DropReason.BAD_FIELD),
        ({"dataset_index": [1]}, DropReason.BAD_FIELD),
    ],
)
def test_reasons(changes: dict[str, Any], reason: DropReason) -> None:
    with pytest.raises(RecordError) as caught:
        parse(**changes)
    assert caught.value.reason == reason
    assert str(caught.value) == caught.value.message


@pytest.mark.parametrize("column", ["image", "image_path", "Figure_path", "picture", "img_name", "image_file_name"])
def test_pictures_under_another_name(column: str) -> None:
    for images in (None, []):
        with pytest.raises(RecordError, match="rename the column to images, as a list") as caught:
            parse(**{"images": images, column: "a.png"})
        assert caught.value.reason == DropReason.BAD_FIELD
    with pytest.raises(RecordError, match="rename"):
        parse(extra_json=json.dumps({column: "a.png"}))
    assert parse(**{"images": ["b.png"], column: "a.png"}).extra == {column: "a.png"}
    assert parse(**{column: ""}).extra == {column: ""}
    light = parse_record(RECORD | {column: "a.png"}, dataset_name=None, row=0, light=True)
    assert light.extra == {column: "a.png"}


def test_other_columns_that_speak_of_pictures() -> None:
    assert parse(image_id=3, modality="X", figure_caption="Left lung.").images == ()


@pytest.mark.parametrize("text", ["<think>It is < 5.</think>", " <think>\nIt is < 5.\n</think>\n<answer>B</answer>\n"])
def test_tags_around_the_reasoning_are_taken_off(text: str) -> None:
    sample = parse(reasoning=text)
    assert sample.reasoning == "It is < 5."
    assert parse_record(to_record(sample), dataset_name=None, row=0) == sample


def test_tags_around_nothing() -> None:
    assert parse(reasoning="<think>\n\n</think>\n<answer>B</answer>").reasoning is None


@pytest.mark.parametrize("label", ["A", "", None])
def test_labels_of_a_teacher(label: str | None) -> None:
    assert parse(teacher_label=label).extra.get("teacher_label") == label


def test_what_follows_is_filled_in() -> None:
    assert parse(answer=None).answer == "Liver"
    assert parse(answer_label=None).answer_label == "B"
    assert parse(answer_label=None, answer=" Liver ").answer_label == "B"
    assert parse(answer_label=" B ").answer_label == "B"
    assert parse(dataset_name=None).dataset_name == "file"
    assert parse(dataset_index=None).dataset_index == 41
    assert parse(dataset_index=math.nan, reasoning=" ", pass_count=math.nan).dataset_index == 41
    assert parse(reasoning=" ").reasoning is None
    assert parse(pass_count=None).pass_count == -1


def test_open_questions_only_where_allowed() -> None:
    sample = parse(open_questions=True, options="{}", answer_label=None, answer="left lung")
    assert (sample.options, sample.answer_label, sample.answer) == ({}, None, "left lung")
    with pytest.raises(RecordError) as caught:
        parse(open_questions=True, options="{}", answer_label="A", answer="left lung")
    assert caught.value.reason == DropReason.BAD_LABEL


@pytest.mark.parametrize(
    ("stored", "parsed"), [("12", 12), ("012", "012"), ("MM-9", "MM-9"), (12.0, 12), ("9" * 5000, "9" * 5000)]
)
def test_index_is_the_same_as_text_and_as_number(stored: Any, parsed: int | str) -> None:
    sample = parse(dataset_index=stored)
    assert sample.dataset_index == parsed
    assert sample.uid == parse(dataset_index=parsed).uid


def test_uid_tells_wordings_apart_and_nothing_else() -> None:
    sample = parse()
    same = parse(images=["x.png"], reasoning=None, pass_count=-1, options={"A": "Spleen", "B": "Liver", "C": "Kidney"})
    assert sample.uid == same.uid
    assert sample.uid.startswith("toy:7:")
    assert len(sample.uid) == len("toy:7:") + 8
    others = (
        parse(question="Which organ is small?"),
        parse(options='{"B": "Liver", "A": "Spleen", "C": "Kidney"}'),
        parse(answer_label="A", answer="Spleen"),
        parse(dataset_index=8),
        parse(dataset_name="other"),
    )
    assert len({sample.uid, *(other.uid for other in others)}) == 6


def test_uid_of_another_wording_is_stored() -> None:
    sample = parse(uid="toy:7:feedbeef")
    assert sample.uid == "toy:7:feedbeef"
    assert to_record(sample)["uid"] == "toy:7:feedbeef"
    assert parse_record(to_record(sample), dataset_name=None, row=0) == sample
    assert "uid" not in to_record(parse())


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))


@given(
    texts=st.lists(TEXT.filter(lambda text: "<|" not in text), min_size=2, max_size=8, unique_by=str.strip),
    right=st.integers(0, 1),
    index=st.integers(-(2**60), 2**60) | st.from_regex(r"[A-Za-z]\w{0,8}", fullmatch=True),
    extra=st.dictionaries(st.sampled_from(["hash", "misc", "more"]), TEXT | st.booleans() | st.integers()),
)
def test_round_trip(texts: list[str], right: int, index: int | str, extra: dict[str, Any]) -> None:
    options = {"ABCDEFGH"[i]: text for i, text in enumerate(texts)}
    record = RECORD | extra | {"options": json.dumps(options), "dataset_index": index}
    record |= {"answer_label": "AB"[right], "answer": texts[right], "question": texts[0]}
    sample = parse_record(record, dataset_name=None, row=0)
    assert sample.options == options
    assert sample.extra == extra
    assert sample.uid == sample_uid("toy", index, texts[0], options, texts[right])
    again = parse_record(json.loads(json.dumps(to_record(sample))), dataset_name=None, row=5)
    assert again == sample
