"""The laws of rehearsed timesteps against SciPy's, their truncation, and one key for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key, subkeys
from jdcl_jax.methods.denoising import noise_examples
from jdcl_jax.methods.timesteps import TimestepLaw, draw_timesteps, law_of_options


def keys(n: int) -> jax.Array:
    return example_keys(named_key(0, "timesteps"), jnp.arange(n))


def drawn(law: TimestepLaw, n: int) -> np.ndarray:
    t = draw_timesteps(law, keys(n))
    assert t.dtype == jnp.int32
    return np.asarray(t)


def beta_mass(timesteps: int, t_min: int = 0) -> np.ndarray:
    """P(floor(T u) = t | t >= t_min) for u ~ Beta(4, 1.2), one t at a time."""
    law = stats.beta(4.0, 1.2)
    mass = np.array([law.cdf((t + 1) / timesteps) - law.cdf(t / timesteps) for t in range(timesteps)])
    mass[:t_min] = 0
    return mass / mass.sum()


@pytest.mark.parametrize("t_min", [0, 25])
def test_beta_timesteps_come_as_often_as_scipys_beta_says(t_min: int) -> None:
    """A chi-square test over T=40 timesteps; it is far out for swapped parameters or a shift by one timestep."""
    n = 20_000
    counts = np.bincount(drawn(TimestepLaw(40, "beta", t_min), n), minlength=40)
    assert counts[:t_min].sum() == 0
    expected = n * beta_mass(40, t_min)
    rare = expected < 20
    kept = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    statistic = np.sum((kept[0] - kept[1]) ** 2 / np.maximum(kept[1], 1e-9))
    assert statistic < stats.chi2(np.count_nonzero(~rare)).ppf(1 - 1e-4)
    for wrong in (np.roll(expected, 1), np.roll(expected, -1), expected[::-1]):
        assert np.sum((counts - wrong) ** 2 / (wrong + 1)) > 3 * statistic


@pytest.mark.parametrize("t_min", [0, 1, 37, 99])
@pytest.mark.parametrize("kind", ["uniform", "beta"])
def test_probabilities_are_those_of_the_whole_law_given_t_min(kind: str, t_min: int) -> None:
    whole = beta_mass(100) if kind == "beta" else np.full(100, 0.01)
    got = TimestepLaw(100, kind, t_min).probabilities()
    assert np.all(got[:t_min] == 0)
    np.testing.assert_allclose(got[t_min:], whole[t_min:] / whole[t_min:].sum(), rtol=1e-9)


@pytest.mark.parametrize("kind", ["uniform", "beta"])
def test_nothing_is_drawn_below_t_min_and_both_ends_are(kind: str) -> None:
    t = drawn(TimestepLaw(1000, kind, 990), 3000)
    assert set(t.tolist()) == set(range(990, 1000))
    assert set(drawn(TimestepLaw(1000, kind, 999), 50).tolist()) == {999}


@pytest.mark.parametrize("t_min", [0, 300])
def test_no_uniform_number_leads_out_of_the_law(monkeypatch, t_min: int) -> None:
    """Neither 0 itself nor the largest number below 1."""
    law = TimestepLaw(1000, "beta", t_min)
    for number, wanted in ((0.0, t_min), (float(np.nextafter(np.float32(1), np.float32(0))), 999)):
        monkeypatch.setattr(jax.random, "uniform", lambda key, number=number: jnp.float32(number))
        assert set(drawn(law, 3).tolist()) == {wanted}


def test_the_uniform_law_is_randint_of_each_key_bit_for_bit(setup) -> None:
    wanted = [int(jax.random.randint(key, (), 0, 1000)) for key in keys(50)]
    assert drawn(TimestepLaw(1000), 50).tolist() == wanted
    assert min(wanted) < 200
    assert max(wanted) > 800
    examples = Examples(jnp.zeros((50, *setup.image_shape)), jnp.zeros(50, jnp.int32), keys(50))
    wanted = [int(jax.random.randint(key, (), 0, 1000)) for key in subkeys(keys(50), "t")]
    assert noise_examples(setup, examples).t.tolist() == wanted


@pytest.mark.parametrize("kind", ["uniform", "beta"])
def test_a_timestep_depends_on_its_own_key_alone(kind: str) -> None:
    law = TimestepLaw(1000, kind)
    many = np.asarray(draw_timesteps(law, keys(20)))
    np.testing.assert_array_equal(draw_timesteps(law, keys(20)[7:12]), many[7:12])
    assert len(set(many.tolist())) > 15


def test_options_become_a_law() -> None:
    assert law_of_options({"timesteps": "beta", "t_min": 625}, 1000) == TimestepLaw(1000, "beta", 625)
    assert law_of_options({"timesteps": "uniform", "t_min": 999}, 1000) == TimestepLaw(1000, "uniform", 999)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timesteps": "gamma", "t_min": 0}, "method.timesteps is 'gamma'; write one of: uniform, beta"),
        ({"timesteps": "uniform", "t_min": 1000}, "method.t_min is 1000; write 0 to 999"),
        ({"timesteps": "beta", "t_min": -1}, "method.t_min is -1; write 0 to 999"),
    ],
)
def test_impossible_laws_are_refused(options, said: str) -> None:
    with pytest.raises(UserError, match=said):
        law_of_options(options, 1000)
