"""The house is as docs/architecture.md draws it: one direction of imports, no two modules that import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "lrm_base": set(),
    "lrm_core": {"lrm_base"},
    "prior": {"lrm_base"},
    "steering": {"lrm_base", "lrm_core", "prior"},
    "lrm_lab": {"lrm_base", "lrm_core", "prior", "steering"},
    "steer_cli": {"steering"},
}
DOOR = "steering.commands.evaluate"  # the one product module that opens the laboratory


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in MAY_IMPORT
    for path in ([ROOT / f"{package}.py"] if package == "steer_cli" else sorted((ROOT / package).rglob("*.py")))
}


def imports_of(name: str) -> set[str]:
    """Our modules that a module imports: at its top, late, and for type checking."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {m for m in members if m in MODULES} or {node.module}
    return {module for module in imported if module in MODULES} - {name}


GRAPH = {name: imports_of(name) for name in MODULES}


def test_the_graph_is_read():
    assert "steering.network" in GRAPH["steering.steerer"]
    assert "steering.search.gallery" in GRAPH["steering.commands.search"]  # a late import
    assert len(GRAPH) > 80


def test_no_modules_import_each_other():
    # a package's own __init__ lists names that are imported when they are first used
    graph = {name: {m for m in GRAPH[name] if m != "steering"} for name in GRAPH if name != "steering"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(package: str):
    for name, imported in GRAPH.items():
        if name.partition(".")[0] == package and name != DOOR:
            rooms = {module.partition(".")[0] for module in imported} - {package}
            assert rooms <= MAY_IMPORT[package], f"{name} imports {', '.join(sorted(rooms - MAY_IMPORT[package]))}"


def test_only_the_door_opens_the_laboratory():
    openers = {name for name, imported in GRAPH.items() if any(m.startswith("lrm_lab") for m in imported)}
    assert {name for name in openers if not name.startswith("lrm_lab")} <= {DOOR}


def test_the_document_names_every_module_of_steering():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "steering").glob("*.py"):
        assert path.name == "__init__.py" or f"`{path.name}`" in text, path.name
    for package in MAY_IMPORT:
        assert f"`{package}" in text
