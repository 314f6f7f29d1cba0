# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what happens around a step."""

from callbacks.completions import CompletionLogger
from callbacks.ledger import PassCountLedger
from callbacks.results import ResultsTable
from callbacks.rollout import RolloutCallback, VLLMRolloutCallback
from callbacks.traces import TeacherTraces

__all__ = [
    "CompletionLogger",
    "PassCountLedger",
    "ResultsTable",
    "RolloutCallback",
    "TeacherTraces",
    "VLLMRolloutCallback",
]
