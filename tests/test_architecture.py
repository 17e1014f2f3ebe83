"""The house keeps its order: imports point downward, files and functions stay short, nothing unsafe is called."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emmental.architectures import ARCHITECTURES
from emmental.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = {
    "emmental.errors": 0,
    "emmental.architectures": 0,
    "emmental.first_token": 1,
    "emmental.small_models": 2,
    "emmental.atomic": 0,
    "emmental.optional": 0,
    "emmental.openvino_core": 0,
    "emmental.flags": 0,
    "emmental.command_line": 0,
    "emmental.pretrained": 0,
    "emmental.methods": 1,
    "emmental.modules": 1,
    "emmental.pictures": 1,
    "emmental.patching": 2,
    "emmental.pruning": 3,
    "emmental.masked_models": 3,
    "emmental.shrinking": 3,
    "emmental.latency": 3,
    "emmental.tasks": 4,
    "emmental.task_heads": 4,
    "emmental.data": 5,
    "emmental.structured": 5,
    "emmental": 5,
    "emmental.runs": 6,
    "emmental.export": 6,
    "emmental.teaching": 7,
    "emmental.inference": 7,
    "emmental.training": 8,
    "emmental.language_models": 8,
    "emmental.cascade": 8,
    "emmental.reporting": 9,
    "experiments": 10,
    "benchmarks": 10,
    "distiller": 10,
    "masked_run_glue": 10,
    "visualizing_image": 10,
}
"""A module may import from its own floor and from those below."""
FOUNDATION = (
    "emmental.errors",
    "emmental.architectures",
    "emmental.atomic",
    "emmental.flags",
    "emmental.command_line",
    "emmental.pretrained",
)
ALONE = ("emmental.pictures", "emmental.tasks")
"""Rooms that know nothing of models: they import themselves and the foundation."""
PUBLIC_NAMES = {
    "emmental": "emmental.training.prune_model",
    "emmental.export.prune": "emmental.reporting.prune_command",
    "emmental.export.report": "emmental.reporting.command",
    "emmental.export.sparse": "emmental.inference.predict",
    "emmental.data.corpus": "emmental.language_models.corpus",
    "emmental.training.student_init": "emmental.language_models.student_init",
}
"""Name that users give to `python -m`, or import, -> where its code lives. It alone is imported from above."""
TAKEN_ALONG = ("emmental.small_models", "emmental.first_token")
"""Modules whose copies lie in the folder of a small model: they import their neighbours by relative imports."""
LONGEST_FILE, LONGEST_FUNCTION = 500, 70


def test_the_design_page_has_the_floors():
    """`docs/design.md` names every room of `emmental` on its floor."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (REPOSITORY / "docs" / "design.md").read_text(), re.MULTILINE)
    drawn = {
        f"emmental.{room.strip()}": int(floor) for floor, rooms in rows if floor != "10" for room in rooms.split(",")
    }
    assert drawn == {room: floor for room, floor in FLOORS.items() if room.startswith("emmental.")}


def source_files() -> list[Path]:
    """Python files of the program: everything but the tests."""
    roots = [REPOSITORY / name for name in ("emmental", "experiments", "benchmarks")]
    return sorted([*REPOSITORY.glob("*.py"), *(file for root in roots for file in root.rglob("*.py"))])


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in source_files()}
TREES = {name: ast.parse(file.read_text(encoding="utf-8"), str(file)) for name, file in MODULES.items()}


def room_of(module: str) -> str:
    """The longest name in `FLOORS` that holds the module; modules of the package need a room of their own."""
    if module == "emmental":
        return module
    rooms = [room for room in FLOORS if room != "emmental" and (module == room or module.startswith(f"{room}."))]
    assert rooms, f"{module} has no place in the order of the house: give it one in FLOORS"
    return max(rooms, key=len)


