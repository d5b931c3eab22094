"""The floors of the house: who imports whom, which file alone knows what, and how long files are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jdcl_jax"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 70

FLOORS = {
    "diffusion": 0,
    "models": 0,
    "data": 0,
    "evaluation": 0,
    "training": 1,
    "methods": 2,
    "reporting": 3,
    **dict.fromkeys(
        (
            "config",
            "validation",
            "assembly",
            "measuring",
            "results",
            "phase_log",
            "workdir",
            "experiment",
            "campaign",
            "specs",
            "processes",
            "inputs",
            "restored",
            "protocols",
        ),
        4,
    ),
    **dict.fromkeys(("main", "sample", "report", "study", "fisher", "pitfalls", "figures"), 5),
}
FOUNDATION = {"errors", "keys", "archives", "paths", ""}  # "" is jdcl_jax itself: its version
BESIDE = {("evaluation", "jdcl_jax.models"), ("evaluation", "jdcl_jax.data.arrays")}  # of one floor, yet allowed
APART = {("reporting", "methods")}  # a lower floor, yet forbidden

Imports = dict[str, set[str]]  # module -> modules or names that it imports


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The second part of a name: "data" of "jdcl_jax.data.tasks", "main" of "jdcl_jax.main"."""
    return [*module.split("."), ""][1]


def imported(tree: ast.Module) -> Iterator[str]:
    """Full names of everything imported, also inside functions; `from a import b` gives "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def read_imports(root: Path, package: Path) -> Imports:
    return {module_name(f, root): set(imported(ast.parse(f.read_text()))) for f in sorted(package.rglob("*.py"))}


def inner_edges(imports: Imports) -> Imports:
    """Module -> modules of the package that it imports; a name inside a module counts as the module."""
    package = {name.split(".")[0] for name in imports}
    edges: Imports = {}
    for module, names in imports.items():
        inner = {name for name in names if name.split(".")[0] in package}
        targets = {name if name in imports else name.rpartition(".")[0] for name in inner}
        edges[module] = targets - {module}
    return edges


def upward(edges: Imports) -> list[str]:
    wrong = []
    for module, targets in edges.items():
        here = room(module)
        for target in sorted(targets):
            there = room(target)
            if there in FOUNDATION or there == here:
                continue
            below = here not in FOUNDATION and FLOORS[there] < FLOORS[here]
            together = here not in FOUNDATION and FLOORS[there] == FLOORS[here] >= 4
            beside = any(here == one and target.startswith(other) for one, other in BESIDE)
            allowed = below or together or beside
            if not allowed or (here, there) in APART:
                wrong.append(f"{module} imports {target}")
    return wrong


def circle(edges: Imports) -> list[str]:
    """One circle of imports, or []."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module, []))), [])


def test_every_module_has_a_floor() -> None:
    rooms = {room(module) for module in read_imports(ROOT, PACKAGE)}
    assert rooms - FOUNDATION == set(FLOORS)


def test_a_file_imports_only_from_floors_below() -> None:
    assert upward(inner_edges(read_imports(ROOT, PACKAGE))) == []


def test_command_lines_do_not_import_each_other() -> None:
    edges = inner_edges(read_imports(ROOT, PACKAGE))
    commands = {f"jdcl_jax.{name}" for name, floor in FLOORS.items() if floor == 5}
    assert all(not targets & commands for targets in edges.values())


def test_there_is_no_circle_of_imports() -> None:
    assert circle(inner_edges(read_imports(ROOT, PACKAGE))) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("jdcl_jax.data.x", "from jdcl_jax.methods.method import Method"),
        ("jdcl_jax.data.x", "def f():\n    import jdcl_jax.models.unet"),
        ("jdcl_jax.models.x", "from jdcl_jax.data.arrays import Split"),
        ("jdcl_jax.evaluation.x", "from jdcl_jax.data.tasks import TaskSequence"),
        ("jdcl_jax.evaluation.x", "from jdcl_jax.training.state import PyTree"),
        ("jdcl_jax.reporting.x", "from jdcl_jax.methods import registry"),
        ("jdcl_jax.methods.x", "from jdcl_jax.config import default_config"),
        ("jdcl_jax.errors", "from jdcl_jax.data.arrays import Split"),
    ],
)
def test_the_floors_are_seen_to_be_broken(module: str, text: str) -> None:
    known = read_imports(ROOT, PACKAGE)
    broken = known | {module: set(imported(ast.parse(text)))}
    assert len(upward(inner_edges(broken))) == 1


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def importing(name: str) -> set[str]:
    """Files that import a package of another house."""
    found = read_imports(ROOT, PACKAGE)
    return {module for module, names in found.items() if any(n.split(".")[0] == name for n in names)}


def test_one_file_knows_orbax() -> None:
    assert importing("orbax") == {"jdcl_jax.training.checkpoint"}


@pytest.mark.parametrize("name", ["tensorflow", "torch", "pickle", "cloudpickle"])
def test_no_file_imports(name: str) -> None:
    assert importing(name) == set()


def names_used(path: Path) -> set[str]:
    """All identifiers of a file's code: names, attributes and imported names; not its comments and docstrings."""
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {part for name in imported(tree) for part in name.split(".")}


def test_one_file_knows_the_devices() -> None:
    device_words = {"pmap", "Mesh", "NamedSharding", "PartitionSpec", "PositionalSharding", "shard_map"}
    knowing = [path.relative_to(PACKAGE).as_posix() for path in files() if names_used(path) & device_words]
    assert knowing == ["training/parallel.py"]


def test_the_main_command_loads_neither_tensorflow_nor_torch() -> None:
    check = "import sys, jdcl_jax.main; print(sorted({'tensorflow', 'torch', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['jax']", done.stderr


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files()}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_fit_on_a_screen() -> None:
    long = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert long == []
