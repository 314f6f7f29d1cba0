# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest

from medvlt.data.phantom.draft import Modality
from medvlt.data.phantom.families import FAMILIES, PICTURE_FAMILIES, TEXT_FAMILIES, ModalityChoice, choose_families
from medvlt.data.phantom.source import Phantom
from medvlt.data.phantom.streams import SPLITS, split_of
from medvlt.errors import ConfigurationError

ALL = [(modality, name) for modality, families in FAMILIES.items() for name in families]
SOUND_TEACHER = {"side", "quadrant", "tone", "larger", "organ"}  # left and right swapped taught a model nothing


def test_there_are_enough_families_and_no_name_twice() -> None:
    assert len(TEXT_FAMILIES) >= 8
    assert len(PICTURE_FAMILIES) >= 6
    assert not set(TEXT_FAMILIES) & set(PICTURE_FAMILIES)


@pytest.mark.parametrize("difficulty", [0.0, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("modality", "name"), ALL)
def test_every_draft_is_sound(modality: Modality, name: str, difficulty: float) -> None:
    rng = Random(1)
    for pick in range(100):
        draft = FAMILIES[modality][name](rng, pick, difficulty)
        assert 2 <= len(draft.choices) <= 5
        assert len({choice.casefold() for choice in draft.choices}) == len(draft.choices)
        assert 0 <= draft.truth < len(draft.choices)
        assert 0 <= draft.guess < len(draft.choices)
        assert (draft.scene is not None) == (modality == "picture")
        if difficulty == 0:
            assert all(choice.isalpha() for choice in draft.choices)  # one word, one token


def test_two_to_five_options_occur() -> None:
    rng = Random(2)
    numbers = {len(FAMILIES[modality][name](rng, 0, 0.0).choices) for modality, name in ALL}
    assert numbers == {2, 3, 4, 5}


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_equal_keys_mean_equal_questions_and_splits(modality: Modality, name: str) -> None:
    """Two questions with the same values have the same words and answer: none can hide in two splits."""
    rng = Random(3)
    seen: dict[str, object] = {}
    for pick in range(1500):
        draft = FAMILIES[modality][name](rng, pick, 0.0)
        content = (draft.question, draft.truth, draft.scene, draft.place)
        assert seen.setdefault(draft.key, content) == content
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
@pytest.mark.parametrize(("modality", "name"), ALL)
def test_every_answer_has_values_in_every_split(modality: Modality, name: str, difficulty: float) -> None:
    rng, values = Random(4), defaultdict(set)
    for pick in range(3000):
        draft = FAMILIES[modality][name](rng, pick, difficulty)
        numeric = draft.choices[0].isdigit()
        values[split_of(name, draft.key, draft.place), 0 if numeric else draft.truth].add(draft.key)
    answers = {answer for _, answer in values}
    for split in SPLITS:
        for answer in answers:
            assert len(values[split, answer]) >= 2, (split, answer)


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_the_teacher_is_wrong_often_enough_to_be_corrected(modality: Modality, name: str) -> None:
    rng = Random(5)
    drafts = [FAMILIES[modality][name](rng, pick, 0.0) for pick in range(1200)]
    share = sum(draft.guess != draft.truth for draft in drafts) / len(drafts)
    if name in SOUND_TEACHER:
        assert share == 0
    else:
        assert 0.06 < share < (0.8 if name == "count" else 0.4)


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
@pytest.mark.parametrize("name", PICTURE_FAMILIES)
def test_blind_guessing_is_chance_on_pictures(name: str, difficulty: float) -> None:
    """All of a sample but its picture: the commonest answer, or letter, for each wording and options is no better."""
    samples = Phantom("train", 3000, families=[name], difficulty=difficulty).load()
    answers: defaultdict[object, Counter[str | None]] = defaultdict(Counter)
    letters: defaultdict[object, Counter[str | None]] = defaultdict(Counter)
    for index in range(len(samples)):
        sample = samples.light(index)
        answers[sample.question, frozenset(sample.options.values())][sample.answer] += 1
        letters[sample.question, frozenset(sample.options.values())][sample.answer_label] += 1
    chance = 1 / len(sample.options)
    tolerance = 3.5 * (chance * (1 - chance) / len(samples)) ** 0.5
    for votes in (answers, letters):
        assert sum(max(counts.values()) for counts in votes.values()) / len(samples) <= chance + tolerance


def test_choice_of_families() -> None:
    assert choose_families("both", None) == {"text": tuple(TEXT_FAMILIES), "picture": tuple(PICTURE_FAMILIES)}
    assert choose_families("both", ["count", "side"]) == {"picture": ("side", "count")}
    assert choose_families("text", ["sodium"]) == {"text": ("sodium",)}


@pytest.mark.parametrize(
    ("modality", "names", "message"),
    [
        ("both", ["sodum"], "unknown.*sodum"),
        ("text", ["side"], "unknown.*side"),
        ("both", ["side", "side"], "at most once"),
        ("both", [], "at least one"),
        ("images", None, "modality"),
    ],
)
def test_bad_families(modality: ModalityChoice, names: list[str] | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_families(modality, names)
