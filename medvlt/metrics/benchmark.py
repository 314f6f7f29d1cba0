# SPDX-License-Identifier: Apache-2.0
"""Everything that is counted about the completions of one benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from medvlt.evaluation.statistics.intervals import effective_of_variance
from medvlt.evaluation.statistics.passes import majority_correct
from medvlt.metrics.lengths import MeanLength
from medvlt.metrics.passes import MajorityAccuracy, PassAtK
from medvlt.metrics.rates import FormatRate, MultipleChoiceAccuracy, TruncationRate
from medvlt.types import RolloutGroup, Verdict


class BenchmarkMetrics(nn.Module):
    """Accuracy with its counts, format rate, truncation rate, mean length, and failures; each reduces over ranks.

    With several completions of a question also the accuracy of the majority vote, pass@n of all n completions, and as
    how many independent questions the accuracy is sure (`statistics.intervals.effective_questions`). A completion that
    never came is wrong and counts everywhere, except in the mean length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(
            {
                "accuracy": MultipleChoiceAccuracy(),
                "questions": SumMetric(),
                "squares": SumMetric(),
                "format_rate": FormatRate(),
                "truncation_rate": TruncationRate(),
                "mean_tokens": MeanLength(),
                "failed": SumMetric(),
                "majority": MajorityAccuracy(),
                "pass_at_n": PassAtK(),
            }
        )

    def update(self, groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]]) -> None:
        """Counts questions and their completions, each once.

        Args:
            groups: The completions of each question; none where a rank has nothing to ask.
            verdicts: What the grader says of each completion, by question.
        """
        completions = [completion for group in groups for completion in group.completions]
        flat = [verdict for row in verdicts for verdict in row]
        labels = [[verdict.label for verdict in row] for row in verdicts]
        voted = majority_correct(labels, [group.sample.answer_label for group in groups])
        right = [sum(verdict.correct for verdict in row) for row in verdicts]
        given: dict[str, tuple[Tensor, ...]] = {
            "accuracy": (self._column([verdict.correct for verdict in flat], torch.bool),),
            "questions": (torch.tensor(len(groups)),),
            "squares": (torch.tensor(sum(number**2 for number in right)),),
            "format_rate": (self._column([verdict.format_ok for verdict in flat], torch.bool),),
            "truncation_rate": (self._column([c.finish_reason == "length" for c in completions], torch.bool),),
            "mean_tokens": (self._column([c.length for c in completions if c.finish_reason != "error"], torch.long),),
            "failed": (torch.tensor(sum(c.finish_reason == "error" for c in completions)),),
            "majority": (self._column(voted.tolist(), torch.bool),),
            "pass_at_n": (self._column(right, torch.long), self._column([len(row) for row in verdicts], torch.long)),
        }
        for name, metric in self.metrics.items():
            cast(Metric, metric).update(*given[name])

    def compute(self) -> dict[str, Tensor]:
        """Returns each number over all ranks, the same names on each; shares and means of nothing are 0.

        With n > 1 completions of a question there is `majority`, pass@n under the name `pass_at_{n}`, and
        `effective_questions`.
        """
        values: dict[str, Tensor] = {name: cast(Metric, metric).compute() for name, metric in self.metrics.items()}
        accuracy = cast(MultipleChoiceAccuracy, self.metrics["accuracy"])
        with accuracy.sync_context():
            values |= {"correct": accuracy.hits.float(), "count": accuracy.total.float()}
        majority, passed, squares = (values.pop(name) for name in ("majority", "pass_at_n", "squares"))
        count, questions = float(values["count"]), float(values["questions"])
        n = completions_each(count, questions)
        if n <= 1:
            return values
        share = float(values["correct"]) / count
        # of the shares of questions from their mean
        deviations = float(squares) / n**2 - questions * share**2
        variance = deviations / questions / max(questions - 1, 1)
        effective = effective_of_variance(share * (1 - share), variance, round(questions), questions, n)
        return values | {
            "majority": majority,
            pass_name(n): passed,
            "effective_questions": values["accuracy"].new_tensor(effective),
        }

    def _column(self, values: Sequence[bool] | Sequence[int], dtype: torch.dtype) -> Tensor:
        # the type also where a rank has nothing to ask
        return torch.tensor(values, dtype=dtype, device=cast(Metric, self.metrics["questions"]).device)


def completions_each(count: float, questions: float) -> int:
    """Returns how many completions each question has; 0 of no question."""
    return round(count / questions) if questions else 0


def pass_name(n: int) -> str:
    """Returns the name of pass@n among the metrics of a benchmark."""
    return f"pass_at_{n}"
