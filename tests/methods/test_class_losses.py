"""Methods whose network classifies as well: what the classifier learns, from which images and labels, at what cost.

The denoiser gives w x_t and the classifier w times a fixed projection of the image, so that losses are known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.assembly import assemble
from jdcl_jax.data.batches import Examples
from jdcl_jax.data.views import GREY, Views
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key, subkeys
from jdcl_jax.methods.denoising import class_losses, cross_entropy, joint_losses
from jdcl_jax.methods.method import ClassTerm, Learned, Setup
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.gradients import across
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import draw_batch

STUDENT, TEACHER = {"w": jnp.float32(0.9)}, {"w": jnp.float32(-0.4)}  # the teacher's classifier says the contrary
ALPHA, BATCH = 0.7, 8
PROJECTION = np.random.default_rng(5).standard_normal((16, 6))
OLD = (3, 1)  # before task 2


def projected(params, images, keys):
    del keys
    return params["w"] * (images.reshape(len(images), 16) @ PROJECTION.astype(np.float32))


@pytest.fixture
def joint(classifying: Setup) -> Setup:
    return dataclasses.replace(classifying, classifier=ClassTerm(projected, weight=ALPHA, passes=0.5))


def with_classifier(setup: Setup, **changes) -> Setup:
    return dataclasses.replace(setup, classifier=dataclasses.replace(setup.classifier, **changes))


def method_of(setup: Setup, name: str, **options):
    return make_method(name, setup, {**default_options(name), **options})


def context_of(method, task: int) -> Context:
    memory = method.end_task(method.init_memory(STUDENT), Learned(TEACHER, TEACHER), task - 1)
    return Context(key=named_key(0, "task", task), pool=None, method=method.context(memory, task))


def half(name: str, labels=(3, 1, 0, 2, 5, 4, 3, 1)) -> Examples:
    """A batch whose images were augmented, so that the classifier's and the denoiser's are not the same."""
    key = named_key(1, name)
    keys = example_keys(key, jnp.arange(BATCH))
    image, original = (jax.random.uniform(subkeys(keys, i)[0], (BATCH, 4, 4, 1), minval=-1.0) for i in (0, 1))
    return Examples(image, jnp.array(labels, jnp.int32), keys, original)


def mse(setup: Setup, examples: Examples, target_of=lambda x_t, eps: eps, w: float = 0.9) -> float:
    """MSE of w x_t, noised here with the loss's own t and eps but our own arithmetic."""
    t = jax.vmap(lambda k: jax.random.randint(k, (), 0, 1000))(subkeys(examples.key, "t"))
    eps = np.asarray(jax.vmap(lambda k: jax.random.normal(k, (4, 4, 1)))(subkeys(examples.key, "eps")), np.float64)
    alpha_bar = np.asarray(setup.schedule.alpha_bar, np.float64)[np.asarray(t)][:, None, None, None]
    x_t = np.sqrt(alpha_bar) * np.asarray(examples.image) + np.sqrt(1 - alpha_bar) * eps
    return float(np.mean((w * x_t - target_of(x_t, eps)) ** 2))


def ce(images, labels, w: float = 0.9) -> np.ndarray:
    """Cross-entropies [B] in float64; 0 for labels that are not known."""
    logits = w * np.asarray(images, np.float64).reshape(len(images), 16) @ PROJECTION
    labels = np.asarray(labels)
    values = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), labels]
    return np.where(labels >= 0, values, 0.0)


def mean_ce(examples: Examples, w: float = 0.9) -> float:
    return float(ce(examples.original, examples.label, w).mean())


# -- one batch


def test_the_joint_loss_is_the_denoising_loss_and_alpha_cross_entropy(joint) -> None:
    batches = [half("a"), half("b", (0, 0, 1, 5, 5, 5, 2, 2))]
    found = joint_losses(joint, STUDENT, batches)
    by_hand = [mse(joint, examples) + ALPHA * mean_ce(examples) for examples in batches]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    assert min(mean_ce(examples) for examples in batches) > 0.3
    assert abs(by_hand[0] - by_hand[1]) > 0.05


def test_without_a_classifier_the_joint_loss_is_the_denoising_loss(setup) -> None:
    batches = [half("a"), half("b")]
    np.testing.assert_allclose(joint_losses(setup, STUDENT, batches), [mse(setup, e) for e in batches], rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_alpha_weighs_the_classes_alone(joint, weight) -> None:
    (found,) = joint_losses(with_classifier(joint, weight=weight), STUDENT, [half("a")])
    assert float(found) == pytest.approx(mse(joint, half("a")) + weight * mean_ce(half("a")), rel=1e-5)


def test_cross_entropy_is_minus_log_p_in_nats_and_0_where_nothing_is_known() -> None:
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4]])) + jnp.array([[3.0], [0], [-9]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([1, 0, -1])), [-np.log(0.2), np.log(2), 0], atol=1e-6)


