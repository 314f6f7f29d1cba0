# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

from medvlt.rollout.openai_usage import Usage

FIRST = Usage(
    requests=10,
    answered=7,
    failed=Counter({"timeout": 1}),
    prompts_refused=2,
    attempts=12,
    retries=4,
    responses=Counter({200: 7, 429: 4}),
    waiting_seconds=3.5,
    prompt_tokens=1_500_000,
    completion_tokens=250_000,
)


def test_totals_add_up() -> None:
    total = Usage()
    for _ in range(2):
        total.add(FIRST)
    assert total == Usage(
        20, 14, Counter({"timeout": 2}), 4, 24, 8, Counter({200: 14, 429: 8}), 7.0, 3_000_000, 500_000
    )
    assert FIRST.requests == 10


def test_cost_is_per_million() -> None:
    assert FIRST.cost(2.0, 8.0) == 1.5 * 2 + 0.25 * 8
    assert FIRST.cost(0.0, 8.0) == 2.0
    assert FIRST.cost(None, 8.0) is None


def test_the_line_names_everything() -> None:
    assert FIRST.summary(2.0, 8.0) == (
        "10 requests: 7 answered, 1 without a completion (timeout x 1); 2 not sent, their prompts cannot be built; "
        "12 attempts, 4 of them retries; HTTP 200 x 7, 429 x 4; 4 s waited; 1,500,000 prompt and 250,000 completion "
        "tokens; cost 5.00"
    )
    assert "cost" not in FIRST.summary()
    assert "HTTP none" in Usage().summary()
