# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datamodules import PromptDataModule
from datamodules.record import described
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.sources import JSONLines, Mixture, Subset


def test_a_source_is_text_without_addresses() -> None:
    """Sources inside sources, of dataclasses and of other classes."""
    source = Mixture([JSONLines("a.jsonl"), Subset(Phantom("test", 2), limit=2)], weights=[1, 2])
    text = described(source)
    assert text.startswith("Mixture(sources=[JSONLines(")
    assert "path='a.jsonl'" in text
    assert "Subset(source=Phantom(size=2, " in text
    assert "limit=2" in text
    assert " at 0x" not in text


def test_record_before_and_after_setup() -> None:
    data = PromptDataModule(Phantom("train", 6, modality="text"), PromptEncoder(""), prompts_per_iteration=2)
    assert data.record() == {
        "class": "PromptDataModule",
        "source": described(data.train),
        "samples": 0,
        "fingerprint": "",
    }
