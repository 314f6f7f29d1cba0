# SPDX-License-Identifier: Apache-2.0
"""LightningDataModules: which questions, in which order, in which batches."""

from datamodules.benchmarks import BenchmarkDataModule
from datamodules.prompts import PromptDataModule
from datamodules.sft import SFTDataModule

__all__ = ["BenchmarkDataModule", "PromptDataModule", "SFTDataModule"]
