# SPDX-License-Identifier: Apache-2.0
"""The answer is computed again from the words of the question, by formulas written down a second time."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import pytest

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


def test_the_teacher_makes_the_first_slip_with_numbers() -> None:
    rng = Random(8)
    differ = 0
    for pick in range(100):
        draft = calculations.anion_gap(rng, pick, 0.6)
        sodium, chloride, _, _ = _numbers(draft.question)
        differ += float(draft.choices[draft.guess]) == sodium - chloride
    assert differ == 100
