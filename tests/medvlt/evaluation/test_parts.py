# SPDX-License-Identifier: Apache-2.0
"""Parts of an evaluation that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlt.errors import DataError
from medvlt.evaluation.parts import Entry, RunPart, check_entries, merged_lines, new_parts


def test_a_part_needs_the_folder_of_the_first_process(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"process 1, on .*, does not see .*a folder that all ranks see"):
        RunPart(tmp_path / "of another node", 1, {})
    parts = [RunPart(new_parts(tmp_path), rank, {}) for rank in (0, 0)]  # two evaluations of one process
    for part in parts:
        part.discard()
    assert not list(tmp_path.iterdir())


def test_questions_with_too_few_completions() -> None:
    entries = [[Entry("b", "u", 2, 0, 0, 9), Entry("b", "v", 1, 0, 9, 9)]]
    with pytest.raises(DataError, match="1 without their 2 completions, such as v of b"):
        check_entries(entries, {"b": ["u", "v"]}, 2)


def test_a_part_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "completions.jsonl").write_bytes(b"12345678")
    with pytest.raises(DataError, match="has 8 bytes, process 0 wrote 9"):
        list(merged_lines(tmp_path, [[Entry("b", "u", 1, 0, 0, 9)]], {"b": ["u"]}))