def test_images_without_labels_add_nothing_and_the_mean_is_over_those_that_have_one(joint) -> None:
    """Over their expected number: half of eight are known, so four are expected, whatever a batch holds."""
    semi = with_classifier(joint, label_fraction=0.5)
    for labels in [(3, -1, -1, 2, 5, -1, 3, -1), (3, -1, -1, -1, -1, -1, -1, 1), (-1,) * 8]:
        examples = half("a", labels)
        (found,) = class_losses(semi, STUDENT, [examples])
        assert float(found) == pytest.approx(ALPHA * ce(examples.original, labels).sum() / 4, rel=1e-5)


def test_no_gradient_comes_from_images_without_labels(joint) -> None:
    def loss(images: jax.Array) -> jax.Array:
        examples = dataclasses.replace(half("a", (3, -1, 0, 2, -1, 4, 3, 1)), original=images)
        return class_losses(with_classifier(joint, label_fraction=0.5), STUDENT, [examples])[0]

    slope = np.abs(jax.grad(loss)(half("a").original)).max((1, 2, 3))
    np.testing.assert_array_equal(slope == 0, [False, True, False, False, True, False, False, False])


def test_all_labels_of_generated_images_are_known(joint) -> None:
    batches = [half("a"), half("b")]
    real, made = class_losses(with_classifier(joint, label_fraction=0.25), STUDENT, batches, [False, True])
    assert float(real) == pytest.approx(4 * ALPHA * mean_ce(batches[0]), rel=1e-5)
    assert float(made) == pytest.approx(ALPHA * mean_ce(batches[1]), rel=1e-5)


def test_where_no_label_is_known_the_class_loss_is_zero_and_finite(joint) -> None:
    (found,) = class_losses(with_classifier(joint, label_fraction=0.0), STUDENT, [half("a", (-1,) * 8)])
    assert float(found) == 0.0


def test_the_share_of_labels_that_the_loss_counts_on_is_the_share_that_is_known(tiny_config) -> None:
    """With .001 of 130 images of a class one label is known, and the loss would weigh it as if it were .13."""
    setup = assemble(tiny_config("finetune", "classifier.kind=joint", "data.label_fraction=0.001")).setup
    assert setup.classifier.label_fraction == pytest.approx(np.mean(setup.labels >= 0), rel=0.05)


# -- what the classifier is shown


class Shown:
    """A classifier that keeps what it was shown."""

    def __init__(self) -> None:
        self.images, self.keys = None, None

    def __call__(self, params, images, keys):
        self.images, self.keys = images, keys
        return projected(params, images, keys)


def test_the_classifier_is_shown_strong_views_of_the_images_before_they_were_augmented(joint) -> None:
    views, shown = Views(flip=False, crop_scale=1.0, operations=0, cutout=0.5), Shown()
    augmenting = with_classifier(dataclasses.replace(joint, views=views), logits=shown)
    batches = [half("a"), half("b")]
    losses = joint_losses(augmenting, STUDENT, batches)
    assert shown.images.shape == (16, 4, 4, 1)
    for place, examples in enumerate(batches):
        seen = np.asarray(shown.images[8 * place : 8 * place + 8])
        grey = np.isclose(seen, GREY, atol=1e-6)
        np.testing.assert_array_equal(seen[~grey], np.asarray(examples.original)[~grey])
        assert 0 < grey.mean() <= 0.25
        classes = float(ce(seen, examples.label).mean())
        assert float(losses[place]) == pytest.approx(mse(joint, examples) + ALPHA * classes, rel=1e-5)


def test_images_that_were_not_augmented_are_their_own_originals(joint) -> None:
    examples = dataclasses.replace(half("a"), original=None)
    (found,) = class_losses(joint, STUDENT, [examples])
    assert float(found) == pytest.approx(ALPHA * ce(examples.image, examples.label).mean(), rel=1e-5)


def test_each_image_has_a_dropout_key_of_its_own_that_the_denoiser_does_not_share(joint) -> None:
    shown, denoising = Shown(), []

    def apply(params, x_t, t, labels, keys):
        denoising.append(keys)
        return params["w"] * x_t

    joint_losses(
        with_classifier(dataclasses.replace(joint, apply=apply), logits=shown), STUDENT, [half("a"), half("b")]
    )
    assert shown.keys.shape == (16,)
    keys = np.concatenate([jax.random.key_data(keys) for keys in (shown.keys, *denoising)])
    assert len(np.unique(keys, axis=0)) == 32


