# SPDX-License-Identifier: Apache-2.0
"""What an endpoint was asked, what it answered, and what that cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Usage:
    """Totals of requests: requests = answered + failed + prompts_refused, whatever happened on the way.

    Attributes:
        requests: Completions that were asked for; greedy ones once per question.
        answered: Of these, with a completion.
        failed: Of these, without one, by kind; replies that the endpoint stopped itself (a filter) among them.
        prompts_refused: Requests whose prompt could not be built, so that nothing was sent.
        attempts: HTTP requests.
        retries: Attempts after the first one of a request.
        responses: HTTP responses by status.
        waiting_seconds: Time that requests waited for their turn or for another attempt, added up over requests.
        prompt_tokens: As the endpoint counts them; a prompt of n completions counts n times, as it is billed.
        completion_tokens: As the endpoint counts them, reasoning included.
    """

    requests: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    prompts_refused: int = 0
    attempts: int = 0
    retries: int = 0
    responses: Counter[int] = field(default_factory=Counter)
    waiting_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Adds the totals of a further call."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def cost(self, prompt_price: float | None, completion_price: float | None) -> float | None:
        """Returns prompt_tokens / 1e6 * prompt_price + completion_tokens / 1e6 * completion_price; None without prices.

        Args:
            prompt_price: Of a million tokens.
            completion_price: Of a million tokens.
        """
        if prompt_price is None or completion_price is None:
            return None
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6

    def summary(self, prompt_price: float | None = None, completion_price: float | None = None) -> str:
        """Returns the totals in one line."""
        failures = _listed(self.failed)
        parts = [
            f"{self.requests:,} requests: {self.answered:,} answered, {self.failed.total():,} without a completion"
            + (f" ({failures})" if failures else ""),
            f"{self.attempts:,} attempts, {self.retries:,} of them retries",
            f"HTTP {_listed(self.responses) or 'none'}",
            f"{self.waiting_seconds:,.0f} s waited",
            f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens",
        ]
        if self.prompts_refused:
            parts.insert(1, f"{self.prompts_refused:,} not sent, their prompts cannot be built")
        if (cost := self.cost(prompt_price, completion_price)) is not None:
            parts.append(f"cost {cost:,.2f}")
        return "; ".join(parts)


def _listed(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{name} x {count:,}" for name, count in sorted(counts.items(), key=lambda item: str(item[0])))
