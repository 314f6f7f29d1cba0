# SPDX-License-Identifier: Apache-2.0
"""What a benchmark could have shown: the smallest difference that a test would find."""

from __future__ import annotations

from math import asin, pi, sin, sqrt
from statistics import NormalDist

from medvlt.errors import ConfigurationError, DataError


def detectable_difference(accuracy: float, total: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Returns the smallest difference of two accuracies that an unpaired test would find, in [0, 1].

    Two systems answer `total` questions each. With Cohen's h = 2 |asin sqrt(p) - asin sqrt(q)|, a two-sided test at
    `alpha` finds q against p with probability `power` if h = (z_(1 - alpha/2) + z_power) sqrt(2 / total) (Cohen 1988,
    chapter 6; normal approximation). Of the two q the one nearer to 1/2 counts, whose difference is the larger: this
    much is found whichever way it points.

    Args:
        accuracy: Accuracy p of one of them, in [0, 1].
        total: Questions, above 0; where they share pictures `effective_questions`, which widens the difference by the
            root of the design effect.
        power: Probability of finding it, in (`alpha`, 1).
        alpha: Probability of finding a difference where there is none, in (0, 1).

    Returns:
        |p - q|; 1 where no difference is large enough to be found.

    Raises:
        DataError: If `accuracy` is outside [0, 1] or `total` is not above 0.
        ConfigurationError: If `power` or `alpha` is out of range.

    Example:
        >>> round(detectable_difference(0.5, 170), 3)
        0.15
    """
    _check(accuracy, total, power, alpha)
    effect = (_z(1 - alpha / 2) + _z(power)) * sqrt(2 / total)
    wrong = min(accuracy, 1 - accuracy)  # by symmetry, the system is at or below 1/2
    angle = asin(sqrt(wrong)) + effect / 2
    return sin(angle) ** 2 - wrong if angle < pi / 2 else 1.0


def detectable_paired_difference(
    discordant_share: float, total: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Returns the smallest difference of two accuracies that McNemar's test would find, in [0, 1].

    Both systems answer the same questions and disagree on a share s of them. A two-sided test at `alpha` finds the
    difference d with probability `power` if d sqrt(total) = z_(1 - alpha/2) sqrt(s) + z_power sqrt(s - d^2) (Connor
    1987; normal approximation). Since no difference is larger than the share of disagreement, s counts as at least the
    share at which s = d, of about (z_(1 - alpha/2) + z_power)^2 = 8 questions: two systems that agree on all questions
    have not been shown to be equal.

    Args:
        discordant_share: Share s of questions that one of the two has right and the other wrong, in [0, 1].
        total: Questions, above 0; where they share pictures `effective_questions`, which widens the difference by the
            root of the design effect.
        power: Probability of finding it, in (`alpha`, 1).
        alpha: Probability of finding a difference where there is none, in (0, 1).

    Returns:
        d; 1 where no difference is large enough to be found.

    Raises:
        DataError: If `discordant_share` is outside [0, 1] or `total` is not above 0.
        ConfigurationError: If `power` or `alpha` is out of range.

    Example:
        >>> round(detectable_paired_difference(0.2, 170), 3)
        0.095
    """
    _check(discordant_share, total, power, alpha)
    z_alpha, z_power = _z(1 - alpha / 2), _z(power)
    inside = total + z_power**2 - z_alpha**2
    if inside <= 0:
        return 1.0
    # d / sqrt(s), the larger root of (total + z_power^2) x^2 - 2 z_alpha sqrt(total) x + z_alpha^2 - z_power^2 = 0
    ratio = (z_alpha * sqrt(total) + z_power * sqrt(inside)) / (total + z_power**2)
    return min(1.0, ratio * max(sqrt(discordant_share), ratio))


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _check(share: float, total: float, power: float, alpha: float) -> None:
    if not 0 <= share <= 1 or total <= 0:
        raise DataError(f"expected a share in [0, 1] of a number of questions above 0, got {share} of {total}")
    if not 0 < alpha < power < 1:
        raise ConfigurationError(
            f"expected 0 < alpha < power < 1, got alpha={alpha} and power={power}; 0.05 and 0.8 are usual"
        )