# -- methods on real images alone


def test_plain_training_learns_classes_too_and_says_how_much_of_the_loss_they_are(joint) -> None:
    for name in ("finetune", "joint", "er", "agem", "gr", "lwf"):
        (phase,) = method_of(joint, name).phases(0)
        examples = half("a")
        loss, metrics = phase.loss(STUDENT, {"current": examples}, None)
        assert float(metrics["loss_denoising"]) == pytest.approx(mse(joint, examples), rel=1e-5)
        assert float(metrics["loss_class"]) == pytest.approx(ALPHA * mean_ce(examples), rel=1e-5)
        assert float(loss) == pytest.approx(mse(joint, examples) + ALPHA * mean_ce(examples), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "weights"),
    [({"rehearsal_coefficient": 0.4}, (1, 0.4)), ({"form": "convex", "rehearsal_coefficient": 0.3}, (0.7, 0.3))],
)
def test_experience_replay_weighs_denoising_and_classes_of_the_buffer_alike(joint, options, weights) -> None:
    (phase,) = method_of(joint, "er", **options).phases(1)
    batch = {"current": half("a"), "buffer": half("b", (0, 0, 1, 5, 5, 5, 2, 2))}
    current, buffer = (mse(joint, examples) + ALPHA * mean_ce(examples) for examples in batch.values())
    loss, metrics = phase.loss(STUDENT, batch, None)
    assert float(metrics["loss_current"]) == pytest.approx(current, rel=1e-5)
    assert float(metrics["loss_buffer"]) == pytest.approx(buffer, rel=1e-5)
    assert float(loss) == pytest.approx(weights[0] * current + weights[1] * buffer, rel=1e-5)


def test_agem_projects_the_gradient_of_denoising_and_classes_together(joint) -> None:
    """The only parameter is a number: a gradient that conflicts with the buffer's is projected to 0."""

    def slope(examples: Examples) -> float:
        ends = [mse(joint, examples, w=w) + ALPHA * mean_ce(examples, w) for w in (0.9 + 1e-4, 0.9 - 1e-4)]
        return (ends[0] - ends[1]) / 2e-4

    right = tuple(np.argmax(np.asarray(half("b").original).reshape(8, 16) @ PROJECTION, axis=1).tolist())
    wrong = tuple(np.argmin(np.asarray(half("b").original).reshape(8, 16) @ PROJECTION, axis=1).tolist())
    (phase,) = method_of(with_classifier(joint, weight=ALPHA), "agem").phases(1)
    found = {}
    for name, labels in (("agreeing", wrong), ("conflicting", right)):
        batch = {"current": half("a", wrong[::-1]), "buffer": half("b", labels)}
        gradient, metrics = phase.descent(STUDENT, batch, None, across(None))
        found[name] = (float(gradient["w"]), slope(batch["current"]), slope(batch["buffer"]))
        current = mse(joint, batch["current"]) + ALPHA * mean_ce(batch["current"])
        assert float(metrics["loss_current"]) == pytest.approx(current, rel=1e-5)
    gradient, current, buffer = found["agreeing"]
    assert current * buffer > 0
    assert gradient == pytest.approx(current, rel=1e-3)
    gradient, current, buffer = found["conflicting"]
    assert current * buffer < 0
    assert gradient == pytest.approx(0.0, abs=1e-4 * abs(current))


# -- replay of a teacher's samples


def drawn(method, task: int = 1, batch: int = 64, step: int = 0) -> Examples:
    stream = {"replay": method.phases(task)[-1].streams["replay"]}
    context = context_of(method, task).replace(step=jnp.int32(step))
    return draw_batch(stream, context, {"replay": jnp.arange(batch)}, {})["replay"]


def said_by_teacher(images) -> np.ndarray:
    return np.argmax(-0.4 * np.asarray(images).reshape(len(images), 16) @ PROJECTION, axis=1)


@pytest.mark.parametrize("name", ["gr", "gd"])
def test_samples_of_an_unconditional_teacher_are_labelled_by_its_own_classifier(joint, name) -> None:
    examples = drawn(method_of(joint, name))
    np.testing.assert_array_equal(examples.label, said_by_teacher(examples.image))
    assert examples.label.dtype == jnp.int32
    assert len(set(examples.label.tolist()) - set(OLD)) > 1  # any class may be said, not only old ones


