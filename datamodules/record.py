# SPDX-License-Identifier: Apache-2.0
"""What checkpoints say about the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule

from medvlt.data.sources import Source


def data_record(module: LightningDataModule, source: Source, *, samples: int, fingerprint: str) -> dict[str, Any]:
    """Returns strings and numbers: class of the data module, source, usable samples, and what names their order."""
    return {
        "class": type(module).__name__,
        "source": described(source),
        "samples": samples,
        "fingerprint": fingerprint,
    }


def described(value: Any) -> str:
    """Returns a source with its settings as text, the same in every process; sources inside it too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {described(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(described, value)) + "]"
    if isinstance(value, Source):
        settings = {name: item for name, item in vars(value).items() if not name.startswith("_")}
        return f"{type(value).__name__}({', '.join(f'{name}={described(item)}' for name, item in settings.items())})"
    return repr(value)
