"""Whole runs on a domain-incremental stream: two classes, again in each of three sessions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import small_runs
from jdcl_jax.assembly import assemble
from jdcl_jax.config import set_key
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import run
from jdcl_jax.figures import draw
from jdcl_jax.report import main as report
from jdcl_jax.reporting.differences import warnings
from jdcl_jax.reporting.page import write_report
from jdcl_jax.reporting.runs import load_run
from jdcl_jax.sample import sample

PER_CELL = 40  # images of each class of each session
SESSIONS = (2, 3, 5)
WORDS = (
    "tasks.first=0", "tasks.num_tasks=3", "tasks.domain=domains", "data.validation=0.1", "checkpoint.every=1000",
    "evaluation.scores=('fd_classifier','kld','ard')",
)  # fmt: skip
CLASSIFIER = (
    "er", "method.buffer_size=12", "classifier.kind=joint", "classifier.hidden=16", "classifier.weight=1.0",
    "views.operations=0", "views.cutout=0.0", "train.steps=60", "train.steps_per_call=20", "train.log_every=20",
    "train.learning_rate=1e-2", "evaluation.scores=('accuracy','accuracy_masked','linear_probe','kld')",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """The word of an npz file: class 0 is bright above and 1 below; the darkest pixel tells sessions 2, 3 and 5."""
    random = np.random.default_rng(0)
    labels, domains = (np.tile(x.ravel(), PER_CELL) for x in np.meshgrid([0, 1], SESSIONS))
    images = random.integers(0, 20, (len(labels), 8, 8)) + 30 * domains[:, None, None]
    for c in (0, 1):
        images[labels == c, 4 * c : 4 * c + 4] += 60
    path = tmp_path_factory.mktemp("data") / "sessions.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels, domains=domains)
    return f"data.name=npz:{path}"


@pytest.fixture(scope="module")
def config_of(sessions, tiny_config):
    return lambda *words: tiny_config(sessions, *WORDS, *words)


@pytest.fixture(scope="module")
def classifying(small, config_of, tmp_path_factory) -> tuple[Path, dict]:
    """Experience replay of a network that classifies; read it, don't touch it."""
    workdir = tmp_path_factory.mktemp("classifying") / "run"
    return workdir, run(config_of(*CLASSIFIER), workdir)


