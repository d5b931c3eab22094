"""A denoiser that learns its variance: its loss in a run, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.assembly import assemble, init_params
from jdcl_jax.data.batches import Examples, to_float
from jdcl_jax.diffusion.process import q_sample
from jdcl_jax.diffusion.schedule import alpha_bars
from jdcl_jax.diffusion.variational import make_learned_bound, variational_term
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import run
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods.denoising import denoising_losses, generate, noise_examples

LEARNED = ("finetune", "diffusion.variance=learned", "sampler.kind=ddpm", "diffusion.zero_snr=False", "tasks.first=2")
COSINE = ("diffusion.schedule=cosine", "diffusion.timesteps=40", "diffusion.beta_start=0.001")

pytestmark = pytest.mark.usefixtures("small")


def batch(parts) -> Examples:
    train = parts.sequence.train
    keys = example_keys(named_key(0, "test"), jnp.arange(16))
    return Examples(to_float(jnp.asarray(train.images[:16])), jnp.asarray(train.labels[:16]), keys)


def test_the_loss_is_that_of_the_prediction_and_a_thousandth_of_the_bound_over_all_timesteps(tiny_config) -> None:
    parts = assemble(tiny_config(*LEARNED, *COSINE))
    setup, params, examples = parts.setup, init_params(parts), batch(parts)
    noised = noise_examples(setup, examples)
    output = parts.network.denoise(params, noised.x_t, noised.t, None, None)
    assert output.shape == (16, 8, 8, 2)
    simple = np.mean((np.asarray(output[..., :1], np.float64) - np.asarray(noised.target, np.float64)) ** 2)
    bound = make_learned_bound(alpha_bars("cosine", 40))
    terms = variational_term(bound, "eps", output, examples.image, noised.x_t, noised.t)
    (found,) = denoising_losses(setup, params, [examples])
    assert float(found) == pytest.approx(simple + 0.001 * 40 * float(jnp.mean(terms)), rel=1e-5)
    assert float(jnp.mean(terms)) > 0.1


def test_both_halves_of_the_output_learn_and_the_methods_see_the_prediction_alone(tiny_config) -> None:
    parts = assemble(tiny_config(*LEARNED, *COSINE))
    setup, params, examples = parts.setup, init_params(parts), batch(parts)
    slope = jax.grad(lambda p: denoising_losses(setup, p, [examples])[0])(params)["conv_out"]["bias"].reshape(8, 8, 2)
    assert np.abs(slope[..., 0]).min() > 0
    assert np.abs(slope[..., 1]).max() > 0
    t = jnp.full(16, 20)
    x_t = q_sample(setup.schedule, examples.image, t, jnp.zeros_like(examples.image))
    both = parts.network.denoise(params, x_t, t, None, None)
    np.testing.assert_array_equal(setup.apply(params, x_t, t, None, None), both[..., :1])


def test_samples_are_drawn_with_the_variance_that_is_said(tiny_config) -> None:
    """With v = 1 or -1 everywhere it is one of the two fixed ones."""
    words = (*LEARNED, *COSINE, "sampler.steps=6")
    parts = assemble(tiny_config(*words))
    keys, drawn = example_keys(named_key(1), jnp.arange(8)), {}
    fresh = jax.device_get(init_params(parts))
    for v in (-1.0, 1.0):
        out = {name: np.array(leaf) for name, leaf in fresh["conv_out"].items()}
        out["kernel"].reshape(-1, 64, 2)[..., 1] = 0.0
        out["bias"].reshape(64, 2)[..., 1] = v
        params = {**fresh, "conv_out": out}
        drawn[v] = np.asarray(generate(parts.setup, params, None, keys))
        fixed = {-1.0: "fixed_small", 1.0: "fixed_large"}[v]
        other = assemble(tiny_config(*[w for w in words if "variance" not in w], f"diffusion.variance={fixed}"))
        half = {name: leaf.reshape(*leaf.shape[:-1], 64, 2)[..., 0] for name, leaf in out.items()}
        same = generate(other.setup, {**fresh, "conv_out": half}, None, keys)
        np.testing.assert_allclose(drawn[v], same, atol=1e-5)
    assert np.abs(drawn[1.0] - drawn[-1.0]).max() > 0.05


@pytest.mark.long
def test_a_whole_run_learns_it(tiny_config, tmp_path) -> None:
    results = run(tiny_config(*LEARNED, *COSINE), tmp_path / "run")
    assert results["status"] == "finished"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sampler.kind=ddim",), "no effect with sampler.kind=ddim"),
        (("diffusion.variance=fixed_large", "sampler.kind=ddim"), "no effect with sampler.kind=ddim"),
        (("diffusion.zero_snr=True",), "diffusion.prediction=v or diffusion.zero_snr=False"),
        (("diffusion.variance=large",), "fixed_small, fixed_large, learned"),
    ],
)
def test_a_variance_without_effect_is_refused(words, message, tiny_config) -> None:
    with pytest.raises(UserError) as refused:
        assemble(tiny_config(*LEARNED, *words))
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["gd", "gr", "er", "lwf"])
def test_methods_whose_losses_would_not_teach_it_are_refused(name, tiny_config) -> None:
    with pytest.raises(UserError, match=f"would not be learned by {name}"):
        assemble(tiny_config(*[w for w in LEARNED if w != "finetune"], name))


@pytest.mark.parametrize("name", ["gr", "finetune", "joint"])
def test_a_solver_needs_a_method_that_trains_it(name, tiny_config) -> None:
    with pytest.raises(UserError, match=r"classifier\.kind=solver is trained in phases of its own"):
        assemble(tiny_config(name, "classifier.kind=solver"))
