"""Every command in README.md and docs/ names files that are there and flags that exist; links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from emmental.training.arguments import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
_OTHER_PROGRAMS = ("pip", "hf", "export", "docker", "curl", "npm", "node", "uvicorn", "cd", "cp", "unset", "mkdir")


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in a fenced bash block, comments dropped, broken lines joined."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((page.name, words))
    return found


COMMANDS = commands()


def flags_of(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def help_of(module: str, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help_all" if module == "distiller" else "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_there_are_commands():
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_command_is_one_that_exists(page, words, capsys):
    if words[0] == "torchrun":
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
    words = words[1:] if words[0] == "PYTHONPATH=tests" else words
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[0] != "python":
        assert words[0] in _OTHER_PROGRAMS, words
    elif words[1] == "masked_run_glue.py":
        parse_arguments(words[2:])
    else:
        module = words[2] if words[1] == "-m" else words[1].removesuffix(".py")
        if (ROOT / f"{module.replace('.', '/')}.py").is_file() and module.startswith(
            ("emmental", "distiller", "visual")
        ):
            text = help_of(module, capsys)
            for flag in flags_of(words):
                assert re.search(rf"{re.escape(flag)}\b", text) or flag == "--help", f"{page}: {module} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_words_of_today(page):
    earlier = (
        r"--(target_model_path|target|package|dump_file|dump_checkpoint|model_dir|saveas|model_name|model|tokenizer)\b"
    )
    assert not re.search(earlier, page.read_text(encoding="utf-8"))


def test_the_readme_fits():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
