"""Which runs a study is made of: where they go, and what is refused before any of them starts."""

import json
import re
from pathlib import Path

import pytest

from jdcl_jax import campaign
from jdcl_jax.campaign import make_plan, measure_structure, run_plan, write_record
from jdcl_jax.errors import UserError
from jdcl_jax.workdir import Workdir

DIGITS = str(Path(__file__).parents[1] / "configs" / "digits.py")


@pytest.fixture
def plan(tiny_words, tmp_path):
    """`plan("gd,gr", "0,1", "tasks.first=2")`: a plan of tiny runs in one workdir."""

    def make(methods: str, seeds: str = "0", *more: str, config: str = DIGITS):
        return make_plan(f"{config}:{tiny_words(*more)}", methods, seeds, tmp_path / "study")

    return make


def test_runs_come_seed_by_seed_each_with_its_own_config_and_folder(plan, tmp_path) -> None:
    made = plan("finetune,er(buffer_size=20,train.ema=0.9)", "3,1")
    assert [(run.spec.text, run.seed) for run in made.runs] == [
        ("finetune", 3),
        ("er(buffer_size=20,train.ema=0.9)", 3),
        ("finetune", 1),
        ("er(buffer_size=20,train.ema=0.9)", 1),
    ]
    run = made.runs[3]
    assert run.config.seed == 1
    assert run.config.method.name == "er"
    assert run.config.method.buffer_size == 20
    assert run.config.train.ema == 0.9
    assert run.config.train.steps == 4
    assert made.runs[2].config.train.ema == 0.0
    job = run.job()
    assert job.command[1:3] == ["-m", "jdcl_jax.main"]
    assert job.command[3].startswith(f"--config={DIGITS}:")
    assert job.command[3].endswith(",er,method.buffer_size=20,train.ema=0.9,seed=1")
    assert job.command[4] == f"--workdir={tmp_path}/study/runs/er-buffer_size=20-train.ema=0.9-1"
    assert job.log == tmp_path / "study" / "logs" / "er-buffer_size=20-train.ema=0.9-1.log"
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "unknown method": (("finetune,gdd",), "gdd: 'gdd' is no method"),
    "unknown option": (("er(bufer_size=20)",), "er(bufer_size=20): unknown config key 'method.bufer_size'"),
    "another method's option": (("finetune(teacher_steps=1)",), "unknown config key 'method.teacher_steps'"),
    "wrong type": (("finetune,gd(teacher_steps=some)",), "gd(teacher_steps=some): method.teacher_steps is"),
    "what validate refuses": (("finetune,gd(train.weight_decay=0.1)",), "train.optimizer=adamw"),
    "what the method refuses": (("finetune,er(buffer_size=1)",), "er(buffer_size=1): method.buffer_size"),
    "what needs the data": (("finetune,finetune(tasks.order=gd-43)",), "finetune(tasks.order=gd-43): "),
    "one run under two names": (("er,er(rehearsal_coefficient=1.0)",), "the same as er"),
    "a seed of its own": (("finetune(seed=3)",), "method.seed"),
    "a seed for all": (("finetune", "0", "seed=3"), "--seeds=0"),
    "a method for all": (("finetune", "0", "gd"), "--methods=gd"),
    "no seeds": (("finetune", "one"), "--seeds=one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(name, plan, tmp_path) -> None:
    arguments, about = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(about)):
        plan(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_run_is_validated_and_data_are_loaded_once_for_all_that_share_them(plan, monkeypatch) -> None:
    validated, assembled = [], []
    monkeypatch.setattr(campaign, "validate", lambda config: validated.append((config.method.name, config.seed)))
    assemble = campaign.assemble
    monkeypatch.setattr(campaign, "assemble", lambda config: assembled.append(config.train.ema) or assemble(config))
    plan("finetune,gd,gd(train.ema=0.9)", "0,1")
    assert validated == [(name, seed) for seed in (0, 1) for name in ("finetune", "gd", "gd")]
    assert assembled == [0.0, 0.9]


def test_a_preset_is_no_method(tmp_path) -> None:
    config = DIGITS.replace("digits.py", "fashion_mnist.py")
    with pytest.raises(UserError, match="small is a preset"):
        make_plan(config, "gd,small", "0", tmp_path / "study")


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (None, "FileNotFoundError"),
        ("1 +", "SyntaxError"),
        ("x = 1", "get_config"),
        ("import nothing_here", "nothing_here"),
    ],
)
def test_a_config_file_that_is_missing_or_broken(text, about, tmp_path) -> None:
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=about):
        make_plan(str(file), "gd", "0", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def finish(run, **results) -> None:
    """Makes a run look finished."""
    Workdir(run.folder, run.config).write_config()
    about = {"method": run.config.method.name, "dataset": run.config.data.name, "seed": run.seed}
    least = {"format": 1, "status": "finished", **about, "tasks": [{"task": 1, "names": ["0"]}], "scores": {}}
    (run.folder / "results.json").write_text(json.dumps({**least, **results}))
    (run.folder / "report.html").write_text("")


def lines_of(plan) -> list[str]:
    """What `run_plan` says of a plan whose runs are all finished."""
    said: list[str] = []
    assert run_plan(plan, command="again", jobs=1, say=said.append) == []
    return said


def test_a_study_may_get_more_methods_and_seeds(plan, tmp_path) -> None:
    write_record(plan("finetune,er", "0"), "first")
    write_record(plan("gd,finetune", "1"), "second")
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [(run["method"], run["seed"], run["folder"]) for run in record["runs"]] == [
        ("gd", 1, "runs/gd-1"),
        ("finetune", 1, "runs/finetune-1"),
        ("finetune", 0, "runs/finetune-0"),
        ("er", 0, "runs/er-0"),
    ]
    assert [call["command"] for call in record["calls"]] == ["first", "second"]
    assert record["calls"][0]["versions"]["jax"]
    assert "commit" in record["calls"][0]


def test_finished_runs_are_skipped_and_nothing_is_written_then(plan, tmp_path) -> None:
    made = plan("finetune,gd", "0")
    write_record(made, "first")
    for run in made.runs:
        finish(run)
    before = (tmp_path / "study" / "study.json").read_bytes()
    assert lines_of(plan("finetune,gd", "0")) == ["all 2 runs are finished"]
    assert (tmp_path / "study" / "study.json").read_bytes() == before
    assert not (tmp_path / "study" / "logs").exists()


def test_the_structure_of_gradients_is_measured_once_on_the_first_finished_run(plan, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(campaign, "run_all", lambda jobs, places, say: started.extend(jobs) or [])
    made = plan("finetune,gd,gr")
    assert measure_structure(made, say=print) == []
    assert started == []  # nothing is finished
    for run in made.runs[1:]:
        finish(run, parameters=10_000)
    measure_structure(made, say=print)
    (job,) = started
    numbers = made.workdir / "figures" / "structure.json"
    words = [f"--workdir={made.runs[1].folder}", "--task=1", "--images=128", f"--out={numbers.with_suffix('.png')}"]
    assert job.command[1:] == ["-m", "jdcl_jax.fisher", *words]
    numbers.parent.mkdir()
    numbers.write_text("{}")
    measure_structure(made, say=print)
    assert len(started) == 1


def test_gradients_too_large_to_measure_are_said_to_be(plan, monkeypatch) -> None:
    monkeypatch.setattr(campaign, "run_all", lambda jobs, places, say: pytest.fail("started"))
    made, said = plan("finetune"), []
    finish(made.runs[0], parameters=10**9)
    assert measure_structure(made, say=said.append) == []
    assert "gradients of 1,000,000,000 numbers are too large" in said[0]


def test_finished_runs_that_are_not_recorded_yet_are_recorded(plan, tmp_path) -> None:
    made = plan("finetune", "0")
    finish(made.runs[0])
    lines_of(made)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["runs"][0]["folder"] == "runs/finetune-0"


def test_a_workdir_of_another_study_is_refused_with_the_keys_that_differ(plan) -> None:
    write_record(plan("finetune", "0"), "first")
    with pytest.raises(UserError, match=r"study holds another study \(train.steps: 4 -> 8\)"):
        plan("gd", "0", "train.steps=8")
    plan("gd(train.steps=8)", "0")  # a method's own settings are no other study
    plan("gd", "0", "data.dir=elsewhere")  # and where things lie is none either


def test_seeds_of_a_method_cannot_have_different_options(plan) -> None:
    """Options for all methods stand in --config, presets may set some too."""
    made = plan("gr", "0", "method.replay_weight=0.1")
    write_record(made, "first")
    finish(made.runs[0])
    with pytest.raises(UserError, match=r"has gr seed 0 with another config \(method.replay_weight: 0.1 -> 1.0\)"):
        plan("gr", "1")
    plan("gr", "1", "method.replay_weight=0.1")


@pytest.mark.parametrize(("before", "after"), [("er(rehearsal_coefficient=1.0)", "er"), ("ewc+gd", "gd+ewc")])
def test_what_the_study_has_already_is_not_trained_again_under_another_name(before, after, plan) -> None:
    made = plan(before, "0")
    write_record(made, "first")
    finish(made.runs[0])
    with pytest.raises(UserError, match=re.escape(f"this is the same as {before}")):
        plan(after, "0")


def test_a_run_of_another_config_in_the_way_is_refused(plan) -> None:
    run = plan("finetune", "0").runs[0]
    Workdir(run.folder, run.config).write_config()
    with pytest.raises(UserError, match="runs/finetune-0 holds a run with another config"):
        plan("finetune", "0", "train.steps=8")


@pytest.mark.parametrize("name", ["config.json", "study.json"])
def test_a_workdir_that_holds_something_else_is_refused(name, plan, tmp_path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / name).write_text("{}")
    with pytest.raises(UserError, match="write another --workdir"):
        plan("finetune", "0")


def test_a_workdir_that_cannot_be_written(tiny_words, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    made = make_plan(f"{DIGITS}:{tiny_words()}", "finetune", "0", tmp_path / "file" / "study")
    with pytest.raises(UserError, match=r"file/study/study\.json"):
        run_plan(made, command="", jobs=1, say=print)
    assert (tmp_path / "file").read_text() == "mine"
