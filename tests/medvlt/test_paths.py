# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medvlt import paths
from medvlt.errors import ConfigurationError, MedvltError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel's folder with two configurations."""
    folder = tmp_path / "site-packages" / "medvlt" / "configs"
    (folder / "sft").mkdir(parents=True)
    for name in ("sft/m23k_3b.yaml", "sft/pmc_vqa_7b.yaml"):
        (folder / name).write_text("{}")
    monkeypatch.setattr(paths, "config_dir", lambda: folder)
    return folder


def test_config_dir_of_this_checkout() -> None:
    assert paths.config_dir() == REPOSITORY / "configs"


def test_config_dir_in_a_wheel_wins_over_a_foreign_folder_beside_it(tmp_path: Path) -> None:
    (tmp_path / "medvlt" / "configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    assert paths.config_dir(tmp_path / "medvlt") == tmp_path / "medvlt" / "configs"


def test_config_dir_missing_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"medvlt/configs nor .*/configs is a folder"):
        paths.config_dir(tmp_path / "medvlt")


@pytest.mark.parametrize("name", ["sft/m23k_3b.yaml", "sft/m23k_3b", Path("sft") / "m23k_3b.yaml"])
def test_resolve_finds_shipped(shipped: Path, name: str | Path) -> None:
    assert paths.resolve_config(name) == shipped / "sft" / "m23k_3b.yaml"


def test_resolve_existing_file_wins(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("sft/m23k_3b.yaml")
    own.mkdir(parents=True)
    assert paths.resolve_config(own) == shipped / own  # a folder of that name does not hide the shipped file
    own.rmdir()
    own.write_text("{}")
    assert paths.resolve_config(own) == own
    assert paths.resolve_config(own.resolve()) == own.resolve()


def test_resolve_unknown_names_the_nearest(shipped: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'sft/m23k_3bb.yaml'.*close: sft/m23k_3b.yaml"):
        paths.resolve_config("sft/m23k_3bb.yaml")


@pytest.mark.parametrize("name", paths.SIBLINGS)
def test_our_siblings_are_accepted(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    paths.check_sibling(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("kind", ["package", "namespace", "file"])
def test_foreign_sibling_is_refused_with_both_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "file":
        foreign = tmp_path / "callbacks.py"
        foreign.touch()
    else:
        foreign = tmp_path / "callbacks"
        foreign.mkdir()
        if kind == "package":
            (foreign / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    module = importlib.import_module("callbacks")
    monkeypatch.delitem(sys.modules, "callbacks")
    with pytest.raises(paths.ShadowedPackageError) as caught:
        paths.check_sibling(module)
    assert str(foreign) in str(caught.value)
    assert str(REPOSITORY / "callbacks") in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, MedvltError)


def test_a_linked_checkout_is_ours(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(REPOSITORY)
    module = ModuleType("callbacks")
    module.__path__ = [str(tmp_path / "link" / "callbacks")]
    paths.check_sibling(module)


def test_importing_the_package_is_fast_and_imports_nothing() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import medvlt, medvlt.paths, medvlt.errors; "
        "heavy = {'torch', 'lightning', 'numpy', 'transformers', 'rich'} & set(sys.modules); "
        "print(time.perf_counter() - start, heavy or '')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    seconds, _, heavy = run.stdout.strip().partition(" ")
    assert not heavy, heavy
    assert float(seconds) < 0.1
