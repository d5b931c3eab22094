"""Guidance terms against finite differences in float64: their slopes, their sum, and where they must not act."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.guidance import (
    Denoised,
    Term,
    asked,
    likeliest,
    make_scale,
    nothing,
    on_clean,
    on_noisy,
    with_terms,
)
from jdcl_jax.diffusion.process import shift_eps
from jdcl_jax.diffusion.sampler import Predict, Sampler, guided, reverse_step, sample
from jdcl_jax.diffusion.schedule import Schedule, alpha_bars, make_schedule
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys

KINDS = ("eps", "x0", "v")
SHORT = [("ddim", "eps"), ("ddpm", "v")]
SHAPE = (2, 3, 2)
PIXELS, HIDDEN, CLASSES = 12, 7, 4
STEPS = np.array([0, 40, 200, 350, 500])
LABELS = np.array([1, 0, 3, 2, 1])


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def matrix(seed: int, rows: int, columns: int, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)) * size / np.sqrt(rows)


def network(which: int, x: np.ndarray, t: np.ndarray, xp=np) -> np.ndarray:
    """A small denoiser that mixes all pixels of an example; for numpy and JAX arrays alike."""
    h = xp.tanh(x.reshape(len(x), PIXELS) @ matrix(which, PIXELS, HIDDEN) + t[:, None] / 1000.0)
    return (0.3 * x.reshape(len(x), PIXELS) + h @ matrix(which + 1, HIDDEN, PIXELS)).reshape(x.shape)


def classifier(x: np.ndarray, xp=np) -> np.ndarray:
    logits = xp.tanh(x.reshape(len(x), PIXELS) @ matrix(20, PIXELS, HIDDEN)) @ matrix(21, HIDDEN, CLASSES, 2.0)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=-1, keepdims=True))


def net(which: int) -> Predict:
    return lambda x_t, t: network(which, x_t, t, jnp)


log_p = functools.partial(classifier, xp=jnp)


def column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None, None]


def coefficients(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(alpha_bar), sqrt(1 - alpha_bar), each [B, 1, 1, 1]."""
    alpha_bar = column(alpha_bars("linear", 1000)[t])
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def read(kind: str, output: np.ndarray, x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x_0, eps) in numpy."""
    a, b = coefficients(t)
    if kind == "eps":
        return (x - b * output) / a, output
    return (output, (x - a * output) / b) if kind == "x0" else (a * x - b * output, a * output + b * x)


def differences(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a function [B, ...] -> [B] that treats each example alone; shape of x."""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape[1:]):
        nudge = np.zeros_like(x)
        nudge[(slice(None), *place)] = step
        slopes[(slice(None), *place)] = (function(x + nudge) - function(x - nudge)) / (2 * step)
    return slopes


def exact_schedule() -> Schedule:
    """The linear one in float64, where that is on."""
    return Schedule(jnp.asarray(alpha_bars("linear", 1000)))


def noisy_images(n: int = len(STEPS), size: float = 0.8) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((n, *SHAPE)) * size


def compiled(predict: Predict, sampler: Sampler, terms: list[Term], schedule: Schedule | None = None) -> Predict:
    return jax.jit(with_terms(predict, schedule or exact_schedule(), sampler, terms))


