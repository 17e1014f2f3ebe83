"""What `pyproject.toml` says: an installed copy works from any folder, and its requirements are those of the code."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import emmental

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROGRAMS = ("masked_run_glue", "distiller", "visualizing_image")
DISTRIBUTIONS = {"sklearn": "scikit-learn", "cv2": "opencv-python-headless"}
"""Module -> distribution on PyPI, where the names differ."""
COMES_WITH = {"huggingface_hub": "transformers", "jinja2": "torch", "google": "tensorboard", "PIL": "matplotlib"}
"""Module -> the requirement that brings it along."""
NOT_ON_PYPI = {"apex", "openvino", "peft"}
"""What the program uses where the user has it, and asks nobody to install."""


def bounds(requirements: list[str]) -> dict[str, tuple[int, ...]]:
    """Distribution -> the lowest version, from lines such as `torch>=2.11` or `torch==2.13.0`."""
    found = {}
    for line in requirements:
        name, version = re.fullmatch(r"([\w.-]+)[=>]=([\d.]+)(?:,<\d+)?", line).groups()
        found[name] = tuple(int(part) for part in version.split("."))
    return found


def lowest_versions() -> dict[str, tuple[int, ...]]:
    """Of everything that the project asks for, extras included."""
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [line for name, lines in extras.items() if name != "all" for line in lines]
    return bounds([*PROJECT["project"]["dependencies"], *optional])


def pins() -> dict[str, tuple[int, ...]]:
    return bounds((ROOT / "requirements.txt").read_text(encoding="utf-8").split())


def test_pins_are_within_the_bounds():
    lowest = lowest_versions()
    for name, version in pins().items():
        assert version >= lowest[name], f"requirements.txt pins {name} below the bound in pyproject.toml"
    required = set(bounds(PROJECT["project"]["dependencies"]))
    assert required <= set(pins()), "requirements.txt lacks a requirement of pyproject.toml"


def test_every_import_has_its_requirement():
    known = {*lowest_versions(), *NOT_ON_PYPI, *COMES_WITH}
    for file in [*(ROOT / "emmental").rglob("*.py"), *(ROOT / f"{name}.py" for name in PROGRAMS)]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - {"emmental", *PROGRAMS} - sys.stdlib_module_names:
                assert DISTRIBUTIONS.get(top, top) in known, f"{file.name} imports {top}, which nothing asks for"


def test_every_room_is_packed():
    for file in (ROOT / "emmental").rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent.name} is not a package: pip would leave it out"
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == set(PROGRAMS)
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert module in PROGRAMS or module.startswith("emmental.")
        returned = inspect.signature(getattr(importlib.import_module(module), function)).return_annotation
        assert returned == "None", f"{target} returns something, which would be the exit status"


def test_nothing_bends_the_search_path():
    for folder in ("emmental", "experiments", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"), file


def test_installed_copy_works_from_another_folder(tmp_path):
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if int(version.split(".")[0]) < 65:
        pytest.skip(f"setuptools {version} is too old")
    source, target = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT / "emmental", source / "emmental", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*(f"{program}.py" for program in PROGRAMS), "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)

    def said(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        run = [sys.executable, *command]
        return subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    for program in PROGRAMS:
        assert said("-m", program, "--help").startswith("usage: ")
    where = Path(said("-c", "import emmental; print(emmental.__file__)").strip())
    assert where == target / "emmental" / "__init__.py"
    assert {file.name for file in (target / "bin").iterdir()} == set(PROJECT["project"]["scripts"])
    started = {name: target.partition(":")[0] for name, target in PROJECT["project"]["scripts"].items()}
    assert started == emmental.COMMANDS
