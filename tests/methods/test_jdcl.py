"""JDCL's course: phases and their costs, what each starts from and leaves, who draws and labels, and its options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.batches import to_float, to_uint8
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, fold_name, named_key, subkeys
from jdcl_jax.methods.denoising import generate
from jdcl_jax.methods.method import ClassTerm, Learned
from jdcl_jax.methods.registry import canonical_name, default_options, known_penalties, make_method
from jdcl_jax.training.state import Context, create_state
from jdcl_jax.training.step import observe_step, scan_steps

QUOTA, BATCH = 5, 8
CLASSES = (3, 1, 0, 2, 5, 4)
ANGLES = 2 * np.pi * np.arange(6) / 6


def params_of(w: float, turn: float = 0.0) -> dict[str, np.ndarray]:
    """A denoiser w x_t and a classifier of six directions in the plane of the halves' means, turned by an angle."""
    return {"w": np.float32(w), "v": np.stack([np.cos(ANGLES + turn), np.sin(ANGLES + turn)]).astype(np.float32)}


START = params_of(0.9)
OLD, OLD_RAW = params_of(0.95, 0.3), params_of(0.5, 1.8)
LOCAL, LOCAL_RAW = params_of(0.8, 2.6), params_of(0.6, 4.1)


def denoiser(params, x_t, t, labels, keys):
    assert labels is None
    assert keys is None
    return params["w"] * x_t


def logits(params, images, keys):
    assert keys is None
    return images.reshape(-1, 4, 2, 2).mean((1, 3)) @ params["v"]


@pytest.fixture
def joint(setup):
    classifier = ClassTerm(logits, passes=0.5)
    return dataclasses.replace(
        setup,
        apply=denoiser,
        classifier=classifier,
        ema=True,
        steps=(10, 20, 30),
        fresh=lambda key: {"w": jax.random.normal(key), "v": jnp.zeros((2, 6))},
    )


def method_of(setup, **options):
    few = {"quota": QUOTA, "replay_batch": BATCH, "global_steps": 40, "replay_steps": 3, "class_delay": 10}
    return make_method("jdcl", setup, {**default_options("jdcl"), **few, **options})


def named(method, task=1) -> dict:
    return {phase.name: phase for phase in method.phases(task)}


def learned(averaged, raw=None, **tracked) -> Learned:
    return Learned(averaged if raw is None else raw, averaged, tracked)


def drawn(counts, fill=0) -> dict[str, np.ndarray]:
    """A draw whose images have, in row r, the value r + 1, as far as there are any; `fill` elsewhere."""
    images = np.full((6, QUOTA, 4, 4, 1), fill, np.uint8)
    for place, count in enumerate(counts):
        images[place, :count] = (place * QUOTA + 1 + np.arange(count))[:, None, None, None]
    return {
        "images": images.reshape(-1, 4, 4, 1),
        "counts": np.array(counts, np.int32),
        "labelled": np.arange(14, dtype=np.int32).reshape(2, 7),
    }


def assert_equal(tree, expected) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


# -- phases and costs


def test_the_first_task_has_a_local_stage_and_every_other_a_draw_and_a_global_one_too(joint) -> None:
    method = method_of(joint)
    names_and_steps = [[(phase.name, phase.steps) for phase in method.phases(task)] for task in range(3)]
    assert names_and_steps == [
        [("local", 10)],
        [("local", 20), ("draw", 3 + 3), ("global", 40)],  # 2 * 2 * 5 / 8, rounded up for either model
        [("local", 30), ("draw", 5 + 3), ("global", 40)],  # of the old one 2 * 4 * 5 / 8
    ]
    for task in range(3):
        observing = [phase.observe is not None for phase in method.phases(task)]
        assert observing == [phase.name == "draw" for phase in method.phases(task)]


def test_the_first_stage_may_be_longer(joint) -> None:
    method = method_of(joint, first_steps=77)
    assert [method.phases(task)[0].steps for task in range(3)] == [77, 20, 30]


