# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.curation import text_matching
from medvlt.curation.text_matching import NUMBER, TextRule, mask_numbers, match_texts, number_values, words
from medvlt.errors import ConfigurationError, MissingExtraError

VIGNETTE = (
    "A 60-year-old woman comes to the clinic because of painless swelling of the left calf for 3 days. She returned "
    "from a flight of 11 hours last week, takes an oral contraceptive and smokes. Her pulse is 96/min, and "
    "dorsiflexion of the ankle hurts. Which of the following is the best next step in management?"
)
OTHER_VIGNETTE = (
    "A 34-year-old man comes to the clinic because of a dry cough and night sweats for 6 weeks. He works in a shelter, "
    "has lost 5 kg and coughs up streaks of blood. His temperature is 38.1, and there are crackles over the right "
    "upper lobe. Which of the following is the best next step in management?"
)
SHORT = [
    "Which nerve runs with the profunda brachii artery?",
    "Drug of choice in absence seizures is",
    "Drug of choice in trigeminal neuralgia is",
    "Vitamin deficient in scurvy:",
    "Which of the following is true about jaundice?",
    "Which of the following is true about the pancreas?",
    "Which of the following is true about Wilson disease?",
    "Most common site of carcinoma of the tongue",
    "All of the following are features of nephrotic syndrome except",
    "The half-life of digoxin is how long?",
]


def matched(train: list[str], evaluation: list[str], rule: TextRule | None = None) -> dict[tuple[int, int], bool]:
    return {(m.train, m.evaluation): m.exact for m in match_texts(train, evaluation, rule)}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("25 mg", "# mg"),
        ("twenty-five mg", "# mg"),
        ("one hundred and five beats and 2 stops", "# beats and # stops"),
        ("BP 125/87, T 37.0°C", "bp # t # c"),
        ("sand and ten", "sand and #"),
        ("", ""),
    ],
)
def test_numbers_in_digits_and_in_words_are_one_word(text: str, masked: str) -> None:
    assert " ".join(mask_numbers(words(text))) == masked


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("one hundred and twenty-five", [125]),
        ("two thousand and six", [2006]),
        ("three hundred thousand four hundred", [300_400]),
        ("1.5 million or 1,500,000", [1_500_000, 1_500_000]),
        ("37,5 and 37.50 and 05", [5, 37.5, 37.5]),
        ("125/87, 1:10, 2020.11.22", [1, 10, 11, 22, 87, 125, 2020]),
        ("five six twenty twenty zero", [0, 5, 6, 20, 20]),
        ("five and six", [5, 6]),
        ("a hundred of 7", [7, 100]),
        ("none", []),
        ("9" * 5000 + " hundred five", None),
    ],
)
def test_values_of_numbers(text: str, values: list[float] | None) -> None:
    found = sorted(map(float, number_values(words(text)).elements())) if values is not None else None
    assert found == values
    assert number_values(words(text)) == number_values(words(text.upper()))


