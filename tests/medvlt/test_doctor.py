# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from medvlt import doctor
from medvlt.doctor import Check, Status

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    """What the doctor says of the environment that runs the tests; vLLM must not be imported for it."""
    before = "vllm" in sys.modules
    found = {check.name: check for check in doctor.run_checks()}
    assert ("vllm" in sys.modules) == before
    return found


def test_this_environment_is_usable(checks: dict[str, Check]) -> None:
    assert [check for check in checks.values() if check.status is Status.FAILURE] == []


def test_rows_show_what_is_installed(checks: dict[str, Check]) -> None:
    for name in ("torch", "lightning", "transformers", "peft"):
        assert checks[name].detail.startswith(importlib.metadata.version(name))
    assert set(checks) >= {"Python", "GPU", "torchvision", "vLLM", "attention", "host memory", "disk"}
    assert checks["deepspeed"] == Check("deepspeed", Status.OK, importlib.metadata.version("deepspeed"))
    assert "bitsandbytes" in checks
    assert sys.version.split()[0] in checks["Python"].detail


def test_what_one_setting_needs_is_no_failure() -> None:
    missing = doctor.check_optional("no-such-package", "some: setting", "pip install --flag")
    assert missing.status is Status.NOTE
    assert missing.remedy == "optional, for some: setting: pip install --flag no-such-package"


def test_every_problem_has_a_remedy(checks: dict[str, Check]) -> None:
    assert all(check.remedy for check in checks.values() if check.status in (Status.WARNING, Status.FAILURE))


@pytest.mark.parametrize(("status", "code"), [(s, int(s is Status.FAILURE)) for s in Status])
def test_exit_code_and_table(
    status: Status, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Check("torch", status, "2.13.0", "pip install 'medvlt[vllm]'"), Check("GPU", Status.NOTE, "none")]
    monkeypatch.setattr(doctor, "run_checks", lambda: rows)
    assert doctor.doctor() == code
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == [str(status), "torch", "2.13.0"]
    assert shown[1].strip() == "-> pip install 'medvlt[vllm]'"
    assert ("cannot run" in shown[-1]) == bool(code)


def test_every_dependency_is_checked() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {*doctor.REQUIRED, "torch"} == {Requirement(text).name for text in project["dependencies"]}


@pytest.mark.parametrize("gone", doctor.REQUIRED)
def test_any_package_may_be_missing(
    gone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = doctor.REQUIRED[gone]
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    real_problem, real_version = doctor.import_problem, doctor.version_of
    monkeypatch.setattr(doctor, "import_problem", lambda name: real_problem(name) if name == module else None)
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == gone else real_version(name))
    assert doctor.doctor() == 1
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[0] == "failure"] == [["failure", gone]]


def test_versions_wanted_come_from_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["pillow>=99", "peft>=99; extra == 'x'"])
    found = {check.name: check for check in doctor.run_checks()}
    assert found["pillow"].status is Status.WARNING
    assert found["peft"].status is Status.OK


@pytest.mark.parametrize(("accelerator", "status"), [("", Status.WARNING), ("CPU", Status.OK)])
def test_cpu_build_beside_a_gpu_is_fine_if_it_was_asked_for(
    accelerator: str, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "nvidia_smi_lists_gpu", lambda: True)
    monkeypatch.setenv("MEDVLT_ACCELERATOR", accelerator)
    found = {check.name: check for check in doctor.run_checks()}
    assert found["torch"].status is status
    assert found["GPU"].detail == "listed by nvidia-smi, torch is a CPU build"


