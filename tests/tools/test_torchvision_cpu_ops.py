# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).resolve().parents[2] / "tools" / "torchvision_cpu_ops.py"


def fake_torchvision(folder: Path, *, has_ops: bool) -> None:
    """Packages that behave as torch and torchvision do at the one point where they meet."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(
        "OPS = set()\n"
        "class library:\n"
        "    class Library:\n"
        "        def __init__(self, name, kind): assert (name, kind) == ('torchvision', 'FRAGMENT')\n"
        "        def define(self, schema): OPS.add(schema.partition('(')[0])\n"
    )
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    (folder / "torchvision" / "extension.py").write_text(f"def _has_ops(): return {has_ops}\n")
    (folder / "torchvision" / "_meta_registrations.py").write_text("import torch\nseen = set(torch.OPS)\n")


@pytest.mark.parametrize(("has_ops", "declared"), [(False, ["nms", "qnms"]), (True, [])])
def test_shim_declares_operators_only_where_they_are_missing(
    tmp_path: Path, has_ops: bool, declared: list[str]
) -> None:
    fake_torchvision(tmp_path, has_ops=has_ops)
    shutil.copy(SHIM, tmp_path / "shim.py")
    code = (
        "import sys, shim, json; assert 'torch' not in sys.modules; import torchvision; "
        "print(json.dumps(sorted(torchvision._meta_registrations.seen)))"
    )
    command = [sys.executable, "-S", "-c", code]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == declared


def test_packages_import_in_a_child_of_a_child() -> None:
    child = "import torchvision, lightning, peft; from torchvision.transforms import v2; print(v2.Resize.__name__)"
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Resize"


@pytest.mark.skipif("+cpu" not in importlib.metadata.version("torch"), reason="the shim is for CPU builds of torch")
def test_without_the_shim_torchvision_would_fail() -> None:
    if importlib.metadata.version("torchvision").endswith("+cpu"):
        pytest.skip("this torchvision is a CPU build: it needs no shim")
    # once torchvision imports by itself, the shim can go
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_DeclareOperators']\n"
        "try:\n    import torchvision\nexcept RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert "torchvision::nms does not exist" in done.stdout
