# SPDX-License-Identifier: Apache-2.0
"""Difficulty, teacher traces, contamination and quality: what makes a training set out of questions."""