def eps_change(predict: Predict, sampler: Sampler, terms: list[Term], x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """What the terms change in the predicted eps."""
    before, after = (
        read(sampler.prediction, np.asarray(compiled(predict, sampler, on)(x, t)), x, t)[1] for on in ([], terms)
    )
    return after - before


# -- each term is the derivative that it says


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("direction", "sign"), [("toward", 1.0), ("away", -1.0)])
def test_on_noisy_is_the_slope_of_the_classifier_at_x_t(kind: str, direction: str, sign: float, float64) -> None:
    x = noisy_images()
    slopes = differences(lambda x: classifier(x)[np.arange(len(x)), LABELS], x)
    term = on_noisy(log_p, jnp.asarray(LABELS), 0.7, direction=direction)
    got = eps_change(net(0), Sampler(prediction=kind), [term], x, STEPS)
    np.testing.assert_allclose(got, -sign * 0.7 * coefficients(STEPS)[1] * slopes, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "clip", "free", "direction"),
    [
        ("eps", True, 0.0, "toward"),
        ("eps", False, 1.5, "away"),
        ("x0", True, 1.5, "away"),
        ("x0", False, 0.0, "toward"),
        ("v", True, 1.5, "toward"),
        ("v", False, 0.0, "away"),
    ],
)
def test_on_clean_is_the_slope_through_the_denoiser(kind, clip, free, direction, float64) -> None:
    """Of the denoiser as it is sampled, also where it is guided without a classifier (`free`)."""
    x, sign = noisy_images(size={"eps": 0.4, "x0": 2.0, "v": 1.5}[kind]), {"toward": 1.0, "away": -1.0}[direction]

    def clean(x: np.ndarray) -> np.ndarray:
        output = (1 + free) * network(0, x, STEPS) - free * network(8, x, STEPS)
        return read(kind, output, x, STEPS)[0]

    assert 0.1 < np.mean(np.abs(clean(x)) > 1) < 0.9
    slopes = differences(lambda x: classifier(np.clip(clean(x), -1, 1))[np.arange(len(x)), LABELS], x)
    assert (np.abs(slopes).max(axis=(1, 2, 3)) > 1e-3).all()
    term = on_clean(log_p, asked(jnp.asarray(LABELS)), 0.7, direction=direction)
    got = eps_change(guided(net(0), net(8), free), Sampler(prediction=kind, clip=clip), [term], x, STEPS)
    np.testing.assert_allclose(got, -sign * 0.7 * coefficients(STEPS)[1] * slopes, rtol=1e-5, atol=1e-7)


def test_on_clean_follows_the_likeliest_allowed_class_of_each_example(float64) -> None:
    x, allowed = noisy_images(32), np.array([True, False, True, True])
    t = np.resize(STEPS, 32)

    def said(x: np.ndarray) -> np.ndarray:
        return classifier(np.clip(read("eps", network(0, x, t), x, t)[0], -1, 1))

    chosen = np.array([max((0, 2, 3), key=lambda c: row[c]) for row in said(x)])
    assert set(chosen) == {0, 2, 3}
    assert np.any(np.argmax(said(x), axis=1) == 1)
    slopes = differences(lambda x: said(x)[np.arange(32), chosen], x)
    term = on_clean(log_p, likeliest(jnp.asarray(allowed)), 0.5)
    got = eps_change(net(0), Sampler(), [term], x, t)
    np.testing.assert_allclose(got, -0.5 * coefficients(t)[1] * slopes, rtol=1e-5, atol=1e-7)


def test_the_network_is_run_once_however_many_terms_ask_for_its_slope() -> None:
    runs = []

    def counting(x_t: jax.Array, t: jax.Array) -> jax.Array:
        runs.append(1)
        return network(0, x_t, t, jnp)

    terms = [on_clean(log_p, asked(jnp.asarray(LABELS)), 1.0), on_clean(log_p, likeliest(jnp.ones(CLASSES, bool)), 1.0)]
    jax.make_jaxpr(with_terms(counting, make_schedule(), Sampler(), terms))(jnp.zeros((5, *SHAPE)), jnp.asarray(STEPS))
    assert len(runs) == 1


@pytest.mark.parametrize("clip", [True, False])
def test_terms_add(clip: bool, float64) -> None:
    x = noisy_images()
    noisy = on_noisy(log_p, jnp.asarray(LABELS), 0.7)
    clean = on_clean(log_p, likeliest(jnp.ones(CLASSES, bool)), 2.0, direction="away")

    def own(denoised: Denoised) -> jax.Array:
        return denoised.x_0 - 2.0 * denoised.eps + denoised.alpha_bar[:, None, None, None]

    change = functools.partial(eps_change, net(0), Sampler(prediction="v", clip=clip), x=x, t=STEPS)
    apart = [change([term]) for term in (noisy, clean, own)]
    assert all(np.abs(one).max() > 0.01 for one in apart)
    np.testing.assert_allclose(change([noisy, clean, own]), sum(apart), rtol=1e-6, atol=1e-10)
    a, b = coefficients(STEPS)
    x_0, eps = read("v", network(0, x, STEPS), x, STEPS)
    assert np.abs(x_0).max() > 1.1
    x_0 = np.clip(x_0, -1, 1) if clip else x_0
    np.testing.assert_allclose(apart[2], -b * (x_0 - 2 * eps + a**2), rtol=1e-6, atol=1e-9)


