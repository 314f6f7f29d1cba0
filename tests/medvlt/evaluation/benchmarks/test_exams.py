# SPDX-License-Identifier: Apache-2.0
"""MMMU, MedXpertQA-MM and the exams without pictures: rows as their authors store them."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml
from PIL import Image

from medvlt.data.controls import RotatedOptions
from medvlt.data.samples import SampleSet, Source
from medvlt.data.sources import HubDataset, JSONLines
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.benchmarks import (
    MedMCQAValidation,
    MedQATest,
    MedXpertQAMM,
    MMLUMedical,
    MMMUMedical,
    PubMedQALabeled,
)
from medvlt.evaluation.benchmarks.building import ORIGINALS
from medvlt.evaluation.benchmarks.mmmu import SUBSETS, without_markers
from medvlt.evaluation.benchmarks.text_only import SUBJECTS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Fixed(Source):
    """Gives samples that are there already."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def load(self) -> SampleSet:
        return self.samples


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 30), (level, 0, 0)).save(file, format="JPEG")
    return file.getvalue()


def jsonl(rows: list[dict[str, Any]], place: Path) -> Path:
    place.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return place


def asked(samples: SampleSet) -> list[tuple[str, list[str], str | None, int | str]]:
    return [(one.question, list(one.options.values()), one.answer_label, one.dataset_index) for one in samples]


def mmmu_row(subset: str, split: str, number: int, **changes: Any) -> dict[str, Any]:
    images = {f"image_{i}": None for i in range(1, 8)}
    images["image_1"] = {"bytes": picture(number), "path": "a.png"}
    return {
        "id": f"{split}_{subset}_{number}",
        "question": f"Based on <image 1> , what is {number}?",
        "options": "['one', 'it\\'s two']",
        "answer": "B",
        "question_type": "multiple-choice",
        **images,
    } | changes


def test_mmmu(tmp_path: Path) -> None:
    place = tmp_path / "MMMU"
    features = datasets.Features(
        {
            name: datasets.Image() if name.startswith("image") else datasets.Value("string")
            for name in mmmu_row("", "", 0)
        }
    )
    configs = []
    for subset in (*SUBSETS, "Music"):
        files = []
        for split, numbers in (("validation", (1, 2)), ("dev", (3,))):
            rows = [mmmu_row(subset, split, number) for number in numbers]
            if subset == "Pharmacy" and split == "dev":
                rows[0] |= {"question_type": "open", "options": "[]", "answer": "7"}
            if subset == "Pharmacy" and split == "validation":
                rows[0]["image_7"] = {"bytes": picture(99), "path": "b.png"}
            file = place / subset / f"{split}-0.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))
            files.append({"split": split, "path": f"{subset}/{split}-*.parquet"})
        configs.append({"config_name": subset, "data_files": files})
    (place / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    samples = MMMUMedical(source=place, expected=14).load()
    assert {str(one.extra["subject"]) for one in samples} == set(SUBSETS)
    first = samples[0]
    assert (first.question, dict(first.options)) == ("Based on, what is 1?", {"A": "one", "B": "it's two"})
    assert (first.answer_label, first.dataset_index) == ("B", "validation_Basic_Medical_Science_1")
    two = next(one for one in samples if len(one.images) == 2)
    assert two.images == (picture(1), picture(99))
    assert samples.light(0).images == ()
    assert [samples.light(i).uid for i in range(14)] == list(samples.uids)
    assert without_markers("<image 1> In <image 2> the <image 10>?") == "In the?"
    assert without_markers("It was .25 mg , <image 1> .5 mg <image 2> .") == "It was .25 mg , .5 mg."


def medxpert_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"MM-{number}",
        "question": f"What is {number}?\nAnswer Choices: (A) one (B) two",
        "options": {"A": "one", "B": "two"},
        "label": "A",
        "images": [f"MM-{number}-a.jpeg", f"MM-{number}-b.jpeg"],
        "medical_task": "Diagnosis",
    } | changes