def test_without_the_local_stage_only_old_classes_are_drawn_and_new_images_are_real(joint) -> None:
    method = method_of(joint, local=False)
    names_and_steps = [[(phase.name, phase.steps) for phase in method.phases(task)] for task in range(3)]
    assert names_and_steps == [[("local", 10)], [("draw", 3), ("global", 40)], [("draw", 5), ("global", 40)]]
    assert set(named(method)["global"].streams) == {"replay", "current"}
    assert set(named(method_of(joint))["global"].streams) == {"replay"}


def test_without_distillation_the_phases_are_the_same(joint) -> None:
    for task in range(3):
        pair = [method_of(joint, distillation=on).phases(task) for on in (True, False)]
        assert len({tuple((phase.name, phase.steps, tuple(phase.streams)) for phase in phases) for phases in pair}) == 1


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 3 + 1 + 0.75 * (1.5 + 0.5)),  # 30 of 40 steps also classify, 3 * .5, and ask a teacher's classifier, .5
        ({"class_delay": 0}, 6.0),
        ({"class_delay": 39}, 4 + 2 / 40),
        ({"distillation": False}, 3 + 0.75 * 1.5),
        ({"local": False}, 5.5),
    ],
)
def test_costs_of_a_global_step_by_hand(joint, options, passes) -> None:
    assert named(method_of(joint, **options))["global"].passes == pytest.approx(passes)


def test_costs_of_the_other_phases_by_hand(joint) -> None:
    assert named(method_of(joint))["local"].passes == 3 + 1.5
    draw = named(method_of(joint, replay_steps=250, replay_batch=500))["draw"]
    assert draw.passes == pytest.approx((250 + 0.5) * 500 / 8)  # in batches of training
    assert draw.streams["sample"].batch_size == 500


# -- what it keeps


@pytest.mark.parametrize("teacher", ["ema", "last"])
def test_after_the_first_task_its_model_is_the_old_one(joint, teacher) -> None:
    method = method_of(joint, teacher=teacher)
    memory = method.end_task(method.init_memory(START), learned(OLD, OLD_RAW), 0)
    raw = {"raw": OLD_RAW} if teacher == "last" else {}
    assert_equal(memory["old"], {"averaged": OLD, **raw})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory["local"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory["draw"]))
    assert memory["old"]["averaged"]["v"] is not OLD["v"]


@pytest.mark.parametrize("teacher", ["ema", "last"])
def test_what_is_kept_after_each_phase(joint, teacher) -> None:
    method = method_of(joint, teacher=teacher)
    phases, memory = named(method), method.end_task(method.init_memory(START), learned(OLD, OLD_RAW), 0)
    after_local = method.end_phase(memory, learned(LOCAL, LOCAL_RAW), 1, phases["local"])
    assert_equal(after_local["local"], {"averaged": LOCAL, **({"raw": LOCAL_RAW} if teacher == "last" else {})})
    assert_equal({**after_local, "local": 0}, {**memory, "local": 0})
    after_draw = method.end_phase(after_local, learned(START, drawn=drawn([5, 2, 5, 0, 0, 0])), 1, phases["draw"])
    assert_equal({**after_draw, "draw": 0}, {**after_local, "draw": 0})
    rows = after_draw["draw"]["images"][:, 0, 0, 0].reshape(6, QUOTA).tolist()
    assert rows == [[1, 2, 3, 4, 5], [6, 7, 6, 7, 6], [11, 12, 13, 14, 15], [0] * 5, [0] * 5, [0] * 5]
    assert after_draw["draw"]["counts"].tolist() == [5, 2, 5, 0, 0, 0]
    np.testing.assert_array_equal(after_draw["draw"]["labelled"], np.arange(14).reshape(2, 7))
    assert method.end_phase(after_draw, learned(START), 1, phases["global"]) is after_draw
    after_task = method.end_task(after_draw, learned(START, OLD), 1)
    assert_equal(after_task["old"], {"averaged": START, **({"raw": OLD} if teacher == "last" else {})})
    assert_equal({**after_task, "old": 0}, {**after_draw, "old": 0})