def test_terms_move_the_ancestral_mean_by_beta_over_the_root_of_alpha(float64) -> None:
    x, sampler = noisy_images(), Sampler("ddpm", clip=False, prediction="x0")
    ab = alpha_bars("linear", 1000)
    t = np.array([10, 40, 400, 700, 999])
    now, before = ab[t], ab[t - 10]
    slopes = differences(lambda x: classifier(x)[np.arange(len(x)), LABELS], x)
    term = on_noisy(log_p, jnp.asarray(LABELS), 0.7)

    def mean(terms: list[Term]) -> jax.Array:
        predict = compiled(net(0), sampler, terms)
        return reverse_step(sampler, predict(x, t), x, jnp.asarray(now), jnp.asarray(before), jnp.zeros(()))

    moved = mean([term]) - mean([])
    alpha = now / before
    np.testing.assert_allclose(moved, column((1 - alpha) / np.sqrt(alpha)) * 0.7 * slopes, rtol=1e-5, atol=1e-9)


LINEAR = make_schedule("linear", 1000)

# -- which class


def test_the_likeliest_class_is_never_a_forbidden_one() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        allowed = rng.permutation(np.arange(6) < 1 + seed % 6)
        rows = np.log(rng.dirichlet(np.full(6, 0.1), 50))
        rows[0], rows[1, allowed] = -np.inf, -np.inf
        chosen = np.asarray(likeliest(jnp.asarray(allowed))(jnp.asarray(rows, jnp.float32)))
        assert allowed[chosen].all()
        for row, found in zip(rows[2:], chosen[2:], strict=True):
            assert row[found] == pytest.approx(max(row[allowed]), rel=1e-5)


def test_the_class_asked_for_is_that_of_each_example() -> None:
    assert asked(jnp.array([2, 0]))(jnp.log(jnp.eye(2, 3) + 0.1)).tolist() == [2, 0]


# -- how strongly, and when


def test_scales_over_the_reverse_chain() -> None:
    t = jnp.array([0, 25, 50, 100])
    np.testing.assert_array_equal(make_scale("constant", 101)(t), [1, 1, 1, 1])
    np.testing.assert_array_equal(make_scale("rising", 101)(t), [1, 0.75, 0.5, 0])
    np.testing.assert_array_equal(make_scale("falling", 101)(t), [0, 0.25, 0.5, 1])
    for timesteps in (1000, 4000):
        ends = jax.jit(lambda t, n=timesteps: [make_scale(name, n)(t) for name in ("rising", "falling")])
        rising, falling = ends(jnp.array([0, timesteps - 1]))
        assert (rising.tolist(), falling.tolist()) == ([1, 0], [0, 1])  # exactly, or scale 0 would not be no guidance
    assert make_scale("rising", 1)(jnp.zeros(1, jnp.int32)).tolist() == [1]
    with pytest.raises(UserError, match="is 'late'; write one of: constant, rising, falling"):
        make_scale("late", 10)


