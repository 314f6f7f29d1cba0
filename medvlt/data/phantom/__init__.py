# SPDX-License-Identifier: Apache-2.0
"""Generated questions: drawn phantoms and clinical numbers, unlimited and seeded. Not for clinical use."""

from medvlt.data.phantom.families import PICTURE_FAMILIES, TEXT_FAMILIES
from medvlt.data.phantom.source import Phantom, phantom_corpus

__all__ = ["PICTURE_FAMILIES", "TEXT_FAMILIES", "Phantom", "phantom_corpus"]