def test_topped_up_images_are_views_with_draws_of_the_task(joint) -> None:
    mirror = dataclasses.replace(joint, views=dataclasses.replace(joint.views, flip=True))
    method, short = method_of(mirror), drawn([1, 1, 1, 1, 0, 0])
    short["images"] = np.random.default_rng(0).integers(0, 256, short["images"].shape).astype(np.uint8)
    found = []
    for task in (1, 2, 1):
        memory = method.end_phase(method.init_memory(START), learned(START, drawn=short), task, named(method)["draw"])
        found.append(memory["draw"]["images"].reshape(6, QUOTA, 4, 4, 1)[:4])
    own = short["images"].reshape(6, QUOTA, 4, 4, 1)[:4, :1]
    for images in found:
        same, mirrored = (np.all(images == x, axis=(2, 3, 4)) for x in (own, own[:, :, :, ::-1]))
        assert np.all(same | mirrored)
        assert 0 < mirrored.sum() < 16
    assert np.any(found[0] != found[1])
    np.testing.assert_array_equal(found[0], found[2])


# -- what each phase starts from

STARTS = [
    ({}, "local", OLD),
    ({}, "global", OLD),
    ({"teacher": "last"}, "local", OLD_RAW),
    ({"teacher": "last"}, "global", OLD_RAW),
    ({"local_start": "scratch"}, "global", OLD),
    ({"local_start": "scratch", "teacher": "last"}, "global", OLD_RAW),
    ({"local": False}, "global", OLD),
    ({}, "draw", None),
]


@pytest.mark.parametrize(("options", "name", "expected"), STARTS)
def test_stages_start_from_the_old_model(joint, options, name, expected) -> None:
    method = method_of(joint, **options)
    memory = method.end_task(method.init_memory(START), learned(OLD, OLD_RAW), 0)
    if "local" in memory:
        memory = method.end_phase(memory, learned(LOCAL, LOCAL_RAW), 1, named(method)["local"])
    start = method.start(memory, 1, named(method)[name])
    if expected is None:
        assert start is None
    else:
        assert_equal(start, expected)


@pytest.mark.parametrize("local_start", ["global", "scratch"])
def test_the_first_stage_starts_from_what_is_there(joint, local_start) -> None:
    method = method_of(joint, local_start=local_start)
    assert method.start(method.init_memory(START), 0, named(method, 0)["local"]) is None


@pytest.mark.parametrize("teacher", ["ema", "last"])
def test_from_scratch_every_task_has_untrained_weights_of_its_own(joint, teacher) -> None:
    method = method_of(joint, local_start="scratch", teacher=teacher)
    memory = method.end_task(method.init_memory(START), learned(OLD, OLD_RAW), 0)
    found = [float(method.start(m, task, named(method)["local"])["w"]) for m, task in ((memory, 1), (memory, 2))]
    assert found[0] != found[1]
    assert float(method.start(method.init_memory(START), 1, named(method)["local"])["w"]) == found[0]
    other = method_of(dataclasses.replace(joint, seed=1), local_start="scratch")
    assert float(other.start(memory, 1, named(other)["local"])["w"]) not in found


# -- what the phases read


def test_quotas_of_each_model_by_hand(joint) -> None:
    def wanted(method):
        return [method.context(method.init_memory(START), task)["draw"]["wanted"].tolist() for task in range(3)]

    nothing = [0] * 6
    assert wanted(method_of(joint)) == [
        [nothing, [5, 5, 0, 0, 0, 0]],
        [[5, 5, 0, 0, 0, 0], [0, 0, 5, 5, 0, 0]],
        [[5, 5, 5, 5, 0, 0], [0, 0, 0, 0, 5, 5]],
    ]
    assert wanted(method_of(joint, local=False)) == [
        [nothing, nothing],
        [[5, 5, 0, 0, 0, 0], nothing],
        [[5, 5, 5, 5, 0, 0], nothing],
    ]
    unequal = dataclasses.replace(joint, groups=((3, 1, 0), (2,), (5, 4)))
    assert wanted(method_of(unequal, quota=7))[1] == [[7, 7, 7, 0, 0, 0], [0, 0, 0, 7, 0, 0]]
    plan = method_of(joint).context(method_of(joint).init_memory(START), 2)["draw"]
    assert (plan["classes"].tolist(), int(plan["old_steps"])) == (list(CLASSES), 5)


