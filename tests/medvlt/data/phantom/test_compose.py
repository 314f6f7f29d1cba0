# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from medvlt.data.phantom.compose import Settings, _walk, draft_at, family_at, sample_at
from medvlt.data.phantom.families import PICTURE_FAMILIES, TEXT_FAMILIES, choose_families
from medvlt.data.phantom.streams import SPLITS, Split, split_of

ALL = Settings(
    split="train",
    seed=0,
    families=tuple(choose_families("both", None).items()),
    difficulty=0.0,
    reasoning="exact",
    teacher_share=0.6,
    image_pixels=84,
    shuffle_options=True,
)


def test_families_take_turns() -> None:
    rounds = 14 * 8 * 2
    counts = Counter(family_at(ALL, index) for index in range(rounds))
    assert {count for (modality, _), count in counts.items() if modality == "text"} == {8}
    assert {count for (modality, _), count in counts.items() if modality == "picture"} == {14}
    orders = {tuple(family_at(ALL, 16 * turn + 2 * place + 1)[1] for place in range(8)) for turn in range(5)}
    assert len(orders) > 1  # not the same round again and again


@given(st.sampled_from(SPLITS), st.integers(0, 2**40), st.integers(0, 10**7), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_samples_are_sound(split: Split, seed: int, index: int, difficulty: float) -> None:
    chosen = replace(ALL, split=split, seed=seed, difficulty=difficulty, reasoning="teacher")
    sample = sample_at(chosen, index, with_picture=False)
    assert sample == sample_at(chosen, index, with_picture=False)
    assert list(sample.options) == list("ABCDE")[: len(sample.options)]
    assert sample.answer_label is not None
    assert sample.options[sample.answer_label] == sample.answer
    assert sample.extra["teacher_label"] in sample.options
    assert sample.reasoning is not None
    assert sample.reasoning.split()[-1] == sample.extra["teacher_label"]


def test_letters_are_equally_likely() -> None:
    """Over all questions, over those of one family, and whatever the answer word."""
    letters: defaultdict[object, Counter[str]] = defaultdict(Counter)
    options: dict[object, int] = {}
    for index in range(8000):
        sample = sample_at(ALL, index, with_picture=False)
        label = sample.answer_label or ""
        for group in (len(sample.options), sample.extra["family"], (sample.extra["family"], sample.answer)):
            letters[group][label] += 1
            options[group] = len(sample.options)
    assert len(letters) > 22
    for group, counts in letters.items():
        observed = [counts[letter] for letter in "ABCDE"[: options[group]]]
        assert chisquare(observed).pvalue > 1e-4, (group, counts)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_balanced_in_every_split(split: Split) -> None:
    words: defaultdict[str, Counter[str]] = defaultdict(Counter)
    number: dict[str, int] = {}
    for index in range(5000):
        _, family, draft = draft_at(replace(ALL, split=split), index)
        words[family][draft.choices[draft.truth]] += 1
        number[family] = len(draft.choices)
    assert set(PICTURE_FAMILIES) < set(words)
    for family, counts in words.items():
        assert len(counts) == number[family]
        assert chisquare(list(counts.values())).pvalue > 1e-4, (family, counts)


def test_answers_stay_balanced_where_values_are_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(family: str, key: str, place: tuple[int, int]) -> Split:
        return "train" if place[0] or place[1] % 20 == 0 else "test"

    monkeypatch.setattr("medvlt.data.phantom.compose.split_of", scarce)
    chosen = replace(ALL, families=(("text", ("heart_rate",)),))
    counts = Counter(draft_at(chosen, index)[2].truth for index in range(900))
    assert chisquare([counts[answer] for answer in range(3)]).pvalue > 1e-4


def test_splits_share_no_value_whatever_the_seeds() -> None:
    keys = {
        split: {
            (family, draft.key)
            for seed in (0, 7)
            for index in range(2500)
            for _, family, draft in [draft_at(replace(ALL, split=split, seed=seed), index)]
        }
        for split in SPLITS
    }
    for one in SPLITS:
        assert len(keys[one]) > 1000
        for other in SPLITS:
            if one != other:
                assert not keys[one] & keys[other]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_numbered_value_repeats_before_all_were_asked(split: Split) -> None:
    chosen = replace(ALL, split=split)
    asked: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for index in range(6000):
        _, family, draft = draft_at(chosen, index)
        if draft.place is not None:
            asked[family, draft.truth].append(draft.key)
    assert len({family for family, _ in asked}) == 10
    for family in {family for family, _ in asked}:
        rng, values = Random(1), defaultdict(set)
        for pick in range(4000):
            draft = TEXT_FAMILIES[family](rng, pick, 0.0)
            if split_of(family, draft.key, draft.place) == split:
                values[draft.truth].add(draft.key)
        for answer, wanted in values.items():
            keys = asked[family, answer]
            assert len(keys) > len(wanted)
            for start in range(0, len(keys) - len(wanted) + 1, len(wanted)):
                assert set(keys[start : start + len(wanted)]) == wanted


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_set_is_the_same_in_any_order_and_for_other_seeds_another(split: Split) -> None:
    chosen = replace(ALL, split=split)
    forward = [draft_at(chosen, index) for index in range(200)]
    _walk.cache_clear()
    assert [draft_at(chosen, index) for index in reversed(range(200))] == forward[::-1]
    other = [draft_at(replace(chosen, seed=1), index) for index in range(200)]
    assert sum(one == two for one, two in zip(forward, other, strict=True)) < 20


def test_exact_traces_end_in_the_right_word_and_letter() -> None:
    for index in range(300):
        sample = sample_at(ALL, index, with_picture=False)
        assert sample.reasoning is not None
        assert sample.reasoning.endswith(f" {sample.answer} {sample.answer_label}")
        assert "teacher_label" not in sample.extra


def test_the_teacher_changes_nothing_but_the_trace() -> None:
    wrong, followed, differs = 0, 0, 0
    for index in range(3000):
        exact = sample_at(ALL, index, with_picture=False)
        taught = sample_at(replace(ALL, reasoning="teacher"), index, with_picture=False)
        plain = {key: value for key, value in taught.extra.items() if key != "teacher_label"}
        assert replace(taught, reasoning=exact.reasoning, extra=plain) == exact
        chosen = taught.options[taught.extra["teacher_label"]]
        assert (taught.reasoning or "").endswith(f" {chosen} {taught.extra['teacher_label']}")
        _, _, draft = draft_at(ALL, index)
        differs += draft.guess != draft.truth
        followed += chosen == draft.choices[draft.guess]
        wrong += chosen != exact.answer
    assert followed > wrong > 0
    assert wrong / differs == pytest.approx(0.6, abs=0.06)


def test_no_reasoning() -> None:
    assert sample_at(replace(ALL, reasoning="none"), 0).reasoning is None


def test_options_in_natural_order() -> None:
    chosen = replace(ALL, families=(("text", ("egfr",)),), shuffle_options=False)
    assert list(sample_at(chosen, 5).options.values()) == ["failure", "severe", "moderate", "mild", "normal"]


def test_questions_are_short() -> None:
    """Words, digits and signs count one token each, as a small tokenizer has it: with options at most 40."""
    for index in range(600):
        sample = sample_at(ALL, index, with_picture=False)
        options = sum(3 for _ in sample.options)  # letter, full stop, word
        assert len(re.findall(r"[A-Za-z]+|\S", sample.question)) + options <= 36, sample.question
