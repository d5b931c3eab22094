"""The command line of JDCL's figures: which picture it writes of which runs, and what it says instead."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import small_runs
from jdcl_jax import figures as command
from jdcl_jax.experiment import run
from jdcl_jax.reporting.accuracy import logits_figure, phases_figure
from jdcl_jax.reporting.figures import render
from jdcl_jax.reporting.runs import load_run
from jdcl_jax.reporting.variants import ablation_figure, continued_figure, labelled_groups
from refusals import refusal_of

PHASES = [
    {"task": 1, "phase": "local", "accuracy": [0.9, None]},
    {"task": 2, "phase": "local", "accuracy": [0.2, 0.8]},
    {"task": 2, "phase": "global", "accuracy": [0.7, 0.6]},
]
ROUNDS = [{"task": 1, "phase": name, "accuracy": [value]} for name, value in [("local", 0.9), ("global", 0.4)]]


@pytest.fixture
def made(tmp_path) -> Callable[..., Path]:
    """`made("a", seed=1)` is a folder with the results.json of a finished run made by hand."""

    def make(name: str, *, method: str = "jdcl", options=(), accuracy=(0.9, 0.65), **changes) -> Path:
        rows = [[accuracy[0], None], [0.7, 0.6]]
        score = {"lower_is_better": False, "matrix": rows, "union": list(accuracy)}
        tree = {
            "format": 1,
            "status": "finished",
            "method": method,
            "dataset": "digits",
            "seed": 0,
            "tasks": [{"task": i + 1, "classes": [i], "names": [f"{i}"]} for i in range(2)],
            "scores": {"accuracy": score},
            "phases": PHASES,
            "config": {"method": {"name": method, **dict(options)}},
        }
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(tree | changes))
        return folder

    return make


@pytest.fixture
def continued(made) -> Callable[..., Path]:
    """The same of the method "continued" on a single task."""

    def make(name: str, **changes) -> Path:
        task = [{"task": 1, "classes": [0, 1], "names": ["0", "1"]}]
        options = {"global_steps": 10, "rounds": 1}
        whole = {"tasks": task, "scores": {}, "phases": ROUNDS} | changes
        return made(name, method="continued", options=options, **whole)

    return make


@pytest.fixture
def small(monkeypatch) -> None:
    """For one test: others of this file read a run of the real network."""
    small_runs.quick(monkeypatch.setattr)


@pytest.fixture(scope="module")
def classifying(tiny_config, tmp_path_factory) -> Path:
    """A run of two tasks of two digits each, whose network also classifies."""
    words = ("finetune", "classifier.kind=joint", "classifier.hidden=16", "tasks.first=2", "checkpoint.every=1000")
    folder = tmp_path_factory.mktemp("figures") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_runs.quick(patch.setattr)
        run(tiny_config(*words, "evaluation.scores=('kld',)"), folder)
    return folder


refusal = functools.partial(refusal_of, command.main)


# -- what is written


def test_phases_of_a_run_are_written_with_its_name(made, tmp_path, capsys) -> None:
    target = tmp_path / "new" / "picture.png"
    command.main(["phases", str(made("a", seed=7)), f"--out={target}"])
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_bytes() == render(phases_figure(PHASES, "jdcl on digits, seed 7"), "png")


def test_rounds_of_several_runs_are_one_picture(continued, tmp_path, capsys) -> None:
    folders = [continued(name, seed=seed) for seed, name in enumerate("ab")]
    command.main(["continued", *map(str, folders), f"--out={tmp_path / 'picture.png'}"])
    groups = labelled_groups([load_run(folder) for folder in folders])
    assert (tmp_path / "picture.png").read_bytes() == render(continued_figure(groups), "png")
    assert capsys.readouterr().out == f"{tmp_path / 'picture.png'}\n"


def test_variants_of_a_method_are_one_picture_in_the_order_of_their_folders(made, tmp_path) -> None:
    folders = [made(f"{local}", options={"local": local}, accuracy=[0.9, 0.4 + 0.3 * local]) for local in (True, False)]
    pictures = []
    for order in (folders, folders[::-1]):
        command.main(["ablation", *map(str, order), f"--out={tmp_path / 'picture.png'}"])
        pictures.append((tmp_path / "picture.png").read_bytes())
        assert pictures[-1] == render(ablation_figure(labelled_groups(list(map(load_run, order)))), "png")
    assert pictures[0] != pictures[1]


def test_logits_of_a_run_are_those_after_the_task_that_was_named(
    classifying, small, tmp_path, capsys, monkeypatch
) -> None:
    found, own_logits = {}, command.own_logits

    def watched(restored, num):
        found.update(task=restored.task, num=num, logits=own_logits(restored, num))
        return found["logits"]

    monkeypatch.setattr(command, "own_logits", watched)
    target = tmp_path / "picture.png"
    command.main(["logits", str(classifying), "--task=1", "--num=12", f"--out={target}"])
    assert capsys.readouterr().out == f"{target}\n"
    assert (found["task"], found["num"]) == (1, 12)
    assert list(found["logits"][0]) == ["0", "1"]
    title = "finetune on digits, seed 0, after task 1"
    assert target.read_bytes() == render(logits_figure(*found["logits"], title), "png")


def test_without_further_words_a_thousand_images_are_drawn_after_the_last_task_into_a_picture_named_like_the_kind(
    classifying, small, tmp_path, capsys, monkeypatch
) -> None:
    asked, logits = [], ({"a": np.array([0.0, 1.0])}, {"a": np.array([0.5])})

    def answered(restored, num):
        asked.append((restored.task, num))
        return logits

    monkeypatch.setattr(command, "own_logits", answered)
    monkeypatch.chdir(tmp_path)
    command.main(["logits", str(classifying)])
    assert asked == [(2, 1000)]
    assert capsys.readouterr().out == "logits.png\n"
    expected = render(logits_figure(*logits, "finetune on digits, seed 0, after task 2"), "png")
    assert (tmp_path / "logits.png").read_bytes() == expected
    with Image.open(tmp_path / "logits.png") as picture:
        assert picture.format == "PNG"


# -- what is refused


@pytest.mark.parametrize("kind", ["phases", "logits"])
def test_a_figure_of_one_run_takes_one_folder(kind, made, tmp_path, capsys) -> None:
    line = refusal(capsys, kind, made("a"), made("b"), f"--out={tmp_path / 'picture.png'}")
    assert f"{kind} is a figure of one run; write one folder" in line
    assert not (tmp_path / "picture.png").exists()


@pytest.mark.parametrize("kind", command.KINDS)
def test_a_figure_of_no_run_is_a_wrong_command_line(kind, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        command.main([kind])
    assert end.value.code == 2
    assert "WORKDIR" in capsys.readouterr().err


@pytest.mark.parametrize("kind", command.KINDS)
def test_a_folder_that_is_not_there_is_named(kind, tmp_path, capsys) -> None:
    line = refusal(capsys, kind, tmp_path / "missing", f"--out={tmp_path / 'picture.png'}")
    assert f"{tmp_path / 'missing'} is not a folder" in line
    assert "give the workdir of a run" in line


@pytest.mark.parametrize("kind", ["phases", "continued", "ablation"])
def test_a_run_that_does_not_classify_is_named(kind, made, tmp_path, capsys) -> None:
    line = refusal(capsys, kind, made("alone", phases=[], scores={}), f"--out={tmp_path / 'picture.png'}")
    assert f"{tmp_path / 'alone'} has no accuracy" in line
    assert "write classifier.kind=joint" in line


def test_logits_of_a_run_that_does_not_classify_are_refused(gd_run, tmp_path, capsys) -> None:
    line = refusal(capsys, "logits", gd_run.workdir, f"--out={tmp_path / 'picture.png'}")
    assert f"which {gd_run.workdir} has not; write classifier.kind=joint" in line


def test_logits_after_a_task_that_is_not_there_are_refused(classifying, small, tmp_path, capsys) -> None:
    line = refusal(capsys, "logits", classifying, "--task=3", f"--out={tmp_path / 'picture.png'}")
    assert "no checkpoint of task 3; finished tasks: 1, 2" in line


@pytest.mark.parametrize("kind", ["continued", "ablation"])
def test_a_run_that_is_not_finished_is_named(kind, continued, tmp_path, capsys) -> None:
    folders = [continued("a"), continued("b", status="running")]
    line = refusal(capsys, kind, *folders, f"--out={tmp_path / 'picture.png'}")
    assert f"{tmp_path / 'b'} is not finished; start it again with jdcl_jax.main" in line


def test_runs_of_another_method_did_not_go_on_with_their_samples(made, tmp_path, capsys) -> None:
    line = refusal(capsys, "continued", made("a"), f"--out={tmp_path / 'picture.png'}")
    assert "run the method 'continued'" in line


@pytest.mark.parametrize("kind", ["ablation", "continued"])
def test_a_folder_that_is_named_twice_is_not_two_seeds(kind, made, tmp_path, capsys) -> None:
    folder = made("a")
    line = refusal(capsys, kind, folder, made("b"), folder.parent / "b" / ".." / "a", f"--out={tmp_path / 'p.png'}")
    assert "twice" in line


def test_variants_that_were_not_scored_by_accuracy_are_refused(made, tmp_path, capsys) -> None:
    line = refusal(capsys, "ablation", made("a", scores={}), f"--out={tmp_path / 'picture.png'}")
    assert "evaluation.scores" in line


@pytest.mark.parametrize("kind", ["phases", "continued", "ablation"])
@pytest.mark.parametrize("word", ["--task=1", "--num=5"])
def test_words_that_only_logits_listen_to_are_refused_elsewhere(kind, word, made, tmp_path, capsys) -> None:
    line = refusal(capsys, kind, made("a"), word, f"--out={tmp_path / 'picture.png'}")
    assert f"--task and --num have no effect on {kind}; leave them out" in line


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["--num=0"], "--num counts from 1"),
        (["--task=-1"], "--task from 0"),
        (["--out=picture.jpg"], "write picture.png"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run_is_read(arguments, about, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command, "load_run", lambda workdir: pytest.fail("it was read"))
    assert about in refusal(capsys, "logits", tmp_path, f"--out={tmp_path / 'picture.png'}", *arguments)


def test_a_picture_that_cannot_be_written_is_refused(made, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "picture.png"
    line = refusal(capsys, "phases", made("a"), f"--out={target}")
    assert f"cannot write {target}" in line
    assert "name a file in a folder that you may write" in line
