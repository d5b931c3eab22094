"""Sampling towards classes by a run's own classifier: `--guidance` of the sampling command line."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import small_runs
from jdcl_jax import sample as command
from jdcl_jax.assembly import assemble
from jdcl_jax.experiment import run
from jdcl_jax.reporting.grids import SEPARATOR, enlargement
from jdcl_jax.restored import Restored, restore
from refusals import refusal_of

NUM, SCALE = 40, 10
WORDS = (
    *small_runs.JDCL, "tasks.num_tasks=1", "tasks.first=0", "train.steps=200", "train.batch_size=32",
    "train.steps_per_call=20", "train.log_every=100", "checkpoint.every=1000", "sampler.steps=5",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory, small) -> Path:
    """A network that has learned all ten digits at once, and also classifies."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    results = run(tiny_config(*WORDS), folder)
    assert results["scores"]["accuracy"]["union"][0] > 0.8  # or its answers would say little
    return folder


def drawn(workdir: Path, target: Path, *arguments: str) -> np.ndarray:
    """The images of the picture that the command line writes, uint8 [NUM, 8, 8, 1]."""
    command.main([f"--workdir={workdir}", f"--num={NUM}", f"--out={target}", *arguments])
    with Image.open(target) as picture:
        pixels = np.asarray(picture)
    factor, columns = enlargement(8), int(np.ceil(np.sqrt(NUM)))
    places = SEPARATOR + (8 * factor + SEPARATOR) * np.arange(columns)[:, None] + factor * np.arange(8)
    rows = [divmod(i, columns) for i in range(NUM)]
    return np.stack([pixels[np.ix_(places[row], places[column])] for row, column in rows])[..., None]


def answers(workdir: Path, images: np.ndarray) -> np.ndarray:
    """The classes that the run's own classifier gives images."""
    found = restore(workdir, 0)
    return small_runs.said(found.parts, found.params, images)


refusal = functools.partial(refusal_of, command.main)


@pytest.fixture(scope="module")
def unguided(workdir, tmp_path_factory) -> np.ndarray:
    return drawn(workdir, tmp_path_factory.mktemp("grids") / "unguided.png")


def test_guidance_of_scale_0_draws_the_images_of_no_guidance(workdir, unguided, tmp_path) -> None:
    np.testing.assert_array_equal(drawn(workdir, tmp_path / "grid.png", "--guidance=0"), unguided)


def test_guidance_to_a_class_by_next_to_nothing_changes_no_image(workdir, unguided, tmp_path) -> None:
    guided = drawn(workdir, tmp_path / "grid.png", "--guidance=1e-12", "--label=3")
    np.testing.assert_array_equal(guided, unguided)


@pytest.mark.parametrize("label", [3, 8])
def test_guided_images_are_given_the_class_that_was_asked_for_far_more_often(label, workdir, unguided, tmp_path):
    guided = drawn(workdir, tmp_path / "grid.png", f"--guidance={SCALE}", f"--label={label}")
    before, after = (np.mean(answers(workdir, images) == label) for images in (unguided, guided))
    assert before < 0.3
    assert after > 0.6


def test_without_a_label_image_i_is_drawn_towards_the_class_i_of_those_seen(workdir, unguided, tmp_path) -> None:
    guided = drawn(workdir, tmp_path / "grid.png", f"--guidance={SCALE}")
    asked = np.arange(NUM) % 10
    before, after = (np.mean(answers(workdir, images) == asked) for images in (unguided, guided))
    assert before < 0.25
    assert after > 0.4
    shifted = [np.mean(answers(workdir, guided) == (asked + shift) % 10) for shift in range(1, 10)]
    assert max(shifted) < 0.3


# -- refused before anything is drawn


@pytest.fixture
def restored(tiny_config, monkeypatch):
    """`restored("classifier.kind=none")`: the command line reads a run of that config, whose network says nothing."""

    def make(*words: str) -> str:
        found = assemble(tiny_config("finetune", "evaluation.scores=('kld',)", *words))
        monkeypatch.setattr(command, "restore", lambda workdir, task: Restored(found, None, None, 2))
        return "--workdir=somewhere"

    return make


@pytest.mark.parametrize("kind", ["none", "separate"])
def test_a_run_whose_denoiser_shares_nothing_with_a_classifier_cannot_be_guided(kind, restored, capsys) -> None:
    line = refusal(capsys, restored(f"classifier.kind={kind}"), "--guidance=2")
    assert "joint classifier" in line
    assert "leave it out" in line


@pytest.mark.parametrize("words", [("classifier.kind=joint",), ("model.class_conditional=True",)])
@pytest.mark.parametrize("scale", ["-0.5", "nan", "inf"])
def test_guidance_away_from_the_class_or_without_a_number_is_refused(scale, words, restored, capsys) -> None:
    line = refusal(capsys, restored(*words), f"--guidance={scale}")
    assert f"--guidance={scale}" in line
    assert "write 0 or more" in line


@pytest.mark.parametrize("arguments", [(), ("--guidance=0",)])
def test_a_label_without_guidance_is_refused_where_the_denoiser_knows_no_classes(arguments, restored, capsys) -> None:
    line = refusal(capsys, restored("classifier.kind=joint"), "--label=3", *arguments)
    assert "--guidance=SCALE" in line
    assert "leave --label out" in line


def test_a_class_that_was_not_seen_by_then_cannot_be_asked_for(restored, capsys) -> None:
    line = refusal(capsys, restored("classifier.kind=joint"), "--label=4", "--guidance=2")
    assert "--label=4 was not seen by then; write one of [0, 1, 2, 3]" in line


# -- which guidance


@pytest.mark.parametrize(
    ("words", "arguments", "free", "by_classifier", "labels"),
    [
        (("classifier.kind=joint",), {"guidance": 2.5, "label": 1}, 0.0, 2.5, [1] * 5),
        (("classifier.kind=joint",), {"guidance": 2.5}, 0.0, 2.5, [0, 1, 2, 3, 0]),
        (("classifier.kind=joint", "sampler.classifier_guidance=1.5"), {}, 0.0, 1.5, [0, 1, 2, 3, 0]),
        (("classifier.kind=joint", "sampler.classifier_guidance=1.5"), {"guidance": 0.0}, 0.0, 0.0, None),
        (("classifier.kind=joint",), {}, 0.0, 0.0, None),
        (("model.class_conditional=True", "sampler.guidance=1.5"), {}, 1.5, 0.0, [0, 1, 2, 3, 0]),
        (("model.class_conditional=True",), {"guidance": 2.5, "label": 3}, 2.5, 0.0, [3] * 5),
    ],
)
def test_the_scale_is_that_of_the_command_and_else_the_runs_own(
    words, arguments, free, by_classifier, labels, restored, monkeypatch
) -> None:
    asked = {}

    class Nothing:
        def __init__(self, setup, parallel, batch_size, draw=None):
            asked.update(setup=setup)

        def __call__(self, params, key, num, labels, on_progress):
            asked.update(labels=labels)
            return np.zeros((num, 8, 8, 1), np.uint8)

    restored("classifier.kind=none", *words)
    monkeypatch.setattr(command, "Generator", Nothing)
    command.sample(Path("somewhere"), task=0, num=5, **arguments)
    setup = asked["setup"]
    assert (setup.guidance, setup.classifier_guidance) == (free, by_classifier)
    assert (None if asked["labels"] is None else asked["labels"].tolist()) == labels
