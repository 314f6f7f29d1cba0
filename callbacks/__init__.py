# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what happens around a step."""

from callbacks.completions import CompletionLogger
from callbacks.results import ResultsTable
from callbacks.rollout import RolloutCallback, VLLMRolloutCallback

__all__ = ["CompletionLogger", "ResultsTable", "RolloutCallback", "VLLMRolloutCallback"]
