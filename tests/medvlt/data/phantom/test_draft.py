# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.data.phantom.draft import between


@pytest.mark.parametrize(("difficulty", "expected"), [(0.0, 10.0), (0.25, 8.5), (1.0, 4.0)])
def test_between_is_the_line_from_easy_to_hard(difficulty: float, expected: float) -> None:
    assert between(10, 4, difficulty) == pytest.approx(expected)
