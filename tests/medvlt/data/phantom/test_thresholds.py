# SPDX-License-Identifier: Apache-2.0
"""The answer is worked out again from the words of the question, by rules written down a second time."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import pytest

from medvlt.data.phantom import thresholds
from medvlt.data.phantom.bands import Bands
from medvlt.data.phantom.draft import Draft, Draw


def _band(value: float, low: float, high: float, words: tuple[str, str, str]) -> str:
    return words[0] if value < low else words[2] if value > high else words[1]


def _heart_rate(numbers: list[float], text: str) -> str:
    return _band(numbers[0], 60, 100, ("bradycardia", "normal", "tachycardia"))


def _bmi(numbers: list[float], text: str) -> str:
    index = numbers[0] if "kg" not in text else 1e4 * numbers[0] / numbers[1] ** 2
    if index < 18.5:
        return "underweight"
    return "normal" if index < 25 else "overweight" if index < 30 else "obese"


def _temperature(numbers: list[float], text: str) -> str:
    if numbers[0] < 35:
        return "hypothermia"
    return "neither" if numbers[0] < 38 else "fever"


def _severe_temperature(numbers: list[float], text: str) -> str:
    return "hyperpyrexia" if numbers[0] > 41.5 else _temperature(numbers, text)


def _potassium(numbers: list[float], text: str) -> str:
    return _band(numbers[0], 3.5, 5.0, ("hypokalemia", "normal", "hyperkalemia"))


def _sodium(numbers: list[float], text: str) -> str:
    return _band(numbers[0], 135, 145, ("hyponatremia", "normal", "hypernatremia"))


def _ph(numbers: list[float], text: str) -> str:
    return _band(numbers[0], 7.35, 7.45, ("acidemia", "normal", "alkalemia"))


def _egfr(numbers: list[float], text: str) -> str:
    for limit, word in ((90, "normal"), (60, "mild"), (30, "moderate"), (15, "severe")):
        if numbers[0] >= limit:
            return word
    return "failure"


def _hemoglobin(numbers: list[float], text: str) -> str:
    return "anemia" if numbers[0] < (12 if text.startswith("Woman") else 13) else "normal"


Oracle = Callable[[list[float], str], str]
ORACLES: list[tuple[Draw, Oracle, float]] = [
    (thresholds.heart_rate, _heart_rate, 0.0),
    (thresholds.bmi_class, _bmi, 0.0),
    (thresholds.bmi_class, _bmi, 0.9),
    (thresholds.temperature, _temperature, 0.0),
    (thresholds.temperature, _severe_temperature, 0.9),
    (thresholds.potassium, _potassium, 0.0),
    (thresholds.sodium, _sodium, 0.0),
    (thresholds.blood_ph, _ph, 0.0),
    (thresholds.egfr, _egfr, 0.0),
    (thresholds.hemoglobin, _hemoglobin, 0.0),
]


def _drafts(draw: Draw, difficulty: float) -> list[Draft]:
    rng = Random(3)
    return [draw(rng, pick, difficulty) for pick in range(600)]


@pytest.mark.parametrize(("draw", "oracle", "difficulty"), ORACLES)
def test_the_answer_follows_from_the_question(draw: Draw, oracle: Oracle, difficulty: float) -> None:
    for draft in _drafts(draw, difficulty):
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", draft.question)]
        assert draft.choices[draft.truth] == oracle(numbers, draft.question), draft


@pytest.mark.parametrize(("draw", "oracle", "difficulty"), ORACLES)
def test_the_fact_names_the_value(draw: Draw, oracle: Oracle, difficulty: float) -> None:
    for draft in _drafts(draw, difficulty):
        number = re.findall(r"\d+(?:\.\d+)?", draft.fact)
        assert len(number) == 1
        if "kg" in draft.question:
            weight, height = (float(part) for part in re.findall(r"\d+", draft.question))
            assert float(number[0]) == pytest.approx(weight / (height / 100) ** 2, abs=0.051)
        else:
            assert number[0] in draft.question


@pytest.mark.parametrize(
    ("bands", "value", "word"),
    [
        (thresholds.HEART_RATE, 60, "normal"),
        (thresholds.HEART_RATE, 59, "bradycardia"),
        (thresholds.HEART_RATE, 100, "normal"),
        (thresholds.HEART_RATE, 101, "tachycardia"),
        (thresholds.BMI, 184, "underweight"),
        (thresholds.BMI, 185, "normal"),
        (thresholds.BMI, 249, "normal"),
        (thresholds.BMI, 250, "overweight"),
        (thresholds.BMI, 299, "overweight"),
        (thresholds.BMI, 300, "obese"),
        (thresholds.TEMPERATURE, 349, "hypothermia"),
        (thresholds.TEMPERATURE, 350, "neither"),
        (thresholds.TEMPERATURE, 379, "neither"),
        (thresholds.TEMPERATURE, 380, "fever"),
        (thresholds.HYPERPYREXIA, 415, "fever"),
        (thresholds.HYPERPYREXIA, 416, "hyperpyrexia"),
        (thresholds.POTASSIUM, 34, "hypokalemia"),
        (thresholds.POTASSIUM, 35, "normal"),
        (thresholds.POTASSIUM, 50, "normal"),
        (thresholds.POTASSIUM, 51, "hyperkalemia"),
        (thresholds.SODIUM, 135, "normal"),
        (thresholds.SODIUM, 146, "hypernatremia"),
        (thresholds.BLOOD_PH, 734, "acidemia"),
        (thresholds.BLOOD_PH, 735, "normal"),
        (thresholds.BLOOD_PH, 745, "normal"),
        (thresholds.BLOOD_PH, 746, "alkalemia"),
        (thresholds.EGFR, 14, "failure"),
        (thresholds.EGFR, 15, "severe"),
        (thresholds.EGFR, 59, "moderate"),
        (thresholds.EGFR, 60, "mild"),
        (thresholds.EGFR, 90, "normal"),
        (thresholds.HEMOGLOBIN["Woman"], 119, "anemia"),
        (thresholds.HEMOGLOBIN["Woman"], 120, "normal"),
        (thresholds.HEMOGLOBIN["Man"], 129, "anemia"),
        (thresholds.HEMOGLOBIN["Man"], 130, "normal"),
    ],
)
def test_clinical_cut_offs(bands: Bands, value: int, word: str) -> None:
    assert bands.words[bands.classify(value)] == word