def test_medxpertqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder = tmp_path / "elsewhere.zip", tmp_path / "pictures"
    folder.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("images/", b"")
        for number in range(3):
            for letter in "ab":
                file.writestr(f"images/MM-{number}-{letter}.jpeg", picture(number))
                (folder / f"MM-{number}-{letter}.jpeg").write_bytes(picture(number))
    rows = [medxpert_row(number) for number in range(3)]
    place = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(place))
    github = [{"letter": "A", "content": "one"}, {"letter": "B", "content": "two"}]
    lines = jsonl([row | {"options": github, "label": ["A"]} for row in rows], tmp_path / "rows.jsonl")
    sets = [
        MedXpertQAMM(source=source, images=images, expected=3).load()
        for source in (place, lines)
        for images in (archive, folder)
    ]
    looked, find = [], MedXpertQAMM._pictures
    monkeypatch.setattr(MedXpertQAMM, "_pictures", lambda self: looked.append(self) or find(self))
    assert MedXpertQAMM(source=lines, images=archive, expected=3).load().uids == sets[0].uids
    assert len(looked) == 1
    records = jsonl([{"question": "q", "options": {"A": "x", "B": "y"}, "answer_label": "A"}], tmp_path / "built.jsonl")
    with pytest.raises(ConfigurationError, match="images is for original rows"):
        MedXpertQAMM(source=records, images=archive).load()
    for samples in sets:
        assert asked(samples) == [(f"What is {n}?", ["one", "two"], "A", f"MM-{n}") for n in range(3)]
        assert samples.uids == sets[0].uids
        found = [image if isinstance(image, bytes) else Path(str(image)).read_bytes() for image in samples[2].images]
        assert found == [picture(2)] * 2
    assert sets[0][1] == pickle.loads(pickle.dumps(sets[0]))[1]
    with pytest.raises(DataError, match="expected the pictures"):
        MedXpertQAMM(source=place, expected=3).load()
    with pytest.raises(DataError, match=r"1 lost.*missing_image 1 \(e.g. row 1: no picture 'gone.jpeg'"):
        MedXpertQAMM(
            source=jsonl([rows[0], rows[1] | {"images": ["gone.jpeg"]}], tmp_path / "gone.jsonl"),
            images=archive,
            expected=2,
        ).load()
    os.rename(archive, tmp_path / "images.zip")
    assert MedXpertQAMM(source=place, expected=3).load().uids == sets[0].uids
    asked_for = []
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *names, **settings: asked_for.append((names, settings)) or str(tmp_path / "images.zip"),
    )
    reader = MedXpertQAMM(revision="abc").converter()
    assert asked_for == [(("TsinghuaC3I/MedXpertQA", "images.zip"), {"repo_type": "dataset", "revision": "abc"})]
    record = reader(rows[0], 0)
    assert record is not None
    assert record["images"] == [picture(0)] * 2


def test_medqa(tmp_path: Path) -> None:
    row = {
        "question": "Which?",
        "answer": "b",
        "options": {"A": "a", "B": "b", "C": "c", "D": "c"},
        "meta_info": "step1",
        "answer_idx": "B",
    }
    samples = MedQATest(source=jsonl([row], tmp_path / "rows.jsonl"), expected=1).load()
    assert asked(samples) == [("Which?", ["a", "b", "c", "c (the same as C)"], "B", 0)]
    others = jsonl([row | {"answer": " b "}, row | {"answer": "a"}], tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"1 lost.*answer_mismatch 1 \(e.g. row 1: answer_idx 'B' stands for 'b'"):
        MedQATest(source=others, expected=2).load()


def test_medmcqa(tmp_path: Path) -> None:
    row = {"id": "u-1", "question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3}
    source = jsonl([row | {"choice_type": "single", "exp": None, "subject_name": "Surgery"}], tmp_path / "rows.jsonl")
    samples = MedMCQAValidation(source=source, expected=1).load()
    assert asked(samples) == [("Which?", ["a", "b", "c", "d"], "D", "u-1")]
    assert samples[0].extra == {"subject": "Surgery"}
    from_one = jsonl([row, row | {"cop": 4, "id": "u-2"}], tmp_path / "one.jsonl")
    with pytest.raises(DataError, match=r"got 4 of 4 options: it counts from 1"):
        MedMCQAValidation(source=from_one, expected=2, max_lost=1).load()
    below = jsonl([row, row | {"cop": -1, "id": "u-2"}], tmp_path / "below.jsonl")
    with pytest.raises(DataError, match=r"1 lost.*bad_label 1.*from 0 to 3, got -1"):
        MedMCQAValidation(source=below, expected=2).load()
    equal = row | {"opa": 0, "opb": 0, "opc": "0", "opd": None, "cop": 0}
    samples = MedMCQAValidation(source=jsonl([equal], tmp_path / "equal.jsonl"), expected=1).load()
    options = ["0", "0 (the same as A)", "0 (the same as A) (the same as B)", "(blank)"]
    assert asked(samples) == [("Which?", options, "A", "u-1")]
    assert RotatedOptions()(samples[0]) is samples[0]


def test_pubmedqa(tmp_path: Path) -> None:
    row = {
        "question": "Does it?",
        "context": {"contexts": ["Aim.", "Found."], "labels": ["A", "B"]},
        "long_answer": ".",
    }
    rows = [row | {"pubid": 10 + n, "final_decision": word} for n, word in enumerate(("yes", "no", "maybe"))]
    place = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(place))
    samples = PubMedQALabeled(source=place, expected=3).load()
    options = ["yes", "no", "maybe"]
    assert asked(samples) == [("Aim.\nFound.\nDoes it?", options, "ABC"[n], 10 + n) for n in range(3)]
    only = tmp_path / "test_ground_truth.json"
    only.write_text('{"12": "maybe", "10": "yes"}')
    half = PubMedQALabeled(source=place, only=only, expected=2).load()
    assert half.uids == (samples.uids[0], samples.uids[2])
    with pytest.raises(ConfigurationError, match=r"only is for original rows, got records.*\(Fixed\)"):
        PubMedQALabeled(source=Fixed(samples), only=only, expected=3).load()
    assert PubMedQALabeled(source=Fixed(samples), expected=3).load().uids == samples.uids
    with pytest.raises(DataError, match="expected 1,000 questions, got 3 questions, 997 lost"):
        PubMedQALabeled(source=Fixed(samples)).load()
    only.write_text("[12, 11, 10, 78, 77]")
    with pytest.raises(DataError, match=r"2 identifiers of .* are not in it: 77, 78; correct `only`"):
        PubMedQALabeled(source=place, only=only, expected=None).load()
    only.write_text("[12, 11, 10]")
    assert PubMedQALabeled(source=place, only=only, expected=3).load().uids == samples.uids
    only.write_text("12")
    with pytest.raises(DataError, match="list or object"):
        PubMedQALabeled(source=place, only=only).load()


