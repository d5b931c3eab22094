"""The structure of per-sample gradients of a real run, and the command that shows it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.process import q_sample
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.gradient_structure import structure
from jdcl_jax.fisher import main, measure
from jdcl_jax.keys import example_keys, example_normal, named_key, subkeys
from jdcl_jax.measuring import gradients_at
from jdcl_jax.measuring.curves import spread
from jdcl_jax.restored import restore


def test_the_command_leaves_a_picture_and_the_numbers_behind_it(gd_run, tmp_path, capsys) -> None:
    out = tmp_path / "fisher.png"
    main([f"--workdir={gd_run.workdir}", "--task=1", "--images=6", "--timesteps=3", f"--out={out}"])
    assert out.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.with_suffix(".json").read_text())
    assert (found["task"], found["images"], found["method"]) == (1, 6, "gd")
    assert [row["t"] for row in found["rows"]] == [0, 500, 999]
    assert all(0 <= row["ratio"] <= 1 and -1 <= row["cosine"] <= 1 for row in found["rows"])
    assert "l2/l1" in capsys.readouterr().out


def test_gradients_are_of_single_images_at_the_timestep_asked_for(gd_run) -> None:
    """Against jax.grad of each image's own loss, image by image."""
    run = restore(gd_run.workdir, 1)
    setup, split = run.parts.setup, spread(run.parts.sequence.train.task(0), 20)
    ((t, found),) = gradients_at.structures(setup, run.params, split, np.array([300]))
    keys = example_keys(named_key(0, "gradients"), jnp.arange(20))
    eps = example_normal(subkeys(keys, "eps"), setup.image_shape)
    images = jnp.asarray(split.images / 127.5 - 1.0, jnp.float32)

    @jax.jit
    def gradient(params, image, noise):
        at = jnp.array([300])

        def loss(p):
            x_t = q_sample(setup.schedule, image[None], at, noise[None])
            return 0.5 * jnp.mean((setup.apply(p, x_t, at, None, None) - noise[None]) ** 2)

        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(loss)(params))])

    rows = np.stack([gradient(run.params, images[i], eps[i]) for i in range(20)]).astype(np.float64)
    wanted = structure(rows @ rows.T)
    assert t == 300
    for name in ("cosine", "ratio", "share", "norm"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-3), name


def test_gradients_are_those_of_the_raw_parameters_as_the_penalties_have_them(gd_run, monkeypatch) -> None:
    usual = restore(gd_run.workdir, 1)
    averaged = jax.tree.map(lambda leaf: leaf + 1.0, usual.raw)
    monkeypatch.setattr("jdcl_jax.fisher.restore", lambda *_: dataclasses.replace(usual, params=averaged))
    seen = []
    monkeypatch.setattr("jdcl_jax.fisher.structures", lambda setup, params, split, at: seen.append(params) or [])
    assert measure(gd_run.workdir, task=1, images=3, timesteps=2)["weights"] == "raw"
    assert seen == [usual.raw]


def test_inner_products_are_those_of_whole_rows(monkeypatch) -> None:
    monkeypatch.setattr(gradients_at, "BLOCK", 7)
    rows = np.random.default_rng(0).normal(size=(5, 23)).astype(np.float32)
    found = gradients_at.inner_products(rows)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, rows.astype(np.float64) @ rows.T.astype(np.float64), rtol=1e-12)


def test_gradients_that_do_not_fit_are_refused_with_a_number_that_does(gd_run, monkeypatch) -> None:
    run = restore(gd_run.workdir, 1)
    size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    monkeypatch.setattr(gradients_at, "MEMORY_GIB", 10.5 * size * 4 / 2**30)
    split = spread(run.parts.sequence.train.task(0), 20)
    with pytest.raises(UserError, match="--images=10"):
        next(gradients_at.structures(run.parts.setup, run.params, split, np.array([0])))


@pytest.mark.parametrize(
    "words", [["--images=2"], ["--timesteps=1"], ["--task=9"], ["--out=x.txt"], ["--workdir=/nowhere"]]
)
def test_bad_input_is_one_line_and_exit_code_2(gd_run, tmp_path, capsys, words) -> None:
    usual = [f"--workdir={gd_run.workdir}", f"--out={tmp_path / 'f.png'}"]
    with pytest.raises(SystemExit) as ended:
        main([*usual, *words])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "f.png").exists()