@pytest.mark.parametrize("build", ["noisy", "clean"])
@pytest.mark.parametrize(("name", "shares"), [("rising", [1, 0.5, 0.25, 0]), ("falling", [0, 0.5, 0.75, 1])])
def test_a_scale_over_time_multiplies_the_term(build: str, name: str, shares: list[float], float64) -> None:
    ab = alpha_bars("linear", 1001)
    schedule, t, x = Schedule(jnp.asarray(ab)), jnp.array([0, 500, 750, 1000]), noisy_images(4)

    def change(**options) -> np.ndarray:
        labels = jnp.asarray(LABELS[:4])
        term = (
            on_noisy(log_p, labels, 0.5, **options)
            if build == "noisy"
            else on_clean(log_p, asked(labels), 0.5, **options)
        )
        sampler = Sampler(prediction="x0")
        return np.asarray(compiled(net(0), sampler, [term], schedule)(x, t)) - network(0, x, np.asarray(t))

    full = change()
    assert (np.abs(full).max(axis=(1, 2, 3)) > 1e-6).all()
    np.testing.assert_allclose(
        change(over_time=make_scale(name, 1001)), column(np.array(shares)) * full, rtol=1e-6, atol=1e-12
    )


def test_a_scale_may_be_an_array_with_one_for_each_example(float64) -> None:
    x, labels = noisy_images(), jnp.asarray(LABELS)
    change = functools.partial(eps_change, net(0), Sampler(), x=x, t=STEPS)
    scales = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    apart = change([on_noisy(log_p, labels, jnp.asarray(scales))])
    np.testing.assert_allclose(apart, column(scales) * change([on_noisy(log_p, labels, 1.0)]), rtol=1e-6)
    np.testing.assert_allclose(
        change([on_noisy(log_p, labels, jnp.asarray(0.7))]), change([on_noisy(log_p, labels, 0.7)])
    )


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_a_scale_below_0_or_without_a_number_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="write 0 or more"):
        on_noisy(log_p, jnp.asarray(LABELS), scale)
    with pytest.raises(UserError, match="write 0 or more"):
        on_clean(log_p, asked(jnp.asarray(LABELS)), scale)
    with pytest.raises(ValueError, match="unknown direction 'up'"):
        on_noisy(log_p, jnp.asarray(LABELS), 1.0, direction="up")


# -- scale 0 is no guidance, to the bit


def spoiled(x: jax.Array) -> jax.Array:
    """A classifier whose every word and slope is NaN."""
    return jnp.sqrt(-1.0 - jnp.square(x.reshape(len(x), PIXELS)[:, :CLASSES]))


def test_without_a_term_that_acts_the_denoiser_is_the_very_same() -> None:
    predict, labels = net(0), jnp.asarray(LABELS)
    terms = [
        on_noisy(spoiled, labels, 0.0),
        on_clean(spoiled, asked(labels), 0),
        on_noisy(spoiled, labels, np.float32(0)),
    ]
    assert with_terms(predict, LINEAR, Sampler(), terms) is predict
    assert with_terms(predict, LINEAR, Sampler(), []) is predict
    assert with_terms(predict, LINEAR, Sampler(), [on_noisy(log_p, labels, 1e-9)]) is not predict
    some = Denoised(*(jnp.ones((2, *SHAPE)) for _ in range(5)), pull=lambda slope: slope)
    np.testing.assert_array_equal(nothing(some), jnp.zeros((2, *SHAPE)))


@pytest.mark.parametrize(
    ("chain", "kind"),
    [
        pytest.param(chain, kind, marks=[] if (chain, kind) in SHORT else pytest.mark.long)
        for chain in ("ddim", "ddpm")
        for kind in KINDS
    ],
)
def test_a_traced_scale_of_0_draws_the_very_images_of_no_guidance(chain: str, kind: str, optimised: dict) -> None:
    sampler = Sampler(chain, 4, prediction=kind)
    keys, labels = example_keys(jax.random.key(1), jnp.arange(6)), jnp.resize(LABELS, 6)

    @functools.partial(jax.jit, compiler_options=optimised)
    def images(scale: jax.Array | None) -> jax.Array:
        terms = []
        if scale is not None:
            away = on_clean(spoiled, likeliest(jnp.ones(CLASSES, bool)), scale, direction="away")
            terms = [on_noisy(spoiled, labels, scale), away]
        return sample(with_terms(net(0), LINEAR, sampler, terms), LINEAR, sampler, keys, SHAPE)[0]

    assert np.asarray(images(jnp.zeros(()))).tobytes() == np.asarray(images(None)).tobytes()
    assert np.isnan(images(jnp.ones(()))).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_no_change_of_eps_keeps_the_sign_of_a_zero(kind: str, zero: float) -> None:
    output = jnp.array([[0.0, -0.0, 1.5]])
    moved = shift_eps(kind, output, jnp.full((1, 3), zero), jnp.array([0.5]))
    assert np.asarray(moved).tobytes() == np.asarray(output).tobytes()


