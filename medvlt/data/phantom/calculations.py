# SPDX-License-Identifier: Apache-2.0
"""Families in which a number is computed first. Teaching toys, not for clinical use.

Below difficulty 0.5 the options are classes, one word each; from 0.5 on the families with a numeric form ask for the
number, among evenly spaced values. The simulated teacher then makes a slip that leads to the next option, if any.
"""

from __future__ import annotations

from itertools import product
from random import Random

from medvlt.data.phantom.bands import NUMERIC_FROM, Bands, band_draft, decimal, number_draft, number_grid
from medvlt.data.phantom.draft import Draft, between
from medvlt.data.phantom.thresholds import HEART_RATE

ARTERIAL_PRESSURE = Bands(("low", "normal", "high"), 60, (70, 101), 112, teacher_cuts=(65, 106))
ANION_GAP = Bands(("low", "normal", "high"), 2, (8, 13), 24, teacher_cuts=(8, 17))
COMA = Bands(("severe", "moderate", "mild"), 3, (9, 13), 15, teacher_cuts=(8, 14))
# RR interval in hundredths of a second; the words run from short to long, so from fast to slow.
RR_INTERVAL = Bands(("tachycardia", "normal", "bradycardia"), 33, (60, 101), 150, teacher_cuts=(67, 121))
SHOCK_WORDS = FLUID_WORDS = ("below", "above")
MAX_WEIGHT_KG = 60

_COMA_SCORES = [
    sorted(
        (scores for scores in product(range(1, 5), range(1, 6), range(1, 7)) if COMA.classify(sum(scores)) == index),
        key=sum,
    )
    for index in range(3)
]
"""For every class, its combinations of (eye, verbal, motor)."""


