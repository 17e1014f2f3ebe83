"""Every command in README.md and docs/ names files that are there and flags that exist; links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from documented_commands import CHANGED, SKIPPED, changed, documented, fine_tuned, make_world

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


def test_short_commands_run(tmp_path, monkeypatch):
    """Those of two pages, in this process; `documented_commands` runs the commands of all pages."""
    make_world(tmp_path)
    for name in ("outputs/mrpc", "outputs/other"):
        fine_tuned(tmp_path / name, "not_equivalent", "equivalent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = 0
    for one in documented():
        if one.page in ("docs/exports.md", "docs/language_models.md") and "export.report" not in one.text:
            words = shlex.split(changed(one.text))[1:]
            module = words.pop(0) if words[0] != "-m" else words[1]
            words = words[2:] if words[0] == "-m" else words
            importlib.import_module(module.removesuffix(".py")).main(words)
            done += 1
    assert done >= 11
    assert (tmp_path / "plain" / "model.safetensors").is_file()
    assert (tmp_path / "outputs" / "distilbert" / "model.safetensors").is_file()


def test_every_reason_to_skip_is_needed():
    texts = [one.text for one in documented()]
    for pattern in (*SKIPPED, *CHANGED):
        assert any(re.search(pattern, text) for text in texts), f"no command matches {pattern}"


def test_the_readme_fits():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
