# SPDX-License-Identifier: Apache-2.0
"""The paper's results, to stand beside one's own.

From the README of github.com/UCSC-VLAA/MedVLThinker (arXiv 2508.02669): accuracy in percent, greedy decoding, of the
recipes the mean of three runs. No deviation and no interval was published, so none can be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

BENCHMARKS = ("pmc_vqa", "MMMU-medical", "MedXpertQA-MM", "pathvqa_closed", "slake_closed", "vqa_rad_closed")
"""The six, under the names of the published combined set, in the order of the paper's tables."""

QUESTIONS: Mapping[str, int] = MappingProxyType(dict(zip(BENCHMARKS, (2000, 170, 2000, 3362, 416, 272), strict=True)))
"""Questions of each in the published combined set."""

FEWER_QUESTIONS = "MedXpertQA-MM fits 1,996 questions and not the 2,000 there are: four seem to have been lost"
IMPOSSIBLE_PMC = "PMC-VQA fits no number of right answers to its 2,000 questions, in one run or three"


@dataclass(frozen=True)
class PublishedRow:
    """One row of the paper's tables.

    Attributes:
        model: Its name; a recipe's is that of the released model.
        kind: "recipe" for the 13 models that the paper trained, "comparison" for all others.
        size: Parameters, such as "7B"; empty if unknown.
        scores: Benchmark to accuracy in percent, of all six.
        average: Mean of the six in percent, as published.
        note: What does not add up, if anything.
    """

    model: str
    kind: Literal["recipe", "comparison"]
    size: str
    scores: Mapping[str, float]
    average: float
    note: str = ""


def _recipe(size: str, recipe: str, *values: float, note: str = "") -> PublishedRow:
    return _row(f"MedVLThinker-{size}-{recipe}", "recipe", size, values, note)


def _comparison(model: str, size: str, *values: float, note: str = "") -> PublishedRow:
    return _row(model, "comparison", size, values, note)


def _row(
    model: str, kind: Literal["recipe", "comparison"], size: str, values: tuple[float, ...], note: str
) -> PublishedRow:
    *scores, average = values
    return PublishedRow(model, kind, size, MappingProxyType(dict(zip(BENCHMARKS, scores, strict=True))), average, note)


# fmt: off - the columns are those of the paper's tables: the six benchmarks, and their average
PUBLISHED: tuple[PublishedRow, ...] = (
    _comparison("Qwen2.5-VL-3B-Instruct", "3B", 44.77, 44.12, 20.69, 61.96, 61.30, 62.01, 49.14, note=FEWER_QUESTIONS),
    _recipe("3B", "SFT_m23k", 28.53, 32.55, 16.00, 42.74, 43.91, 33.09, 32.80),
    _recipe("3B", "SFT_PMC", 54.55, 47.84, 21.46, 52.76, 65.79, 58.58, 50.16, note=FEWER_QUESTIONS),
    _recipe("3B", "SFT_m23k-RL_PMC", 46.32, 44.31, 20.52, 43.85, 58.49, 50.98, 44.08),
    _recipe("3B", "RL_m23k", 47.32, 52.16, 22.90, 62.28, 63.38, 71.08, 53.19),
    _recipe("3B", "RL_PMC", 54.22, 48.43, 21.51, 51.61, 75.56, 62.38, 52.28, note=FEWER_QUESTIONS),
    _recipe("3B", "RL_m23k-RL_PMC", 51.33, 48.43, 22.60, 49.71, 66.11, 60.17, 49.72),
    _comparison("Qwen2.5-VL-7B-Instruct", "7B", 49.30, 52.94, 18.89, 65.39, 65.71, 68.75, 53.50, note=FEWER_QUESTIONS),
    _recipe("7B", "SFT_m23k", 34.58, 46.86, 16.40, 56.35, 54.97, 53.80, 43.83),
    _recipe("7B", "SFT_PMC", 54.67, 49.80, 21.39, 53.02, 67.71, 57.72, 50.72, note=FEWER_QUESTIONS),
    _recipe("7B", "SFT_m23k-RL_PMC", 43.18, 47.84, 21.84, 51.43, 60.34, 55.15, 46.63, note=FEWER_QUESTIONS),
    _recipe("7B", "RL_m23k", 50.67, 56.86, 24.43, 66.83, 65.79, 64.71, 54.88),
    _recipe("7B", "RL_PMC", 55.38, 55.29, 24.11, 57.09, 66.59, 63.48, 53.66, note=FEWER_QUESTIONS),
    _recipe("7B", "RL_m23k-RL_PMC", 56.37, 50.98, 25.80, 48.24, 59.13, 58.09, 49.77),
    _comparison("Qwen2.5-VL-32B-Instruct", "32B", 53.28, 63.92, 27.68, 67.98, 73.24, 75.12, 60.20),
    _recipe("32B", "RL_m23k", 54.37, 70.00, 34.60, 68.82, 73.96, 76.96, 63.12),
    _comparison("GPT-4o-mini", "", 51.90, 63.53, 28.55, 63.33, 75.24, 66.91, 58.24),
    _comparison("GPT-4o", "", 58.55, 68.82, 35.95, 72.43, 76.44, 70.22, 63.74),
    _comparison("Gemma 3 4B", "4B", 44.42, 46.67, 21.89, 59.24, 66.59, 56.86, 49.28, note=FEWER_QUESTIONS),
    _comparison("Gemma 3 27B", "27B", 52.05, 60.78, 30.80, 65.70, 72.60, 65.20, 57.86),
    _comparison("MedGemma 4B", "4B", 42.73, 32.55, 8.17, 59.64, 83.49, 78.55, 50.86),
    _comparison("MedGemma 27B", "27B", 36.75, 35.88, 12.13, 62.09, 77.40, 72.67, 49.49),
    _comparison("LLaVA-Med v1.5 7B", "7B", 34.28, 31.37, 22.56, 56.52, 62.82, 56.74, 44.05, note=FEWER_QUESTIONS),
    _comparison("HuatuoGPT-Vision-7B", "7B", 53.39, 50.59, 22.00, 63.53, 75.00, 63.60, 54.69, note=IMPOSSIBLE_PMC),
    _comparison("HuatuoGPT-Vision-34B", "34B", 52.54, 57.06, 21.80, 66.72, 78.85, 74.26, 58.54, note=IMPOSSIBLE_PMC),
)
# fmt: on