def arterial_pressure(rng: Random, pick: int, difficulty: float) -> Draft:
    """Mean arterial pressure in mmHg, (systolic + 2 diastolic) / 3; usual textbook range 70 to 100.

    Pulse pressures are multiples of 3, so the mean is a whole number, and wide, so that neither pressure alone tells
    the class. The teacher accepts 65 to 105; his slip with numbers is the plain average of the two pressures.
    """
    numbers: tuple[int, ...] = ()
    truth = 0
    if difficulty < NUMERIC_FROM:
        mean = ARTERIAL_PRESSURE.draw(rng, pick % 3, difficulty)
        third = rng.randint(5, min(mean - 30, (190 - mean) // 2))  # of the pulse pressure
    else:
        slip = rng.randint(4, 10)  # a sixth of the pulse pressure
        numbers, truth = number_grid(
            rng, pick, difficulty, lowest=ARTERIAL_PRESSURE.first, highest=ARTERIAL_PRESSURE.last, step=slip
        )
        mean, third = numbers[truth], 2 * slip
    key = f"{mean + 2 * third}/{mean - third}"
    question = f"Blood pressure {key}: mean pressure?"
    if difficulty < NUMERIC_FROM:
        return band_draft(ARTERIAL_PRESSURE, mean, question=question, fact=f"mean {mean} is", key=key, one_input=False)
    return number_draft(numbers, truth, question=question, fact="mean is", key=key)


def anion_gap(rng: Random, pick: int, difficulty: float) -> Draft:
    """Serum anion gap in mmol/L, sodium - (chloride + bicarbonate), without potassium; usual range 8 to 12.

    Bicarbonate does not depend on the gap. The teacher still believes in the older upper limit of 16; his slip with
    numbers adds the potassium.
    """
    numbers: tuple[int, ...] = ()
    truth = 0
    if difficulty < NUMERIC_FROM:
        gap = ANION_GAP.draw(rng, pick % 3, difficulty)
    else:
        potassium = rng.randint(3, 5)
        numbers, truth = number_grid(
            rng, pick, difficulty, lowest=ANION_GAP.first, highest=ANION_GAP.last, step=potassium
        )
        gap = numbers[truth]
    bicarbonate = rng.randint(8, 28)
    rest = gap + bicarbonate  # sodium within 132 to 146 and chloride within 85 to 125
    chloride = rng.randint(max(85, 132 - rest), min(125, 146 - rest))
    sodium = chloride + rest
    key = f"{sodium} {chloride} {bicarbonate}"
    question = f"Na {sodium}, Cl {chloride}, HCO3 {bicarbonate}: anion gap?"
    if difficulty < NUMERIC_FROM:
        return band_draft(ANION_GAP, gap, question=question, fact=f"gap {gap} is", key=key, one_input=False)
    return number_draft(numbers, truth, question=question, fact="gap is", key=key)


def rr_interval(rng: Random, pick: int, difficulty: float) -> Draft:
    """Heart rate from the RR interval of a regular rhythm: 60 / interval in seconds, per minute.

    Tachycardia above 100 (interval below 0.60 s), bradycardia below 60 (above 1.00 s). The teacher believes in rates
    of 90 and 50; his slip with numbers takes the interval for longer.
    """
    if difficulty < NUMERIC_FROM:
        value = RR_INTERVAL.draw(rng, pick % 3, difficulty)
        rate, key, place = round(6000 / value), decimal(value, 2), RR_INTERVAL.place(value)
        question = f"Regular rhythm, RR interval {key} s?"
        # The words in the order of the heart-rate family, slow to fast.
        truth, guess = 2 - RR_INTERVAL.classify(value), 2 - RR_INTERVAL.teacher_classify(value)
        return Draft(question, f"rate {rate} is", HEART_RATE.words, truth, guess, key, place)
    step = rng.randint(5, 12)  # from 5 on, neighbouring rates differ
    intervals, right = number_grid(rng, pick, difficulty, lowest=RR_INTERVAL.first, highest=RR_INTERVAL.last, step=step)
    value = intervals[right]
    key, place = decimal(value, 2), RR_INTERVAL.place(value)
    question = f"Regular rhythm, RR interval {key} s: rate per minute?"
    rates = tuple(round(6000 / interval) for interval in intervals)
    return number_draft(rates, right, question=question, fact="rate is", key=key, place=place)


def coma_score(rng: Random, pick: int, difficulty: float) -> Draft:
    """Glasgow coma score, eye (1 to 4) + verbal (1 to 5) + motor (1 to 6), and the severity of a head injury.

    Severe 3 to 8, moderate 9 to 12, mild 13 to 15 (Teasdale and Jennett 1974; bands of the head-injury guidelines). The
    teacher calls 8 and 13 moderate; his slip with numbers adds one point.
    """
    numbers: tuple[int, ...] = ()
    right, index = 0, pick % 3
    if difficulty < NUMERIC_FROM:
        rank = rng.randrange(len(_COMA_SCORES[index]))
    else:
        numbers, right = number_grid(rng, pick, difficulty, lowest=COMA.first, highest=COMA.last, step=1)
        index = COMA.classify(numbers[right])
        scores = _COMA_SCORES[index]
        rank = rng.choice([rank for rank in range(len(scores)) if sum(scores[rank]) == numbers[right]])
    eye, verbal, motor = _COMA_SCORES[index][rank]
    total, key = eye + verbal + motor, f"{eye} {verbal} {motor}"
    question = f"Head injury, eye {eye}, verbal {verbal}, motor {motor}"
    if difficulty < NUMERIC_FROM:
        guess = COMA.teacher_classify(total)
        return Draft(f"{question}?", f"score {total} is", COMA.words, index, guess, key, (index, rank))
    return number_draft(
        numbers, right, question=f"{question}: coma score?", fact="score is", key=key, place=(index, rank)
    )


def shock_index(rng: Random, pick: int, difficulty: float) -> Draft:
    """Shock index, heart rate / systolic pressure (Allgower and Burri 1967), against 1; equality is never asked.

    Healthy adults have 0.5 to 0.7, and 1 or more goes with a need of massive transfusion. The teacher believes in 0.8.
    """
    above = pick % 2
    systolic = rng.randint(80, 140)
    offset = 1 + int(59 * rng.random() ** (1 + 3 * difficulty))
    pulse = systolic + offset if above else max(systolic - offset, 40)
    return Draft(
        question=f"Pulse {pulse}, systolic {systolic}: shock index against 1?",
        fact=f"{pulse} over {systolic} is",
        choices=SHOCK_WORDS,
        truth=above,
        guess=int(pulse > 0.8 * systolic),
        key=f"{pulse} {systolic}",
    )


def maintenance_fluids(rng: Random, pick: int, difficulty: float) -> Draft:
    """Hourly maintenance fluids of a child by the 4-2-1 rule (Holliday and Segar 1957), in mL/h.

    4 mL/kg for the first 10 kg, 2 for the next 10, 1 for the rest. Classes: the running rate is 10% to 25% (at full
    difficulty 5% to 10%) below or above the need; neither number alone tells which. The teacher takes 2 mL for every
    kilogram above 10; his slip with numbers takes the child for heavier.
    """
    if difficulty >= NUMERIC_FROM:
        step = rng.randint(2, 8)
        weights, right = number_grid(rng, pick, difficulty, lowest=11, highest=MAX_WEIGHT_KG, step=step)
        weight_kg = weights[right]
        return number_draft(
            [fluid_need(weight) for weight in weights],
            right,
            question=f"Child of {weight_kg} kg: maintenance fluids per hour?",
            fact="need is",
            key=str(weight_kg),
            place=(0, weight_kg - 11),
        )
    above = pick % 2
    least, most = between(0.1, 0.05, difficulty), between(0.25, 0.1, difficulty)
    while True:
        weight_kg = rng.randint(11, MAX_WEIGHT_KG)
        need, running = fluid_need(weight_kg), rng.randint(42, fluid_need(MAX_WEIGHT_KG))
        if (running > need) == above and least <= abs(running / need - 1) <= most:
            break
    return Draft(
        question=f"Child of {weight_kg} kg on {running} mL per hour: against need?",
        fact=f"{running} for need {need} is",
        choices=FLUID_WORDS,
        truth=above,
        guess=int(running > 40 + 2 * (weight_kg - 10)),
        key=f"{weight_kg} {running}",
    )


def fluid_need(weight_kg: int) -> int:
    """Returns the hourly maintenance fluids in mL by the 4-2-1 rule."""
    return 4 * min(weight_kg, 10) + 2 * min(max(weight_kg - 10, 0), 10) + max(weight_kg - 20, 0)