@pytest.mark.parametrize("name", ["gr", "gd"])
def test_samples_of_a_conditional_teacher_have_the_labels_that_it_was_asked_for(joint, name) -> None:
    asked = []

    def recording(params, x_t, t, labels, keys):
        jax.debug.callback(lambda labels: asked.append(labels), labels)
        return params["w"] * x_t + 0.01 * labels[:, None, None, None]

    examples = drawn(method_of(dataclasses.replace(joint, num_classes=6, apply=recording), name), batch=8)
    jax.effects_barrier()
    assert set(examples.label.tolist()) == set(OLD)
    np.testing.assert_array_equal(asked, [examples.label] * 2)  # of two teacher steps
    assert np.any(examples.label != said_by_teacher(examples.image))


def test_stored_samples_are_labelled_by_the_teachers_classifier_too(joint) -> None:
    method = method_of(joint, "gr", replay="stored", stored_per_class=4)
    phase, _ = method.phases(1)
    keys = example_keys(named_key(3), jnp.arange(BATCH))
    batch = {"replay": Examples(jnp.zeros((BATCH, 4, 4, 1)), jnp.zeros(BATCH, jnp.int32), keys)}
    tracked, _ = phase.observe(method.init_tracked(STUDENT), STUDENT, batch, context_of(method, 1), across(None))
    images, labels = tracked["drawn"]["images"][:BATCH], tracked["drawn"]["labels"][:BATCH]
    np.testing.assert_array_equal(labels, said_by_teacher(images / 127.5 - 1.0))
    assert len(set(labels.tolist()) - set(OLD)) > 1


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("name", "target_of"), [("gr", lambda x_t, eps: eps), ("gd", lambda x_t, eps: -0.4 * x_t)])
def test_the_loss_is_of_current_and_replayed_images_denoising_and_classes(joint, name, target_of, k) -> None:
    """Half of the current labels are known, and all of the replayed ones."""
    semi = with_classifier(joint, label_fraction=0.5)
    (phase,) = method_of(semi, name, replay_weight=0.6).phases(k - 1)
    labels = (3, -1, 0, -1, 5, -1, 3, -1)
    batch = {"current": half("current", labels), "replay": half("replay", (1, 1, 2, 0, 5, 5, 4, 3))}
    loss, metrics = phase.loss(STUDENT, batch, context_of(method_of(semi, name), k - 1))
    current = mse(joint, batch["current"]) + ALPHA * ce(batch["current"].original, labels).sum() / 4
    replay = mse(joint, batch["replay"], target_of) + ALPHA * mean_ce(batch["replay"])
    assert float(metrics["loss_current"]) == pytest.approx(current, rel=1e-5)
    assert float(metrics["loss_replay"]) == pytest.approx(replay, rel=1e-5)
    assert float(loss) == pytest.approx(current / k + (1 - 1 / k) * 0.6 * replay, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("lwf", "gaussian", "symmetric_gaussian", "trajectory")),
        ("gd", {"distil_on": "all_states"}),
    ],
)
def test_methods_whose_old_inputs_are_no_images_classify_the_current_ones_alone(joint, setup, name, options) -> None:
    batch, values = {"current": half("a"), "replay": half("b")}, []
    for network in (joint, setup):
        (phase,) = method_of(network, name, **options).phases(2)
        loss, metrics = phase.loss(STUDENT, batch, context_of(method_of(network, name, **options), 2))
        values.append([float(loss), float(metrics["loss_current"]), float(metrics["loss_replay"])])
    classes = ALPHA * mean_ce(half("a"))
    assert np.subtract(*values) == pytest.approx([classes / 3, classes, 0], rel=1e-4, abs=1e-6)


# -- cost, in forward passes: classifying costs .5 here, and learning from it three times that


@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [
        ("finetune", {}, 3 + 1.5),
        ("joint", {}, 3 + 1.5),
        ("er", {}, 2 * (3 + 1.5)),
        ("er", {"form": "concatenated", "rehearsal_coefficient": 0.5}, 1.5 * (3 + 1.5)),
        ("agem", {}, 2 * (3 + 1.5)),
        ("lwf", {}, 3 + 1 + 1.5),
        ("gaussian", {}, 3 + 3 + 1 + 1.5),
        ("trajectory", {}, 3 + 3 + 1 + 2 + 1.5),
        ("gr", {}, 3 + 3 + 2 + 0.5 + 2 * 1.5),
        ("gd", {}, 3 + 3 + 1 + 2 + 0.5 + 2 * 1.5),
        ("gr", {"replay": "stored"}, 3 + 3 + 2 * 1.5),
        pytest.param(
            "gd",
            {"distil_on": "all_states"},
            3 + 2 + 2 * 3 + 1.5,
        ),
    ],
)
def test_a_step_costs_what_its_classifying_costs_too(joint, name, options, passes) -> None:
    method = method_of(joint, name, **options)
    assert method.phases(1)[-1].passes == pytest.approx(passes)
    assert method.phases(0)[-1].passes == pytest.approx(3 + 1.5)