@pytest.mark.parametrize(
    ("options", "averaged", "teacher"),
    [
        ({}, [0.95, 0.8], [0.95, 0.8]),
        ({"teacher": "last"}, [0.95, 0.8], [0.5, 0.6]),
        ({"local": False}, [0.95], [0.95]),
        ({"local": False, "teacher": "last"}, [0.95], [0.5]),
    ],
)
def test_models_are_the_old_one_and_then_the_local_one(joint, options, averaged, teacher) -> None:
    method = method_of(joint, **options)
    memory = method.end_task(method.init_memory(START), learned(OLD, OLD_RAW), 0)
    if method.options["local"]:
        memory = method.end_phase(memory, learned(LOCAL, LOCAL_RAW), 1, named(method)["local"])
    models = method.context(memory, 1)["models"]
    np.testing.assert_allclose(models["averaged"]["w"], averaged)
    teaches = "raw" if options.get("teacher") == "last" else "averaged"
    np.testing.assert_allclose(models[teaches]["w"], teacher)
    assert set(models) == {"averaged", teaches}  # nothing is kept twice
    assert models[teaches]["v"].shape == (len(averaged), 2, 6)


@pytest.mark.parametrize(
    ("options", "task", "counts", "filled", "old", "new", "share"),
    [
        ({}, 1, [5, 5, 5, 5, 0, 0], [0, 1, 2, 3], 10, 10, 1 / 2),
        ({}, 2, [5, 3, 5, 5, 1, 5], [0, 1, 2, 3, 4, 5], 20, 10, 2 / 3),
        ({}, 2, [0, 5, 5, 0, 5, 0], [1, 2, 4], 10, 5, 2 / 3),
        ({}, 1, [0, 0, 5, 5, 0, 0], [2, 3], 0, 10, 0.0),
        ({}, 1, [5, 5, 0, 0, 0, 0], [0, 1], 10, 0, 1.0),
        ({"local": False}, 2, [5, 5, 5, 5, 0, 0], [0, 1, 2, 3], 20, 1, 2 / 3),
        ({"local": False}, 2, [5, 0, 5, 0, 0, 0], [0, 2], 10, 1, 1 / 2),
    ],
)
def test_the_replay_set_is_the_classes_that_appeared_and_real_ones_count_as_if_in_it(
    joint, options, task, counts, filled, old, new, share
) -> None:
    method = method_of(joint, **options)
    memory = {**method.init_memory(START), "draw": drawn(counts)}
    store = method.context(memory, task)["store"]
    rows = [place * QUOTA + number for place in filled for number in range(QUOTA)]
    assert store["rows"][: len(rows)].tolist() == rows
    assert store["rows"].shape == (6 * QUOTA,)
    assert store["labels"].tolist() == np.repeat(CLASSES, QUOTA).tolist()
    assert (int(store["old"]), int(store["new"])) == (old, new)
    assert float(store["share"]) == pytest.approx(share)
    np.testing.assert_array_equal(store["images"], memory["draw"]["images"])


@pytest.mark.parametrize("options", [{}, {"teacher": "last"}, {"local": False}, {"distillation": False}])
def test_memory_and_context_have_the_same_shapes_for_all_tasks(joint, options) -> None:
    """Tasks of other sizes, of which other shares have labels."""
    sizes, labels = (10, 20, 30), np.where(np.arange(60) % 7 == 0, joint.labels, -1).astype(np.int32)
    uneven = dataclasses.replace(joint, groups=((3, 1, 0), (2,), (5, 4)), task_sizes=sizes)
    if options.get("local", True):
        uneven = dataclasses.replace(uneven, labels=labels)
    method = method_of(uneven, **options)

    def shapes(tree):
        return jax.tree.map(lambda leaf: (np.shape(leaf), np.asarray(leaf).dtype), tree)

    memory, memories, contexts = method.init_memory(START), [], []
    for task in range(3):
        for name, phase in named(method, task).items():
            memories.append(shapes(memory))
            contexts.append(shapes(method.context(memory, task)))
            if name != list(named(method, task))[-1]:
                after = learned(OLD, OLD_RAW, drawn=method.init_tracked(START)["drawn"])
                memory = method.end_phase(memory, after, task, phase)
        memory = method.end_task(memory, learned(LOCAL, LOCAL_RAW), task)
    assert all(found == memories[0] for found in [*memories, shapes(memory)])
    assert all(found == contexts[0] for found in contexts)
    assert shapes(method.init_tracked(START)["drawn"]) == memories[0]["draw"]


