"""What README.md and docs/ say exists: commands, files, modules, keys, methods, scores, extras, numbers.

A measured number is followed by a comment that names its file: `1.48 <!-- from: results/digits.json -->`, also for
several joined by "±", "/", "to" or a comma. It must stand in that file, rounded as it is printed.
"""

import ast
import dataclasses
import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jdcl_jax.methods
from jdcl_jax.assembly import assemble
from jdcl_jax.campaign import make_plan
from jdcl_jax.config import default_config, flatten, set_key, set_method
from jdcl_jax.data.batches import Examples
from jdcl_jax.evaluation.scores import SCORES
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.registry import known_methods, known_penalties
from jdcl_jax.training.state import Context
from jdcl_jax.validation import validate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
EVERYTHING = "\n".join(PAGES.values())
SCORES_PAGE = PAGES["scores.md"]
TOP = ("configs", "docs", "jdcl_jax", "launch", "notebooks", "tests", "benchmarks", "results")
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"
MARKED = re.compile(rf"((?:{NUMBER})(?:\s*(?:±|/|to|,)\s*{NUMBER})*)([^\d<|]{{0,20}})<!-- from: (\S+) -->")


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert found, f"no section '{title}'"
    return found.group(1)


def code_blocks(text: str) -> list[str]:
    return [block.strip("\n") for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S)]


def code(text: str) -> list[str]:
    """Code blocks and the `code` within lines."""
    without_blocks = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    return code_blocks(text) + re.findall(r"`([^`\n]+)`", without_blocks)


def first_cells(table: str) -> list[str]:
    """Names in `code` in the first column of a table."""
    cells = re.findall(r"^\| ([^|]+) \|", table, re.M)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


# -- commands


@pytest.mark.parametrize("title", ["Quick start", "Tests"])
def test_the_first_code_block_is_one_line_that_needs_only_python(title: str) -> None:
    block = code_blocks(section(README, title))[0]
    assert len(block.splitlines()) == 1
    first, *rest = block.split(" && ")
    assert first == "python3 -m venv .venv"
    assert all(command.startswith(".venv/bin/") for command in rest)


def test_the_quick_start_runs_the_demo() -> None:
    block = code_blocks(section(README, "Quick start"))[0]
    assert block.endswith(".venv/bin/python -m jdcl_jax.main --config=configs/digits.py")


def test_the_test_line_formats_lints_types_and_tests() -> None:
    line = code_blocks(section(README, "Tests"))[0]
    for tool in ("ruff format --check .", "ruff check .", "mypy", "pytest"):
        assert f".venv/bin/{tool}" in line


def test_every_module_that_is_run_exists() -> None:
    modules = set(re.findall(r"python -m (jdcl_jax\.\w+)", EVERYTHING))
    assert {"jdcl_jax.main", "jdcl_jax.sample", "jdcl_jax.report"} <= modules
    assert all(importlib.util.find_spec(module) for module in modules)


def test_every_flag_exists() -> None:
    lines = [line for block in code_blocks(EVERYTHING) for line in block.splitlines()]
    for module in ("main", "sample", "report", "study", "pitfalls", "fisher", "figures"):
        source = (ROOT / "jdcl_jax" / f"{module}.py").read_text()
        for line in lines:
            if f"jdcl_jax.{module} " in line and "launch/" not in line:
                for flag in re.findall(r"--(\w+)[= ]", line):
                    assert f'"{flag}"' in source or f'"--{flag}"' in source, f"--{flag} of {module}"


def configs_named() -> list[tuple[str, str]]:
    """(file, ARG) of every `--config=FILE:ARG`, but for those of the example of a new method."""
    found = set(re.findall(r"--config=(configs/\w+\.py)(?::((?:\([^)]*\)|[^\s'\"`])*))?", EVERYTHING))
    return sorted(pair for pair in found if "stay_near" not in pair[1])


def test_every_config_that_is_named_can_be_made() -> None:
    named = configs_named()
    assert ("configs/fashion_mnist.py", "gd,generation,small") in named
    assert any("evaluation.scores=(" in arg for _, arg in named)
    for file, arg in named:
        config = runpy.run_path(str(ROOT / file))["get_config"](arg)
        if "evaluation.scores" in arg:
            set_key(config, "evaluation.inception_weights", "inception.safetensors")
        validate(config)


