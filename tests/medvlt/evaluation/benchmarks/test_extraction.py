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
    "Is the image T1-weighted or T2-weighted?": (("T1-weighted", "T2-weighted"), "T2-weighted"),
    "Is the hila normal or enlarged?": (("normal", "enlarged"), "Enlarged"),
    "Was this image taken in the AP or PA plane?": (("AP", "PA"), "PA"),
    "Is this an axial or saggital view of the brain?": (("axial", "saggital"), "Axial"),
    "Is the lesion located in gray or white matter?": (("gray", "white"), "White matter"),
    "Is the abnormality focal or diffuse?": (("focal", "diffuse"), "Diffuse"),
    "Are the calcifications superior or inferior to the diaphragm?": (("superior", "inferior"), "Superior"),
    "Are the ground glass opacities located more in the apex or base of the lung?": (("apex", "base"), "Base"),
    "Are the lines in the image inside or outside of the patient?": (("inside", "outside"), "Outside"),
    "Are the lines seen on the exterior or interior of the patient?": (("exterior", "interior"), "Exterior"),
    "Does this CT have contrast or no contrast?": (("contrast", "no"), "contrast"),
    "Is the CSF radiolucent or radioopaque?": (("radiolucent", "radioopaque"), "Radiolucent"),
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
    "Is there evidence of a solid or cystic mass?",
    "Are there any focal or diffuse abnormalities?",
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


def test_words_that_exclude_each_other() -> None:
    pairs = (
        "bilateral unilateral", "right both", "abnormal enlarged", "increased decreased", "male female",
        "angiography CT", "MR PET", "ultrasound X-ray", "xray MRI", "DWI FLAIR", "lateral AP", "sagittal coronal",
        "transverse axial", "one multiple",
        "singular multilobulated", "single 1", "bigger smaller", "less more", "black grey",
        "localized lateralized", "non-contrast contrast", "isodense hyperdense", "hypo hyper", "hypodense isodense",
        "radiopaque radiolucent",
    )  # fmt: skip
    for one, other in map(str.split, pairs):
        assert extract_options(f"Is it {one} or {other}?") == (one, other)
    assert extract_options("Is it red or swollen?") == YES_NO


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
    assert label_of("T2 weighted", {"A": "T1", "B": "T2"}) == "B"
    turned = {
        "not normal": "normal, abnormal",
        "more than one": "1, multiple",
        "Not yes": "Yes, No",
        "not left": "left, x",
    }
    for answer, texts in (turned | {"No contrast": "contrast, with gadolinium", "yes, no doubt": "Yes, No"}).items():
        assert label_of(answer, dict(zip("AB", texts.split(", "), strict=True))) is None


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
