# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.evaluation.scores import Comparison, Interval
from medvlt.evaluation.wording import NO_INTERVAL, difference_bounds, p_text, percent, points, summary_of_tests


@pytest.mark.parametrize(
    ("value", "text"), [(0.0125, "+1.2"), (-0.2, "-20.0"), (0.0, "+0.0"), (-0.0001, "+0.0"), (0.00004, "+0.0")]
)
def test_points(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04996, "0.0499"), (0.0499999, "0.0499"), (0.05, "0.0500"), (0.050001, "0.0500"), (0.04994, "0.0499"),
        (0.01236, "0.0124"), (1.0, "1.0000"), (2e-5, "<0.0001"), (None, ""),
    ],
)  # fmt: skip
def test_p_values_read_as_the_verdict_is(value: float | None, text: str) -> None:
    assert p_text(value) == text
    assert value is None or value < 0.0001 or (float(text) < 0.05) == (value < 0.05)


def test_a_difference_of_which_nothing_varies_has_words_and_no_interval() -> None:
    assert difference_bounds(Interval(0.0, 0.0, 0.0)) == NO_INTERVAL
    assert difference_bounds(Interval(0.1, -0.05, 0.2)) == "-5.0 to +20.0"
    assert (percent(None), percent(0.123456, 2)) == ("", "12.35")


def test_the_summary_counts_what_is_significant_after_correction() -> None:
    rows = [
        Comparison("A", "B", "x", 9, Interval(0.1, 0.0, 0.2), 1, 0, "test", p, adjusted, None)
        for p, adjusted in ((0.01, 0.03), (0.02, 0.05), (0.04, 0.3))
    ]
    assert summary_of_tests(rows).startswith("1 of 3 differences are significant at 0.05 after Holm")
