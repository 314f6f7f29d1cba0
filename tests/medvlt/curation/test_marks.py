# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binom

from medvlt.curation.marks import (
    above_chance,
    answers_needed,
    below_chance,
    binomial_at_least,
    binomial_at_most,
    gives_answer_away,
    length_outlier,
    normalise,
    quotes,
    repeats,
    wording,
)
from medvlt.types import Sample


def question(stem: str, options: list[str], right: int = 0) -> Sample:
    letters = dict(zip("ABCDE", options, strict=False))
    return Sample(stem, stem, letters, "ABCDE"[right], options[right])


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Is there a  mass?", "is there a mass"),
        ("T2-weighted MRI.", "t2 weighted mri"),
        ("**Aspirin**", "aspirin"),
        ("\ufb01brosis", "fibrosis"),
        ("N/A", "n / a"),
        ("\u2212 5", "- 5"),
    ],
)
def test_same_words(one: str, two: str) -> None:
    assert normalise(one) == normalise(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("-5", "5"),
        ("1.5", "15"),
        ("p < 0.05", "p > 0.05"),
        ("10%", "10"),
        ("Rh-", "Rh+"),
        ("?", "!"),
        ("left", "right"),
        ("\u2191", "\u2193"),
    ],
)
def test_other_meaning(one: str, two: str) -> None:
    assert normalise(one) != normalise(two)


@given(st.one_of(st.text(max_size=60), st.text("aR0 -+.,/?\u2212\u2013\u0130\ufb01", max_size=8)))
@example("0-")
def test_normalising_twice_changes_nothing_and_blanks_do_not_count(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f"  {text}\n ") == once
    assert bool(once) is bool(text.strip())


@given(st.lists(st.sampled_from(["mass", "2", "left", "?", "10%", "p < 3", "N/A"]), min_size=1, max_size=6))
def test_case_does_not_count(words: list[str]) -> None:
    text = " ".join(words)
    assert normalise(text.upper()) == normalise(text.lower()) == normalise(text.title())


@pytest.mark.parametrize("options", [2, 4, 5, 10])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_binomial_tails_are_those_of_scipy(n: int, options: int) -> None:
    for right in range(n + 1):
        assert binomial_at_least(right, n, 1 / options) == pytest.approx(binom.sf(right - 1, n, 1 / options))
        assert binomial_at_most(right, n, 1 / options) == pytest.approx(binom.cdf(right, n, 1 / options))


def test_thresholds_of_sixteen_samples() -> None:
    assert [above_chance(k, 16, 4, alpha=0.05) for k in (7, 8)] == [False, True]
    assert [above_chance(k, 16, 2, alpha=0.05) for k in (11, 12)] == [False, True]
    assert [below_chance(k, 16, 4, alpha=0.05) for k in (0, 1)] == [True, False]
    assert [below_chance(k, 16, 2, alpha=0.05) for k in (4, 5)] == [True, False]


def test_too_few_samples_tell_nothing() -> None:
    assert above_chance(2, 2, 4, alpha=0.05) is None
    assert above_chance(3, 3, 4, alpha=0.05) is True
    assert below_chance(0, 10, 4, alpha=0.05) is None
    assert below_chance(0, 11, 4, alpha=0.05) is True
    assert above_chance(0, 0, 4, alpha=0.05) is None


@pytest.mark.parametrize(
    ("stem", "options", "leaks"),
    [
        ("What does the CT of the liver abscess show?", ["Liver abscess", "Cyst", "Tumour"], True),
        ("What does the CT of the liver show?", ["Liver abscess", "Cyst", "Tumour"], False),
        ("Is the mass benign or malignant?", ["Benign", "Malignant"], False),  # both are named
        ("Is there no mass?", ["No", "Yes"], False),
        ("What is in panel 2?", ["2", "3"], False),
        ("Which of A and B?", ["A", "C"], False),
        ("Pap smear of the cervix?", ["CA cervix", "Fibroid"], False),  # half of the answer
        ("Which type 1 diabetes?", ["Type 2 diabetes", "Gout"], False),
        ("N/A?", ["N/A", "Gout"], False),
        ("Does he have gout?", ["The gout", "Lupus"], True),
        ("Adenocarcinoma of what?", ["Carcinoma", "Lung"], False),  # part of a word
    ],
)
def test_questions_that_give_their_answer_away(stem: str, options: list[str], leaks: bool) -> None:
    assert gives_answer_away(stem, options[0], options[1:]) is leaks


def test_quoting_a_caption() -> None:
    caption = "Axial CT: large, lobulated mass in the left upper lobe (arrow)."
    assert quotes("What is the large lobulated mass in the left lung?", caption, 6)
    assert not quotes("What is the large lobulated mass in the left lung?", caption, 7)
    assert not quotes("left the in mass lobulated large", caption, 3)
    assert not quotes("", caption, 1)
    assert not quotes("mass", "", 1)
    assert not quotes("mass mass", "mass", 2)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8), st.integers(1, 4))
def test_quoting_equals_a_loop(one: list[str], two: list[str], words: int) -> None:
    expected = any(
        all(one[i + k] == two[j + k] for k in range(words))
        for i in range(len(one) - words + 1)
        for j in range(len(two) - words + 1)
    )
    assert quotes(" ".join(one), " ".join(two), words) is expected


