# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from medvlt.data.phantom import PICTURE_FAMILIES, TEXT_FAMILIES, Phantom, phantom_corpus
from medvlt.data.phantom.source import PhantomSamples
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import parse_record, to_record
from medvlt.errors import ConfigurationError

UIDS = (
    "phantom_text:train-0-0-40d2260d:de4698c2",
    "phantom_picture:train-0-1-118f8608:28693193",
    "phantom_text:train-0-2-b8b39ce9:a3a1dfad",
    "phantom_picture:train-0-3-204c3d76:731a01ef",
)


def test_a_larger_set_begins_with_the_smaller_one() -> None:
    small, large = Phantom("train", 30).load(), Phantom("train", 60).load()
    assert list(small) == list(large)[:30]


def test_seeds_and_splits_give_other_questions() -> None:
    sets = [Phantom("train", 40).load(), Phantom("train", 40, seed=1).load(), Phantom("test", 40).load()]
    for one in range(3):
        for other in range(one):
            same = [
                a.question == b.question and a.images == b.images for a, b in zip(sets[one], sets[other], strict=True)
            ]
            assert sum(same) < 5


def test_uids_are_unique_and_stay() -> None:
    samples = Phantom("train", 3000).load()
    assert len(set(samples.uids)) == 3000
    # Literals: pass counts and seeds of rollouts hang on these names.
    assert samples.uids[:4] == UIDS


def test_pictures_do_not_change_the_uid_and_processes_agree() -> None:
    code = (
        "import hashlib; from medvlt.data.phantom import Phantom; "
        "print([(s.uid, hashlib.sha256(b''.join(s.images)).hexdigest())"
        " for s in Phantom('test', 6, difficulty=1).load()])"
    )
    root = Path(__file__).resolve().parents[4]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    small, large = Phantom("test", 6).load(), Phantom("test", 6, image_pixels=336).load()
    assert small.uids == large.uids
    assert small[1].images != large[1].images


@pytest.mark.parametrize("side", [56, 84, 336])
def test_pictures(side: int) -> None:
    samples = Phantom("validation", 8, modality="picture", image_pixels=side).load()
    for sample in samples:
        (data,) = sample.images
        assert isinstance(data, bytes)
        assert Image.open(io.BytesIO(data)).size == (side, side)
        assert sample.dataset_name == "phantom_picture"
        assert sample.extra["family"] in PICTURE_FAMILIES


def test_text_questions_have_no_picture() -> None:
    for sample in Phantom("train", 30, modality="text").load():
        assert sample.images == ()
        assert sample.dataset_name == "phantom_text"
        assert sample.extra["family"] in TEXT_FAMILIES


def test_both_modalities_take_turns() -> None:
    names = [sample.dataset_name for sample in Phantom("train", 20).load()]
    assert names == ["phantom_text", "phantom_picture"] * 10


def test_the_set_is_lazy_light_and_can_travel() -> None:
    samples = Phantom("train", 10**9).load()
    assert isinstance(samples, SampleSet)
    assert samples.report.kept == len(samples) == 10**9
    last = samples[-1]
    assert str(last.dataset_index).startswith("train-0-999999999-")
    assert last.images
    assert samples.light(10**9 - 1).images == ()
    assert pickle.loads(pickle.dumps(samples))[12345] == samples[12345]
    with pytest.raises(IndexError):
        samples[10**9]


def test_slices_and_ends_of_the_raw_sequence() -> None:
    raw = PhantomSamples(Phantom("test", 5).settings, 5)
    assert raw[1:3] == [raw[1], raw[2]]
    assert raw[-1] == raw[4]
    with pytest.raises(IndexError):
        raw.light(5)


def test_records_give_the_sample_back() -> None:
    for sample in Phantom("train", 40, reasoning="teacher").load():
        record = to_record(sample)
        assert "uid" not in record  # the uid is the one that the content gives
        assert parse_record(record, dataset_name=None, row=0) == sample


def test_it_is_named_in_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    config = parser.parse_object(
        {
            "source": {
                "class_path": "medvlt.data.phantom.Phantom",
                "init_args": {"split": "test", "size": 3, "families": ["side"], "difficulty": 0.5},
            }
        }
    )
    (first, *_) = parser.instantiate_classes(config).source.load()
    assert first.extra["family"] == "side"


def test_a_sample_takes_a_millisecond_or_two() -> None:
    samples = Phantom("train", 650).load()
    samples[1]
    start = time.process_time()
    assert sum(len(sample.images) for sample in samples) == 325
    assert time.process_time() - start < 1.2  # measured 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "split must be one of"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"difficulty": 1.5}, r"difficulty must be in \[0, 1\], got 1.5"),
        ({"difficulty": float("nan")}, "difficulty"),
        ({"reasoning": "long"}, "reasoning must be one of"),
        ({"teacher_share": -0.1}, "teacher_share"),
        ({"image_pixels": 100}, "multiple of 28, at least 56, got 100"),
        ({"image_pixels": 28}, "at least 56"),
        ({"families": ["sied"]}, "sied"),
        ({"modality": "image"}, "modality"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Phantom(**{"split": "train", "size": 10, **settings})  # type: ignore[arg-type]


def test_corpus() -> None:
    texts = list(phantom_corpus(200, seed=3))
    assert texts == list(phantom_corpus(200, seed=3))
    assert len(texts) == 200
    samples = Phantom("train", 200, seed=3).load()
    for text, sample in zip(texts, samples, strict=True):
        for part in (sample.question, *sample.options.values(), sample.reasoning, f"<answer> {sample.answer_label} "):
            assert part is not None
            assert part in text
