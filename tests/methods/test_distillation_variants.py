"""What each kind of distillation asks the teacher and the student, and what it costs, with a denoiser done by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.keys import example_keys, example_normal, named_key, subkeys
from jdcl_jax.methods import gaussian, trajectory
from jdcl_jax.methods.gaussian import mirrored
from jdcl_jax.methods.method import Learned, Setup
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.state import Context

STUDENT = {"w": jnp.float32(0.9), "b": jnp.float32(0.3), "e": jnp.float32(0.2)}
TEACHER = {"w": jnp.float32(0.4), "b": jnp.float32(-0.5), "e": jnp.float32(-0.1)}


def toy(params, x_t, t, labels, keys):
    """Says w x_t + b t / 1000 + e label: a wrong input, timestep or label shows."""
    del keys
    shift = params["b"] * t / 1000 + (0.0 if labels is None else params["e"] * labels)
    return params["w"] * x_t + shift[:, None, None, None]


def said(params, x_t, t, labels=None) -> np.ndarray:
    """The same, float64."""
    w, b, e = (float(params[name]) for name in "wbe")
    shift = b * np.asarray(t) / 1000 + (0.0 if labels is None else e * np.asarray(labels))
    return w * np.asarray(x_t, np.float64) + np.reshape(shift, (-1, 1, 1, 1))


@dataclasses.dataclass(frozen=True)
class Call:
    """One forward pass of the network; `labels` are -1 if there are none."""

    by_student: bool
    x_t: np.ndarray
    t: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass
class Step:
    """One step of a task's training: its price, loss, metrics, batch and all forward passes, in order."""

    passes: float
    loss: float
    metrics: dict[str, float]
    batch: Any
    calls: list[Call]

    def by(self, student: bool) -> list[Call]:
        return [call for call in self.calls if call.by_student is student]

    @property
    def asked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the student was asked of the old tasks: x_t, t, labels."""
        (call,) = self.by(student=True)
        return call.x_t[len(call.t) - self.old :], call.t[-self.old :], call.labels[-self.old :]

    @property
    def old(self) -> int:
        (call,) = self.by(student=True)
        return len(call.t) - len(self.batch["current"].label)


def method_of(setup: Setup, name: str, **options):
    return make_method(name, setup, {**default_options(name), **options})


def unrolled(body, carry, steps):
    """What `lax.scan` computes, with arrays that can be looked at on the way."""
    outputs = []
    for i in range(len(jax.tree.leaves(steps)[0])):
        carry, output = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], steps))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def step_of(setup: Setup, name: str, *, task: int = 1, batch: int = 8, **options) -> Step:
    """One step of the last phase of a task (from 0)."""
    calls: list[Call] = []

    def recording(params, x_t, t, labels, keys):
        asked = np.broadcast_to(-1 if labels is None else np.asarray(labels), t.shape)
        calls.append(Call(params is STUDENT, np.asarray(x_t), np.asarray(t), asked))
        return toy(params, x_t, t, labels, keys)

    setup = dataclasses.replace(setup, apply=recording, batch_size=batch)
    method = method_of(setup, name, **options)
    phase = method.phases(task)[-1]
    memory = method.end_task(method.init_memory(STUDENT), Learned(TEACHER, TEACHER), task - 1)
    context = Context(named_key(0, "task", task), None, method.context(memory, task))
    keys = {stream: example_keys(named_key(1, stream), jnp.arange(batch)) for stream in phase.streams}
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (batch, *setup.image_shape)), jnp.float32)
    label = jnp.arange(batch) % setup.num_classes if setup.num_classes else jnp.zeros(batch, jnp.int32)
    drawn = {"current": Examples(image, label, keys["current"])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "scan", unrolled)
        for stream in phase.streams.keys() - {"current"}:
            drawn[stream] = phase.streams[stream].draw(context, keys[stream])
        loss, metrics = phase.loss(STUDENT, drawn, context)
    return Step(phase.passes, float(loss), {name: float(value) for name, value in metrics.items()}, drawn, calls)


def uniform_t(keys) -> np.ndarray:
    return np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(subkeys(keys, "t")))


def normal(keys, name: str, shape=(4, 4, 1)) -> np.ndarray:
    return np.asarray(example_normal(subkeys(keys, name), shape), np.float64)


def noised(setup: Setup, images, t, eps) -> np.ndarray:
    alpha_bar = np.asarray(setup.schedule.alpha_bar, np.float64)[np.asarray(t)][:, None, None, None]
    return np.sqrt(alpha_bar) * np.asarray(images, np.float64) + np.sqrt(1 - alpha_bar) * eps


def ddim(setup: Setup, x: np.ndarray, visited: list[int], labels=None) -> tuple[np.ndarray, list, list]:
    """The teacher's reverse walk: the last predicted x_0 in [-1, 1], all states, and what the teacher said there."""
    alpha_bar, states, outputs = np.asarray(setup.schedule.alpha_bar, np.float64), [], []
    for t, following in zip(visited, [*visited[1:], None], strict=True):
        eps = said(TEACHER, x, np.full(len(x), t), labels)
        states.append(x)
        outputs.append(eps)
        x_0 = np.clip((x - np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(max(alpha_bar[t], 1e-8)), -1, 1)
        if following is not None:
            x = np.sqrt(alpha_bar[following]) * x_0 + np.sqrt(1 - alpha_bar[following]) * eps
    return x_0, states, outputs


def distance(x_t, t, labels=None) -> float:
    """MSE between student and teacher."""
    return float(np.mean((said(STUDENT, x_t, t, labels) - said(TEACHER, x_t, t, labels)) ** 2))


def current_loss(setup: Setup, step: Step) -> float:
    examples = step.batch["current"]
    t, eps = uniform_t(examples.key), normal(examples.key, "eps")
    return float(np.mean((said(STUDENT, noised(setup, examples.image, t, eps), t) - eps) ** 2))


# -- one by one


@pytest.mark.parametrize("name", ["gd", "gr"])
def test_the_teachers_samples_are_renoised_at_a_timestep_of_their_own(setup, name) -> None:
    step = step_of(setup, name, teacher_steps=4)
    key = step.batch["replay"].key
    images, _, _ = ddim(setup, normal(subkeys(key, "sample"), "x_T"), [999, 749, 499, 249])
    np.testing.assert_allclose(step.batch["replay"].image, images, atol=2e-3)
    t, eps = uniform_t(key), normal(key, "eps")
    x_t, asked_t, _ = step.asked
    np.testing.assert_array_equal(asked_t, t)
    np.testing.assert_allclose(x_t, noised(setup, images, t, eps), atol=2e-3)
    wanted = distance(x_t, t) if name == "gd" else np.mean((said(STUDENT, x_t, t) - eps) ** 2)
    assert step.metrics["loss_replay"] == pytest.approx(wanted, rel=1e-4)
    assert step.metrics["loss_current"] == pytest.approx(current_loss(setup, step), rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_trajectory_asks_at_the_teachers_own_states(setup, monkeypatch, steps) -> None:
    wanted_t = [999, 998, 0, 1, 333, 500, 250, 640]
    monkeypatch.setattr(trajectory, "draw_timesteps", lambda law, keys: jnp.array(wanted_t))
    step = step_of(setup, "trajectory", teacher_steps=steps)
    noise = normal(subkeys(step.batch["replay"].key, "sample"), "x_T")
    x_t, t, _ = step.asked
    assert t.tolist() == wanted_t
    for i, last in enumerate(wanted_t):
        visited = list(dict.fromkeys(999 - int(np.round((999 - last) * s / steps)) for s in range(steps + 1)))
        _, states, _ = ddim(setup, noise[i : i + 1], visited)
        np.testing.assert_allclose(x_t[i], states[-1][0], atol=2e-3)
    np.testing.assert_allclose(x_t[0], noise[0], atol=1e-6)
    assert step.metrics["loss_replay"] == pytest.approx(distance(x_t, t), rel=1e-4)
    assert step.metrics["loss_current"] == pytest.approx(current_loss(setup, step), rel=1e-4)


def test_trajectory_stops_at_a_uniform_timestep_by_its_own_key(setup) -> None:
    step = step_of(setup, "trajectory")
    np.testing.assert_array_equal(step.asked[1], uniform_t(step.batch["replay"].key))


def test_lwf_has_one_batch_one_pass_of_the_student_and_two_targets(setup) -> None:
    step = step_of(setup, "lwf")
    assert set(step.batch) == {"current"}
    (student,), (teacher,) = step.by(student=True), step.by(student=False)
    np.testing.assert_array_equal(student.x_t, teacher.x_t)
    np.testing.assert_array_equal(student.t, teacher.t)
    examples = step.batch["current"]
    t, eps = uniform_t(examples.key), normal(examples.key, "eps")
    np.testing.assert_array_equal(student.t, t)
    np.testing.assert_allclose(student.x_t, noised(setup, examples.image, t, eps), atol=1e-5)
    assert step.metrics["loss_current"] == pytest.approx(current_loss(setup, step), rel=1e-4)
    assert step.metrics["loss_replay"] == pytest.approx(distance(student.x_t, t), rel=1e-4)
    assert step.loss == pytest.approx(
        0.5 * step.metrics["loss_current"] + 0.5 * 1.25 * step.metrics["loss_replay"], rel=1e-5
    )


def test_gaussian_asks_about_pure_noise_whatever_the_timestep(setup) -> None:
    step = step_of(setup, "gaussian", batch=512)
    x_t, t, _ = step.asked
    np.testing.assert_array_equal(t, uniform_t(step.batch["replay"].key))
    for part in (t < 200, (t >= 200) & (t < 800), t >= 800):
        assert part.sum() > 50
        assert np.std(x_t[part]) == pytest.approx(1, abs=5 / np.sqrt(2 * 16 * part.sum()))
        assert abs(np.mean(x_t[part])) < 5 / np.sqrt(16 * part.sum())
    (teacher,) = step.by(student=False)
    np.testing.assert_array_equal(teacher.x_t, x_t)
    np.testing.assert_array_equal(teacher.t, t)
    assert step.metrics["loss_replay"] == pytest.approx(distance(x_t, t), rel=1e-4)
    assert step.metrics["loss_current"] == pytest.approx(current_loss(setup, step), rel=1e-4)


def test_symmetric_gaussian_mirrors_the_more_the_lower_the_timestep(setup) -> None:
    step, plain = (step_of(setup, name, batch=512) for name in ("symmetric_gaussian", "gaussian"))
    x_t, t, _ = step.asked
    np.testing.assert_array_equal(plain.asked[1], t)
    upright = np.all(x_t == x_t[:, ::-1], axis=(1, 2, 3))  # equal to its image upside down
    sideways = np.all(x_t == x_t[:, :, ::-1], axis=(1, 2, 3))
    high, middle, low = t > 2000 / 3, (t > 1000 / 3) & (t <= 2000 / 3), t <= 1000 / 3
    assert not np.any((upright | sideways)[high])
    assert np.all((upright ^ sideways)[middle])
    assert np.all((upright & sideways)[low])
    n = middle.sum()
    assert n > 150
    assert abs(np.mean(upright[middle]) - 0.5) < 2.5 / np.sqrt(n)
    np.testing.assert_array_equal(x_t[high], plain.asked[0][high])
    np.testing.assert_array_equal(x_t[:, 2:, 2:], plain.asked[0][:, 2:, 2:])  # the quarter that all others mirror
    assert np.std(x_t) == pytest.approx(1, abs=0.05)
    assert step.metrics["loss_replay"] == pytest.approx(distance(x_t, t), rel=1e-4)


def test_symmetric_gaussian_changes_at_thirds_of_the_timesteps(setup, monkeypatch) -> None:
    monkeypatch.setattr(gaussian, "draw_timesteps", lambda law, keys: jnp.array([999, 667, 666, 334, 333, 0]))
    x_t, _, _ = step_of(setup, "symmetric_gaussian", batch=6).asked
    axes = [sum(np.array_equal(x, np.flip(x, axis)) for axis in (0, 1)) for x in x_t]
    assert axes == [0, 0, 1, 1, 2, 2]


def test_a_mirrored_image_keeps_its_second_half_and_a_line_in_the_middle() -> None:
    image = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(
        mirrored(image, 2)[0, :, :, 0], [[4, 3, 2, 3, 4], [9, 8, 7, 8, 9], [14, 13, 12, 13, 14]]
    )
    np.testing.assert_array_equal(mirrored(image, 1)[0, :, 0, 0], [10, 5, 10])


# -- all states of the chain, and chains that stop early


def test_all_states_are_the_chains_own_with_the_teachers_outputs_as_targets(setup) -> None:
    step = step_of(setup, "gd", distil_on="all_states", teacher_steps=4)
    visited = [999, 749, 499, 249]
    noise = normal(subkeys(step.batch["replay"].key, "sample"), "x_T")
    _, states, outputs = ddim(setup, noise, visited)
    x_t, t, _ = step.asked
    assert t.tolist() == np.repeat(visited, 8).tolist()
    np.testing.assert_allclose(x_t, np.concatenate(states), atol=2e-3)
    wanted = np.mean((said(STUDENT, x_t, t) - np.concatenate(outputs)) ** 2)
    assert step.metrics["loss_replay"] == pytest.approx(wanted, rel=1e-3)
    assert step.metrics["loss_current"] == pytest.approx(current_loss(setup, step), rel=1e-4)
    assert [call.t.tolist() for call in step.by(student=False)] == [[t] * 8 for t in visited]


def at_most(setup: Setup, snr: float) -> list[int]:
    """The timesteps with alpha_bar / (1 - alpha_bar) <= snr."""
    alpha_bar = np.asarray(setup.schedule.alpha_bar, np.float64)
    return np.flatnonzero(alpha_bar <= snr * (1 - alpha_bar)).tolist()


@pytest.mark.parametrize("snr", [1.0, 0.1])
def test_a_chain_that_stops_early_is_cheaper_and_distilled_above_its_end_only(setup, snr) -> None:
    noisy = at_most(setup, snr)
    visited = [t for t in range(999, 0, -100) if t in noisy]
    assert 2 <= len(visited) < 10
    step = step_of(setup, "gd", teacher_steps=10, stop_snr=snr, batch=512)
    assert [int(call.t[0]) for call in step.by(student=False)[:-1]] == visited
    images, _, _ = ddim(setup, normal(subkeys(step.batch["replay"].key, "sample"), "x_T"), visited)
    np.testing.assert_allclose(step.batch["replay"].image, images, atol=5e-3)
    x_t, t, _ = step.asked
    assert set(t.tolist()) <= set(noisy)
    assert min(noisy) <= min(t) < min(noisy) + 30
    assert step.metrics["loss_replay"] == pytest.approx(distance(x_t, t), rel=1e-4)
    full, short = (method_of(setup, "gd", teacher_steps=10, stop_snr=s).phases(1)[-1].passes for s in (0.0, snr))
    assert full - short == 10 - len(visited)


def test_all_states_of_a_chain_that_stops_early(setup) -> None:
    visited = [t for t in (999, 749, 499, 249) if t in at_most(setup, 0.2)]
    assert len(visited) in (2, 3)
    step = step_of(setup, "gd", distil_on="all_states", teacher_steps=4, stop_snr=0.2)
    assert step.asked[1].tolist() == np.repeat(visited, 8).tolist()


@pytest.mark.parametrize("name", ["gr", "gd"])
def test_samples_are_renoised_by_the_law_that_is_asked_for(setup, name) -> None:
    t = step_of(setup, name, t_min=900, timesteps="beta", batch=512).asked[1]
    assert (min(t), max(t)) == (900, 999)


# -- conditional denoisers

OLD = {3, 1}  # the classes of the first task
CASES = [
    *((name, {}) for name in ("gr", "gd", "trajectory", "gaussian", "symmetric_gaussian")),
    ("gd", {"distil_on": "all_states"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_conditional_model_is_asked_about_old_classes_and_about_no_class(setup, name, options) -> None:
    """As often about no class as new examples are, or the part that guidance subtracts would forget."""
    conditional = dataclasses.replace(setup, num_classes=6, label_dropout=0.25)
    step = step_of(conditional, name, batch=512, **options)
    x_t, t, labels = step.asked
    assert set(labels.tolist()) == OLD | {6}
    shares = [np.mean(labels == label) for label in (3, 1, 6)]
    assert shares == pytest.approx([0.375, 0.375, 0.25], abs=5 * 0.5 / np.sqrt(512))
    if name != "gr":
        assert step.metrics["loss_replay"] == pytest.approx(distance(x_t, t, labels), rel=1e-3)
    for call in step.by(student=False):
        assert set(call.labels.tolist()) <= OLD | {6}


@pytest.mark.parametrize("name", ["gd", "gr"])
def test_a_sample_is_trained_on_under_the_label_it_was_drawn_for(setup, name) -> None:
    conditional = dataclasses.replace(setup, num_classes=6, label_dropout=0.0)
    step = step_of(conditional, name, task=2)
    key, labels = step.batch["replay"].key, step.asked[2]
    assert set(labels.tolist()) <= {3, 1, 0, 2}
    assert len(set(labels.tolist())) > 2
    images, _, _ = ddim(setup, normal(subkeys(key, "sample"), "x_T"), [999, 499], labels)
    np.testing.assert_allclose(step.batch["replay"].image, images, atol=2e-3)


def test_trajectory_walks_with_the_label_and_with_guidance(setup) -> None:
    """(1 + w) and -w times the teacher's word on the label and on no class (6); the target is without guidance."""
    guided = dataclasses.replace(setup, num_classes=6, label_dropout=0.0, guidance=1.5)
    step = step_of(guided, "trajectory", teacher_steps=2)
    x_t, t, labels = step.asked
    key = step.batch["replay"].key
    alpha_bar = np.asarray(setup.schedule.alpha_bar, np.float64)
    for i, noise in enumerate(normal(subkeys(key, "sample"), "x_T")):
        x, place = noise, 999
        for following in (999 - int(np.round((999 - t[i]) / 2)), int(t[i])):
            eps = 2.5 * said(TEACHER, x[None], place, labels[i])[0] - 1.5 * said(TEACHER, x[None], place, 6)[0]
            root = np.sqrt(max(alpha_bar[place], 1e-8))
            x_0 = np.clip((x - np.sqrt(1 - alpha_bar[place]) * eps) / root, -1, 1)
            x = np.sqrt(alpha_bar[following]) * x_0 + np.sqrt(1 - alpha_bar[following]) * eps
            place = following
        np.testing.assert_allclose(x_t[i], x, atol=5e-3)
    assert step.metrics["loss_replay"] == pytest.approx(distance(x_t, t, labels), rel=1e-3)


def test_lwf_asks_both_with_the_same_labels_of_the_current_batch(setup) -> None:
    conditional = dataclasses.replace(setup, num_classes=6, label_dropout=0.25)
    (student,), (teacher,) = (step_of(conditional, "lwf", batch=512).by(student=who) for who in (True, False))
    np.testing.assert_array_equal(student.labels, teacher.labels)
    assert np.mean(student.labels == 6) == pytest.approx(0.25, abs=0.1)


# -- the price


@pytest.mark.parametrize(
    ("name", "options", "guidance", "passes"),
    [
        ("gr", {}, 0, 2 + 6),
        ("gd", {}, 0, 2 + 7),
        ("gd", {"teacher_steps": 5}, 0, 5 + 7),
        ("gd", {"teacher_steps": 5}, 1.0, 2 * 5 + 7),
        ("gd", {"teacher_steps": 3, "distil_on": "all_states"}, 0, 3 + 3 + 3 * 3),
        ("gd", {"teacher_steps": 4, "stop_snr": 0.5}, 0, 3 + 7),
        ("gd", {"teacher_steps": 4, "stop_snr": 0.5, "distil_on": "all_states"}, 0, 3 + 3 + 3 * 3),
        ("trajectory", {"teacher_steps": 3}, 0, 3 + 7),
        ("trajectory", {"teacher_steps": 3}, 1.0, 2 * 3 + 7),
        ("lwf", {}, 0, 4),
        ("gaussian", {}, 0, 7),
        ("symmetric_gaussian", {}, 0, 7),
        ("gaussian", {}, 1.0, 7),
        ("finetune", {}, 0, 3),
        ("joint", {}, 0, 3),
    ],
)
def test_the_price_of_a_step_is_the_passes_that_are_made(setup, name, options, guidance, passes) -> None:
    """One for each batch that the teacher sees, three for each that the student sees and learns from."""
    if guidance:
        setup = dataclasses.replace(setup, num_classes=6, guidance=guidance)
    step = step_of(setup, name, **options)
    assert len(step.by(student=True)) == 1
    made = sum((3 if call.by_student else 1) * len(call.t) / 8 for call in step.calls)
    assert step.passes == made == passes
