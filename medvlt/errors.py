# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. The command line prints their message and exits with code 2."""

from __future__ import annotations


class MedvltError(Exception):
    """Base of every error whose message alone tells the user what to change."""


class ConfigurationError(MedvltError, ValueError):
    """Settings that contradict one another or the machine."""


class DataError(MedvltError, ValueError):
    """A data set that cannot be read, or that lost more records than allowed."""


class MissingExtraError(MedvltError, ImportError):
    """An optional package is needed and not installed."""


class MissingRolloutError(MedvltError, RuntimeError):
    """A batch reached the module without completions."""


class EngineError(MedvltError, RuntimeError):
    """A rollout engine failed or was used after it died."""


class RewardError(MedvltError, RuntimeError):
    """A reward raised, or returned something that is not a reward."""
