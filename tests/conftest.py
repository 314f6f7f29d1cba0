# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# before torch is imported, and inherited by child processes: threads that fight over tiny tensors cost more than they
# gain, above all where other work runs beside the tests
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test may leave a file in the checkout; Lightning writes a config.yaml where it is started."""

    def visible() -> set[str]:  # the caches of pytest and hypothesis are hidden
        return {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}

    before = visible()
    yield
    assert visible() == before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real questions, pictures and the real tokenizer; it lies beside the checkout, never inside."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen2.5-VL as a model folder: two layers, byte-level tokenizer."""
    from medvlt.models.tiny import TinySize, build_tiny

    size = TinySize(layers=2, max_position_embeddings=2048, initializer_range=0.1)
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny", size=size)
