"""Nothing that a user names is ever unpickled or run as a program, but a config file, which is one."""

import ast
from pathlib import Path

import pytest

from faults.bad_input.endings import REPOSITORY

PACKAGE = REPOSITORY / "jdcl_jax"
MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch")
NAMES = ("eval", "exec", "compile", "__import__")
CONFIG_FILES = {"campaign.py": {"exec_module"}}  # a config file is a program that the user wrote


def told(node: ast.AST) -> str:
    """What a node does that is not to be done; "" if it is fine."""
    if isinstance(node, ast.Import):
        return next((a.name for a in node.names if a.name.split(".")[0] in MODULES), "")
    if isinstance(node, ast.ImportFrom):
        return node.module if (node.module or "").split(".")[0] in MODULES else ""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Name) and node.func.id in NAMES:
        return node.func.id
    if isinstance(node.func, ast.Attribute) and node.func.attr == "exec_module":
        return "exec_module"
    return _told_of_load(node)


def _told_of_load(node: ast.Call) -> str:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if given.get("allow_pickle", "False") != "False":
        return "allow_pickle"
    loads = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in ("np.load", "numpy.load", "torch.load")
    return "load" if loads and "allow_pickle" not in given else ""


def faults(source: str) -> set[str]:
    return {found for node in ast.walk(ast.parse(source)) if (found := told(node))}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_of_the_package_neither_unpickles_nor_evaluates(path: Path) -> None:
    assert faults(path.read_text()) <= CONFIG_FILES.get(path.name, set())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "numpy.load(x, allow_pickle=y)",
        "eval(x)",
        "exec(x)",
        "loader.exec_module(m)",
        "import joblib.numpy_pickle",
    ],
)
def test_what_is_not_to_be_done_is_seen(source: str) -> None:
    assert faults(source)