def study_lines() -> list[list[str]]:
    lines = [shlex.split(line) for block in code_blocks(EVERYTHING) for line in block.splitlines()]
    return [words for words in lines if words[:3] == ["python", "-m", "jdcl_jax.study"]]


def test_every_study_on_digits_that_is_named_could_start(tmp_path) -> None:
    assert len(study_lines()) >= 4
    for words in study_lines():
        given = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
        if "digits" in given["config"]:
            assert make_plan(str(ROOT / given["config"]), given["methods"], given["seeds"], tmp_path / "study").runs


def test_every_config_file_is_named_with_its_presets() -> None:
    table = section(README, "Configs")
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in first_cells(table) if name.endswith(".py")} == files
    for file in files:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{file}`"))
        presets = re.findall(r"`(\w+)`", row)
        assert set(presets) == {
            key
            for call in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(call, ast.Dict) and not any(isinstance(v, ast.Constant | ast.Dict) for v in call.values)
            for key in [getattr(k, "value", "") for k in call.keys]
        }


# -- names


def test_every_file_that_is_named_exists() -> None:
    words = {word.strip("'\"(),;") for text in code(EVERYTHING) for word in text.split()}
    words = {word.split("=")[-1].split(":")[0] for word in words}
    paths = {word for word in words if word.split("/")[0] in TOP and "/" in word} - {"jdcl_jax/methods/stay_near.py"}
    assert {
        "launch/tpu_vm.sh",
        "notebooks/quickstart.ipynb",
        "docs/scores.md",
        "docs/methods.md",
        "configs/digits.py",
    } <= paths
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    assert (ROOT / ".ci/run").exists()


def test_every_picture_and_link_within_the_repository_exists() -> None:
    targets = [
        (ROOT if name == "README.md" else ROOT / "docs") / target
        for name, page in PAGES.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", page)
        if "://" not in target
    ]
    assert ROOT / "docs/digits-gd.png" in targets
    assert [target for target in targets if not target.exists()] == []


def test_every_config_key_that_is_named_exists() -> None:
    known = set()
    for name in [*known_methods(), *known_penalties()]:
        config = default_config()
        set_method(config, name)
        known |= set(flatten(config))
    sections = {key.split(".")[0] for key in known if "." in key}
    pattern = rf"(?<![\w./])(?:--config\.)?((?:{'|'.join(sections)})\.\w+(?:\.\w+)?)(?![*(])"
    named = {key for text in code(EVERYTHING) for key in re.findall(pattern, text)}
    assert len(named) > 10
    assert named - known == {"method.strength", "context.method"}, "these belong to the example of a method"


def test_the_table_of_methods_is_whole_with_every_option_and_its_default() -> None:
    for title, known in (("Methods by name", known_methods()), ("Penalties", known_penalties())):
        rows = {
            row.split("`")[1]: row for row in section(PAGES["methods.md"], title).splitlines() if row.startswith("| `")
        }
        assert set(rows) == set(known)
        assert set(rows) <= set(re.findall(r"`(\w+)`", section(README, "Methods")))
        for name, row in rows.items():
            options = row.rsplit("|", 2)[1]
            given = dict(re.findall(r"`(\w+)=([^`]+)`", options))
            assert given == {key: str(value) for key, value in known[name][1].items()}, name


def test_the_table_of_scores_is_whole_and_says_which_way_is_better() -> None:
    table = section(SCORES_PAGE, "Definitions")
    assert set(first_cells(table)) == set(SCORES)
    assert set(re.findall(r"`(\w+)`", section(README, "Scores"))) >= set(SCORES)
    for row in table.splitlines():
        for name in first_cells(row):
            assert row.split("|")[2].strip() == ("lower" if SCORES[name].lower_is_better else "higher")


def test_only_inception_features_are_called_fid() -> None:
    for text in (README, SCORES_PAGE):
        assert re.search(r"fd_classifier`[^\n]*not FID", text), "says that fd_classifier is not FID"


def test_every_extra_is_named_and_exists() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    extras = next(k.value for k in ast.walk(tree) if isinstance(k, ast.keyword) and k.arg == "extras_require")
    assert set(re.findall(r"\.\[(\w+)\]", EVERYTHING)) == set(ast.literal_eval(extras))


def test_the_layout_names_every_room_and_every_file_beside_them() -> None:
    layout = section(README, "Layout")
    package = ROOT / "jdcl_jax"
    rooms = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    modules = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    assert len(rooms) == 8
    assert [name for name in rooms + modules if f"`{name}`" not in layout] == []


def test_lines_are_plain() -> None:
    loud = r"\b(powerful|seamless|blazing|state-of-the-art|easy|easily|simply|cutting-edge|robust|elegant)\b"
    assert re.findall(loud, EVERYTHING, re.I) == []
    assert len(README.splitlines()) <= 300


# -- numbers


def unsupported(text: str, root: Path) -> list[str]:
    """Marked numbers that do not stand in the file that their comment names."""
    missing = []
    for shown, unit, file in MARKED.findall(text):
        path = root / file
        held = [float(n.replace(",", "")) for n in re.findall(NUMBER, path.read_text())] if path.is_file() else []
        scale = 100.0 if "%" in unit else 1.0
        for number in re.findall(NUMBER, shown):
            mantissa, _, exponent = number.lower().partition("e")
            value, decimals = float(number.replace(",", "")), len(mantissa.partition(".")[2]) - int(exponent or 0)
            close = 0.5 * 10.0**-decimals + 1e-9
            if not any(abs(h - value) <= close or abs(scale * h - value) <= close for h in held):
                missing.append(f"{number} in {file}")
    return missing


def test_every_measured_number_stands_in_the_file_that_it_names() -> None:
    assert unsupported(EVERYTHING, ROOT) == []


def test_every_comment_about_a_number_follows_a_number() -> None:
    assert len(MARKED.findall(EVERYTHING)) == EVERYTHING.count("<!-- from:")


def test_a_number_that_was_not_measured_is_found(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    held = '{"mean": 1.4812, "sd": 0.052, "accuracy": 0.953, "count": 42855873, "rate": 4.9003e10}'
    (tmp_path / "results" / "a.json").write_text(held)
    right = (
        "| 1.48 ± 0.05 <!-- from: results/a.json --> | 95.3 % <!-- from: results/a.json --> |\n"
        "42,855,873 parameters <!-- from: results/a.json --> at 4.90e10 a second <!-- from: results/a.json -->"
    )
    assert len(MARKED.findall(right)) == 4
    assert unsupported(right, tmp_path) == []
    assert unsupported("1.49 s <!-- from: results/a.json -->", tmp_path) == ["1.49 in results/a.json"]
    assert unsupported("1.48 / 0.06 <!-- from: results/a.json -->", tmp_path) == ["0.06 in results/a.json"]
    assert unsupported("4.91e10 <!-- from: results/a.json -->", tmp_path) == ["4.91e10 in results/a.json"]
    assert unsupported("1.48 <!-- from: results/b.json -->", tmp_path) == ["1.48 in results/b.json"]


# -- the example of a method


def test_the_example_of_a_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by name in a folder of methods; its loss is MSE + strength / 2 * |params - anchor|^2."""
    (tmp_path / "stay_near.py").write_text(code_blocks(section(README, "Add a method"))[0])
    monkeypatch.setattr(jdcl_jax.methods, "__path__", [*jdcl_jax.methods.__path__, str(tmp_path)])
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]("stay_near,method.strength=0.5")
    parts = assemble(config)
    toy = dataclasses.replace(
        parts.setup, classifier=None, apply=lambda params, x_t, t, labels, keys: params["w"] * x_t
    )
    method = type(parts.method)(toy, parts.method.options)

    memory = method.end_task(method.init_memory({"w": jnp.ones(())}), Learned({"w": np.float32(0.25)}, {}), 0)
    (phase,) = method.phases(1)
    key = named_key(0, "test")
    batch = {"current": Examples(jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, jnp.int32), example_keys(key, jnp.arange(4)))}
    context = Context(key, None, method.context(memory, 1))
    total, metrics = phase.loss({"w": jnp.float32(0.75)}, batch, context)
    assert float(metrics["penalty"]) == pytest.approx(0.5**2)
    assert float(total) == pytest.approx(float(metrics["loss_current"]) + 0.5 / 2 * 0.5**2)


def test_the_example_of_a_config_works(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code_blocks(section(README, "Add a data set"))[0])
    config = runpy.run_path(str(file))["get_config"]("gd,seed=3")
    validate(config)
    assert (config.data.name, config.seed) == ("npz:shapes.npz", 3)