def imports(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Modules of this project that the nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = node.level == 1 and module in TAKEN_ALONG
            assert node.level == 0 or relative, f"{module}, line {node.lineno}: imports are written in full"
            source = f"emmental.{node.module}" if relative else node.module
            candidates = [inner if (inner := f"{source}.{alias.name}") in MODULES else source for alias in node.names]
        else:
            continue
        yield from (name for name in candidates if name in MODULES)


def at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when the module is imported: everything outside functions and `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    room = room_of(module)
    for imported in imports(module, ast.walk(TREES[module])):
        if PUBLIC_NAMES.get(module) == imported:
            continue
        assert FLOORS[room_of(imported)] <= FLOORS[room], f"{module} imports {imported}, which lives above it"


@pytest.mark.parametrize("room", ALONE)
def test_rooms_that_know_nothing_of_models(room):
    members = [module for module in MODULES if room_of(module) == room]
    assert members
    for module in members:
        for imported in imports(module, ast.walk(TREES[module])):
            assert room_of(imported) in (room, *FOUNDATION), f"{module} imports {imported}"


def test_only_programs_know_the_command_line():
    """Flags are the business of `arguments` modules and of modules that can be started themselves."""
    for module, tree in TREES.items():
        if "emmental.command_line" not in imports(module, ast.walk(tree)):
            continue
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "main" in functions or module.endswith("arguments"), module


def test_no_import_goes_in_circles():
    """A module that another one needs while it is imported does not need that one itself."""
    needs = {name: set(imports(name, at_module_level(tree))) - {name, "emmental"} for name, tree in TREES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for needed in needs[module]:
            if not module.startswith(f"{needed}.") and not needed.startswith(f"{module}."):
                visit(needed, (*path, module))
        done.add(module)

    for module in needs:
        visit(module, ())
    assert done == set(MODULES)


def test_drawing_needs_no_models():
    """`SingleImageViz` takes arrays: models are read where a command of the program asks for them."""
    for node in at_module_level(TREES["visualizing_image"]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                assert not re.match(r"(torch|transformers|safetensors)\b", name), name
                assert not name.startswith("emmental.") or room_of(name) in ("emmental.pictures", *FOUNDATION), name


@pytest.mark.parametrize(
    ("module", "function", "calls"),
    [
        ("masked_run_glue", "main", "set_up prepare_task load_tokenizer load_models train_models evaluate save"),
        ("masked_run_glue", "train", "TaskDistiller distiller.step evaluate save_picture loop.save"),
        ("masked_run_glue", "evaluate", "load_and_cache_examples"),
        ("masked_run_glue", "save", "save_pictures"),
        ("masked_run_glue", "save_pictures", "pictures_of picture.save"),
        ("distiller", "step", "self.model self._losses self.optimize"),
        ("visualizing_image", "save", "self._get_buffer"),
    ],
)
def test_the_flow_is_found_by_name_and_in_order(module, function, calls):
    first = next(node for node in functions(TREES[module]) if node.name == function)
    made = sorted((node for node in ast.walk(first) if isinstance(node, ast.Call)), key=lambda node: node.lineno)
    names = iter([ast.unparse(node.func) for node in made])
    assert all(call in names for call in calls.split())


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("emmental.")])
def test_only_the_table_knows_types_and_the_names_of_their_layers(module):
    """What a type does differently is in its entry. Smaller language models are made of fixed types."""
    if room_of(module) == "emmental.architectures":
        return
    paths = {path for entry in ARCHITECTURES.values() for path in entry.roles.values() if "." in path}
    names = paths if room_of(module) == "emmental.language_models" else paths | ARCHITECTURES.keys()
    for node in ast.walk(TREES[module]):
        known = isinstance(node, ast.Constant) and node.value in names
        assert not known, f"{module}, line {node.lineno}: {node.value!r}"


def compared_names(tree: ast.Module) -> Iterator[str]:
    """Names of pruning methods that something is compared with, matched to, or looked up by."""
    for node in ast.walk(tree):
        sides: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.value, ast.Dict):
            sides = [*node.value.keys]  # {"name": ...}.get(method), {"name": ...}[method]
        for side in sides:
            each = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
            yield from (one.value for one in each if isinstance(one, ast.Constant) and one.value in METHODS)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('method == "topK"', ["topK"]),
        ('"l0" != method', ["l0"]),
        ('method in ("topK", "fisher", "other")', ["topK", "fisher"]),
        ('{"threshold": 1, "other": 2}.get(method)', ["threshold"]),
        ('{"threshold": 1}[method]', ["threshold"]),
        ('match method:\n    case "l0": pass', ["l0"]),
        ('row["threshold"] = {"threshold": 1}', []),
        ("method_of(name).by_share", []),
    ],
)
def test_what_counts_as_a_comparison_with_a_method(code, found):
    assert list(compared_names(ast.parse(code))) == found


def texts(tree: ast.Module) -> Iterator[str]:
    """Strings of a module, also parts of f-strings, without docstrings."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


PROGRAM = [name for name in MODULES if name.partition(".")[0] not in ("experiments", "benchmarks")]


@pytest.mark.parametrize("module", PROGRAM)
def test_what_a_method_does_differently_is_in_its_class(module):
    """`emmental/methods` has a property for it: nothing asks which method it is."""
    assert list(compared_names(TREES[module])) == []


@pytest.mark.parametrize("method", [method for method in METHODS.values() if method.cuts_first])
def test_a_method_is_named_in_one_file(method):
    word = re.compile(rf"\b{method.name}\b")
    naming = [module for module in PROGRAM if any(word.search(text) for text in texts(TREES[module]))]
    assert naming == [type(method).__module__]


def every_python_file() -> list[Path]:
    return [*source_files(), *sorted((REPOSITORY / "tests").rglob("*.py"))]


@pytest.mark.parametrize("file", every_python_file(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_files_stay_readable(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("module", MODULES)
def test_functions_fit_on_a_screen(module):
    for function in functions(TREES[module]):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= LONGEST_FUNCTION, f"{module}.{function.name} has {lines} lines"


def unsafe(node: ast.AST) -> str | None:
    """Why a statement or expression has no place in a program that trusts no file; None when it may stay."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        for name in names:
            if re.match(r"(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|runpy)\b", name):
                return f"import of {name}"
        if {("torch", "load"), ("builtins", "eval"), ("builtins", "exec")} & {
            (names[-1], name) for name in names[:-1]
        }:
            return f"import of {names[-1]}.{names[0]}"
    if isinstance(node, ast.Attribute) and node.attr == "__class__" and isinstance(node.ctx, ast.Store):
        return "a class swapped on a living object"
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called.removeprefix("builtins.") in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
        return called
    if called in ("subprocess.getoutput", "subprocess.getstatusoutput", "torch.jit.load", "yaml.load"):
        return called
    if called.endswith("torch.load") and keywords.get("weights_only") != "True":
        return "torch.load that unpickles"
    if keywords.get("shell", "False") != "False":
        return "a shell"
    if keywords.get("trust_remote_code", "False") != "False":
        return "remote code"
    if keywords.get("allow_pickle", "False") != "False":
        return "an array file that unpickles"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_code_from_a_file(module):
    for node in ast.walk(TREES[module]):
        assert unsafe(node) is None, f"{module}, line {node.lineno}: {unsafe(node)}"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import pickle", "import of pickle"),
        ("from pickle import loads", "import of pickle"),
        ("from torch import load", "import of torch.load"),
        ("eval('1')", "eval"),
        ("builtins.exec('1')", "builtins.exec"),
        ("subprocess.getoutput('ls')", "subprocess.getoutput"),
        ("torch.load(path)", "torch.load that unpickles"),
        ("torch.load(path, weights_only=False)", "torch.load that unpickles"),
        ("subprocess.run('ls', shell=True)", "a shell"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "remote code"),
        ("AutoModel.from_pretrained(name, trust_remote_code=trust)", "remote code"),
        ("AutoModel.from_pretrained(name, trust_remote_code=False)", None),
        ("np.load(path, allow_pickle=True)", "an array file that unpickles"),
        ("torch.load(path, weights_only=True)", None),
        ("model.__class__ = Other", "a class swapped on a living object"),
        ("model.__class__.__name__", None),
        ("model.eval()", None),
        ("re.compile('a')", None),
    ],
)
def test_what_counts_as_unsafe(code, reason):
    found = [unsafe(node) for node in ast.walk(ast.parse(code))]
    assert [each for each in found if each] == ([reason] if reason else [])


def tracked_texts() -> list[Path]:
    """Text files of the repository: those git knows, or without git all that look like part of it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        files = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    else:
        files = [*every_python_file(), *REPOSITORY.glob("*.*"), *(REPOSITORY / "experiments").rglob("*")]
    suffixes = {".py", ".sh", ".md", ".toml", ".txt", ".json", ".jsonl", ".yml", ".yaml", ".svg", ""}
    return [file for file in files if file.suffix in suffixes and file.is_file()]


def test_no_path_of_one_machine():
    roots = "|".join(("work", "tmp", "home", "root", "farm", "mnt", "Users", "opt"))
    absolute = re.compile(rf"(?<![\w.}})~/])/(?:{roots})/[\w.]")
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for file in tracked_texts()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="ignore").splitlines(), 1)
        if absolute.search(line)
    ]
    assert found == []


BEFORE_THE_ROUTE = (
    *("emmental.flags", "emmental.runs.run", "emmental.command_line", "emmental.language_models.arguments"),
    *(f"emmental.training.{name}" for name in ("arguments", "recipe", "settings", "route", "tasks", "models")),
)
"""Modules that read what the user asked for: they declare, check and complete flags, load what these name, and decide
the route."""


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(("emmental", "masked_run_glue"))])
def test_nothing_behind_the_route_asks_which_flags_led_there(module):
    if module in BEFORE_THE_ROUTE:
        return
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and node.attr in ("granularity", "recipe", "explicit"):
            assert module.startswith("emmental.methods"), f"{module}, line {node.lineno}: {ast.unparse(node)}"
