"""Imports run one way, and rules import no I/O: read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "skerry_modules": ROOT / "modules/src/skerry_modules",
    "skerry": ROOT / "client/src/skerry",
    "skerry_agent": ROOT / "agent/src/skerry_agent",
    "skerry_hub": ROOT / "hub/src/skerry_hub",
    "skerry_simulators": ROOT / "simulators/src/skerry_simulators",
}
MAY_IMPORT = {
    "skerry_modules": set(),
    "skerry": {"skerry_modules"},
    "skerry_agent": {"skerry_modules"},
    "skerry_hub": {"skerry_modules"},
    "skerry_simulators": {"skerry_modules", "skerry", "skerry_agent", "skerry_hub"},
}
# What a rule must not touch: files, sockets, threads, clocks, processes, databases, brokers.
IMPURE = {
    "asyncio", "concurrent", "fastapi", "glob", "http", "httpx", "io", "multiprocessing", "os", "paho", "pathlib",
    "psutil", "select", "selectors", "shutil", "signal", "socket", "sqlalchemy", "sqlite3", "sqlmodel",
    "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip
PURE_MODULES = ("chunks", "compatibility", "histogram", "measurement")
PURE = [
    *sorted((SOURCES["skerry_agent"] / "rules").glob("*.py")),
    *sorted((SOURCES["skerry_hub"] / "rules").glob("*.py")),
    *(SOURCES["skerry_modules"] / f"{name}.py" for name in PURE_MODULES),
    *sorted((SOURCES["skerry_modules"] / "messages").glob("*.py")),
]  # fmt: skip
# The device stays light: none of these may be imported there, not even late.
HEAVY = {
    "alembic", "fastapi", "httpx", "jinja2", "mlflow", "pandas", "pyarrow", "pydantic", "rich", "sklearn",
    "sqlalchemy", "sqlmodel", "starlette", "typer", "uvicorn",
}  # fmt: skip


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import in a file, at whatever depth it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", SOURCES)
def test_packages_import_only_what_stands_below_them(package: str) -> None:
    files = sorted(SOURCES[package].rglob("*.py"))
    assert files
    for path in files:
        for line, name in imports(path):
            if name in SOURCES and name != package:
                assert name in MAY_IMPORT[package], f"{path.relative_to(ROOT)}:{line} imports {name}"


@pytest.mark.parametrize("path", PURE, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_rules_touch_no_io(path: Path) -> None:
    touched = {f"line {line}: {name}" for line, name in imports(path) if name in IMPURE}
    assert not touched, f"{path.relative_to(ROOT)} is a rule and imports I/O"
    # A seeded generator may be handed in; the shared one may not be asked.
    shared = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr != "Random"
    ]
    assert not shared, f"{path.relative_to(ROOT)} is a rule and draws from the shared random generator"
    opened = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input")
    ]
    assert not opened, f"{path.relative_to(ROOT)} is a rule and calls open, print or input"


# A command of its own that the daemon never is: it alone may read Parquet, where its extra is installed.
BATCH = SOURCES["skerry_agent"] / "batch"
MAY_BE_HEAVY = {BATCH / "parquet.py": {"pyarrow"}}


# Commands and programs that load it: the daemon starts the second as a process, and imports neither.
BATCH_PROGRAMS = {"skerry_agent.cli", "skerry_agent.jobs.scoring"}


def named(path: Path) -> set[str]:
    """Dotted names that a file may import, at whatever depth: ``from a.b import c`` may be ``a.b`` or ``a.b.c``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_programs_of_their_own_import_the_batch() -> None:
    for source in SOURCES.values():
        for path in source.rglob("*.py"):
            own = ".".join(path.relative_to(source.parent).with_suffix("").parts)
            if BATCH in path.parents or own in BATCH_PROGRAMS:
                continue
            loads = {
                name
                for name in named(path)
                if name == "skerry_agent.batch" or name.startswith("skerry_agent.batch.") or name in BATCH_PROGRAMS
            }
            assert not loads, f"{path.relative_to(ROOT)} loads {', '.join(sorted(loads))}"


def test_the_agent_stays_light() -> None:
    for package in ("skerry_agent", "skerry_modules"):
        for path in SOURCES[package].rglob("*.py"):
            for line, name in imports(path):
                if name in MAY_BE_HEAVY.get(path, ()):
                    continue
                assert name not in HEAVY, f"{path.relative_to(ROOT)}:{line} imports {name} on the device"
