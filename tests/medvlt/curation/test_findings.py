# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from medvlt.curation.findings import Findings


def test_questions_are_counted_by_source_and_taken_back_where_not_examined() -> None:
    findings = Findings(names={"a:0": "a", "a:1": "a", "b:0": "b"})
    findings.marks["blind"] = {"a:0": True, "b:0": False}
    assert findings.by_source("blind") == {"a": (1, 1), "b": (0, 1)}
    assert findings.by_source("duplicate") == {"a": (0, 0), "b": (0, 0)}
    assert findings.marked("blind") == ["a:0"]
    assert findings.for_ledger(["blind", "length_bias", "duplicate"], known=["duplicate"]) == {
        "blind": {"a:0": True, "a:1": None, "b:0": False},
        "duplicate": {"a:0": None, "a:1": None, "b:0": None},
    }