def test_mmlu(tmp_path: Path) -> None:
    rows = [
        {"question": f"{subject}?", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": number % 4}
        for number, subject in enumerate((*SUBJECTS, "astronomy"))
    ]
    place = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(place))
    samples = MMLUMedical(source=place, expected=6).load()
    assert asked(samples) == [(f"{name}?", ["a", "b", "c", "d"], "ABCD"[n % 4], n) for n, name in enumerate(SUBJECTS)]


def test_published_counts_by_name() -> None:
    assert {name: kind().expected_rows for name, kind in ORIGINALS.items()} == {
        "pmc_vqa": 2_000, "MMMU-medical": 170, "MedXpertQA-MM": 2_000, "pathvqa_closed": 3_362, "slake_closed": 416,
        "vqa_rad_closed": 272, "medqa": 1_273, "medmcqa": 4_183, "pubmedqa": 1_000, "mmlu_medical": 1_089,
    }  # fmt: skip


def test_where_the_rows_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def opened(self: HubDataset) -> datasets.Dataset:
        places.append((self.name, self.subset, self.split))
        return datasets.Dataset.from_dict({"other": [1]})

    monkeypatch.setattr(HubDataset, "table", opened)
    for kind in ORIGINALS.values():
        with pytest.raises(DataError, match="its columns: other"):
            kind().load()
    branches = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
            "Public_Health")  # fmt: skip
    subjects = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics",
                "professional_medicine")  # fmt: skip
    adaptllm = "AdaptLLM/biomed-VQA-benchmark"
    assert places == [
        (adaptllm, "PMC-VQA", "test"),
        *[("MMMU/MMMU", subset, split) for subset in branches for split in ("validation", "dev")],
        ("TsinghuaC3I/MedXpertQA", "MM", "test"),
        *[(adaptllm, subset, "test") for subset in ("PathVQA", "SLAKE", "VQA_RAD")],
        ("GBaker/MedQA-USMLE-4-options", None, "test"),
        ("openlifescienceai/medmcqa", None, "validation"),
        ("qiaojin/PubMedQA", "pqa_labeled", "train"),
        *[("cais/mmlu", subject, "test") for subject in subjects],
    ]


def test_real_exam_questions_come_back(tmp_path: Path, shared_data: Path) -> None:
    """Real questions, put in the form in which their authors store them, come back as they were."""
    mcq = list(JSONLines(shared_data / "text_mcq_medmcqa_dev.jsonl").load())[:300]
    rows = [
        {"id": f"u{n}", "question": one.question, "cop": "ABCD".index(one.answer_label or "")}
        | {f"op{letter.lower()}": text for letter, text in one.options.items()}
        for n, one in enumerate(mcq)
    ]
    samples = MedMCQAValidation(source=jsonl(rows, tmp_path / "mcq.jsonl"), expected=300).load()
    assert [(one.question, list(one.options.values()), one.answer_label) for one in samples] == [
        (one.question.strip(), [text.strip() for text in one.options.values()], one.answer_label) for one in mcq
    ]
