"""Imports go down only, from floor to floor; the lowest floors and the command line do without torch; docstrings stand alone."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = "hyena_ds"
FLOORS = (
    "cli",
    "suites",
    "sweeps",
    "report",
    "planning",
    "bench",
    "doctor",
    "predict",
    "training",
    "tasks",
    "runtime",
    "runs",
    "checkpoints",
    "monitoring",
    "baselines",
    "cost",
    "weights",
    "model",
    "labelled",
    "data",
    "genome",
    "parallel",
    "ops",
    "config",
    "plots",
    "shipped",
    "files",
    "text",
    "errors",
    "redaction",
)
"""One package each, the highest first."""
EXPORTED = ("configuration_hyenadna", "modeling_hyenadna")
"""Modules that transformers finds beside the one that imports them, in a folder without this package."""
LEVEL = {name: len(FLOORS) - floor for floor, name in enumerate(FLOORS)}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imported(code: str) -> list[str]:
    """Modules of the package that code imports at any depth, or names in a string for somebody else to import."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and node.module in EXPORTED:
                continue
            assert node.level == 0, f"line {node.lineno}: a relative import"
            base = node.module or ""
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"hyena_ds(\.\w+)+(:\w+)?", str(node.value)):
            names = [str(node.value).partition(":")[0]]
        else:
            continue
        found += [name for name in names if name.split(".")[0] == PACKAGE]
    return found


def level(module: str) -> int:
    return LEVEL[module.split(".")[1]]


def test_every_module_has_a_floor() -> None:
    homeless = [
        name for name in MODULES if name not in (PACKAGE, "hyena_ds.__main__") and name.split(".")[1] not in LEVEL
    ]
    assert not homeless


def upward(module: str, code: str) -> list[str]:
    return [other for other in imported(code) if other == PACKAGE or level(other) > level(module)]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in (PACKAGE, "hyena_ds.__main__")])
def test_imports_go_down_only(module: str) -> None:
    assert not upward(module, MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "planted",
    [
        "import hyena_ds.training.engine",
        "def later():\n    from hyena_ds.training import engine",
        "from hyena_ds.training.engine import build_engine",
        "worker = 'hyena_ds.training.engine:build_engine'",
        "import hyena_ds",
    ],
)
def test_an_import_upwards_is_found(planted: str) -> None:
    assert upward("hyena_ds.model.block", planted)
    assert not upward("hyena_ds.model.block", "from hyena_ds.ops.gelu import gelu\nimport hyena_ds.model.mlp")


def test_the_trainer_does_not_import_the_prep() -> None:
    for name, path in MODULES.items():
        if name in ("hyena_ds.cli", "hyena_ds.__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.split(".")[0] == "data_prep" for module in modules), name


@pytest.mark.parametrize(
    "module", ["hyena_ds.config.arithmetic", "hyena_ds.errors", "hyena_ds.cli", "hyena_ds", "hyena_ds.labelled"]
)
def test_it_imports_without_torch(module: str) -> None:
    if module not in MODULES:
        pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; assert not {{'torch', 'deepspeed'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["hyena_ds.cli", "hyena_ds.training.rank", "hyena_ds.tasks.labelled"])
def test_it_imports_without_what_extras_bring(module: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = {
        re.split(r"[\s\[<>=~]", line, maxsplit=1)[0]
        for text in setup["options.extras_require"].values()
        for line in text.split("\n")
    }
    modules = {"scikit-learn": "sklearn", "xgboost-cpu": "xgboost"}
    blocked = {modules.get(name, name) for name in extras} - {
        "",
        "hyena-ds",
        "setuptools",
        "mypy",
        "pytest",
    }
    assert {"scipy", "sklearn", "xgboost", "pyarrow", "pysam", "transformers", "matplotlib"} <= blocked
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)})); import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_check_prints_the_batch_arithmetic_where_there_is_no_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; from hyena_ds.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "check", "configs/quickstart.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "dp 1 x sp 2   2 = 1 x 1 x 2" in result.stdout


@pytest.mark.parametrize("top", [PACKAGE, "data_prep", "tests"])
def test_docstrings_can_be_read_without_the_name_above_them(top: str) -> None:
    begin = '"' * 3 + "Of "
    found = [path for path in (ROOT / top).rglob("*.py") if begin in path.read_text(encoding="utf-8")]
    assert not found
