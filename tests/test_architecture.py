"""The laws of the house: a wrong import fails here with a sentence."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("flows", "tasks") for p in (REPOSITORY / top).rglob("*.py"))

OWNERS = {  # library -> the only places that may import it
    "accelerate": ("tasks/training/",),
    "prefect": ("flows/",),
    "dvc": ("flows/",),
    "typer": ("flows/cli.py",),
    "mlflow": ("tasks/tracking/",),
    "yaml": ("tasks/params.py",),
    "evaluate": ("tasks/evaluation/",),
    "fastapi": ("tasks/serving/",),
    "starlette": ("tasks/serving/",),
    "prometheus_client": ("tasks/serving/",),
    "uvicorn": ("flows/commands/serving.py",),
    "lm_eval": ("tasks/evaluation/asking/prompted.py",),
    "rensa": ("tasks/text/",),
    "peft": ("tasks/model/adapters.py",),
    "optuna": ("flows/sweeps/search.py",),
    "onnx_ir": ("tasks/model/graph.py",),
    "onnxruntime": ("tasks/model/graph.py",),
}
ROOMS = ("text", "weights", "model", "training", "evaluation", "drift", "tracking", "serving", "sweeps")
SUB_ROOMS = {  # a part of a room -> the only modules of its room that it may import, besides its own
    "tasks/evaluation/asking": ("predictions",),
    "tasks/evaluation/figures": ("predictions",),
    "tasks/evaluation/gate": ("figures", "judging", "predictions"),
    "tasks/text/reading": ("identities", "kinds", "shards"),
    "tasks/text/tokens": ("kinds",),
    "tasks/weights/families": ("arithmetic", "ops", "rules"),
    "tasks/weights/formats": (),
}
FLOWS = {  # a room of flows/ -> what of flows/ it may import
    "checkout": ("checkout",),
    "commands": ("addresses", "commands", "checkout"),
    "sweeps": ("sweeps", "commands", "checkout", "pipeline"),
    "team": ("addresses", "team"),
}
BOTTOM = (
    "artifacts",
    "params",
    "presets",
    "edit",
    "errors",
    "files",
    "progress",
    "environment",
    "references",
    "pages",
    "architectures",
    "spans",
)
FORBIDDEN_FILES = ("utils", "common", "helpers", "misc")
SHADOWING = ("evaluate", "datasets", "tokenize", "types", "select", "profile", "copy", "statistics")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    """Every name that `path` imports, at its top or inside a function."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _place(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _room(path: Path) -> str | None:
    """The room that a file is in, however deep; None for a file at the bottom, a stage, a flow."""
    top, name, *_ = path.relative_to(REPOSITORY).parts
    return name if top == "tasks" and name in ROOMS else None


def _sub_room(path: Path) -> str | None:
    return next((place for place in SUB_ROOMS if _place(path).startswith(f"{place}/")), None)


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_a_library_is_imported_only_by_its_owner(path):
    for name in _imports(path):
        owners = OWNERS.get(name.split(".")[0])
        allowed = owners is None or _place(path).startswith(owners)
        assert allowed, f"{_place(path)} imports {name}; only {' and '.join(owners or ())} may"


@pytest.mark.parametrize("path", [p for p in SOURCES if _place(p).startswith("tasks/")], ids=_place)
def test_tasks_do_not_know_who_runs_them(path):
    assert not [name for name in _imports(path) if name.split(".")[0] == "flows"]


@pytest.mark.parametrize("path", [p for p in SOURCES if _room(p)], ids=_place)
def test_rooms_do_not_reach_into_one_another(path):
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "tasks" and len(parts) > 1:
            allowed = parts[1] == _room(path) or parts[1] in BOTTOM
            assert allowed, f"{_place(path)} imports {name}: a room asks the stage, not its neighbour"


@pytest.mark.parametrize("path", [p for p in SOURCES if _sub_room(p)], ids=_place)
def test_part_of_a_room_takes_little_from_the_rest_of_it(path):
    home = _sub_room(path)
    _, room, part = home.split("/")
    for name in _imports(path):
        match name.split("."):
            case ["tasks", where, module, *_] if where == room:
                assert module in (part, *SUB_ROOMS[home]), (
                    f"{_place(path)} imports {name}: no business of {part}"
                )


@pytest.mark.parametrize("path", [p for p in SOURCES if _place(p).split("/")[1] in FLOWS], ids=_place)
def test_a_room_of_flows_knows_only_what_lies_below_it(path):
    room = _place(path).split("/")[1]
    for name in _imports(path):
        match name.split("."):
            case ["flows", part, *_]:
                assert part in FLOWS[room], f"{_place(path)} imports {name}: no business of {room}"


def test_modules_do_not_import_one_another_in_a_circle():
    known = {_place(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in SOURCES}
    imported = {
        module: {name if name in known else name.rpartition(".")[0] for name in _imports(path)} & known.keys()
        for module, path in known.items()
    }
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@pytest.mark.parametrize("name", BOTTOM)
def test_the_bottom_layer_imports_nothing_above_itself(name):
    for imported in _imports(REPOSITORY / "tasks" / f"{name}.py"):
        parts = imported.split(".")
        assert parts[0] != "tasks" or parts[1] in BOTTOM, f"tasks/{name}.py imports {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_no_file_name_hides_a_dependency_or_says_nothing(path):
    assert path.stem not in FORBIDDEN_FILES + SHADOWING


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_every_module_opens_by_saying_what_it_is_for(path):
    assert ast.get_docstring(_tree(path)), f"{_place(path)} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_nothing_loads_loosely_or_runs_foreign_code(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.keyword):
            value = getattr(node.value, "value", None)
            assert (node.arg, value) not in {
                ("strict", False),
                ("weights_only", False),
                ("trust_remote_code", True),
            } or (node.arg == "strict" and _is_zip(node, path)), (
                f"{_place(path)}:{node.value.lineno} says {node.arg}={value}"
            )


def _is_zip(keyword: ast.keyword, path: Path) -> bool:
    """`zip(..., strict=False)` says nothing about weights."""
    calls = (n for n in ast.walk(_tree(path)) if isinstance(n, ast.Call))
    return any(
        getattr(call.func, "id", "") == "zip" and any(ast.dump(k) == ast.dump(keyword) for k in call.keywords)
        for call in calls
    )


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_functions_stay_short(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 50, f"{_place(path)}:{node.lineno} {node.name} has {lines} lines"


def test_tests_hold_no_init_that_would_hijack_imports():
    assert not list((REPOSITORY / "tests").rglob("__init__.py"))


def test_the_wheel_holds_both_packages():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["flows", "tasks"]' in text
