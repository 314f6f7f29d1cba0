# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the arrows of the architecture, read from the syntax tree of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
OUTER = ("lightning_modules", "datamodules", "callbacks")
PACKAGES = ("medvlt", *OUTER)
SOURCES = sorted(path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py"))
OTHERS = sorted(path for name in ("tests", "tools", "benchmarks") for path in (REPOSITORY / name).rglob("*.py"))
CLI = REPOSITORY / "medvlt" / "cli.py"
ENTRY = REPOSITORY / "medvlt" / "__main__.py"  # starts the command line, and knows the errors Lightning raises there
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the full name of every module that a file names in an import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))}


def short(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_the_reader_of_imports_sees_all_kinds() -> None:
    code = "import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    if True:\n        import h as i\n"
    assert set(imported(ast.parse(code))) == {"a.b", "c.d", "h"}


def test_files_were_found() -> None:
    assert {short(path) for path in SOURCES} >= {"medvlt/types.py", "medvlt/rollout/base.py", "medvlt/doctor.py"}
    for name in PACKAGES:
        assert (REPOSITORY / name / "__init__.py") in SOURCES, f"{name} is no package"
        assert any(roots(path) for path in SOURCES if short(path).startswith(name))


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_arrows(path: Path) -> None:
    package, found = short(path).partition("/")[0], roots(path)
    assert "configs" not in found, "configurations are data: nobody imports them"
    if path == CLI:
        return
    assert not found & (set(OUTER) - {package}), "only medvlt/cli.py imports the outer packages of others"
    if package == "medvlt" and path != ENTRY:
        assert not found & LIGHTNING, "the core is plain torch: no Lightning outside medvlt/cli.py"


@pytest.mark.parametrize("path", SOURCES + OTHERS, ids=short)
def test_licence_line(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        first, second = file.readline(), file.readline()
    line = second if first.startswith("#!") else first
    assert line == "# SPDX-License-Identifier: Apache-2.0\n"


def test_no_init_files_under_tests() -> None:
    # with tests/callbacks/__init__.py pytest would import that folder in place of the real `callbacks`
    assert [short(path) for path in (REPOSITORY / "tests").rglob("__init__.py")] == []


def test_medvlt_init_imports_nothing() -> None:
    assert roots(REPOSITORY / "medvlt" / "__init__.py") <= {"__future__"}


def test_starting_the_command_imports_nothing_heavy() -> None:
    tree = ast.parse(ENTRY.read_text(encoding="utf-8"))
    at_once = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    outside = {name for name in imported(at_once) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert outside <= {"medvlt", "medvlt.errors"}
