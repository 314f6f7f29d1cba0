# SPDX-License-Identifier: Apache-2.0
"""The answer is computed again from the words of the question, by formulas written down a second time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from scipy.stats import chisquare

from medvlt.data.phantom import calculations
from medvlt.data.phantom.draft import Draw


def _band(value: float, low: float, high: float) -> str:
    return "low" if value < low else "high" if value > high else "normal"


def _pressure(numbers: list[float]) -> float:
    return numbers[1] + (numbers[0] - numbers[1]) / 3  # diastolic and a third of the pulse pressure


def _gap(numbers: list[float]) -> float:
    return numbers[0] - numbers[1] - numbers[3]  # the 3 of HCO3 is a number too


def _rate(numbers: list[float]) -> float:
    return 60 / numbers[0]


def _score(numbers: list[float]) -> float:
    return sum(numbers)


def _need(numbers: list[float]) -> float:
    need = 0.0
    for kilogram in range(1, int(numbers[0]) + 1):
        need += 4 if kilogram <= 10 else 2 if kilogram <= 20 else 1
    return need


def _rate_word(rate: float) -> str:
    return "bradycardia" if rate < 60 else "tachycardia" if rate > 100 else "normal"


def _injury_word(score: float) -> str:
    return "severe" if score <= 8 else "moderate" if score <= 12 else "mild"


Formula = Callable[[list[float]], float]
CLASSES: list[tuple[Draw, Formula, Callable[[float], str]]] = [
    (calculations.arterial_pressure, _pressure, lambda value: _band(value, 70, 100)),
    (calculations.anion_gap, _gap, lambda value: _band(value, 8, 12)),
    (calculations.rr_interval, _rate, _rate_word),
    (calculations.coma_score, _score, _injury_word),
    (calculations.shock_index, lambda n: n[0] / n[1], lambda index: "above" if index > 1 else "below"),
    (
        calculations.maintenance_fluids,
        lambda n: n[1] / _need(n),
        lambda ratio: "above" if ratio > 1 else "below",
    ),
]
NUMBERS: list[tuple[Draw, Formula]] = [
    (calculations.arterial_pressure, _pressure),
    (calculations.anion_gap, _gap),
    (calculations.rr_interval, lambda numbers: round(_rate(numbers))),
    (calculations.coma_score, _score),
    (calculations.maintenance_fluids, _need),
]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize("difficulty", [0.0, 0.45])
@pytest.mark.parametrize(("draw", "formula", "word"), CLASSES)
def test_classes(draw: Draw, formula: Formula, word: Callable[[float], str], difficulty: float) -> None:
    rng = Random(4)
    for pick in range(600):
        draft = draw(rng, pick, difficulty)
        assert draft.choices[draft.truth] == word(formula(_numbers(draft.question))), draft


@pytest.mark.parametrize("difficulty", [0.5, 1.0])
@pytest.mark.parametrize(("draw", "formula"), NUMBERS)
def test_numbers(draw: Draw, formula: Formula, difficulty: float) -> None:
    rng = Random(5)
    for pick in range(300):
        draft = draw(rng, pick, difficulty)
        assert float(draft.choices[draft.truth]) == pytest.approx(formula(_numbers(draft.question))), draft


@pytest.mark.parametrize(("draw", "formula", "word"), CLASSES[:4])
def test_the_fact_names_the_computed_number(draw: Draw, formula: Formula, word: Callable[[float], str]) -> None:
    rng = Random(6)
    for pick in range(100):
        draft = draw(rng, pick, 0.0)
        assert _numbers(draft.fact) == [pytest.approx(round(formula(_numbers(draft.question))))]


def test_inputs_are_plausible() -> None:
    rng = Random(7)
    for pick in range(500):
        systolic, diastolic = _numbers(calculations.arterial_pressure(rng, pick, 0.0).question)
        assert 20 <= diastolic < systolic <= 190
        sodium, chloride, _, bicarbonate = _numbers(calculations.anion_gap(rng, pick, 0.0).question)
        assert 132 <= sodium <= 146
        assert 85 <= chloride <= 125
        assert 8 <= bicarbonate <= 28
        eye, verbal, motor = _numbers(calculations.coma_score(rng, pick, 0.0).question)
        assert 1 <= eye <= 4
        assert 1 <= verbal <= 5
        assert 1 <= motor <= 6


@pytest.mark.parametrize(
    ("draw", "slip"),
    [
        (calculations.arterial_pressure, lambda n: (n[0] + n[1]) / 2),
        (calculations.coma_score, lambda n: sum(n) + 1),
    ],
)
def test_the_teacher_makes_a_slip_if_it_is_an_option(draw: Draw, slip: Formula) -> None:
    rng = Random(8)
    for pick in range(100):
        draft = draw(rng, pick, 0.6)
        wrong = f"{slip(_numbers(draft.question)):g}"
        assert draft.choices[draft.guess] == (draft.choices[draft.truth] if pick % 4 == 3 else wrong)


@pytest.mark.parametrize("difficulty", [0.5, 1.0])
@pytest.mark.parametrize("draw", [draw for draw, _ in NUMBERS])
def test_the_options_alone_do_not_tell_the_number(draw: Draw, difficulty: float) -> None:
    """Rank, distances and values of the options: what half of the questions teach about them is chance on the rest."""
    rng = Random(9)
    views: list[Callable[[list[int]], object]] = [
        lambda numbers: 0,  # the rank alone
        lambda numbers: tuple(after - before for before, after in pairwise(numbers)),
        tuple,
        min,
    ]
    seen: list[tuple[list[int], int]] = []
    for _ in range(8000):
        draft = draw(rng, rng.getrandbits(30), difficulty)
        numbers = sorted(int(choice) for choice in draft.choices)
        seen.append((numbers, numbers.index(int(draft.choices[draft.truth]))))
    count = len(seen[0][0])
    assert chisquare([sum(rank == each for _, rank in seen) for each in range(count)]).pvalue > 1e-4
    for view in views:
        votes: defaultdict[object, Counter[int]] = defaultdict(Counter)
        for numbers, rank in seen[:4000]:
            votes[view(numbers)][rank] += 1
        right = sum(
            votes[view(numbers)].most_common(1)[0][0] == rank if view(numbers) in votes else 1 / count
            for numbers, rank in seen[4000:]
        )
        assert right / 4000 < 1 / count + 0.03
    # The option from which another one lies at a fixed distance.
    for distance in (*range(-12, 0), *range(1, 13)):
        hits = [
            (numbers[rank] + distance in numbers) / sum(number + distance in numbers for number in numbers)
            for numbers, rank in seen
            if any(number + distance in numbers for number in numbers)
        ]
        if len(hits) > 500:
            assert sum(hits) / len(hits) < 1 / count + 0.07, distance


def test_coma_scores_among_the_options_exist() -> None:
    rng = Random(10)
    for difficulty in (0.5, 1.0):
        drafts = [calculations.coma_score(rng, pick, difficulty) for pick in range(500)]
        assert {int(choice) for draft in drafts for choice in draft.choices} == set(range(3, 16))


@pytest.mark.parametrize("difficulty", [0.0, 0.45])
@pytest.mark.parametrize(
    ("draw", "classes", "leak"),
    [
        (calculations.anion_gap, 3, 0.25),
        (calculations.maintenance_fluids, 2, 0.25),
        # Normal means of 70 to 100 span so much that plausible pressures cannot do with less.
        (calculations.arterial_pressure, 3, 0.36),
    ],
)
def test_no_single_input_tells_the_class(draw: Draw, classes: int, leak: float, difficulty: float) -> None:
    rng, number = Random(11), 20_000
    drafts = [draw(rng, rng.getrandbits(30), difficulty) for _ in range(number)]
    for inputs in zip(*(_numbers(draft.question) for draft in drafts), strict=True):
        votes: defaultdict[float, Counter[int]] = defaultdict(Counter)
        for value, draft in zip(inputs, drafts, strict=True):
            votes[value][draft.truth] += 1
        right = sum(max(counts.values()) for counts in votes.values())
        assert right / number < 1 / classes + leak


def test_bicarbonate_does_not_depend_on_the_gap() -> None:
    rng = Random(12)
    values: defaultdict[int, list[float]] = defaultdict(list)
    for pick in range(9000):
        draft = calculations.anion_gap(rng, pick, 0.0)
        values[draft.truth].append(_numbers(draft.question)[3])
    for bicarbonates in values.values():
        assert sum(bicarbonates) / len(bicarbonates) == pytest.approx(18, abs=0.5)
        assert (min(bicarbonates), max(bicarbonates)) == (8, 28)
