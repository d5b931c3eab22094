"""The sampling command line on a finished run."""

import functools
import shutil

import numpy as np
import pytest
from PIL import Image

from jdcl_jax import sample as command
from jdcl_jax.sample import sample
from refusals import refusal_of

pytestmark = pytest.mark.end_to_end

NUM = 8


refusal = functools.partial(refusal_of, command.main)


def test_a_grid_is_written_and_the_run_is_not_touched(gd_run, tmp_path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in gd_run.workdir.rglob("*") if path.is_file()}
    target = tmp_path / "new" / "grid.png"
    command.main([f"--workdir={gd_run.workdir}", "--task=2", f"--num={NUM}", f"--out={target}"])
    with Image.open(target) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 2 * 48
    assert capsys.readouterr().out == f"{target}\n"
    assert {path: path.stat().st_mtime_ns for path in gd_run.workdir.rglob("*") if path.is_file()} == before


def test_the_same_seed_draws_the_same_images_and_another_others(gd_run) -> None:
    first, again, other = (sample(gd_run.workdir, task=2, num=NUM, seed=seed) for seed in (4, 4, 5))
    assert first.shape == (NUM, 8, 8, 1)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_image_i_does_not_depend_on_how_many_are_drawn(gd_run) -> None:
    """An odd number cannot be shared by two devices as it is."""
    np.testing.assert_array_equal(
        sample(gd_run.workdir, task=2, num=NUM - 1), sample(gd_run.workdir, task=2, num=NUM)[: NUM - 1]
    )


def test_the_task_says_whose_parameters_draw_and_the_last_is_the_default(gd_run) -> None:
    by_task = [sample(gd_run.workdir, task=task, num=NUM) for task in (0, 1, 3)]
    np.testing.assert_array_equal(by_task[0], by_task[2])
    assert not np.array_equal(by_task[1], by_task[2])


def test_a_label_of_an_unconditional_denoiser_is_refused(gd_run, capsys) -> None:
    assert "unconditional" in refusal(capsys, f"--workdir={gd_run.workdir}", "--label=1")


def test_a_task_that_is_not_there_is_refused(gd_run, capsys) -> None:
    line = refusal(capsys, f"--workdir={gd_run.workdir}", "--task=4")
    assert "no checkpoint of task 4; finished tasks: 1, 2, 3" in line


def test_a_run_without_checkpoints_is_refused(gd_run, tmp_path, capsys) -> None:
    shutil.copy(gd_run.workdir / "config.json", tmp_path)
    assert "no finished task" in refusal(capsys, f"--workdir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_that_is_no_run_is_refused(name, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run" in refusal(capsys, f"--workdir={tmp_path / name}")


@pytest.mark.parametrize("text", ["", "[]", '{"method": {"name": "nothing"}}', '{"seed": 1}'])
def test_a_config_that_is_none_is_refused(text, tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(capsys, f"--workdir={tmp_path}")


@pytest.mark.parametrize(
    ("arguments", "about"),
    [(["--out=grid.jpg"], "PNG"), (["--num=0"], "--num"), (["--seed=-1"], "--seed"), (["--task=-1"], "--task")],
)
def test_what_cannot_be_written_or_drawn_is_refused_before_sampling(
    arguments, about, gd_run, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(command, "sample", lambda *args, **kwargs: pytest.fail("it sampled"))
    assert about in refusal(capsys, f"--workdir={gd_run.workdir}", *arguments)


def test_labels_of_a_conditional_denoiser_are_those_seen_by_then() -> None:
    from jdcl_jax.errors import UserError

    assert command._labels(10, [3, 1], None, 5).tolist() == [3, 1, 3, 1, 3]
    assert command._labels(10, [3, 1], 1, 3).tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"write one of \[3, 1\]"):
        command._labels(10, [3, 1], 2, 3)