# -- who draws, who labels


def observed(method, memory, key) -> dict:
    phase = named(method)["draw"]
    context = Context(key, None, jax.tree.map(jnp.asarray, method.context(memory, 1)))
    state = create_state(START, optax.sgd(0.1), ema=False, tracked=method.init_tracked(START))
    step = scan_steps(functools.partial(observe_step, observe=phase.observe, streams=phase.streams), phase.steps)
    state, _ = jax.jit(step)(state, context, {"sample": jnp.arange(BATCH)}, {})
    return jax.device_get(state.tracked["drawn"])


@pytest.mark.parametrize("teacher", ["ema", "last"])
def test_averaged_weights_draw_and_the_teachers_weights_label_the_old_models_and_then_the_local_ones(
    joint, teacher
) -> None:
    method, key = method_of(joint, teacher=teacher), named_key(3)
    memory = method.end_task(method.init_memory(START), learned(OLD, OLD_RAW), 0)
    memory = method.end_phase(memory, learned(LOCAL, LOCAL_RAW), 1, named(method)["local"])
    found = observed(method, memory, key)
    images, counts = found["images"].reshape(6, QUOTA, 4, 4, 1), np.zeros(6, int)
    labelled, stream = np.zeros((2, 7), int), fold_name(fold_name(key, "sample"), "example")

    @jax.jit
    def sampled(params, step):
        keys = subkeys(example_keys(jax.random.fold_in(stream, step), jnp.arange(BATCH)), "sample")
        return generate(joint, params, None, keys, Sampler("ddim", 3, eta=0.0, clip=True))

    labelling = (OLD, LOCAL) if teacher == "ema" else (OLD_RAW, LOCAL_RAW)
    for step in range(6):
        source = int(step >= 3)
        asked = range(2 * source, 2 * source + 2)
        if all(counts[place] == QUOTA for place in asked):
            continue
        for image in np.asarray(to_uint8(sampled((OLD, LOCAL)[source], step))):
            halves = np.array([image[:, :2].mean(), image[:, 2:].mean()]) / 127.5 - 1
            place = CLASSES.index(int(np.argmax(halves @ labelling[source]["v"])))
            labelled[source, place] += 1
            if place in asked and counts[place] < QUOTA:
                assert np.max(np.abs(images[place, counts[place]].astype(int) - image)) <= 1
                counts[place] += 1
    np.testing.assert_array_equal(found["counts"], counts)
    np.testing.assert_array_equal(found["labelled"], labelled)
    assert np.all(counts[:4] > 0)
    assert np.sum(labelled.sum(axis=0) > 0) == 6


def test_images_are_labelled_as_they_will_be_stored(joint) -> None:
    """Rounded to 256 levels; a classifier that sees whether they are is asked."""

    def rounded(params, images, keys):
        levels = (images + 1) * 127.5
        whole = jnp.all(jnp.abs(levels - jnp.round(levels)) < 1e-3, axis=(1, 2, 3))
        return jax.nn.one_hot(jnp.where(whole, 3, 1), 6)

    soft = dataclasses.replace(joint, classifier=ClassTerm(rounded))
    method = method_of(soft, replay_steps=2)
    memory = method.end_task(method.init_memory(START), learned(params_of(0.4)), 0)
    found = observed(method, memory, named_key(3))
    assert len(np.unique(found["images"][:QUOTA])) > 10
    assert found["labelled"].tolist() == [[24, 0, 0, 0, 0, 0, 0]] * 2
    np.testing.assert_array_equal(to_uint8(to_float(found["images"])), found["images"])


# -- options


def test_defaults_are_the_published_ones() -> None:
    expected = {
        "quota": 1000,
        "replay_steps": 250,
        "global_steps": 30_000,
        "local_start": "global",
        "teacher": "ema",
        "threshold": 0.95,
        "unlabelled": "fixmatch",
        "local": True,
        "distillation": True,
        "first_steps": 0,
    }
    assert {name: default_options("jdcl")[name] for name in expected} == expected