def test_drawing_costs_its_labelling_too_and_a_conditional_teachers_samples_need_none(joint) -> None:
    assert method_of(joint, "gr", replay="stored", teacher_steps=7).phases(1)[0].passes == 7 + 0.5
    conditional = dataclasses.replace(joint, num_classes=6)
    assert method_of(conditional, "gr", replay="stored", teacher_steps=7).phases(1)[0].passes == 7
    assert method_of(conditional, "gr").phases(1)[0].passes == 3 + 3 + 2 + 2 * 1.5


def test_compute_matched_joint_training_costs_what_generative_distillation_costs(joint) -> None:
    matched = method_of(dataclasses.replace(joint, steps=(300,) * 3), "joint", compute_matched=True).phases(1)[0]
    distilled = method_of(joint, "gd").phases(1)[0]
    assert matched.steps * matched.passes == pytest.approx(300 * distilled.passes, rel=0.01)


# -- a teacher guided by its own classifier


@pytest.fixture
def guided(joint) -> tuple[Setup, list]:
    """A setup whose teacher can be guided, and what it was asked: (w, t, classes, scale) of each call."""
    asked = []

    def towards(params, x_t, t, classes, scale):
        jax.debug.callback(lambda *call: asked.append(call), params["w"], t, classes, scale)
        return params["w"] * x_t - 0.1 * scale * classes[:, None, None, None]

    return with_classifier(joint, towards=towards), asked


@pytest.mark.parametrize("name", ["gr", "gd"])
def test_towards_guides_the_teacher_to_old_classes_and_its_samples_are_still_labelled(guided, name) -> None:
    setup, asked = guided
    examples = drawn(method_of(setup, name, classifier_guidance=2.0), batch=16)
    jax.effects_barrier()
    assert len(asked) == 2  # teacher steps
    for w, t, classes, scale in asked:
        assert (float(w), float(scale)) == (pytest.approx(-0.4), 2.0)
        assert set(classes.tolist()) == set(OLD)
        np.testing.assert_array_equal(classes, asked[0][2])
        assert len(set(t.tolist())) == 1
    np.testing.assert_array_equal(examples.label, said_by_teacher(examples.image))
    brightness = np.asarray(examples.image).mean((1, 2, 3))
    assert abs(brightness[asked[0][2] == 3].mean() - brightness[asked[0][2] == 1].mean()) > 0.1


def test_how_the_evaluations_samples_are_guided_has_no_part_in_replay(guided) -> None:
    setup, asked = guided
    evaluated = dataclasses.replace(setup, classifier_guidance=7.0)
    plain = drawn(method_of(evaluated, "gr"), batch=8)
    jax.effects_barrier()
    assert asked == []
    np.testing.assert_array_equal(plain.image, drawn(method_of(setup, "gr"), batch=8).image)
    drawn(method_of(evaluated, "gr", classifier_guidance=2.0), batch=8)
    jax.effects_barrier()
    assert [float(scale) for *_, scale in asked] == [2.0, 2.0]


@pytest.mark.parametrize("name", ["gr", "gd"])
def test_towards_needs_a_classifier_on_the_denoisers_own_features(setup, joint, name) -> None:
    for network in (setup, joint):  # none, and one that cannot guide
        with pytest.raises(UserError, match=r"method\.classifier_guidance"):
            method_of(network, name, classifier_guidance=1.0)


def test_towards_without_effect_on_a_conditional_teacher_is_refused(guided) -> None:
    with pytest.raises(UserError, match=r"method\.classifier_guidance"):
        method_of(dataclasses.replace(guided[0], num_classes=6), "gr", classifier_guidance=1.0)


def test_towards_without_effect_on_all_states_is_refused(guided) -> None:
    with pytest.raises(UserError, match=r"method\.classifier_guidance"):
        method_of(guided[0], "gd", classifier_guidance=1.0, distil_on="all_states")


def test_guidance_away_from_the_class_asked_for_is_refused(guided) -> None:
    with pytest.raises(UserError, match=r"method\.classifier_guidance"):
        method_of(guided[0], "gr", classifier_guidance=-1.0)