def sessions_of(images: np.ndarray) -> set[int]:
    return {int(low) // 30 for low in images.reshape(len(images), -1).min(axis=1)}


def rows(results: dict, name: str) -> list[np.ndarray]:
    """The known entries of each row of a score's matrix."""
    return [np.array(row[: i + 1], float) for i, row in enumerate(results["scores"][name]["matrix"])]


@pytest.mark.parametrize(
    "words",
    [
        ("finetune",),
        ("joint",),
        ("gr",),
        pytest.param(("l2+si+ewc+er", "method.ewc.samples=4"), marks=pytest.mark.long),
    ],
    ids=lambda words: words[0],
)
def test_a_method_runs_through_the_sessions(words, config_of, tmp_path) -> None:
    results = run(config_of(*words), tmp_path / "run")
    assert results["status"] == "finished"
    assert [task["classes"] for task in results["tasks"]] == [[0, 1]] * 3
    # Of 40 of each class and session, 8 are test, and of the 32 that are left 3 validate.
    assert [(task["train"], task["validation"], task["test"]) for task in results["tasks"]] == [(58, 6, 16)] * 3
    for found in map(np.concatenate, (rows(results, name) for name in results["scores"])):
        assert np.isfinite(found).all()


@pytest.mark.end_to_end
@pytest.mark.long
def test_guide_rehearses_in_a_session_the_classes_of_all(config_of, tmp_path) -> None:
    words = (
        "guide", "classifier.kind=solver", "solver.steps=8", "method.target=asked", "method.guided_images=16",
        "method.replay_steps=3", "evaluation.scores=('accuracy',)",
    )  # fmt: skip
    results = run(config_of(*words), tmp_path / "run")
    assert all(np.isfinite(row).all() for row in rows(results, "accuracy"))
    replayed = results["scores"]["fd_replay"]
    assert replayed["num_generated"] == {"per_task": [16, 16, 0], "union": 16}
    assert np.isfinite(np.array(replayed["matrix"][1][:2], float)).all()
    with pytest.raises(UserError, match=r"write method\.target=asked"):
        assemble(config_of(*words, "method.target=new"))


def test_every_task_is_one_session_whatever_their_order(config_of) -> None:
    config = config_of("finetune")
    plain = assemble(config).sequence
    with config.unlocked():
        set_key(config, "tasks.order", "5,2,3")
    ordered = assemble(config).sequence
    assert (plain.domains, ordered.domains) == (((2,), (3,), (5,)), ((5,), (2,), (3,)))
    for part in ("train", "validation", "test"):
        for k, session in enumerate((5, 2, 3)):
            images = getattr(ordered, part).task(k).images
            assert sessions_of(images) == {session}
            np.testing.assert_array_equal(images, getattr(plain, part).task(SESSIONS.index(session)).images)


def test_a_conditional_generator_is_asked_for_each_class_as_often_as_for_the_other(config_of, tmp_path) -> None:
    words = (
        "gd", "model.class_conditional=True", "method.replay=stored", "method.stored_per_class=5",
        "evaluation.scores=('label_accuracy','fd_classifier','kld')",
    )  # fmt: skip
    results = run(config_of(*words), tmp_path / "run")
    draws = [cost for cost in results["cost"] if cost["phase"] == "draw"]
    assert [(cost["task"], cost["steps"]) for cost in draws] == [(2, 2), (3, 2)]  # 5 of each of two, in batches of 8
    found = results["scores"]["label_accuracy"]
    for row, union in zip(rows(results, "label_accuracy"), found["union"], strict=True):
        np.testing.assert_allclose(row, union)  # all tasks have all classes
    assert found["num_generated"] == {"per_task": [60, 60, 60], "union": 60}
    assert results["scores"]["fd_classifier"]["num_generated"] == {"per_task": [20, 20, 20], "union": 60}
    assert results["assigned"][0] == [60, 60, 60]


def test_accuracy_is_on_each_session_and_no_session_masks_a_class(classifying) -> None:
    _, results = classifying
    for name in ("accuracy", "linear_probe"):
        assert np.mean(rows(results, name)[-1]) > 0.9
    for plain, masked in zip(rows(results, "accuracy"), rows(results, "accuracy_masked"), strict=True):
        np.testing.assert_array_equal(plain, masked)
    assert np.array(results["confusion"][-1]).sum() == 3 * 16


def test_coverage_by_class_does_not_tell_sessions_apart(classifying) -> None:
    _, results = classifying
    for row, union in zip(rows(results, "kld"), results["scores"]["kld"]["union"], strict=True):
        np.testing.assert_allclose(row, union, rtol=1e-12)


def test_the_page_says_what_the_tasks_are_and_opens_beside_another_run(classifying, tmp_path) -> None:
    workdir, _ = classifying
    page = write_report(workdir).read_text()
    assert "a fixed stratified 20% of them as test images" in page
    assert "confusion matrix" in page
    assert "accuracy on each task after each phase" in page
    again = shutil.copytree(workdir, tmp_path / "again")
    report([str(workdir), str(again), f"--out={tmp_path / 'both.html'}"])
    assert "npz:" in (tmp_path / "both.html").read_text()


def test_the_domains_of_tasks_are_shown_and_runs_with_another_order_of_them_are_not_alike(
    classifying, tmp_path
) -> None:
    folders = []
    for number, order in enumerate(((2, 3, 5), (5, 3, 2))):
        folder = shutil.copytree(classifying[0], tmp_path / f"run{number}")
        results = json.loads((folder / "results.json").read_text())
        for task, domain in zip(results["tasks"], order, strict=True):
            task["domains"] = [domain]
        (folder / "results.json").write_text(json.dumps({**results, "seed": number}))
        folders.append(folder)
    page = write_report(folders[1]).read_text()
    assert [page.index(f"0, 1 (domain {domain})") for domain in (5, 3, 2)] == sorted(
        page.index(f"0, 1 (domain {domain})") for domain in SESSIONS
    )
    assert any("tasks (classes, order" in line for line in warnings([load_run(folder) for folder in folders]))
    assert not any("tasks (" in line for line in warnings([load_run(folders[0]), load_run(folders[0])]))


def test_what_is_drawn_of_a_run_has_each_class_once(classifying) -> None:
    workdir, _ = classifying
    assert sample(workdir, task=3, num=4).shape == (4, 8, 8, 1)
    figure = draw("logits", [workdir], task=3, num=20)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (small_runs.JDCL, r"jdcl replays old classes from the old model .* and here classes come again in later tasks"),
        (("finetune", "tasks.num_tasks=2"), r"3 domains do not divide into 2 equal tasks: num_tasks can be 1, 3"),
        (("finetune", "tasks.num_tasks=0", "tasks.groups=0|1|2"), r"domain 0 .* does not exist: .* domains 2, 3, 5"),
        (("finetune", "tasks.order=gd-42"), r"order 'gd-42' is one of classes"),
        (("finetune", "tasks.domain=session"), r"of an npz file write 'domains'"),
        (("finetune", "data.name=digits"), r"data set 'digits' has no domains and tasks.domain is 'domains'"),
        (
            ("er", "model.class_conditional=True", "evaluation.num_samples=11"),
            r"11 generated images for 3 tasks are too few for precision_classifier: generate at least 12",
        ),
    ],
)
def test_what_cannot_be_gets_one_line(words, message, config_of) -> None:
    scores = "evaluation.scores=('fd_classifier','precision_classifier','kld','ard')"
    with pytest.raises(UserError, match=message) as caught:
        assemble(config_of(scores, *words))
    assert "\n" not in str(caught.value)


def test_one_task_of_all_sessions_has_no_class_that_returns_and_is_jdcls_too(config_of) -> None:
    parts = assemble(config_of(*small_runs.JDCL, "tasks.num_tasks=1"))
    assert parts.sequence.domains == (SESSIONS,)
    assert not parts.setup.classes_return
