# SPDX-License-Identifier: Apache-2.0
"""Families about one measured value and its clinical cut-offs. Teaching toys for adults, not for clinical use."""

from __future__ import annotations

from random import Random

from medvlt.data.phantom.bands import Bands, band_draft, decimal
from medvlt.data.phantom.draft import Draft

HEART_RATE = Bands(("bradycardia", "normal", "tachycardia"), 35, (60, 101), 180, teacher_cuts=(50, 91))
BMI = Bands(("underweight", "normal", "overweight", "obese"), 140, (185, 250, 300), 420, teacher_cuts=(174, 230, 275))
TEMPERATURE = Bands(("hypothermia", "neither", "fever"), 300, (350, 380), 415, teacher_cuts=(360, 375))
HYPERPYREXIA = Bands(
    ("hypothermia", "neither", "fever", "hyperpyrexia"), 300, (350, 380, 416), 435, teacher_cuts=(360, 375, 410)
)
POTASSIUM = Bands(("hypokalemia", "normal", "hyperkalemia"), 20, (35, 51), 75, teacher_cuts=(31, 47))
SODIUM = Bands(("hyponatremia", "normal", "hypernatremia"), 118, (135, 146), 162, teacher_cuts=(130, 150))
BLOOD_PH = Bands(("acidemia", "normal", "alkalemia"), 695, (735, 746), 770, teacher_cuts=(738, 743))
EGFR = Bands(
    ("failure", "severe", "moderate", "mild", "normal"), 5, (15, 30, 60, 90), 119, teacher_cuts=(20, 45, 60, 80)
)
HEMOGLOBIN = {
    "Woman": Bands(("anemia", "normal"), 70, (120,), 150, teacher_cuts=(130,)),
    "Man": Bands(("anemia", "normal"), 80, (130,), 160, teacher_cuts=(120,)),
}


def heart_rate(rng: Random, pick: int, difficulty: float) -> Draft:
    """Resting heart rate per minute: bradycardia below 60, tachycardia above 100 (American Heart Association).

    The teacher believes in 50 and 90.
    """
    value = HEART_RATE.draw(rng, pick % 3, difficulty)
    return band_draft(
        HEART_RATE, value, question=f"Resting adult, pulse {value} per minute?", fact=f"rate {value} is", key=str(value)
    )


def bmi_class(rng: Random, pick: int, difficulty: float) -> Draft:
    """Body-mass index in kg/m2: underweight below 18.5, overweight from 25, obese from 30 (WHO report 894, 2000).

    The teacher takes 17.4 and, for all people, the lower cut-offs 23 and 27.5 that WHO experts proposed in 2004 as
    action points for Asian populations. From difficulty 0.5 on, weight and height are given, index = weight / height^2.
    """
    if difficulty < 0.5:
        value = BMI.draw(rng, pick % 4, difficulty)
        question = f"Adult with body mass index {decimal(value, 1)}?"
        return band_draft(BMI, value, question=question, fact=f"index {decimal(value, 1)} is", key=str(value))
    while True:
        height_cm = rng.randint(150, 195)
        wanted = BMI.draw(rng, pick % 4, difficulty)
        weight_kg = round(wanted / 10 * height_cm**2 / 1e4)
        exact = weight_kg * 1e5 / height_cm**2  # in tenths, as the cut-offs are
        value = round(exact)
        # On a cut-off the rounded index may fall into another class than the exact one: no fair question.
        if BMI.classify(value) == BMI.classify(int(exact)) == pick % 4:
            break
    question = f"Adult, weight {weight_kg} kg, height {height_cm} cm: body mass index class?"
    fact = f"index {decimal(value, 1)} is"
    return band_draft(BMI, value, question=question, fact=fact, key=f"{weight_kg} {height_cm}", one_input=False)


def temperature(rng: Random, pick: int, difficulty: float) -> Draft:
    """Core temperature in degrees Celsius: hypothermia below 35.0, fever from 38.0, else neither.

    Hypothermia as in the resuscitation guidelines (ERC 2021), fever as the CDC defines it. From difficulty 0.5 on there
    is a fourth class, hyperpyrexia above 41.5 (Harrison's Principles). The teacher believes in 36.0, 37.5 and 41.0.
    """
    bands = TEMPERATURE if difficulty < 0.5 else HYPERPYREXIA
    value = bands.draw(rng, pick % len(bands.words), difficulty)
    shown = decimal(value, 1)
    return band_draft(bands, value, question=f"Core temperature {shown} C?", fact=f"temperature {shown} is", key=shown)


def potassium(rng: Random, pick: int, difficulty: float) -> Draft:
    """Serum potassium in mmol/L: reference range 3.5 to 5.0, limits included. The teacher takes 3.1 to 4.6."""
    value = POTASSIUM.draw(rng, pick % 3, difficulty)
    shown = decimal(value, 1)
    return band_draft(
        POTASSIUM, value, question=f"Serum potassium {shown} mmol/L?", fact=f"potassium {shown} is", key=shown
    )


def sodium(rng: Random, pick: int, difficulty: float) -> Draft:
    """Serum sodium in mmol/L: reference range 135 to 145, limits included. The teacher takes 130 to 149."""
    value = SODIUM.draw(rng, pick % 3, difficulty)
    return band_draft(
        SODIUM, value, question=f"Serum sodium {value} mmol/L?", fact=f"sodium {value} is", key=str(value)
    )


def blood_ph(rng: Random, pick: int, difficulty: float) -> Draft:
    """Arterial pH: acidemia below 7.35, alkalemia above 7.45. The teacher accepts only 7.38 to 7.42 as normal."""
    value = BLOOD_PH.draw(rng, pick % 3, difficulty)
    shown = decimal(value, 2)
    return band_draft(BLOOD_PH, value, question=f"Arterial blood pH {shown}?", fact=f"pH {shown} is", key=shown)


def egfr(rng: Random, pick: int, difficulty: float) -> Draft:
    """Kidney function by estimated filtration rate in mL/min per 1.73 m2, the G categories of KDIGO 2012.

    Normal from 90 (G1), mild loss from 60 (G2), moderate from 30 (G3), severe from 15 (G4), failure below 15 (G5).
    The teacher believes in 80, 60, 45 and 20.
    """
    value = EGFR.draw(rng, pick % 5, difficulty)
    return band_draft(
        EGFR, value, question=f"Estimated GFR {value} mL/min: kidney loss?", fact=f"rate {value} is", key=str(value)
    )


def hemoglobin(rng: Random, pick: int, difficulty: float) -> Draft:
    """Hemoglobin in g/dL: anemia below 12.0 in women who are not pregnant, below 13.0 in men (WHO 2011).

    The teacher mixes the two cut-offs up.
    """
    sex = "Woman" if rng.random() < 0.5 else "Man"
    bands = HEMOGLOBIN[sex]
    value = bands.draw(rng, pick % 2, difficulty)
    shown = decimal(value, 1)
    return band_draft(
        bands, value, question=f"{sex}, hemoglobin {shown} g/dL?", fact=f"hemoglobin {shown} is", key=f"{sex} {shown}"
    )
