"""The house's plan: no import circle, no import upwards, nothing heavy where only help is asked for, and a tree that is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import REPOSITORY

PACKAGES = ("data_pipeline", "sycoca_ds")
ROOMS = {  # of data_pipeline, each with what it may import beside the ground and itself
    "pictures": set(),
    "catalogue": set(),
    "shards": {"catalogue", "pictures"},
    "fetch": {"catalogue", "pictures"},
    "download": {"catalogue", "pictures", "shards", "fetch"},
    "local": {"catalogue", "pictures", "shards"},
    "report": {"catalogue", "shards", "download", "local"},
    "tokenizer": {"catalogue", "shards"},
    "world": {"catalogue"},
}
GROUND = {"errors", "files", "paths", "duck", "lock", "progress", "command_line", "own_package"}
ENTRIES = {"build", "parts", "__main__"}


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_of(path): path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")}


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, inside functions too, and those that it names in a string it imports later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            if names[0] in known:
                names = [name for name in names if name in known and name != node.module] or names
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known and "." in node.value:
            names = [node.value]
        else:
            continue
        found.update(name for name in names if name in known)
    return found - {module_of(path)}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports_of(path, set(files)) for name, path in files.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle for each way back that a depth-first walk meets."""
    found, done = [], set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def test_the_walk_finds_circles() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100 and "data_pipeline.pictures.flatten" in graph["data_pipeline.pictures.decode_apart"]
    assert circles(graph) == []


def test_data_pipeline_stands_alone(graph: dict[str, set[str]]) -> None:
    upward = {name: used for name, used in graph.items() if name.startswith("data_pipeline")}
    assert not [(name, other) for name, used in upward.items() for other in used if other.startswith("sycoca_ds")]


def test_the_model_knows_neither_data_nor_engine_nor_evaluation(graph: dict[str, set[str]]) -> None:
    rooms = tuple(f"sycoca_ds.{room}" for room in ("data", "engine", "eval", "launch", "demo", "ablations"))
    wrong = [(name, other) for name, used in graph.items() if name.startswith("sycoca_ds.model") for other in used]
    assert not [pair for pair in wrong if pair[1].startswith(rooms)]


def test_evaluation_does_not_know_the_engine(graph: dict[str, set[str]]) -> None:
    """Whose validations use its functions."""
    wrong = [(name, other) for name, used in graph.items() if name.startswith("sycoca_ds.eval.") for other in used]
    assert not [pair for pair in wrong if pair[1].startswith(("sycoca_ds.engine", "sycoca_ds.evaluat"))]
    assert "sycoca_ds.eval.masking.yardstick" in graph["sycoca_ds.engine.monitoring.validation"]


