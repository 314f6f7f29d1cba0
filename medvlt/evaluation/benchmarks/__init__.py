# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that count their questions: a set that shrank or grew is refused, not scored.

`Benchmark` makes one of any set, `MedVLThinkerEval` takes one of six out of the published combined set, and one class
for each original source converts its rows. All are sources, to be named in YAML.
"""

from medvlt.evaluation.benchmarks.any_set import Benchmark
from medvlt.evaluation.benchmarks.closed import PathVQAClosed, PMCVQATest, SLAKEClosed, VQARADClosed
from medvlt.evaluation.benchmarks.combined import MedVLThinkerEval
from medvlt.evaluation.benchmarks.medxpertqa import MedXpertQAMM
from medvlt.evaluation.benchmarks.mmmu import MMMUMedical
from medvlt.evaluation.benchmarks.text_only import MedMCQAValidation, MedQATest, MMLUMedical, PubMedQALabeled

__all__ = [
    "Benchmark",
    "MMLUMedical",
    "MMMUMedical",
    "MedMCQAValidation",
    "MedQATest",
    "MedVLThinkerEval",
    "MedXpertQAMM",
    "PMCVQATest",
    "PathVQAClosed",
    "PubMedQALabeled",
    "SLAKEClosed",
    "VQARADClosed",
]
