"""What the command line says to a person who wrote something wrong: one line, exit code 2, and nothing left behind.

One process imports the program and forks itself for every command line, so each is run as it would be, with its own
flags, standard error and exit code, without paying for the imports each time.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faults.bad_input.endings import CommandLines
from jdcl_jax.config import default_config, flatten, from_json
from jdcl_jax.errors import UserError
from jdcl_jax.methods.registry import known_methods
from jdcl_jax.training.backend import usable_cores
from jdcl_jax.validation import validate

pytestmark = pytest.mark.end_to_end

REPOSITORY = Path(__file__).parents[1]
DIGITS = str(REPOSITORY / "configs" / "digits.py")
GENERATION = f"{DIGITS}:gd,generation"


@pytest.fixture(scope="module")
def command_line(tmp_path_factory):
    """(folder, *arguments) -> {"code", "out", "err"} of `python -m jdcl_jax.main *arguments` in that folder."""
    lines = CommandLines(tmp_path_factory.mktemp("forking"))
    yield lambda folder, *arguments: dataclasses.asdict(lines(folder, "main", *arguments))
    lines.close()


def refusal(answer: dict) -> str:
    """The one line on standard error of a refused command."""
    assert answer["code"] == 2, answer
    assert answer["out"] == ""
    assert answer["err"].startswith("error: "), answer
    assert answer["err"].count("\n") == 1, answer
    assert "Traceback" not in answer["err"]
    return answer["err"]


BAD_CONFIGS = {
    "unknown method": (f"--config={DIGITS}:gdd", "did you mean 'gd'"),
    "two methods": (f"--config={DIGITS}:gd,gr", "two methods, gd and gr"),
    "unknown preset": (f"--config={DIGITS}:gd,small", "'small' is no method"),
    "unknown key": (f"--config={GENERATION},train.stepz=3", "did you mean 'train.steps'"),
    "a section is no key": (f"--config={GENERATION},train=3", "unknown config key 'train'"),
    "another method's option": (f"--config={DIGITS}:generation,finetune,method.buffer_size=9", "unknown config key"),
    "wrong type": (f"--config={GENERATION},train.steps=many", "train.steps is 300, of type int"),
    "a tuple of a number": (f"--config={GENERATION},model.channels=8", "model.channels"),
    "unknown data set": (f"--config={GENERATION},data.name=digitz", "did you mean"),
    "missing npz": (f"--config={GENERATION},data.name=npz:absent.npz", "absent.npz"),
    "missing folder": (f"--config={GENERATION},data.name=folder:absent", "absent"),
    "unknown score": (f"--config={GENERATION},evaluation.scores=('fdd',)", "fdd"),
    "a score that is no name": (f"--config={GENERATION},evaluation.scores=('kld',['x'])", "unknown score ['x']"),
    "no classifier": (
        f"--config={GENERATION},evaluation.classifier.channels=()",
        "evaluation.classifier.channels is ()",
    ),
    "a classifier of words": (f"--config={GENERATION},evaluation.classifier.channels=('a',)", "write one positive"),
    "huge images": (f"--config={GENERATION},data.image_size=100000", "data.image_size is 100000"),
    "huge store": (f"--config={GENERATION},method.replay=stored,method.stored_per_class=1{'0' * 9}", "GiB of images"),
    "huge calls": (f"--config={GENERATION},train.steps_per_call=1000000000", "write train.steps_per_call=300"),
    "no score": (f"--config={GENERATION},evaluation.scores=()", "evaluation.scores is empty"),
    "more tasks than classes": (f"--config={GENERATION},tasks.num_tasks=11", "num_tasks is 11 with 10 classes"),
    "more first tasks than tasks": (f"--config={GENERATION},tasks.first=6", "1..5"),
    "unknown order": (f"--config={GENERATION},tasks.order=gd-43", "did you mean"),
    "odd size": (f"--config={GENERATION},data.image_size=9", "write data.image_size=10"),
    "five levels": (f"--config={GENERATION},model.channels=(8,8,8,8,8)", "write data.image_size=16"),
    "attention nowhere": (f"--config={GENERATION},model.attention_resolutions=(3,)", "the feature maps are [8, 4]"),
    "groups": (f"--config={GENERATION},model.groups=5", "model.groups=5"),
    "heads": (f"--config={GENERATION},model.head_channels=5", "model.head_channels=5"),
    "an infinite strength": (
        f"--config={DIGITS}:generation,ewc,method.ewc.strength=1e999",
        "method.ewc.strength is inf",
    ),
    "an infinite coefficient": (
        f"--config={DIGITS}:generation,er,method.rehearsal_coefficient=1e999",
        "write a finite number",
    ),
    "small buffer": (f"--config={DIGITS}:generation,er,method.buffer_size=9", "write at least 10"),
    "buffer policy": (f"--config={DIGITS}:generation,er,method.buffer_policy=fifo", "reservoir"),
    "teacher steps": (f"--config={GENERATION},method.teacher_steps=0", "write 1 to 1000"),
    "steps per call": (f"--config={GENERATION},train.steps_per_call=7", "write train.steps_per_call=6"),
    "batch over devices": (f"--config={GENERATION},train.batch_size=7", "write a multiple of 2"),
    "jdcl without a classifier": (f"--config={DIGITS}:classifier.kind=none", "classifier.kind=joint"),
    "accuracy without a classifier": (f"--config={DIGITS}:gd,classifier.kind=none", "has accuracy"),
    "no labels": (f"--config={DIGITS}:data.label_fraction=0.0", "data.label_fraction above 0"),
    "a late class loss": (f"--config={DIGITS}:method.class_delay=100000", "would never begin"),
    "a stage that ends before it is warm": (
        f"--config={DIGITS}:train.warmup=220,method.global_steps=200",
        "the 200 steps of the phase global",
    ),
    "a draw over devices": (f"--config={DIGITS}:method.replay_batch=301", "method.replay_batch=301 can't be shared"),
    "labels that nothing reads": (
        f"--config={DIGITS}:gd,generation,data.label_fraction=0.5",
        "data.label_fraction=1",
    ),
    "an option of FixMatch": (f"--config={DIGITS}:method.threshold=0.5", "data.label_fraction=0.1"),
    "fisher beside a classifier": (f"--config={DIGITS}:ewc", "classifier.kind=none"),
    "learning rate": (f"--config={GENERATION},train.learning_rate=-1.0", "train.learning_rate is -1.0"),
    "not a number": (f"--config={GENERATION},train.learning_rate=1e999", "train.learning_rate"),
    "decay with adam": (f"--config={GENERATION},train.weight_decay=0.1", "train.optimizer=adamw"),
    "average that is off": (f"--config={GENERATION},evaluation.weights=ema", "train.ema=0.999"),
    "guidance without classes": (f"--config={GENERATION},sampler.guidance=2.0", "model.class_conditional=True"),
    "too many sampling steps": (f"--config={GENERATION},sampler.steps=1001", "diffusion.timesteps=1000"),
    "parallel mode": (f"--config={GENERATION},parallel.mode=vmap", "pmap, jit"),
    "inception without weights": (f"--config={GENERATION},evaluation.scores=('fid',)", "evaluation.inception_weights"),
    "few samples": (f"--config={GENERATION},evaluation.num_samples=3", "generate at least 10"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_cannot_be_is_refused_with_one_line_and_no_workdir(name, command_line, tmp_path) -> None:
    config, about = BAD_CONFIGS[name]
    assert about in refusal(command_line(tmp_path, config, "--workdir=run"))
    assert list(tmp_path.iterdir()) == []


def groups(text: str) -> list[str]:
    return ["--config.tasks.num_tasks=0", f"--config.tasks.groups={text}"]


BAD_FLAGS = {
    "unknown key": (["--config.train.stepz=3"], "stepz"),
    "wrong type": (["--config.train.steps=many"], "many"),
    "a weight that is no number": (["--config.method.replay_weight=nan"], "method.replay_weight is nan"),
    "class in two tasks": (groups("0,1,2,3,4|4,5,6,7,8,9"), "again in task"),
    "class in no task": (groups("0,1,2,3,4|5,6,7,8"), "class 9 is in no task"),
    "class that is not there": (groups("0,1|12"), "class 12"),
    "too many sizes": (groups("5x3"), "takes 15 classes"),
    "class twice in the order": (["--config.tasks.order=0,1,2,3,4,5,6,7,8,8"], "class 8 twice"),
    "unknown flag": (["--stepz=3"], "stepz"),
    "stray argument": (["gd"], "'gd' is no flag"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_a_flag_that_cannot_be_is_refused_with_one_line_and_no_workdir(name, command_line, tmp_path) -> None:
    arguments, about = BAD_FLAGS[name]
    assert about in refusal(command_line(tmp_path, f"--config={GENERATION}", "--workdir=run", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_no_config(command_line, tmp_path) -> None:
    assert "write --config=configs/digits.py" in refusal(command_line(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (None, "wrong.py"),
        ("def get_config(arg=''):\n    return {\n", "wrong.py"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("x = 1\n", "get_config"),
    ],
)
def test_a_config_file_that_is_missing_or_broken(text, about, command_line, tmp_path) -> None:
    if text is not None:
        (tmp_path / "wrong.py").write_text(text)
    assert about in refusal(command_line(tmp_path, "--config=wrong.py", "--workdir=run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workdir", ["file", "file/run", "locked"])
def test_a_workdir_that_cannot_be_written(workdir, command_line, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    if workdir == "locked":
        (tmp_path / "locked").mkdir(mode=0o500)
        if os.access(tmp_path / "locked", os.W_OK):
            pytest.skip("permissions do not bind this user")
    assert f"the workdir {workdir} can't be written" in refusal(
        command_line(tmp_path, f"--config={DIGITS}", f"--workdir={workdir}")
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["missing", "text", "other network"])
def test_a_weights_file_that_is_not_inception_leaves_no_workdir(kind, command_line, tmp_path) -> None:
    weights = tmp_path / "weights.npz"
    if kind == "text":
        weights.write_text("no weights")
    elif kind == "other network":
        np.savez(weights, kernel=np.zeros(3, np.float32))
    config = f"--config={GENERATION},evaluation.scores=('fid',),evaluation.inception_weights={weights}"
    line = refusal(command_line(tmp_path, config, "--workdir=run"))
    assert "weights.npz" in line
    assert [path.name for path in tmp_path.iterdir() if path != weights] == []


def test_a_folder_that_was_there_before_is_left_as_it_was(command_line, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note.txt").write_text("mine")
    refusal(command_line(tmp_path, f"--config={DIGITS}:train.batch_size=7", "--workdir=run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["note.txt"]


def test_a_broken_config_json_is_named(command_line, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    assert "run/config.json can't be read" in refusal(command_line(tmp_path, f"--config={DIGITS}", "--workdir=run"))


def test_a_finished_run_shows_its_table(gd_run, gd_words, command_line, tmp_path) -> None:
    answer = command_line(tmp_path, f"--config={DIGITS}:{gd_words}", f"--workdir={gd_run.workdir}")
    assert answer["code"] == 0, answer
    assert answer["err"] == f"{gd_run.workdir} is finished; its results:\n"
    assert "fd_classifier" in answer["out"]
    assert f"report: {gd_run.workdir}/report.html" in answer["out"]


@pytest.mark.long
def test_a_run_without_the_suite_s_settings_shares_the_processor_and_ends(tiny_words, tmp_path) -> None:
    """As a user starts it: the suite itself says how many devices there are, and gives them more threads."""
    if usable_cores() < 2:
        pytest.skip("a single core has nothing to share")
    settings = ("NPROC", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    environment |= {"PYTHONPATH": str(REPOSITORY), "GLIBC_TUNABLES": ""}
    words = tiny_words("finetune", "tasks.first=1", "train.steps=60", "train.steps_per_call=1", "checkpoint.every=20")
    for command in (
        ["jdcl_jax.main", f"--config={DIGITS}:{words}", "--workdir=run"],
        ["jdcl_jax.sample", "--workdir=run", "--num=4"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("two devices share the processor") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["hardware"]["device"] == "cpu x2"
    assert (tmp_path / "grid.png").exists()


def test_a_run_with_another_config_is_refused(gd_run, gd_words, command_line, tmp_path) -> None:
    line = refusal(command_line(tmp_path, f"--config={DIGITS}:{gd_words},seed=1", f"--workdir={gd_run.workdir}"))
    assert "seed: 0 -> 1" in line


def test_the_default_workdir_names_data_method_and_seed(tmp_path) -> None:
    from jdcl_jax.workdir import default_workdir

    config = default_config()
    assert default_workdir(config) == Path("runs/cifar10-jdcl-0")
    with config.unlocked():
        config.data.name, config.seed = "npz:/data/faces.npz", 3
    assert default_workdir(config) == Path("runs/faces-jdcl-3")
    with config.unlocked():
        config.data.name = "imagenet_resized/32x32:0.1.0"
    assert default_workdir(config) == Path("runs/imagenet_resized-32x32-0.1.0-jdcl-3")


# -- the files of configs/

FILES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_a_config_file_says_what_it_is_and_is_locked(name, config_file) -> None:
    module = config_file(name)
    assert "python -m jdcl_jax.main --config=configs/" in module.__doc__
    config = module.get_config()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.train.stepz = 3


@pytest.mark.parametrize("method", sorted(known_methods()))
@pytest.mark.parametrize("name", FILES)
def test_every_config_is_valid_with_every_method_and_survives_json(name, method, config_file, tmp_path) -> None:
    config = config_file(name).get_config(f"{method},seed=3")
    validate(config)
    assert (config.method.name, config.seed) == (method, 3)
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    again = from_json(tmp_path / "config.json")
    assert flatten(again) == flatten(config)
    assert {k: type(v) for k, v in flatten(again).items()} == {k: type(v) for k, v in flatten(config).items()}
    assert again.is_locked
    validate(again)


@pytest.mark.parametrize(("name", "preset"), [("fashion_mnist", "small"), ("cifar100", "ten"), ("cifar100", "half")])
def test_presets_are_valid_and_change_something(name, preset, config_file) -> None:
    module = config_file(name)
    changed = module.get_config(f"gd,{preset}")
    validate(changed)
    assert flatten(changed) != flatten(module.get_config("gd"))


def test_pairs_win_over_presets_and_values_keep_their_types(config_file) -> None:
    config = config_file("fashion_mnist").get_config("gr,train.steps=77,small,model.channels=(4, 8),train.ema=1")
    assert config.train.steps == 77
    assert config.model.channels == (4, 8)
    assert type(config.train.ema) is float
    assert config.method.name == "gr"
    assert config.method.replay_weight == 1.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": {"name": "gd"}, "trian": {"steps": 3}}'])
def test_json_that_is_no_config_is_refused(text, tmp_path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        from_json(tmp_path / "config.json")
