# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what happens around a step."""

from callbacks.checkpoints import AtomicCheckpoint
from callbacks.completions import CompletionLogger
from callbacks.evaluation import EvaluationRecorder
from callbacks.ledger import PassCountLedger
from callbacks.results import ResultsTable
from callbacks.rollout import RolloutCallback, VLLMRolloutCallback
from callbacks.traces import TeacherTraces
from callbacks.watchdog import RankWatchdog

__all__ = [
    "AtomicCheckpoint",
    "CompletionLogger",
    "EvaluationRecorder",
    "PassCountLedger",
    "RankWatchdog",
    "ResultsTable",
    "RolloutCallback",
    "TeacherTraces",
    "VLLMRolloutCallback",
]