def test_a_scale_that_rises_from_0_leaves_the_first_step_alone() -> None:
    term = on_noisy(log_p, jnp.asarray(LABELS[:2]), 1.0, over_time=make_scale("rising", 1000))
    x, t = jnp.asarray(noisy_images(2), jnp.float32), jnp.array([999, 998])
    before, after = (compiled(net(0), Sampler(), terms, LINEAR)(x, t) for terms in ([], [term]))
    assert np.asarray(before[0]).tobytes() == np.asarray(after[0]).tobytes()
    assert not np.array_equal(before[1], after[1])


# -- where no signal is left

ZERO_SNR = make_schedule("linear", 1000, zero_snr=True)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_stay_finite_and_do_not_act_where_no_signal_is_left(kind: str) -> None:
    sampler, x, t = (
        Sampler("ddim", 5, prediction=kind),
        jnp.asarray(noisy_images(2), jnp.float32),
        jnp.array([999, 998]),
    )

    @jax.jit
    def everything(x: jax.Array) -> tuple[jax.Array, ...]:
        slopes = []

        def own(denoised: Denoised) -> jax.Array:
            slopes.append(denoised.pull(jnp.ones_like(denoised.x_t)))
            return jnp.ones_like(denoised.x_t)

        clean = on_clean(log_p, asked(jnp.array([1, 0])), 1.0)
        after = with_terms(net(0), ZERO_SNR, sampler, [own, clean])(x, t)
        keys = example_keys(jax.random.key(0), t)
        x_0, _ = sample(with_terms(net(0), ZERO_SNR, sampler, [clean]), ZERO_SNR, sampler, keys, SHAPE)
        return slopes[0], after, x_0

    slope, after, x_0 = everything(x)
    before = jax.jit(net(0))(x, t)
    assert bool(jnp.isfinite(slope).all() and jnp.isfinite(after).all() and jnp.isfinite(x_0).all())
    # Two programs: they round differently on some processors.
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-6)
    assert np.abs(before[1] - after[1]).min() > 1e-3


def test_the_slope_of_x_0_where_no_signal_is_left_is_that_of_the_floor() -> None:
    """x_0 = (x_t - 0.99999 x_t) / 1e-4 = 0.1 x_t, which is not clipped."""
    slopes = []

    def own(denoised: Denoised) -> jax.Array:
        slopes.append(denoised.pull(jnp.ones_like(denoised.x_t)))
        return slopes[0]

    x = jnp.full((1, *SHAPE), 0.5)
    with_terms(lambda x, t: 0.99999 * x, ZERO_SNR, Sampler(), [own])(x, jnp.array([999]))
    np.testing.assert_allclose(slopes[0], 0.1, rtol=1e-2)


# -- with a learned variance


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_variance_passes_through_guidance(kind: str) -> None:
    def both(which: int) -> Predict:
        return lambda x_t, t: jnp.concatenate([network(which, x_t, t, jnp), 9.0 * which + x_t], axis=-1)

    x, t, labels = jnp.asarray(noisy_images(), jnp.float32), jnp.asarray(STEPS), jnp.asarray(LABELS)
    terms = [on_noisy(log_p, labels, 0.7), on_clean(log_p, asked(labels), 0.7)]
    plain = compiled(guided(net(0), net(8), 1.5), Sampler("ddpm", prediction=kind), terms, LINEAR)(x, t)
    learned = Sampler("ddpm", prediction=kind, variance="learned")
    output = compiled(guided(both(0), both(8), 1.5, "learned"), learned, terms, LINEAR)(x, t)
    np.testing.assert_allclose(output[..., :2], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(output[..., 2:], x)
