# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.evaluation.benchmarks.extraction import YES_NO, extract_options, label_of

# questions of the tests of SLAKE and VQA-RAD, with what their annotators answered
OFFERED = {
    "Which is the biggest in this image,lung,liver or heart?": (("lung", "liver", "heart"), "Lung"),
    "Which is the biggest in this image, spleen,lung, or liver?": (("spleen", "lung", "liver"), "Liver"),
    "Which organ is abnormal, heart or lung?": (("heart", "lung"), "Heart"),
    "Which is smaller in this image,liver or right kidney?": (("liver", "right kidney"), "Right Kidney"),
    "Where is the heart in this image,left,top or upper left?": (("left", "top", "upper left"), "Top"),
    "Which type of modality is shown about this image, MRI, CT or X-Ray?": (("MRI", "CT", "X-Ray"), "CT"),
    "Which plane is the image scanned, transverse plane or coronal plane?": (
        ("transverse plane", "coronal plane"), "Coronal Plane"
    ),
    "Which kind of weighting is this image generated with, t1 or t2?": (("t1", "t2"), "T2"),
    "Is this a T1 weighted or T2 weighted MRI image?": (("T1 weighted", "T2 weighted"), "T2"),
    "Is the abnormality hyperdense or hypodense?": (("hyperdense", "hypodense"), "Hyperdense"),
    "Are there multiple or just 1 metastatic focus?": (("multiple", "1"), "one"),
    "Is the colon more prominent on the patient's right or left side?": (("right", "left"), "Left"),
    "Is the heart size in this image smaller or larger than if the image was taken AP?": (
        ("smaller", "larger"), "Smaller"
    ),
    "Is this supratentorial or infratentorial?": (("supratentorial", "infratentorial"), "supratentorial"),
    "Is this an MRI or a CT scan?": (("MRI", "CT"), "MRI"),
    "Is the patient a female or male?": (("female", "male"), "Female"),
    "Are the structures in the pancreas cystic or solid?": (("cystic", "solid"), "Cystic"),
    "Is this image normal or abnormal?": (("normal", "abnormal"), "Abnormal"),
    "Is the gastric bubble shown on the left or right side of the patient?": (("left", "right"), "Right side"),
    "Are pleural opacities located on the left, right, or both sides of the lung?": (("left", "right", "both"), "Both"),
    "Is this a T1 weighted, T2 weighted, or FLAIR image?": (("T1 weighted", "T2 weighted", "FLAIR"), "FLAIR"),
    "Is there hypoinflation or hyperinflation of the lung": (("hypoinflation", "hyperinflation"), "Hyperinflation"),
    "The small bubbles of air seen in the lumen are normal or abnormal?": (("normal", "abnormal"), "abnormal"),
    "Was a CT or MRI used to take the above image?": (("CT", "MRI"), "MRI"),
    "Was this image taken with or without contrast?": (("with contrast", "without contrast"), "With contrast"),
    "Is this an abscess or cancer?": (("abscess", "cancer"), "Abscess"),
    "What is denser, the mass or the surrounding brain tissue?": (
        ("mass", "surrounding brain tissue"), "surrounding tissue"
    ),
}  # fmt: skip

YES_OR_NO = (
    "Is there a fracture?",
    "Does the liver show an enhancing mass or lesion?",
    "Is the brain atrophied or shrunk?",
    "Any evidence of epidural or subdural hematoma?",
    "Are there epidural or subdural bleeds as well?",
    "Is there ectatic or aneurysmal enlargement of the abdominal aorta?",
    "Is homogeneous or diffuse staining of nuclei typical of antibodies reactive with dsDNA,  nucleosomes,  and "
    "histones?",
    "Does this image show obvious gangrenous necrosis due to shock or embolism postoperative cardiac surgery?",
    "Is/Are there abnormalities in the patient's right lung?",
    "Besides the mass in the temporal horn, are there other enhancements in the image?",
    "Doe this image depict an interstitial lung process?",
    "Does this image use contrast or not?",
)

NOTHING = ("What do the two small hyperintensities indicate?", "What is present?", "Which organ is this?", "", " ?")


@pytest.mark.parametrize("question", OFFERED)
def test_what_a_question_offers(question: str) -> None:
    expected, answer = OFFERED[question]
    found = extract_options(question)
    assert found == expected
    options = dict(zip("ABCD", found, strict=False))
    label = label_of(answer, options)
    assert label is not None
    assert options[label].casefold()[:3] in answer.casefold() + " 1" or answer == "surrounding tissue"


@pytest.mark.parametrize("question", YES_OR_NO)
def test_yes_or_no(question: str) -> None:
    assert extract_options(question) == YES_NO


@pytest.mark.parametrize("question", NOTHING)
def test_no_options(question: str) -> None:
    assert extract_options(question) is None


@given(st.lists(st.sampled_from([*"ab,;?/ ", "is ", "which ", " or ", "left", "right ", "with ", "a "]), max_size=14))
def test_options_are_several_and_different_or_none(parts: list[str]) -> None:
    found = extract_options("".join(parts))
    if found is not None:
        assert len({text.casefold() for text in found}) == len(found) > 1
        assert all(text.strip() == text != "" for text in found)


def test_the_annotated_answer_is_found_only_where_it_is_clear() -> None:
    assert label_of("Yes.", {"A": "Yes", "B": "No"}) == "A"
    assert label_of("left", {"A": "left", "B": "upper left"}) == "A"
    assert label_of("Non-contrast CT", {"A": "contrast CT", "B": "non contrast CT"}) == "B"
    for answer in ("liver", "", "kidney and spleen", "maybe"):
        assert label_of(answer, {"A": "kidney", "B": "spleen"}) is None


@pytest.mark.parametrize(
    ("file", "unread"),
    [
        ("annotations_only/slake_en_closed_yesno.jsonl", 0),
        ("annotations_only/pathvqa_val_closed_yesno.jsonl", 7),  # "What is present?"
        ("vqa_rad_closed_yesno.jsonl", 0),
    ],
)
def test_real_yes_no_questions(file: str, unread: int, shared_data: Path) -> None:
    with (shared_data / file).open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    found = [extract_options(record["question"]) for record in records]
    assert found.count(None) == unread
    wrong = [r["question"] for r, options in zip(records, found, strict=True) if options not in (None, YES_NO)]
    assert wrong == []
