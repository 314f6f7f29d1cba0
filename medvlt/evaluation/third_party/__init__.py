# SPDX-License-Identifier: Apache-2.0
"""Stored outputs of other harnesses, read into evaluations of our own form."""