@pytest.mark.parametrize(
    ("answer", "others", "outlier"),
    [
        ("x" * 40, ["x" * 20, "x" * 3], "longest"),
        ("x" * 39, ["x" * 20, "x" * 3], None),
        ("x" * 5, ["x" * 20, "x" * 30], "shortest"),
        ("x" * 11, ["x" * 20, "x" * 30], None),
        ("yes", ["n"], None),  # three times as long, and no difference
        ("  " + "x" * 20 + "  ", ["x" * 20], None),
    ],
)
def test_length_outliers(answer: str, others: list[str], outlier: str | None) -> None:
    assert length_outlier(answer, others, ratio=2, gap=15) == outlier


def marks(*questions: tuple[Sample, list[bytes]]) -> tuple[list[bool], list[bool]]:
    return repeats([wording(sample, pictures) for sample, pictures in questions])


def test_duplicates_are_the_later_ones() -> None:
    first = question("Mass?", ["Cyst", "Tumour"])
    shuffled = replace(first, options={"A": "tumour", "B": "Cyst."}, answer_label="B", question=" mass ")
    other_options = question("Mass?", ["Cyst", "Abscess"])
    pictures = [b"1"]
    duplicate, contradictory = marks(
        (first, pictures), (shuffled, pictures), (other_options, pictures), (first, [b"2"]), (first, [b"1", b"1"])
    )
    assert duplicate == [False, True, False, False, False]
    assert not any(contradictory)


def test_contradictions_mark_all_members() -> None:
    base = question("Mass?", ["Cyst", "Tumour"])
    other = replace(base, answer_label="B", answer="Tumour")
    duplicate, contradictory = marks((base, []), (other, []), (base, []), (question("Cyst?", ["Cyst", "Tumour"]), []))
    assert duplicate == [False, False, True, False]
    assert contradictory == [True, True, True, False]


def test_other_options_contradict_only_if_one_answer_is_wrong_in_the_other() -> None:
    first = question("Which is true?", ["Ice is cold", "Fire is cold"])
    apart = question("Which is true?", ["Fire is hot", "Ice is hot"])
    against = question("Which is true?", ["Water is wet", "Ice is cold"])
    assert marks((first, []), (apart, []))[1] == [False, False]
    assert marks((first, []), (apart, []), (against, []))[1] == [True, False, True]


def test_genotypes_differ_by_case() -> None:
    one = question("Genotype?", ["AA", "Aa", "aa"], 0)
    two = question("Genotype?", ["AA", "Aa", "aa"], 2)
    assert marks((one, []), (two, [])) == ([False, False], [True, True])
    assert marks((one, []), (one, [])) == ([False, True], [False, False])


def test_a_picture_question_is_not_the_text_question_of_the_same_words() -> None:
    one = question("Mass?", ["Cyst", "Tumour"])
    assert marks((one, []), (one, [b"1"])) == ([False, False], [False, False])


questions = st.builds(
    question,
    st.sampled_from(["What?", "what", "Which?"]),
    st.permutations(["cyst", "Cyst.", "10", "-10", "N/A"]).map(
        lambda texts: [t for t in texts if t != "Cyst."][:3] if texts[0] != "Cyst." else ["Cyst.", "10", "N/A"]
    ),
    st.integers(0, 2),
)


@given(st.lists(st.tuples(questions, st.sampled_from([[], [b"1"], [b"2"]])), max_size=8))
def test_repeats_equal_a_comparison_of_all_pairs(rows: list[tuple[Sample, list[bytes]]]) -> None:
    def plain(text: str) -> str:
        return text.casefold().strip("?. ")

    def key(row: tuple[Sample, list[bytes]]) -> tuple[str, bytes]:
        return plain(row[0].question), b"|".join(row[1])

    def options(row: tuple[Sample, list[bytes]]) -> set[str]:
        return {plain(text) for text in row[0].options.values()}

    def answer(row: tuple[Sample, list[bytes]]) -> str:
        return plain(row[0].options[str(row[0].answer_label)])

    duplicate = [
        any(key(a) == key(b) and options(a) == options(b) and answer(a) == answer(b) for a in rows[:i])
        for i, b in enumerate(rows)
    ]
    contradictory = [False] * len(rows)
    for i, j in itertools.permutations(range(len(rows)), 2):
        a, b = rows[i], rows[j]
        if key(a) == key(b) and answer(a) != answer(b) and (answer(a) in options(b) or answer(b) in options(a)):
            contradictory[i] = True
    assert marks(*rows) == (duplicate, contradictory)


@given(st.integers(2, 8), st.floats(0.001, 0.5))
def test_from_as_many_answers_on_a_test_can_tell(options: int, alpha: float) -> None:
    enough = answers_needed(options, alpha=alpha, all_right=True)
    tested = [above_chance(n, n, options, alpha=alpha) is not None for n in range(enough + 3)]
    assert tested == [n >= enough for n in range(enough + 3)]
    enough = answers_needed(options, alpha=alpha, all_right=False)
    tested = [below_chance(n, n, options, alpha=alpha) is not None for n in range(enough + 3)]
    assert tested == [n >= enough for n in range(enough + 3)]