@pytest.mark.parametrize(
    ("version", "supported"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_python(version: tuple[int, int], supported: bool) -> None:
    assert (doctor.check_python(version).status is Status.OK) == supported


@pytest.mark.parametrize(
    ("version", "cuda", "problem", "gpu", "status"),
    [
        ("2.13.0+cpu", None, None, False, Status.OK),
        ("2.11.0+cu130", "13.0", None, True, Status.OK),
        ("2.13.0+cpu", None, None, True, Status.WARNING),
        ("2.10.1", "12.8", None, True, Status.FAILURE),
        ("2.14.0", None, None, False, Status.FAILURE),
        (None, None, "ModuleNotFoundError: No module named 'torch'", False, Status.FAILURE),
        ("2.13.0", None, "OSError: libcudart.so.13: cannot open", False, Status.FAILURE),
    ],
)
def test_torch(version: str | None, cuda: str | None, problem: str | None, gpu: bool, status: Status) -> None:
    check = doctor.check_torch(version, cuda, problem, gpu_wanted=gpu)
    assert check.status is status
    assert bool(check.remedy) == (status is not Status.OK)
    if problem:
        assert check.detail == problem


def test_broken_torchvision_fails_and_an_absent_one_does_not() -> None:
    problem = "RuntimeError: operator torchvision::nms does not exist"
    broken = doctor.check_torchvision("0.28.0", problem)
    assert broken.status is Status.FAILURE
    assert problem in broken.detail
    assert "make env" in broken.remedy
    assert doctor.check_torchvision(None, "ModuleNotFoundError").status is Status.WARNING
    assert doctor.check_torchvision("0.28.0", None) == Check("torchvision", Status.OK, "0.28.0")


def test_add_ons_are_mentioned_only_if_broken() -> None:
    assert doctor.check_add_on("torchaudio", None, None) is None
    assert doctor.check_add_on("torchaudio", "2.11.0", None) is None
    broken = doctor.check_add_on("torchaudio", "2.11.0", "OSError: Could not load this library")
    assert broken is not None
    assert broken.status is Status.FAILURE
    assert "pip uninstall -y torchaudio" in broken.remedy


def test_package_absent_broken_old_and_good() -> None:
    assert doctor.check_package("peft", None, "ModuleNotFoundError", None).status is Status.FAILURE
    broken = doctor.check_package("peft", "0.21.2", "OSError: bad library", Requirement("peft>=0.19"))
    assert broken.status is Status.FAILURE
    assert "OSError: bad library" in broken.detail
    old = doctor.check_package("peft", "0.18.0", None, Requirement("peft>=0.19"))
    assert old.status is Status.WARNING
    assert old.remedy == "pip install 'peft>=0.19'"
    assert doctor.check_package("peft", "0.21.2", None, Requirement("peft>=0.19")).status is Status.OK


@pytest.mark.parametrize(
    ("gpu", "cpu", "torch", "pinned", "cuda", "status"),
    [
        (None, None, "2.13.0+cpu", None, None, Status.NOTE),
        (None, "0.32.0", "2.13.0+cpu", "2.13.0+cpu", None, Status.OK),
        ("0.32.0", None, "2.13.0", "2.13.0", "13.0", Status.OK),
        ("0.26.0", None, "2.11.0+cu130", "2.11.0", "13.0", Status.OK),
        ("0.32.0", None, "2.11.0+cu130", "2.13.0", "13.0", Status.WARNING),  # wrong pair
        ("0.33.0", None, "2.13.0", "2.13.0", "13.0", Status.WARNING),  # not supported
        ("0.25.1", None, "2.13.0", "2.13.0", "13.0", Status.WARNING),
        ("0.32.0", None, "2.13.0+cpu", "2.13.0", None, Status.WARNING),  # wrong flavour
        (None, "0.32.0", "2.13.0", "2.13.0+cpu", "13.0", Status.WARNING),
        ("0.32.0", "0.32.0", "2.13.0", "2.13.0", "13.0", Status.WARNING),  # both
    ],
)
def test_vllm(
    gpu: str | None, cpu: str | None, torch: str, pinned: str | None, cuda: str | None, status: Status
) -> None:
    check = doctor.check_vllm(gpu, cpu, torch, pinned, cuda=cuda)
    assert check.status is status, check
    assert bool(check.remedy) == (status is not Status.OK)


def test_pinned_torch_is_read_from_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "torch==9.9.9; extra == 'x'",
        "torch==2.13.0+cpu; sys_platform == 'linux'",
        "torch==2.1; sys_platform == 'x'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    assert doctor.pinned_torch("vllm") == "2.13.0+cpu"


def test_pinned_torch_of_an_absent_package() -> None:
    assert doctor.pinned_torch("medvlt-absent") is None


@pytest.mark.parametrize("error", ["RuntimeError('operator x')", "OSError('no library')", "ImportError('gone')"])
def test_errors_of_an_import_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    (tmp_path / "medvlt_fails.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.import_problem("medvlt_fails") == error.replace("('", ": ").replace("')", "")
    assert doctor.import_problem("json") is None


def test_memory_is_the_smaller_of_machine_and_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\n")
    assert doctor.available_memory_gib(meminfo, tmp_path) == 16
    (tmp_path / "memory.current").write_text(str(3 * 2**30))
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.available_memory_gib(meminfo, tmp_path) == 16
    (tmp_path / "memory.max").write_text(str(4 * 2**30))
    assert doctor.available_memory_gib(meminfo, tmp_path) == 1
    assert doctor.check_memory(1).status is Status.WARNING
    assert doctor.check_memory(8).status is Status.OK
    assert doctor.available_memory_gib(tmp_path / "absent", tmp_path / "absent") is None
    assert doctor.check_memory(None).status is Status.NOTE


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path) in doctor.check_disk(tmp_path).detail
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    assert "not writable" in doctor.check_disk(tmp_path).remedy


def test_hidden_sibling_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_siblings().status is Status.OK
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    hidden = doctor.check_siblings(["callbacks"])
    assert hidden.status is Status.FAILURE
    assert str(tmp_path / "callbacks") in hidden.detail
    assert doctor.check_siblings(["medvlt_absent"]).status is Status.FAILURE


def test_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not doctor.nvidia_smi_lists_gpu()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-0)'\n")
    tool.chmod(0o755)
    assert doctor.nvidia_smi_lists_gpu()
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert not doctor.nvidia_smi_lists_gpu()
