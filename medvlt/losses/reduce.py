# SPDX-License-Identifier: Apache-2.0
"""How the token losses of one optimizer step become one number.

Every reduction is expressed as a weight per completion: the loss of a step is the sum of weight * token loss over all
micro-batches and ranks. Except for `micro_batch`, the result does not depend on how the step was cut into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

LossReduction: TypeAlias = Literal["token", "sequence", "constant", "micro_batch"]
"""How the normaliser is formed.

- `token`: every target token of the step counts the same (DAPO, arXiv 2503.14476): 1 / tokens of the step.
- `sequence`: every completion counts the same (GRPO, arXiv 2402.03300): 1 / (completions of the step * its tokens).
- `constant`: divided by a fixed length, so no length is favoured (Dr. GRPO, arXiv 2503.20783):
  1 / (completions of the step * max_tokens).
- `micro_batch`: the mean inside each micro-batch, then over micro-batches. What the reference does; depends on the
  micro-batch size, so it is for parity only.
"""


@dataclass(frozen=True)
class StepTotals:
    """Sizes of one optimizer step over all ranks.

    Attributes:
        tokens: Target tokens.
        completions: Completions.
        micro_batches: Micro-batches of all ranks together.
    """

    tokens: int
    completions: int
    micro_batches: int


def completion_weights(
    lengths: Sequence[int], step: StepTotals, *, reduction: LossReduction = "token", max_tokens: int | None = None
) -> list[float]:
    """Returns the factor of every token of each completion of one micro-batch.

    Args:
        lengths: Target tokens of each completion of the micro-batch, each at least 1.
        step: Totals of the whole optimizer step.
        reduction: See `LossReduction`.
        max_tokens: The fixed length of `constant`.

    Raises:
        ValueError: If `constant` has no `max_tokens`.
    """
    if reduction == "token":
        return [1 / step.tokens for _ in lengths]
    if reduction == "sequence":
        return [1 / (step.completions * length) for length in lengths]
    if reduction == "micro_batch":
        return [1 / (step.micro_batches * sum(lengths)) for _ in lengths]
    if max_tokens is None:
        raise ValueError("loss_reduction 'constant' divides by a fixed length: give max_tokens")
    return [1 / (step.completions * max_tokens) for _ in lengths]
