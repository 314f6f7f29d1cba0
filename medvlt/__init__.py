# SPDX-License-Identifier: Apache-2.0
"""Post-training of vision-language models that reason about medicine."""

__version__ = "0.1.0"