def test_rooms_import_downwards(graph: dict[str, set[str]]) -> None:
    wrong = []
    for name, used in graph.items():
        if name.count(".") < 1 or not name.startswith("data_pipeline."):
            continue
        room = name.split(".")[1]
        for other in used - {"data_pipeline"}:
            target = other.split(".")[1]
            allowed = (
                GROUND if room in GROUND else GROUND | ENTRIES | set(ROOMS) if room in ENTRIES else GROUND | ROOMS[room] | {room}
            )
            if target not in allowed:
                wrong.append((name, other))
    assert not wrong
    folders = {path.name for path in (REPOSITORY / "data_pipeline").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_has_two_to_nine_files_and_says_what_happens_in_it(room: str) -> None:
    folder = REPOSITORY / "data_pipeline" / room
    assert 2 <= len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 9
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert "\nIn: " in text and "Out: " in text


def test_help_and_package_roots_import_neither_torch_nor_deepspeed() -> None:
    packages = sorted(module_of(path) for package in PACKAGES for path in (REPOSITORY / package).rglob("__init__.py"))
    entries = ["data_pipeline.__main__", "sycoca_ds.options", "sycoca_ds.demo.command"]
    entries += [f"sycoca_ds.launch.{name}" for name in ("command", "check", "commands")]
    code = (
        f"import importlib, sys\nfor name in {packages + entries!r}:\n    importlib.import_module(name)\n"
        "    assert not {'torch', 'deepspeed'} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "word, status, said", [("--help", 0, ""), ("--run.ot", 2, "error: unknown option --run.ot; did you mean --run.out?")]
)
def test_help_and_misspelt_options_of_a_training_come_before_torch_and_deepspeed(word: str, status: int, said: str) -> None:
    """Which take seconds, and say of a laptop that they found no accelerator."""
    code = (
        "import runpy, sys\nsys.argv[1:] = sys.argv[2:]\ntry:\n"
        "    runpy.run_path('sycoca_ds/train.py', run_name='train')['main']()\n"
        "finally:\n    assert not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, "train.py", word]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert "AssertionError" not in done.stderr and ("--run.out" in done.stdout) == (status == 0)
    done = subprocess.run([sys.executable, "sycoca_ds/train.py", word], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == status and done.stderr.startswith(said) and "WARNING" not in done.stdout + done.stderr


def test_tests_stand_where_what_they_test_stands() -> None:
    tests = [path for package in PACKAGES for path in (REPOSITORY / "tests" / package).rglob("test_*.py")]
    assert len(tests) > 40
    homeless = [path for path in tests if not (REPOSITORY / path.parent.relative_to(REPOSITORY / "tests")).is_dir()]
    assert not homeless


def test_no_test_is_imported_by_another_file() -> None:
    """What two tests share lies in tests/worlds/: a test can be moved or renamed without a look at others."""
    files = {module_of(path): path for path in (REPOSITORY / "tests").rglob("*.py")}
    imported = {(name, other) for name, path in files.items() for other in imports_of(path, set(files)) if name != other}
    assert ("tests.worlds.trainings.training", "tests.worlds.processes.launching") in imported
    assert not [pair for pair in imported if pair[1].rsplit(".", 1)[1].startswith(("test_", "conftest"))]


def test_what_tests_share_lies_in_rooms() -> None:
    worlds = REPOSITORY / "tests/worlds"
    assert [path.name for path in worlds.glob("*.py")] == ["__init__.py"]
    for room in (path for path in worlds.iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert 1 <= len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 9, room
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), room


def tree_of_the_page() -> dict[str, bool]:
    """Path -> whether the tree shows what is in it."""
    block = (REPOSITORY / "docs/layout.md").read_text().split("```text\n")[1].split("```")[0]
    found, above = {}, []
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        assert len(line.split()) > 1, f"{name} has no description"
        path = "/".join([*above[:depth], name.rstrip("/")])
        assert path not in found, f"{path} stands twice"
        above[depth:] = [name.rstrip("/")]
        found[path] = False
        if depth:
            found["/".join(above[:depth])] = True
        assert (REPOSITORY / path).is_dir() == name.endswith("/"), f"{path} is not there, or no folder"
    return found


def test_the_tree_of_the_page_is_the_tree() -> None:
    tree = tree_of_the_page()
    assert {package for package in PACKAGES} <= {path for path, unfolded in tree.items() if unfolded}
    listed = {path for path, unfolded in tree.items() if not unfolded}
    files = [path.relative_to(REPOSITORY).as_posix() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    missing = [
        name
        for name in files
        if not name.endswith("__init__.py") and not any(name == path or name.startswith(f"{path}/") for path in listed)
    ]
    assert not missing, "files that the tree in docs/layout.md does not name"


def test_files_that_pages_name_are_there() -> None:
    pages = [path for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "hostfiles/*.md") for path in REPOSITORY.glob(pattern)]
    named = [
        (page.name, name)
        for page in pages
        for name in re.findall(r"\b(?:data_pipeline|sycoca_ds|tests)/[\w/]+\.(?:py|sh)\b", page.read_text())
    ]
    assert len(named) > 40
    assert not [(page, name) for page, name in named if not any((REPOSITORY / root / name).exists() for root in ("", "tests"))]
