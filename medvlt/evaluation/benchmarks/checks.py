# SPDX-License-Identifier: Apache-2.0
"""What makes a set a benchmark: all of its questions are there, and whatever is not is said."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from medvlt.data.readers import ReadChecks
from medvlt.data.samples import SampleSet
from medvlt.errors import ConfigurationError, DataError

logger = logging.getLogger(__name__)

NAMED = 5
"""Questions that a message names."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkChecks:
    """What is demanded of a benchmark; by default, that nothing is lost.

    Args:
        expected: How many questions there must be; null takes any number.
        max_lost: How many may be missing: unusable records, or fewer than expected. More than expected are always
            refused.
        max_open: How many may be open questions, which stay in the denominator and are never right under the robust
            grader.
        check_images: "decode" reads every picture whole, "header" only its size, which misses damage behind it.
    """

    expected: int | None = None
    max_lost: int = 0
    max_open: int = 0
    check_images: Literal["decode", "header"] = "decode"

    def __post_init__(self) -> None:
        for name, value, least in (
            ("expected", self.expected, 1),
            ("max_lost", self.max_lost, 0),
            ("max_open", self.max_open, 0),
        ):
            if value is not None and value < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {value}")

    @property
    def expected_rows(self) -> int | None:
        """How many questions there must be; None takes any number."""
        return self.expected

    @property
    def read_checks(self) -> ReadChecks:
        """What is checked of each record; how many may fail is decided afterwards, by `checked`."""
        return ReadChecks(max_drop_share=1.0, check_images=self.check_images, open_questions=True)

    def checked(self, samples: SampleSet, *, part: bool = False) -> SampleSet:
        """Returns the samples if they are all there.

        Args:
            samples: The set.
            part: Whether it is a part of what its source read. Records that the source left out may be of other parts:
                they are counted only where it is not known how many questions there must be.

        Raises:
            DataError: If too many are missing or open, or there are more than expected.
        """
        name, found, expected = samples.report.source, len(samples), self.expected_rows
        if expected is not None and found > expected:
            raise DataError(
                f"{name}: expected {expected:,} questions, got {found:,}, {found - expected:,} too many; name the "
                "split and the revision that were meant, or correct `expected`"
            )
        missing = 0 if expected is None else expected - found
        lost = missing if part and expected is not None else max(samples.report.drops.total(), missing)
        if lost:
            self._judge_lost(samples, lost)
        opened = [uid for index, uid in enumerate(samples.uids) if not samples.light(index).options]
        if opened:
            self._judge_open(name, opened)
        return samples

    def _judge_lost(self, samples: SampleSet, lost: int) -> None:
        report, expected = samples.report, self.expected_rows
        wanted = "all records" if expected is None else f"{expected:,} questions"
        message = f"{report.source}: expected {wanted}, got {len(samples):,} questions, {lost:,} lost"
        if report.drops:
            dropped = [drop for _, drop in report.all_dropped()]
            uids = ", ".join(drop.uid or f"row {drop.row}" for drop in dropped[:NAMED])
            message += f". Unusable {len(dropped):,}: {report.commonest(NAMED)}. First: {uids}"
        else:
            message += ". None was unusable: they are not in the source"
        if not len(samples):
            raise DataError(f"{message}. Correct the source")
        if lost > self.max_lost:
            raise DataError(
                f"{message}. A score over what is left is not the benchmark's. Correct the source, or accept the loss "
                f"with max_lost={lost} (now {self.max_lost})"
            )
        logger.warning("%s; max_lost=%d accepts it", message, self.max_lost)

    def _judge_open(self, name: str, opened: list[str]) -> None:
        message = (
            f"{name}: {len(opened):,} questions are open, without options, and never right under the robust grader: "
        )
        message += ", ".join(opened[:NAMED])
        if len(opened) > self.max_open:
            raise DataError(
                f"{message}; max_open={self.max_open} allows fewer. Give them options (closed questions get theirs by "
                "options_file when they are converted from original rows), or keep them so with a higher max_open"
            )
        logger.warning("%s", message)
