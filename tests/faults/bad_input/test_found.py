"""Faults that generated cases, or reading with them in mind, have found; each by its name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.bad_input import nasty
from faults.bad_input.endings import DIGITS, REPOSITORY, check_refusal, fingerprint, line_of
from faults.bad_input.test_weights import IMAGES, SETTINGS
from jdcl_jax.archives import ArchiveError, read_archive
from jdcl_jax.config import default_config, from_json, set_key
from jdcl_jax.data.datasets import load
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.classifier_cache import load_or_train_classifier
from jdcl_jax.evaluation.inception_features import InceptionFeatures
from jdcl_jax.reporting.page import write_report
from jdcl_jax.reporting.runs import load_run
from jdcl_jax.reporting.study_runs import read_record
from jdcl_jax.training.checkpoint import Checkpoints
from jdcl_jax.validation import validate
from jdcl_jax.workdir import Workdir, default_workdir, read_json

DEEP = "[" * 100_000


def refused(do: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as error:
        do()
    line = line_of(error.value)
    for word in words:
        assert word in line


def config_with(place: Path, key: str, value: Any) -> Path:
    tree = json.loads(default_config().to_json_best_effort())
    section, name = key.split(".")
    tree[section][name] = value
    (place / "config.json").write_text(json.dumps(tree))
    return place / "config.json"


@pytest.mark.parametrize("value", [10**400, 2**31, 10**30], ids=["10**400", "2**31", "10**30"])
@pytest.mark.parametrize("key", ["train.steps", "evaluation.num_samples", "train.clip_norm", "method.global_steps"])
def test_a_number_too_large_to_count_to(key: str, value: int, tmp_path: Path) -> None:
    value = max(value, 10**31) if key == "train.clip_norm" else value
    refused(lambda: validate(from_json(config_with(tmp_path, key, value))), key)


@pytest.mark.parametrize("value", [None, True, "3", [3], {"a": 1}, 2.5])
def test_a_config_json_with_a_value_of_another_type(value: Any, tmp_path: Path) -> None:
    refused(lambda: validate(from_json(config_with(tmp_path, "train.steps", value))), "config.json", "train.steps")


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "(8, 0x" + "f" * 5000 + ")"], ids=["number", "tuple"])
def test_a_number_that_python_does_not_write(text: str, command_lines: Any, tmp_path: Path) -> None:
    refused(lambda: set_key(default_config().unlock(), "train.steps", text), "train.steps")
    refused(lambda: set_key(default_config().unlock(), "model.channels", text), "model.channels")
    flag = f"--config.train.steps={text}"
    ending = command_lines(tmp_path, "main", f"--config={DIGITS}", flag, "--config.data.name=npz:absent.npz")
    check_refusal(ending.code, ending.out, ending.err)


@pytest.mark.parametrize("key", ["model.layers_per_block", "classifier.hidden"])
def test_a_network_that_is_never_built(key: str, tmp_path: Path) -> None:
    refused(lambda: validate(from_json(config_with(tmp_path, key, 10**9))), key)


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    for name in ("config.json", "results.json", "study.json"):
        (tmp_path / name).write_text(DEEP)
    refused(lambda: from_json(tmp_path / "config.json"), "config.json")
    refused(lambda: read_json(tmp_path / "config.json"), "config.json")
    refused(lambda: load_run(tmp_path), "results.json")
    refused(lambda: read_record(tmp_path), "study.json")


def test_a_terminal_is_not_told_what_to_do() -> None:
    line = line_of(UserError("no class '\x1b[31m\u202e\0' here\nerror: another"))
    assert line == r"error: no class '\x1b[31m\u202e\x00' here error: another" + "\n"


def test_an_array_of_more_than_the_memory_or_of_no_header(tmp_path: Path) -> None:
    import zipfile

    from faults.bad_input.test_npz import HEADERS, header

    for text in (one for one in HEADERS if "|S0" not in one):  # which is an array of nothing
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", header(text))
        with pytest.raises(ArchiveError):
            read_archive(tmp_path / "x.npz")


def test_a_member_of_an_archive_that_is_no_array(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images", b"text")
        archive.writestr("labels.npy", b"text")
    refused(lambda: load(f"npz:{tmp_path / 'x.npz'}"), "x.npz")


def test_a_link_to_itself_in_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "cat.png").symlink_to("cat.png")
    (tmp_path / "dog").symlink_to("dog")
    refused(lambda: load(f"folder:{tmp_path}"), "no class folder")


@pytest.mark.parametrize("path", ["~nobody_of_that_name/x", "a\0b", "a" * 5000, "\ud800"], ids=ascii)
def test_a_path_that_can_be_none(path: str, tmp_path: Path) -> None:
    for kind in ("npz", "folder"):
        refused(lambda kind=kind: load(f"{kind}:{path}"), "data.name")
        refused(lambda kind=kind: load(f"{kind}:x", directory=path), "data.dir")
    refused(lambda: load("cifar10", directory=path), "data.dir")
    refused(lambda: load_or_train_classifier(path, IMAGES, IMAGES, IMAGES, SETTINGS), "cache_dir")
    if not path.startswith("~"):
        refused(lambda: InceptionFeatures(f"{path}.npz"), "inception_weights")
        refused(lambda: Workdir(Path(path), default_config()), "--workdir")
        refused(lambda: load_run(path), "workdir")


def test_names_of_data_and_methods_stay_in_runs() -> None:
    for name in (*nasty.TEXTS, "npz:..", "folder:/", "npz:../../x/..", "../../x", "/etc/passwd"):
        config = default_config()
        with config.unlocked():
            config.data.name = name
        assert default_workdir(config).parent == Path("runs")
        assert default_workdir(config).name not in (".", "..", "")


@pytest.mark.parametrize("program", ["sample", "report", "study", "fisher", "figures", "pitfalls"])
def test_words_that_a_program_has_not_are_refused_in_one_line(program: str, command_lines: Any, tmp_path: Path) -> None:
    ending = command_lines(tmp_path, program, "--nosuch=1")
    check_refusal(ending.code, ending.out, ending.err)
    assert f"jdcl_jax.{program} --help" in ending.err


@pytest.mark.parametrize(
    "words",
    [
        ("report", "run", "--out=run/results.json"),
        ("fisher", "--workdir=run", "--out=run/results.png"),
        ("fisher", "--workdir=run", "--out=run/config.png"),
        ("sample", "--workdir=run", f"--num={10**12}"),
        ("sample", "--workdir=run", f"--seed={2**64}"),
        ("fisher", "--workdir=run", f"--timesteps={10**12}"),
        ("figures", "logits", "run", f"--num={10**12}"),
        ("report", "loop"),
        ("report", "loop", "run"),
        ("figures", "phases", "loop"),
        ("report", "a" * 300),
        ("sample", f"--workdir={'a' * 300}"),
        ("study", f"--workdir={'a' * 300}", "--report-only"),
    ],
)
def test_what_a_run_holds_is_not_overwritten_and_no_limit_is_met_later(
    words: tuple[str, ...], finished: Path, command_lines: Any, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "loop").symlink_to("loop")
    before = fingerprint(tmp_path)
    ending = command_lines(tmp_path, *words)
    check_refusal(ending.code, ending.out, ending.err)
    assert fingerprint(tmp_path) == before


def test_a_name_that_utf_8_cannot_write_is_shown_all_the_same(
    finished: Path, command_lines: Any, tmp_path: Path
) -> None:
    ending = command_lines(tmp_path, "report", str(finished), "--out=\udcff.html")
    assert ending.code == 0, ending.err
    assert r"\udcff.html" in ending.out


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("tasks", [7]),
        ("scores", {"kld": {"matrix": [[10**400]], "union": [0.0]}}),
        ("cost", [{"task": 1}]),
        ("phases", [{"projection": 3}]),
        ("phases", [7]),
    ],
    ids=repr,
)
def test_results_of_another_form(entry: str, value: Any, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    results = json.loads((finished / "results.json").read_text())
    (tmp_path / "run" / "results.json").write_text(json.dumps({**results, entry: value}))
    refused(lambda: write_report(tmp_path / "run"), "results.json of")
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_finished_run_whose_results_are_broken(tmp_path: Path) -> None:
    config = default_config()
    folder = Workdir(tmp_path / "run", config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"status": "finished"}')
    (tmp_path / "run" / "report.html").touch()
    refused(folder.finished_results, "results.json")


def test_label_embeddings_of_no_archive(tmp_path: Path) -> None:
    from jdcl_jax.data.embeddings import read_label_embeddings

    np.save(tmp_path / "x.npy", np.zeros(3))
    refused(lambda: read_label_embeddings(str(tmp_path / "x.npy"), ["cat"]), "context.embeddings")


@pytest.mark.parametrize(
    ("old", "new"), [(b'"task": 1', b'"task": 7'), (b'"task": 1', b'"task":-1'), (b"0.25", b"0.75")]
)
def test_a_record_of_a_checkpoint_that_was_altered(old: bytes, new: bytes, tmp_path: Path) -> None:
    """The position of a run, and its scores so far, are in the record, which the arrays' checksum does not cover."""
    state = {"x": np.zeros(3, np.float32)}
    record = {"position": {"task": 1}, "history": {"scores": [0.25, None], "last": float("nan")}}
    writing = Checkpoints(tmp_path)
    writing.save_task(1, state, record)
    writing.wait()
    assert writing.restore_task(1, state)[1]["position"] == {"task": 1}
    writing.close()
    inside = (tmp_path / "tasks" / "1").rglob("*")
    (file,) = [path for path in inside if path.is_file() and old in path.read_bytes()]
    file.write_bytes(file.read_bytes().replace(old, new))
    refused(lambda: Checkpoints(tmp_path, read_only=True).restore_task(1, state), "checkpoint of task 1", "damaged")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("jdcl_jax.main", f"--config={DIGITS}:train.steps=0", "--workdir=run"), "train.steps"),
        (("jdcl_jax.sample", "--workdir=absent"), "absent"),
        (("jdcl_jax.pitfalls", "absent\n\x1b[31m"), "absent"),
    ],
)
def test_a_program_started_as_a_user_does(words: tuple[str, ...], named: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLIBC_TUNABLES": ""}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    check_refusal(done.returncode, done.stdout, done.stderr)
    assert named in done.stderr
    assert fingerprint(tmp_path) == {}