@given(st.lists(st.integers(0, 999_999), max_size=5))
def test_numbers_in_words_have_the_value_of_those_in_digits(numbers: list[int]) -> None:
    def below_thousand(number: int) -> str:
        hundreds, rest = divmod(number, 100)
        ones = text_matching._ONES
        last = (
            ones[rest]
            if rest < 20
            else text_matching._TENS[rest // 10 - 2] + (f"-{ones[rest % 10]}" if rest % 10 else "")
        )
        return f"{ones[hundreds]} hundred" + (f" and {last}" if rest else "") if hundreds else last

    def spelled(number: int) -> str:
        thousands, rest = divmod(number, 1000)
        parts = [f"{below_thousand(thousands)} thousand"] if thousands else []
        return " ".join([*parts, below_thousand(rest)] if rest or not thousands else parts)

    text = " of ".join(map(spelled, numbers))
    assert number_values(words(text)) == Counter(map(Decimal, numbers))
    assert mask_numbers(words(text)) == mask_numbers(words(" of ".join(map(str, numbers))))


@given(st.text())
def test_every_text_has_its_numbers(text: str) -> None:
    assert bool(number_values(words(text))) == (NUMBER in mask_numbers(words(text)))


@pytest.mark.parametrize(
    ("one", "other", "numbers_only"),
    [
        ("Normal GFR is 125?", "Normal GFR is 90", True),
        ("Normal GFR is 125?", "normal gfr is one hundred and twenty-five", False),
        ("Dose of 0.5 g of drugX in kidney failure", "Dose of 0,50 g of drugX in kidney failure", False),
        ("Clearance at 70 kg, creatinine of 1.2?", "Clearance at 70 kg, creatinine of 1.4?", True),
        ("Clearance at 70 kg, creatinine of 1.2?", "At 70 kg, creatinine of 1.4, clearence?", True),
        ("7. Normal GFR in pregnancy is 125?", "Normal GFR in pregnancy is 125?", False),  # nothing contradicts
        ("At 37.5 degrees, 1,300 leukocytes and 125/87?", "AT 37 5 DEGREES 1 300 LEUKOCYTES AND 125/87", False),
        ("Dose of 1.25 g in kidney failure", "Dose of 12.5 g in kidney failure", True),
        (VIGNETTE, VIGNETTE.replace("60", "61").replace("painless", "firm"), False),
        (VIGNETTE, VIGNETTE, False),
    ],
)
def test_texts_with_the_same_words_and_other_numbers_are_told_apart(one: str, other: str, numbers_only: bool) -> None:
    for train, evaluation in ((one, other), (other, one)):
        assert [m.numbers_only for m in match_texts([train], [evaluation, *SHORT[:3]])] == [numbers_only]


@given(st.text())
def test_words_of_words_are_the_same_words(text: str) -> None:
    assert words(" ".join(words(text))) == words(text)


@pytest.mark.parametrize(
    "changed",
    [
        VIGNETTE.upper().replace(",", ""),
        VIGNETTE.replace("60", "fifty-eight").replace("3 days", "2 days").replace("96", "104"),
        VIGNETTE.replace("painless", "painles").replace("contraceptive", "contarceptive").replace("ankle", "anklle"),
        " ".join(reversed(VIGNETTE.split(". "))),
        VIGNETTE[: len(VIGNETTE) * 7 // 10],
        VIGNETTE.replace("woman", "lady").replace("painless", "indolent").replace("comes", "presents"),
        "Answer step by step. Question: " + VIGNETTE + " A. Duplex ultrasonography B. D-dimer C. Aspirin D. Rest",
        OTHER_VIGNETTE + " " + VIGNETTE,
    ],
    ids=["case", "numbers", "typing", "order", "cut", "synonyms", "prompt", "behind another text"],
)
def test_changed_question_is_found_among_others(changed: str) -> None:
    found = matched([*SHORT, changed], [*SHORT[:3], OTHER_VIGNETTE[::-1], VIGNETTE])
    assert (len(SHORT), 4) in found


def test_equal_but_for_case_and_punctuation_is_exact_and_a_changed_number_is_not() -> None:
    found = matched([VIGNETTE.lower().replace(",", " ;"), VIGNETTE.replace("60", "61")], [VIGNETTE, *SHORT])
    assert found == {(0, 0): True, (1, 0): False}


def test_questions_that_share_a_frame_do_not_match() -> None:
    assert matched([OTHER_VIGNETTE, *SHORT], [VIGNETTE]) == {}
    pairs = {pair for pair in matched(SHORT, SHORT) if pair[0] != pair[1]}
    assert pairs == set()


def test_a_short_stem_inside_a_long_text_is_not_a_match() -> None:
    assert matched([VIGNETTE + " Which of the following is true about jaundice?"], ["True about jaundice?"]) == {}


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_scores_equal_those_of_a_plain_loop(rng: random.Random) -> None:
    vocabulary = ["fever", "cough", "lung", "liver", "pain", "left", "right", "of", "the", "acute"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 6))) for _ in range(8)]
    train, evaluation = texts[:4], texts[4:]
    different = {" ".join(words(text)) for text in texts}
    weight = {w: math.log(1 + len(different) / max(1, sum(w in t.split() for t in different))) for w in vocabulary}
    rule = TextRule(similarity=0.6123, long_similarity=0.6123, letters=1.0)  # no ratio of few equal weights
    expected = {}
    for (i, a), (j, b) in itertools.product(enumerate(train), enumerate(evaluation)):
        left, right = set(a.split()), set(b.split())
        similarity = sum(weight[w] for w in left & right) / sum(weight[w] for w in left | right)
        if similarity >= 0.6123:
            expected[i, j] = similarity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_matching, "_CANDIDATE", 0.0)  # bags of words share few pairs of neighbours
        found = {(m.train, m.evaluation): m.similarity for m in match_texts(train, evaluation, rule)}
    assert found == pytest.approx(expected)


def test_two_different_short_words_are_no_typing_error() -> None:
    train = ["Signs of hypokalemia on the electrocardiogram", *SHORT]
    assert (0, 0) not in matched(
        train, ["Signs of hypercalcemia on the electrocardiogram", *SHORT], TextRule(0.9, letters=1.0)
    )
    assert (0, 0) in matched(
        train, ["Signs of hypokalaemia on the electrocardiogram", *SHORT], TextRule(0.9, letters=1.0)
    )


def test_words_in_any_order_are_candidates() -> None:
    rng = random.Random(0)
    texts = [VIGNETTE, OTHER_VIGNETTE, *SHORT]
    for place, text in enumerate(texts):
        for _ in range(10):
            shuffled = text.split()
            rng.shuffle(shuffled)
            assert (0, place) in matched([" ".join(shuffled)], texts), shuffled


def test_several_typing_errors_in_a_short_text_are_found_by_letters() -> None:
    changed = "Alginate impresion materal is similr to agar impression materials in the folowing respect"
    original = "Alginate impression material is similar to agar impression material in the following respect"
    assert matched([changed, *SHORT], [original], TextRule(1.0, 1.0, letters=0.95)) == {(0, 0): False}
    assert matched([changed, *SHORT], [original], TextRule(1.0, 1.0, letters=0.98)) == {}


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [*SHORT, VIGNETTE, OTHER_VIGNETTE]
    whole = list(match_texts(train, train[::-1]))
    monkeypatch.setattr(text_matching, "_CHUNK", 3)
    assert list(match_texts(train, train[::-1])) == whole
    assert [(m.train, m.evaluation) for m in whole] == [(i, len(train) - 1 - i) for i in range(len(train))]


@pytest.mark.parametrize(("train", "evaluation"), [([], []), ([VIGNETTE], []), ([], [VIGNETTE]), (["?!"], ["", "..."])])
def test_nothing_matches_nothing(train: list[str], evaluation: list[str]) -> None:
    assert matched(train, evaluation) == {}


@pytest.mark.parametrize("wrong", [{"similarity": 0.0}, {"phrases": 1.1}, {"min_words": 0}, {"long_similarity": -1}])
def test_rule_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TextRule(**wrong)  # type: ignore[arg-type]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidfuzz.distance", None)
    with pytest.raises(MissingExtraError, match="curation"):
        matched([VIGNETTE], [VIGNETTE])
