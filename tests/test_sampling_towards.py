"""`--towards` of the sampling command line: guided by a run's own classifier apart from the generator."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax import sample as command
from jdcl_jax.data.batches import to_float
from jdcl_jax.experiment import run
from jdcl_jax.restored import restore
from refusals import refusal_of

WORDS = (
    "ddgr", "classifier.kind=solver", "solver.steps=60", "solver.learning_rate=0.05", "train.ema=0.9",
    "evaluation.weights=ema", "evaluation.scores=('accuracy','kld')", "train.steps=60", "train.batch_size=32",
    "train.learning_rate=1e-2", "checkpoint.every=1000", "method.replay_steps=5", "tasks.first=2", "sampler.steps=5",
)  # fmt: skip
NUM = 40

pytestmark = [pytest.mark.usefixtures("small"), pytest.mark.long]
refusal = functools.partial(refusal_of, command.main)


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory, small) -> Path:
    folder = tmp_path_factory.mktemp("towards") / "run"
    run(tiny_config(*WORDS), folder)
    return folder


def probability(workdir: Path, images: np.ndarray, target: int) -> np.ndarray:
    """Of a class by the run's own classifier among the four classes seen, [N]."""
    found = restore(workdir, 0)
    logits = found.parts.setup.solver.logits(found.solver, to_float(jnp.asarray(images)))[:, :4]
    return np.asarray(jax.nn.softmax(logits))[:, target]


@pytest.mark.parametrize("target", [0, 3])
def test_guided_samples_are_likelier_of_the_target_class_and_those_guided_away_less(workdir, target) -> None:
    draw = functools.partial(command.sample, workdir, task=0, num=NUM)
    plain = draw(towards=target, scale=0.0)
    toward, away = draw(towards=target, scale=1.0), draw(towards=target, scale=-1.0)
    p = [probability(workdir, images, target).mean() for images in (away, plain, toward)]
    assert p[0] < p[1] < p[2]


def test_any_class_is_asked_for_and_guided_to_another(workdir) -> None:
    draw = functools.partial(command.sample, workdir, task=0, num=NUM, label=1)
    before, after = (probability(workdir, draw(towards=2, scale=scale), 2) for scale in (0.0, 1.0))
    assert after.mean() > before.mean()


def test_the_command_line_writes_these_images(workdir, tmp_path) -> None:
    common = [f"--workdir={workdir}", "--num=4", "--label=1"]
    command.main([*common, "--towards=2", "--scale=1", f"--out={tmp_path / 'a.png'}"])
    command.main([*common, f"--out={tmp_path / 'b.png'}"])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--towards=7"], "--towards=7: the classifier has not seen that class by then; write one of [0, 1, 2, 3]"),
        (["--task=1", "--towards=2"], "write one of [0, 1]"),
        (["--towards=2", "--scale=nan"], "--scale=nan is no scale"),
        (["--scale=2"], "--scale is of --towards"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(workdir, words, message, capsys, tmp_path) -> None:
    assert message in refusal(capsys, f"--workdir={workdir}", "--num=4", f"--out={tmp_path / 'x.png'}", *words)
    assert not (tmp_path / "x.png").exists()


def test_a_run_without_such_a_classifier_is_refused(tiny_config, capsys, tmp_path) -> None:
    run(tiny_config("finetune", "tasks.first=1"), tmp_path / "run")
    capsys.readouterr()
    line = refusal(capsys, f"--workdir={tmp_path / 'run'}", "--towards=1", f"--out={tmp_path / 'x.png'}")
    assert "--towards needs a classifier that is a network of its own" in line
