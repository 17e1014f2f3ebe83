"""The page "Serve it": its programs are run as they stand, and all answer as PyTorch does."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import queue
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import types
from functools import partial
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import pipeline

from emmental.export import onnx
from emmental.export.arguments import read_arguments
from emmental.inference import predict
from emmental.reporting import command

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "serve.md").read_text(encoding="utf-8")
TEXTS = ["a witty film", "dull"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def emmental_commands() -> dict[str, list[str]]:
    """Name of the tool -> the flags that the page gives it."""
    found = {}
    for line in "\n".join(blocks("bash")).splitlines():
        if line.startswith("python -m emmental.export."):
            words = shlex.split(line)
            found[words[2].rpartition(".")[2]] = words[3:]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `model`, and `served` as the page's command writes it."""
    folder = tmp_path_factory.mktemp("serve")
    tiny_models.save(folder / "model", "bert", id2label={0: "bad", 1: "good"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        onnx.main(emmental_commands()["onnx"])
    return folder


@pytest.fixture(scope="module")
def wanted() -> list[dict[str, float]]:
    encoded = tiny_models.tokenizer("bert")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        shares = tiny_models.model("bert")(**encoded).logits.softmax(-1)
    return [{"bad": row[0].item(), "good": row[1].item()} for row in shares]


def test_python_programs(place, wanted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    programs = blocks("python")
    assert len(programs) == 2  # PyTorch, ONNX Runtime
    for program in programs:
        (tmp_path / "program.py").write_text(program)
        runpy.run_path(str(tmp_path / "program.py"))
        answers = json.loads(capsys.readouterr().out.splitlines()[-1].replace("'", '"'))
        assert [pytest.approx(row, abs=1e-5) for row in wanted] == answers


def test_commands(place, wanted, monkeypatch, capsys):
    """The prediction command is run; the report takes the flags of the page."""
    monkeypatch.chdir(place)
    (place / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    predict.main(emmental_commands()["sparse"])
    answers = [json.loads(line)["probabilities"] for line in (place / "answers.jsonl").read_text().splitlines()]
    assert [pytest.approx(row, abs=0.05) for row in wanted] == answers  # int8
    assert command.find_problems(read_arguments(command._parser(), emmental_commands()["report"])) == []


class Routes:
    """As much of FastAPI as calling the server's function needs."""

    def __init__(self, **_):
        pass

    def post(self, _):
        return lambda function: function


def served(folder: Path, monkeypatch, **environment: str):
    """The function of docs/server.py for a folder, with or without FastAPI."""
    if importlib.util.find_spec("fastapi") is None:
        monkeypatch.setitem(sys.modules, "fastapi", types.SimpleNamespace(FastAPI=Routes))
    for name, value in {"MODEL": str(folder), **environment}.items():
        monkeypatch.setenv(name, value)
    return runpy.run_path(str(DOCS / "server.py"))["classify"]


HEADS = {
    "regression": (1, lambda logits: logits),
    None: (1, lambda logits: logits),
    "multi_label_classification": (3, torch.sigmoid),
    "single_label_classification": (12, lambda logits: logits.softmax(-1)),
}


@pytest.mark.parametrize("problem", HEADS)
def test_every_kind_of_answer(problem, tmp_path, monkeypatch, capsys):
    """Scores, several labels and many classes, by the server and the page's programs. Texts may look like tokens."""
    labels, function = HEADS[problem]
    tiny_models.save(tmp_path / "model", "bert", num_labels=labels, problem_type=problem)
    monkeypatch.chdir(tmp_path)
    onnx.main(emmental_commands()["onnx"])
    texts = ["a [SEP] film", "dull " * 300, ""]
    encoded = tiny_models.tokenizer("bert")(
        texts, padding=True, truncation=True, max_length=32, return_tensors="pt", split_special_tokens=True
    )
    model = tiny_models.model("bert", num_labels=labels)

    def answers_of(inputs) -> list[dict[str, float]]:
        with torch.no_grad():
            rows = function(model(**inputs).logits).tolist()
        return [dict(zip(model.config.id2label.values(), row, strict=True)) for row in rows]

    wanted = answers_of(encoded)
    classify = served(tmp_path / "served", monkeypatch, FILE="model.onnx")
    assert [pytest.approx(row, abs=1e-5) for row in wanted] == classify(texts)
    assert classify([]) == []
    for program in blocks("python"):
        program = program.replace('["a witty film", "dull"]', repr(texts)).replace("128", "32")
        (tmp_path / "program.py").write_text(program)
        runpy.run_path(str(tmp_path / "program.py"))
        answers = json.loads(capsys.readouterr().out.splitlines()[-1].replace("'", '"'))
        assert [pytest.approx(row, abs=1e-5) for row in wanted] == answers
    if problem is not None:
        ready = pipeline("text-classification", "model", top_k=None)
        found = [{row["label"]: row["score"] for row in ready(["a film"])[0]}]
        assert found == [pytest.approx(answers_of(tiny_models.tokenizer("bert")("a film", return_tensors="pt"))[0])]
    assert json.loads((tmp_path / "served" / "config.json").read_text()).get("problem_type") == problem


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs FastAPI")
def test_requests_that_are_not_lists_of_texts(place, monkeypatch):
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    monkeypatch.chdir(place)
    client = TestClient(runpy.run_path(str(DOCS / "server.py"))["app"], raise_server_exceptions=False)
    assert client.post("/classify", json=[]).json() == []
    for request in ("a witty film", [1], [None], {"text": "dull"}, [["a", "b", "c"]]):
        assert client.post("/classify", json=request).status_code == 422


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs FastAPI")
@pytest.mark.parametrize(("file", "tolerance"), [("model.onnx", 1e-5), ("model_quantized.onnx", 0.05)])
def test_server(place, wanted, file, tolerance, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("FILE", file)
    server = runpy.run_path(str(DOCS / "server.py"))
    assert [pytest.approx(row, abs=tolerance) for row in wanted] == server["classify"](TEXTS)
    assert "/classify" in server["app"].openapi()["paths"]


@pytest.fixture(scope="module")
def node_modules(place):
    """The npm packages, beside `served`."""
    modules = Path(os.environ.get("EMMENTAL_NODE_MODULES", ".")) / "node_modules"
    if not (modules / "@huggingface" / "transformers").is_dir():
        pytest.skip("needs the npm package @huggingface/transformers")
    (place / "node_modules").symlink_to(modules.resolve())


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_node(node_modules, place, wanted):
    (place / "classify.mjs").write_text(blocks("js")[0])
    run = subprocess.run(["node", "classify.mjs"], cwd=place, capture_output=True, text=True, check=True, timeout=120)
    answers = [{entry["label"]: entry["score"] for entry in row} for row in json.loads(run.stdout.splitlines()[-1])]
    assert [pytest.approx(row, abs=1e-4) for row in wanted] == answers


REPORT = """
<script type="module">
const shown = document.querySelector("pre");
const tell = () => fetch("/shown", { method: "POST", body: shown.textContent });
new MutationObserver(tell).observe(shown, { childList: true });
</script>
"""
"""Added to the page: tells the server what the page shows."""


class Listening(http.server.SimpleHTTPRequestHandler):
    """A file server without a log, which keeps what the page says."""

    shown: queue.Queue[str] = queue.Queue()

    def do_POST(self):
        self.shown.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_browser(node_modules, place, wanted, tmp_path):
    """The page answers in a browser, from files beside it alone."""
    (place / "browser.html").write_text((DOCS / "browser.html").read_text() + REPORT)
    copies = [line for line in "\n".join(blocks("bash")).splitlines() if line.startswith(("mkdir", "cp node_modules"))]
    subprocess.run("\n".join(copies), shell=True, cwd=place, check=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Listening, directory=place)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/browser.html?text={TEXTS[0].replace(' ', '%20')}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        with subprocess.Popen(["chromium", *flags, page], stderr=subprocess.DEVNULL) as browser:
            try:
                shown = next(text for text in iter(partial(Listening.shown.get, timeout=60), None) if text != "Ready.")
            finally:
                browser.terminate()
        server.shutdown()
    answer = {label: float(score) for score, label in (line.split() for line in shown.splitlines())}
    assert answer == pytest.approx(wanted[0], abs=0.05)  # int8


def test_files_beside_the_page():
    """The page names them, and the browser's page asks nobody else for anything."""
    for name in ("server.py", "Dockerfile", "browser.html"):
        assert f"[{name}]({name})" in PAGE
    assert not re.search(r"https?://", (DOCS / "browser.html").read_text())
    assert len((DOCS / "server.py").read_text().splitlines()) < 50
