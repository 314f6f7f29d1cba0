# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.statistics.intervals import effective_questions
from medvlt.evaluation.statistics.paired import sign_flip
from medvlt.evaluation.statistics.power import detectable_difference, detectable_paired_difference


@pytest.mark.parametrize("total", [170, 272, 2000])
@pytest.mark.parametrize("accuracy", [0.0, 0.23, 0.5, 0.66, 0.97])
@pytest.mark.parametrize(("power", "alpha"), [(0.8, 0.05), (0.95, 0.01)])
def test_difference_has_the_power_that_statsmodels_computes(
    accuracy: float, total: int, power: float, alpha: float
) -> None:
    difference = detectable_difference(accuracy, total, power, alpha)
    towards_half = accuracy + difference if accuracy <= 0.5 else accuracy - difference
    effect = abs(proportion_effectsize(towards_half, accuracy))
    assert NormalIndPower().power(effect, total, alpha) == pytest.approx(power, abs=1e-6)
    other = accuracy - difference if accuracy <= 0.5 else accuracy + difference
    if 0 <= other <= 1:  # found all the more often
        assert NormalIndPower().power(abs(proportion_effectsize(other, accuracy)), total, alpha) >= power - 1e-6


def test_the_table_of_noise() -> None:
    """By the usual rule, 2.8 standard errors of a difference."""
    for accuracy, total in ((0.5, 2000), (0.55, 170), (0.6, 3362)):
        usual = 2.8016 * np.sqrt(2 * accuracy * (1 - accuracy) / total)
        assert detectable_difference(accuracy, total) == pytest.approx(usual, rel=0.02)


@pytest.mark.parametrize("total", [170, 272, 2000])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_paired_difference_solves_the_equation(share: float, total: int) -> None:
    z_alpha, z_power = stats.norm.ppf([0.975, 0.8])

    def gap(d: float) -> float:
        return float(z_alpha * np.sqrt(share) + z_power * np.sqrt(share - d * d) - d * np.sqrt(total))

    expected = optimize.brentq(gap, 0, share)
    assert detectable_paired_difference(share, total) == pytest.approx(expected)


def test_paired_difference_is_found_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    share, total = 0.3, 400
    difference = detectable_paired_difference(share, total)
    only_a, only_b = (share + difference) / 2, (share - difference) / 2
    counts = generator.multinomial(total, [only_a, only_b, 1 - share], size=20_000)
    statistic = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])  # McNemar's, large samples
    assert (np.abs(statistic) > stats.norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.01)


def test_shared_pictures_are_counted_in_what_is_found() -> None:
    """40 pictures of 10 questions, alike by picture: the power at the difference that is stated."""
    generator, share, clusters = np.random.default_rng(0), 0.3, np.repeat(np.arange(40), 10)

    def differences(size: float) -> np.ndarray:
        draws = generator.random(40)
        signs = np.where(draws < (share + size) / 2, 1.0, np.where(draws < share, -1.0, 0.0))
        return signs[clusters]

    drawn = [differences(0.0) for _ in range(50)]
    stated = [
        detectable_paired_difference(float((x**2).mean()), effective_questions(x, clusters=clusters)) for x in drawn
    ]
    size = float(np.median(stated))
    assert size > 2.5 * detectable_paired_difference(share, 400)
    found = [sign_flip(differences(size), clusters=clusters, seed=0) < 0.05 for _ in range(300)]
    assert 0.72 < np.mean(found) < 0.88


def test_systems_that_agree_need_some_disagreement() -> None:
    """Two systems with equal answers have not been shown to differ by nothing."""
    z_alpha, z_power = stats.norm.ppf([0.975, 0.8])
    least = optimize.brentq(lambda s: z_alpha * np.sqrt(s) + z_power * np.sqrt(s - s * s) - s * np.sqrt(170), 1e-6, 1)
    assert least * 170 == pytest.approx(7.8, abs=0.2)
    for share in (0.0, least / 2, least):
        assert detectable_paired_difference(share, 170) == pytest.approx(least)
    assert least < detectable_paired_difference(2 * least, 170) < 2 * least


def test_too_few_questions_find_nothing() -> None:
    assert detectable_difference(0.0, 1) == 1.0
    assert detectable_paired_difference(0.5, 3) == 1.0


def test_bad_input_is_refused() -> None:
    for function in (detectable_difference, detectable_paired_difference):
        for share, total in ((1.1, 10), (-0.1, 10), (0.5, 0)):
            with pytest.raises(DataError, match="share in"):
                function(share, total)
        for power, alpha in ((1.0, 0.05), (0.8, 0.0), (0.05, 0.8)):
            with pytest.raises(ConfigurationError, match="alpha < power"):
                function(0.5, 10, power, alpha)