REFUSED = [
    *(({key: "last_year"}, rf"method\.{key}\b.*write one of: ") for key in ("local_start", "teacher", "unlabelled")),
    *(
        ({key: 0}, rf"method\.{key} is 0; write 1 or more")
        for key in ("global_steps", "quota", "replay_steps", "replay_batch")
    ),
    *(
        ({key: -1}, rf"method\.{key} is negative; write 0 or more")
        for key in (
            "first_steps",
            "class_delay",
            "threshold",
            "denoising_weight",
            "class_weight",
            "distillation_weight",
            "class_distillation_weight",
        )
    ),
    ({"replay_steps": 1001}, r"method\.replay_steps is 1001; write at most 1000"),
    ({"local": False, "local_start": "scratch"}, r"method\.local_start has no effect with method\.local=False"),
    ({"unlabelled": "denoise"}, r"method\.unlabelled has no effect .*write data\.label_fraction=0\.1"),
    ({"unlabelled": "ignore"}, r"method\.unlabelled has no effect .*write data\.label_fraction=0\.1"),
    ({"quota": 10**12}, r"method\.quota is 1000000000000: [\d,]+ GiB of images; write less"),
]


def refused(setup, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as error:
        method_of(setup, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_impossible_options_are_refused(joint, options, message) -> None:
    refused(joint, message, **options)


def test_the_limits_themselves_are_allowed(joint) -> None:
    nothing = ("first_steps", "class_delay", "denoising_weight", "class_weight", "distillation_weight")
    method_of(joint, **dict.fromkeys(nothing, 0), class_distillation_weight=0)
    method_of(joint, global_steps=1, class_delay=0, quota=1, replay_steps=1, replay_batch=1)
    some = np.where(np.arange(60) % 7 == 0, joint.labels, -1).astype(np.int32)
    for threshold in (0, 1):
        method_of(dataclasses.replace(joint, labels=some), threshold=threshold)
    method_of(joint, replay_steps=1000)
    method_of(joint, local=False, distillation=False)
    method_of(dataclasses.replace(joint, batch_size=12))


def test_options_without_effect_are_refused(joint) -> None:
    refused(joint, r"class terms would never begin; write less than method\.global_steps=40", class_delay=40)
    refused(joint, r"method\.threshold has no effect where all labels are known", threshold=0.5)
    some = np.where(np.arange(60) % 7 == 0, joint.labels, -1).astype(np.int32)
    partly = dataclasses.replace(joint, labels=some)
    refused(partly, "no probability is above 1", threshold=1.5)
    refused(partly, r"write method\.unlabelled=fixmatch", threshold=0.5, unlabelled="denoise")


def test_setups_without_what_it_needs_are_refused(joint) -> None:
    few = np.where(np.arange(60) % 7 == 0, joint.labels, -1).astype(np.int32)
    nobody = dataclasses.replace(joint.classifier, label_fraction=0.0)
    for changed, message, options in [
        ({"classifier": None}, r"classifier\.kind=joint or separate", {}),
        ({"num_classes": 6}, r"model\.class_conditional=False", {}),
        ({"classifier": nobody}, r"data\.label_fraction above 0", {}),
        ({"ema": False}, r"train\.ema=\S+ or method\.teacher=last", {}),
        ({"reset_optimizer": False}, r"train\.reset_optimizer=True", {}),
        ({"batch_size": 10}, r"train\.batch_size is 10; write a multiple of 4", {}),
        ({"labels": few}, r"method\.local=True", {"local": False}),
    ]:
        refused(dataclasses.replace(joint, **changed), message, **options)
    method_of(dataclasses.replace(joint, ema=False), teacher="last")
    method_of(dataclasses.replace(joint, labels=few))
    method_of(dataclasses.replace(joint, labels=few), unlabelled="denoise")


@pytest.mark.parametrize("penalty", sorted(known_penalties()))
def test_it_takes_no_penalty(joint, penalty) -> None:
    for ask in (canonical_name, default_options, lambda name: make_method(name, joint, {})):
        with pytest.raises(UserError, match=r"jdcl takes no penalty .*write 'jdcl'") as error:
            ask(f"{penalty}+jdcl")
        assert "\n" not in str(error.value)
