# SPDX-License-Identifier: Apache-2.0
"""Families in which a number is computed first. Teaching toys, not for clinical use.

Below difficulty 0.5 the options are classes, one word each; from 0.5 on the families with a numeric form ask for the
number, with the results of common slips as distractors. The simulated teacher then makes the first slip.
"""

from __future__ import annotations

from itertools import product
from random import Random

from medvlt.data.phantom.bands import NUMERIC_FROM, Bands, band_draft, decimal, number_draft
from medvlt.data.phantom.draft import Draft, between
from medvlt.data.phantom.thresholds import HEART_RATE

ARTERIAL_PRESSURE = Bands(("low", "normal", "high"), 45, (70, 101), 130, teacher_cuts=(65, 111))
ANION_GAP = Bands(("low", "normal", "high"), 2, (8, 13), 24, teacher_cuts=(8, 17))
COMA = Bands(("severe", "moderate", "mild"), 3, (9, 13), 15, teacher_cuts=(8, 14))
# RR interval in hundredths of a second; the words run from short to long, so from fast to slow.
RR_INTERVAL = Bands(("tachycardia", "normal", "bradycardia"), 33, (60, 101), 150, teacher_cuts=(67, 121))
SHOCK_WORDS = FLUID_WORDS = ("below", "above")

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

    Pulse pressures are multiples of 3, so the mean is a whole number. The teacher accepts 65 to 110; his slip with
    numbers is the plain average of the two pressures.
    """
    mean = ARTERIAL_PRESSURE.draw(rng, pick % 3, difficulty)
    pulse_pressure = 3 * rng.randint(8, 18)
    diastolic = mean - pulse_pressure // 3
    systolic = diastolic + pulse_pressure
    key = f"{systolic}/{diastolic}"
    question = f"Blood pressure {key}: mean pressure?"
    if difficulty < NUMERIC_FROM:
        return band_draft(ARTERIAL_PRESSURE, mean, question=question, fact=f"mean {mean} is", key=key, one_input=False)
    slips = ((systolic + diastolic) // 2, (2 * systolic + diastolic) // 3, pulse_pressure)
    return number_draft(rng, difficulty, question=question, fact="mean is", value=mean, slips=slips, spread=4, key=key)


def anion_gap(rng: Random, pick: int, difficulty: float) -> Draft:
    """Serum anion gap in mmol/L, sodium - (chloride + bicarbonate), without potassium; usual range 8 to 12.

    The teacher still believes in the older upper limit of 16; his slip with numbers forgets the bicarbonate.
    """
    gap = ANION_GAP.draw(rng, pick % 3, difficulty)
    sodium = rng.randint(132, 146)
    # A high gap comes with used-up bicarbonate, a normal one mostly with a normal 22 to 28.
    bicarbonate = rng.randint(8, 20) if gap > 12 else rng.randint(20, 28)
    chloride = sodium - bicarbonate - gap
    key = f"{sodium} {chloride} {bicarbonate}"
    question = f"Na {sodium}, Cl {chloride}, HCO3 {bicarbonate}: anion gap?"
    if difficulty < NUMERIC_FROM:
        return band_draft(ANION_GAP, gap, question=question, fact=f"gap {gap} is", key=key, one_input=False)
    slips = (sodium - chloride, gap + 4, sodium - chloride + bicarbonate)
    return number_draft(rng, difficulty, question=question, fact="gap is", value=gap, slips=slips, spread=3, key=key)


def rr_interval(rng: Random, pick: int, difficulty: float) -> Draft:
    """Heart rate from the RR interval of a regular rhythm: 60 / interval in seconds, per minute.

    Tachycardia above 100 (interval below 0.60 s), bradycardia below 60 (above 1.00 s). The teacher believes in rates
    of 90 and 50; his slip with numbers is 50 / interval.
    """
    value = RR_INTERVAL.draw(rng, pick % 3, difficulty)
    rate, key, place = round(6000 / value), decimal(value, 2), RR_INTERVAL.place(value)
    question = f"Regular rhythm, RR interval {key} s?"
    if difficulty < NUMERIC_FROM:
        # The words in the order of the heart-rate family, slow to fast.
        truth, guess = 2 - RR_INTERVAL.classify(value), 2 - RR_INTERVAL.teacher_classify(value)
        return Draft(question, f"rate {rate} is", HEART_RATE.words, truth, guess, key, place)
    slips = (round(5000 / value), value)
    question = f"Regular rhythm, RR interval {key} s: rate per minute?"
    return number_draft(
        rng, difficulty, question=question, fact="rate is", value=rate, slips=slips, spread=9, key=key, place=place
    )


def coma_score(rng: Random, pick: int, difficulty: float) -> Draft:
    """Glasgow coma score, eye (1 to 4) + verbal (1 to 5) + motor (1 to 6), and the severity of a head injury.

    Severe 3 to 8, moderate 9 to 12, mild 13 to 15 (Teasdale and Jennett 1974; bands of the head-injury guidelines). The
    teacher calls 8 and 13 moderate; his slip with numbers adds one point.
    """
    index = pick % 3
    rank = rng.randrange(len(_COMA_SCORES[index]))
    eye, verbal, motor = _COMA_SCORES[index][rank]
    total, key = eye + verbal + motor, f"{eye} {verbal} {motor}"
    question = f"Head injury, eye {eye}, verbal {verbal}, motor {motor}"
    if difficulty < NUMERIC_FROM:
        guess = COMA.teacher_classify(total)
        return Draft(f"{question}?", f"score {total} is", COMA.words, index, guess, key, (index, rank))
    return number_draft(
        rng,
        difficulty,
        question=f"{question}: coma score?",
        fact="score is",
        value=total,
        slips=(total + 1,),
        spread=1,
        key=key,
        place=(index, rank),
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

    4 mL/kg for the first 10 kg, 2 for the next 10, 1 for the rest. The teacher takes 4 mL for every kilogram. Classes:
    the running rate is at least 15% (5% at full difficulty) below or above the need.
    """
    weight_kg = rng.randint(11, 40)  # up to 10 kg the rule is the teacher's rule
    need = 40 + 2 * min(weight_kg - 10, 10) + max(weight_kg - 20, 0)
    if difficulty >= NUMERIC_FROM:
        slips = (4 * weight_kg, 40 + 2 * (weight_kg - 10), need + 10)
        question = f"Child of {weight_kg} kg: maintenance fluids per hour?"
        return number_draft(
            rng,
            difficulty,
            question=question,
            fact="need is",
            value=need,
            slips=slips,
            spread=6,
            key=str(weight_kg),
            place=(0, weight_kg - 11),
        )
    above = pick % 2
    change = between(0.15, 0.05, difficulty) + 0.55 * rng.random() ** (1 + 3 * difficulty)
    running = round(need * (1 + change)) if above else round(need * (1 - change))
    return Draft(
        question=f"Child of {weight_kg} kg on {running} mL per hour: against need?",
        fact=f"{running} for need {need} is",
        choices=FLUID_WORDS,
        truth=above,
        guess=int(running > 4 * weight_kg),
        key=f"{weight_kg} {running}",
    )
