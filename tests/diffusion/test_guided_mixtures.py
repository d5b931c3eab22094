"""Guidance of mixtures of two Gaussians: the optimal denoiser and the exact classifier are known at every t."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.guidance import Term, asked, likeliest, on_clean, on_noisy, with_terms
from jdcl_jax.diffusion.process import to_x0_and_eps
from jdcl_jax.diffusion.sampler import Predict, Sampler, sample
from jdcl_jax.diffusion.schedule import Schedule, alpha_bars, make_schedule
from jdcl_jax.keys import example_keys

KINDS = ("eps", "x0", "v")
SHAPE = (2, 3, 2)
PIXELS = 12
MEANS = (0.5 * np.ones(PIXELS) * np.resize([1.0, -1.0], PIXELS), -0.3 * np.ones(PIXELS))
SPREADS, PRIORS = (0.2, 0.35), (0.3, 0.7)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def eps_of_class(which: int, x: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """E[eps | x_t, y] of [B, PIXELS], alpha_bar [B, 1]."""
    variance = alpha_bar * SPREADS[which] ** 2 + 1 - alpha_bar
    return jnp.sqrt(1 - alpha_bar) * (x - jnp.sqrt(alpha_bar) * MEANS[which]) / variance


def log_posterior(x: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """Log p(y | x_t), [B, 2], of images [B, ...]; alpha_bar [B]."""
    x, alpha_bar = x.reshape(len(x), PIXELS), alpha_bar[:, None]
    joint = []
    for mean, spread, prior in zip(MEANS, SPREADS, PRIORS, strict=True):
        variance = alpha_bar[:, 0] * spread**2 + 1 - alpha_bar[:, 0]
        distance = jnp.sum(jnp.square(x - jnp.sqrt(alpha_bar) * mean), axis=1)
        joint.append(jnp.log(prior) - 0.5 * distance / variance - 0.5 * PIXELS * jnp.log(variance))
    return jax.nn.log_softmax(jnp.stack(joint, axis=1))


def mixture(schedule: Schedule, kind: str, classes: jax.Array | None = None) -> Predict:
    """The optimal denoiser of the whole mixture, or of a class for each example."""

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        alpha_bar, flat = schedule.alpha_bar[t], x_t.reshape(len(x_t), PIXELS)
        shares = jnp.exp(log_posterior(x_t, alpha_bar)) if classes is None else jax.nn.one_hot(classes, 2)
        eps = sum(shares[:, k : k + 1] * eps_of_class(k, flat, alpha_bar[:, None]) for k in (0, 1)).reshape(x_t.shape)
        a, b = jnp.sqrt(alpha_bar)[:, None, None, None], jnp.sqrt(1 - alpha_bar)[:, None, None, None]
        return {"eps": eps, "x0": (x_t - b * eps) / a, "v": (eps - b * x_t) / a}[kind]

    return predict


def exact(classes: jax.Array, scale: float | jax.Array = 1.0, direction: str = "toward") -> Term:
    """Guidance by log p(y | x_t), which knows t."""
    return lambda d: on_noisy(lambda x: log_posterior(x, d.alpha_bar), classes, scale, direction=direction)(d)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("float64")
def test_the_exact_classifier_with_scale_1_makes_the_denoiser_of_its_class(kind: str) -> None:
    schedule, sampler = Schedule(jnp.asarray(alpha_bars("linear", 1000))), Sampler(prediction=kind)
    t, classes = np.array([0, 40, 400, 700, 999]), jnp.array([0, 1, 0, 1, 1])
    alpha_bar = alpha_bars("linear", 1000)[t][:, None, None, None]
    a, b = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    noise = 0.8 * np.random.default_rng(3).standard_normal((5, *SHAPE))
    x = a * np.reshape(0.5 * (MEANS[0] + MEANS[1]), SHAPE) + b * noise  # where neither class is sure
    output = jax.jit(with_terms(mixture(schedule, kind), schedule, sampler, [exact(classes)]))(x, t)
    x_0, eps = to_x0_and_eps(kind, output, x, schedule.alpha_bar[t])
    for i, which in enumerate(classes):
        wanted = eps_of_class(int(which), x.reshape(5, PIXELS)[i : i + 1], schedule.alpha_bar[t[i : i + 1], None])
        np.testing.assert_allclose(eps[i].reshape(1, PIXELS), wanted, atol=1e-9)
        np.testing.assert_allclose(x_0[i], (x[i] - b[i] * wanted.reshape(SHAPE)) / a[i], atol=1e-6)
    free = to_x0_and_eps(kind, mixture(schedule, kind)(x, t), x, schedule.alpha_bar[t])[1]
    assert np.abs(free - eps).max(axis=(1, 2, 3))[[1, 2]].min() > 0.01  # or the term would have had nothing to do


LINEAR = make_schedule("linear", 1000)


def draw(predict: Predict, sampler: Sampler, n: int) -> jax.Array:
    return sample(predict, LINEAR, sampler, example_keys(jax.random.key(0), jnp.arange(n)), SHAPE)[0]


def probabilities(images: jax.Array, which: int) -> np.ndarray:
    return np.asarray(jnp.exp(log_posterior(images, jnp.ones(len(images))))[:, which])


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler("ddim", 10, clip=False),
        Sampler("ddim", 10, eta=1.0, clip=False, prediction="v"),
        Sampler("ddpm", 10, clip=False, prediction="x0"),
    ],
    ids=lambda sampler: f"{sampler.kind}-{sampler.prediction}",
)
def test_samples_guided_by_the_exact_classifier_are_those_of_its_class(sampler: Sampler) -> None:
    classes, scale = jnp.repeat(jnp.array([0, 1, 0]), 100), jnp.repeat(jnp.array([1.0, 1.0, 0.0]), 100)

    def guided_by(term: Term) -> Predict:
        return with_terms(mixture(LINEAR, sampler.prediction), LINEAR, sampler, [term])

    images = jax.jit(lambda: draw(guided_by(exact(classes, scale)), sampler, 300))()
    alone = jax.jit(lambda: draw(mixture(LINEAR, sampler.prediction, classes), sampler, 300))()
    np.testing.assert_allclose(images[:200], alone[:200], atol=5e-3)
    zero, one, free = probabilities(images, 0).reshape(3, 100).mean(axis=1)
    assert zero > 0.99
    assert one < 0.01
    assert free == pytest.approx(0.3, abs=0.12)


@pytest.mark.parametrize(
    ("name", "chain"), [("noisy", "ddim"), ("clean", "ddim"), ("clean", "ddpm"), ("likeliest", "ddim")]
)
def test_guidance_raises_the_classs_probability_and_away_lowers_it(name: str, chain: str) -> None:
    """A third of the images is drawn towards class 0, a third freely, a third away from class 0."""
    third, sampler, classes = 100, Sampler(chain, 10), jnp.zeros(300, jnp.int32)

    def clean_log_p(x: jax.Array) -> jax.Array:
        return log_posterior(x, jnp.ones(len(x))) / 10.0

    def term(direction: str, acting: slice) -> Term:
        scale = jnp.zeros(3 * third).at[acting].set(1.0)
        if name == "noisy":
            return exact(classes, scale, direction)
        choose = asked(classes) if name == "clean" else likeliest(jnp.array([True, False]))
        return on_clean(clean_log_p, choose, scale, direction=direction)

    terms = [term("toward", slice(third)), term("away", slice(2 * third, None))]
    images = jax.jit(lambda: draw(with_terms(mixture(LINEAR, "eps"), LINEAR, sampler, terms), sampler, 300))()
    towards, free, away = probabilities(images, 0).reshape(3, third).mean(axis=1)
    assert free == pytest.approx(0.3, abs=0.12)
    assert towards > free + 0.3
    assert away < free - 0.15
