"""Replay with quotas: what is taken, for how long, on any devices, and what becomes of classes that lack images."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.batches import to_float, to_uint8
from jdcl_jax.data.views import UNCHANGED, Views
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, fold_name, named_key
from jdcl_jax.methods.quotas import accept, draw_steps, empty_draw, quota_phase, replay_facts, top_up
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, create_state
from jdcl_jax.training.step import observe_step, scan_steps

CLASSES = (3, 1, 0, 2, 5, 4)  # in the order of the sequence
QUOTA, BATCH, SHAPE = 5, 8, (4, 4, 1)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WANTED = np.array([[QUOTA] * 4 + [0] * 2, [0] * 4 + [QUOTA] * 2], np.int32)  # two old tasks and a new one
OLD_STEPS, NEW_STEPS = 5, 3  # 2 * 4 * 5 / 8, and 2 * 2 * 5 / 8 rounded up

PARAMS = {"w": np.float32(0.5)}


# -- what is taken of a batch


def offer(drawn, labels, wanted, source=0, first=1):
    """The draw after images of the constant values `first`, `first` + 1, ... came with these labels."""
    numbers = np.arange(first, first + len(labels), dtype=np.uint8)
    images = jnp.asarray(np.broadcast_to(numbers[:, None, None, None], (len(labels), *SHAPE)))
    order, asked = jnp.asarray(CLASSES), jnp.asarray(wanted)
    arrays = jax.tree.map(jnp.asarray, drawn)
    return accept(arrays, images, jnp.asarray(labels), classes=order, wanted=asked, source=jnp.int32(source))


def numbers_by_class(drawn) -> list[list[int]]:
    """The numbers of the images in the rows of each class; 0 is an empty row."""
    images = np.asarray(drawn["images"])
    assert np.all(images == images[:, :1, :1])
    return images[:, 0, 0, 0].reshape(len(CLASSES), -1).tolist()


def test_each_class_takes_its_first_images_into_its_own_rows_up_to_its_quota() -> None:
    drawn = offer(empty_draw(CLASSES, 3, SHAPE), [1, 3, 1, 1, 3, 1, 1, 4], [3] * 6)
    assert numbers_by_class(drawn) == [[2, 5, 0], [1, 3, 4], [0] * 3, [0] * 3, [0] * 3, [8, 0, 0]]
    assert drawn["counts"].tolist() == [2, 3, 0, 0, 0, 1]
    assert drawn["labelled"].tolist() == [[2, 5, 0, 0, 0, 1, 0], [0] * 7]
    assert (drawn["images"].dtype, drawn["counts"].dtype, drawn["labelled"].dtype) == (jnp.uint8, jnp.int32, jnp.int32)


def test_unwanted_and_foreign_classes_are_counted_and_not_stored() -> None:
    drawn = offer(empty_draw(CLASSES, 3, SHAPE), [0, 9, 3, 7, 0, 4], [3, 3, 0, 0, 0, 0])
    assert numbers_by_class(drawn) == [[3, 0, 0], *[[0] * 3] * 5]
    assert drawn["counts"].tolist() == [1, 0, 0, 0, 0, 0]
    assert drawn["labelled"].tolist() == [[1, 0, 2, 0, 0, 1, 2], [0] * 7]


def test_batches_add_up_behind_one_another_and_each_source_is_counted_for_itself() -> None:
    first = offer(empty_draw(CLASSES, 3, SHAPE), [3, 1, 3, 9], [3, 3, 0, 0, 0, 0])
    second = offer(first, [3, 3, 1, 5], [3, 3, 0, 0, 0, 0], first=11)
    third = offer(second, [5, 5, 3, 8], [0, 0, 0, 0, 3, 3], source=1, first=21)
    assert numbers_by_class(third) == [[1, 3, 11], [2, 13, 0], [0] * 3, [0] * 3, [21, 22, 0], [0] * 3]
    assert third["counts"].tolist() == [3, 2, 0, 0, 2, 0]
    assert third["labelled"].tolist() == [[4, 2, 0, 0, 1, 0, 1], [1, 0, 0, 0, 2, 0, 1]]


def test_a_quota_may_be_smaller_than_the_room() -> None:
    drawn = offer(empty_draw(CLASSES, 3, SHAPE), [3, 3, 4, 4, 3, 4], [1, 0, 0, 0, 0, 2])
    assert numbers_by_class(drawn) == [[1, 0, 0], *[[0] * 3] * 4, [3, 4, 0]]


def taken_by_hand(batches, wanted, sources):
    """Image by image: rows, counts and labels given; `batches` of (images [B, ...], labels [B])."""
    rows = np.zeros((len(CLASSES), QUOTA, *SHAPE), np.uint8)
    counts, labelled, active, filled = np.zeros(6, int), np.zeros((2, 7), int), [], []
    for (images, labels), source in zip(batches, sources, strict=True):
        asked = wanted[source]
        active.append(float(np.any(counts < asked)))
        for image, label in zip(images, labels.tolist(), strict=True) if active[-1] else ():
            place = CLASSES.index(label) if label in CLASSES else -1
            labelled[source, place] += 1
            if place >= 0 and counts[place] < asked[place]:
                rows[place, counts[place]] = image
                counts[place] += 1
        filled.append(np.minimum(counts, asked).sum() / max(asked.sum(), 1))
    drawn = {"images": rows.reshape(-1, *SHAPE), "counts": counts, "labelled": labelled}
    return drawn, {"active": np.array(active), "filled": np.array(filled)}


# -- a whole phase


def odds(**by_label: float) -> np.ndarray:
    """Probabilities of labels 0..9, of which those named c0..c9 have what is said and the others are alike."""
    values = np.ones(10)
    for name, share in by_label.items():
        values[int(name[1:])] = share
    return values / values.sum()


ALIKE = np.stack([odds(c0=3.0, c1=3.0, c2=3.0, c3=3.0), odds(c5=9.0, c4=9.0)])
NEVER_TWO = np.stack([odds(c2=0.0, c7=0.0, c8=0.0, c9=0.0), odds(c5=9.0, c4=9.0)])


def sample(context, source, keys):
    """A generator whose images are random and whose labels have the probabilities in the context, [2, 10]."""
    random = jax.vmap(lambda key: jax.random.randint(key, (17,), 0, 256))(keys)
    labels = jnp.sum((random[:, :1] + 0.5) / 256 >= jnp.cumsum(context.method["chances"][source])[:9], axis=1)
    return to_float(random[:, 1:].reshape(-1, *SHAPE)), labels.astype(jnp.int32)


def context_of(chances, seed=1, wanted=WANTED) -> Context:
    plan = {"classes": np.array(CLASSES, np.int32), "wanted": wanted, "old_steps": np.int32(OLD_STEPS)}
    method = {"draw": plan, "chances": chances.astype(np.float32)}
    return Context(named_key(seed, "draw"), None, jax.tree.map(jnp.asarray, method))


COMPILED = {}


def run(setup, chances, mode="jit", count=1, per_call=4, generator=sample, **context) -> tuple[dict, dict]:
    """What all steps of a phase draw, and its metrics."""
    phase = quota_phase(setup, "draw", OLD_STEPS + NEW_STEPS, BATCH, generator, 1.0)
    parallel = Parallel(mode, jax.local_devices()[:count])
    step = functools.partial(observe_step, observe=phase.observe, streams=phase.streams)
    state = create_state(PARAMS, optax.sgd(0.1), ema=False, tracked={"drawn": empty_draw(CLASSES, QUOTA, SHAPE)})
    state, arrays = parallel.replicate((state, context_of(chances, **context)))
    ids = parallel.split({"sample": np.arange(BATCH, dtype=np.int32)})
    compiled = (mode, count, per_call, generator)
    if compiled not in COMPILED:
        COMPILED[compiled], _ = parallel.compile_step(scan_steps(step, per_call), state, arrays, ids, {})
    seen = []
    for _ in range(phase.steps // per_call):
        state, metrics = COMPILED[compiled](state, arrays, ids, {})
        seen.append(jax.device_get(metrics))
    assert int(state.step) == phase.steps
    assert jax.device_get(state.params) == PARAMS
    metrics = {name: np.concatenate([m[name] for m in seen]) for name in seen[0]}
    return jax.device_get(state.tracked["drawn"]), metrics


@jax.jit
def everything(context) -> tuple[jax.Array, jax.Array]:
    """All samples of a phase, drawn from the key of their step and their place in the batch."""
    stream = fold_name(fold_name(context.key, "sample"), "example")

    def batch(step):
        keys = example_keys(jax.random.fold_in(stream, step), jnp.arange(BATCH))
        return sample(context, (step >= OLD_STEPS).astype(int), keys)

    return jax.vmap(batch)(jnp.arange(OLD_STEPS + NEW_STEPS))


def by_hand(chances, wanted=WANTED, seed=1):
    """What is taken of them, and the metrics."""
    images, labels = everything(context_of(chances, seed, wanted))
    batches = zip(np.asarray(to_uint8(images)), np.asarray(labels), strict=True)
    return taken_by_hand(batches, wanted, [0] * OLD_STEPS + [1] * NEW_STEPS)


def assert_same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(value, found[name].dtype), err_msg=name)


@pytest.mark.parametrize(("mode", "count", "per_call"), [("jit", 1, 4), ("pmap", 1, 2), ("pmap", 2, 1), ("jit", 2, 8)])
@pytest.mark.parametrize("chances", [ALIKE, NEVER_TWO], ids=["alike", "never_two"])
def test_a_phase_takes_the_same_images_bit_for_bit_on_any_devices_and_in_any_calls(
    setup, chances, mode, count, per_call
) -> None:
    drawn, metrics = run(setup, chances, mode, count, per_call)
    expected, expected_metrics = by_hand(chances)
    assert_same(drawn, expected)
    assert_same(metrics, expected_metrics)
    assert len(np.unique(drawn["images"], axis=0)) >= drawn["counts"].sum() > 20


def test_once_filled_the_steps_that_are_left_draw_nothing_and_change_nothing(setup) -> None:
    few = np.array([[2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]], np.int32)
    chances = np.stack([odds(c3=20.0, c1=20.0), odds(c5=40.0)])
    calls = []

    def counting(context, source, keys):
        jax.debug.callback(lambda step, source: calls.append((int(step), int(source))), context.step, source)
        return sample(context, source, keys)

    drawn, metrics = run(setup, chances, generator=counting, wanted=few)
    jax.effects_barrier()
    assert sorted(calls) == [(0, 0), (5, 1)]
    assert metrics["active"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert metrics["filled"].tolist() == [1] * 8
    assert drawn["counts"].tolist() == [2, 2, 0, 0, 1, 0]
    assert drawn["labelled"].sum(axis=1).tolist() == [BATCH, BATCH]
    assert_same(drawn, by_hand(chances, wanted=few)[0])


def test_a_source_that_is_asked_for_nothing_does_nothing(setup) -> None:
    alone = np.stack([WANTED[0], np.zeros(6, np.int32)])
    drawn, metrics = run(setup, ALIKE, wanted=alone)
    assert metrics["active"][OLD_STEPS:].tolist() == [0] * NEW_STEPS
    assert drawn["labelled"][1].tolist() == [0] * 7
    assert drawn["counts"][4:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("classes", "quota", "batch", "steps"),
    [
        (2, 3, 8, 2),
        (1, 4, 8, 1),
        (3, 5, 8, 4),
        (4, 5, 8, 5),
        (2, 1000, 500, 8),
        (1, 1, 500, 1),
        (7, 3, 5, 9),
        (0, 5, 8, 0),
    ],
)
def test_the_budget_is_twice_the_quotas_rounded_up_to_whole_batches(classes, quota, batch, steps) -> None:
    assert draw_steps(classes, quota, batch) == steps
    assert 0 <= steps * batch - 2 * classes * quota < batch


def test_a_phase_costs_what_its_samples_cost_and_reads_no_data(setup) -> None:
    phase = quota_phase(setup, "draw", 3, 20, sample, 2.5)
    assert (phase.name, phase.steps, phase.passes) == ("draw", 3, 2.5 * 20 / 8)
    assert {name: stream.batch_size for name, stream in phase.streams.items()} == {"sample": 20}
    assert all(stream.rows is None for stream in phase.streams.values())


# -- classes that lack images


def test_a_class_that_never_comes_ends_empty_after_exactly_the_budget_with_a_warning(setup) -> None:
    drawn, metrics = run(setup, NEVER_TWO)
    assert metrics["active"][:OLD_STEPS].tolist() == [1] * OLD_STEPS
    assert drawn["counts"][:4].tolist() == [QUOTA, QUOTA, QUOTA, 0]
    assert drawn["labelled"][0].sum() == OLD_STEPS * BATCH == 40
    full = top_up(drawn, WANTED.sum(axis=0), UNCHANGED, named_key(0))
    assert not full[3 * QUOTA : 4 * QUOTA].any()
    found = replay_facts(drawn, WANTED, CLASSES, NAMES)
    (warning,) = found["warnings"]
    assert warning.startswith("class 2 (two) never appeared in 40 samples of the old model")
    (unnamed,) = replay_facts(drawn, WANTED, CLASSES, ())["warnings"]
    assert unnamed.startswith("class 2 never appeared in 40 samples of the old model")
    (entry,) = [entry for entry in found["replay"] if entry["class"] == 2]
    expected = {"class": 2, "source": "old", "quota": QUOTA, "drawn": 0, "accepted": 0, "topped_up": 0}
    assert entry == expected


def test_a_class_that_comes_rarely_is_filled_with_its_own_samples_in_turn(setup) -> None:
    rarely = np.stack([odds(c1=0.6, c6=0.0, c7=0.0, c8=0.0, c9=0.0), odds(c5=9.0, c4=9.0)])
    drawn, _ = run(setup, rarely, seed=0)
    count = int(drawn["counts"][1])
    assert 1 < count < QUOTA, "another seed is needed"
    assert np.delete(drawn["counts"], 1).tolist() == [QUOTA] * 5
    full = top_up(drawn, WANTED.sum(axis=0), UNCHANGED, named_key(0)).reshape(6, QUOTA, *SHAPE)
    own = by_hand(rarely, seed=0)[0]["images"].reshape(6, QUOTA, *SHAPE)
    for number in range(QUOTA):
        np.testing.assert_array_equal(full[1, number], own[1, number % count])
    np.testing.assert_array_equal(np.delete(full, 1, axis=0), np.delete(own, 1, axis=0))
    (entry,) = [entry for entry in replay_facts(drawn, WANTED, CLASSES, NAMES)["replay"] if entry["class"] == 1]
    assert (entry["accepted"], entry["topped_up"]) == (count, QUOTA - count)
    assert "warnings" not in replay_facts(drawn, WANTED, CLASSES, NAMES)


COUNTS = (2, 5, 0, 1, 3, 0)
ASKED = np.array([5, 5, 5, 5, 4, 0])


def short() -> dict[str, np.ndarray]:
    """A draw that lacks images of most classes; empty rows are 0, and no image has one."""
    images = np.random.default_rng(4).integers(1, 256, (6, QUOTA, *SHAPE)).astype(np.uint8)
    for place, count in enumerate(COUNTS):
        images[place, count:] = 0
    return {"images": images.reshape(-1, *SHAPE), "counts": np.array(COUNTS, np.int32), "labelled": np.zeros((2, 7))}


def test_topping_up_repeats_each_classs_own_samples_in_turn_up_to_its_quota() -> None:
    drawn = short()
    before = drawn["images"].copy()
    with np.errstate(all="raise"):  # a class without samples has no turns
        full = top_up(drawn, ASKED, UNCHANGED, named_key(0))
    old = before.reshape(6, QUOTA, *SHAPE)
    expected = old.copy()
    expected[0, [2, 3, 4]] = old[0, [0, 1, 0]]
    expected[3, [1, 2, 3, 4]] = old[3, 0]
    expected[4, 3] = old[4, 0]  # its quota is 4
    np.testing.assert_array_equal(full.reshape(6, QUOTA, *SHAPE), expected)
    assert full.dtype == np.uint8
    np.testing.assert_array_equal(drawn["images"], before)


def test_topping_up_makes_weak_views_each_from_a_key_of_its_own() -> None:
    drawn, flip = short(), Views(flip=True, crop_scale=1.0, operations=3, cutout=0.5)  # the strong view has no part
    full = top_up(drawn, ASKED, flip, named_key(0)).reshape(6, QUOTA, *SHAPE)
    own = drawn["images"].reshape(6, QUOTA, *SHAPE)
    mirrored = []
    for place, number in itertools.product(range(6), range(QUOTA)):
        count = COUNTS[place]
        if count == 0 or number >= ASKED[place] or number < count:
            np.testing.assert_array_equal(full[place, number], own[place, number])
            continue
        original = own[place, number % count]
        mirrored.append(bool(np.all(full[place, number] == original[:, ::-1])))
        assert mirrored[-1] or np.all(full[place, number] == original)
    assert len(mirrored) == 3 + 4 + 1
    assert set(mirrored) == {True, False}
    np.testing.assert_array_equal(top_up(drawn, ASKED, flip, named_key(0)).reshape(full.shape), full)
    singles = {**drawn, "counts": np.ones(6, np.int32)}
    singles["images"] = np.random.default_rng(6).integers(1, 256, drawn["images"].shape).astype(np.uint8)
    first = singles["images"].reshape(6, QUOTA, *SHAPE)[:, :1]
    flips = []
    for seed in (0, 1):
        made = top_up(singles, np.full(6, QUOTA), flip, named_key(seed)).reshape(6, QUOTA, *SHAPE)[:, 1:]
        flips.append(np.all(made == first[:, :, :, ::-1], axis=(2, 3, 4)))
        assert np.any(flips[-1] != flips[-1][:1])  # neither of the number in the class alone,
        assert np.any(flips[-1] != flips[-1][:, :1])  # nor of the class
    assert np.any(flips[0] != flips[1])


def test_nothing_is_made_of_nothing_and_a_full_draw_stays_as_it_is() -> None:
    empty = empty_draw(CLASSES, QUOTA, SHAPE)
    assert not top_up(empty, ASKED, Views(), named_key(0)).any()
    full = {**short(), "counts": np.full(6, QUOTA)}
    np.testing.assert_array_equal(top_up(full, ASKED, Views(), named_key(0)), full["images"])


def test_facts_of_a_draw_by_hand() -> None:
    drawn = {
        "images": np.zeros((6 * 10, *SHAPE), np.uint8),
        "counts": np.array([10, 4, 0, 0, 10, 0]),
        "labelled": np.array([[12, 4, 3, 0, 1, 0, 5], [7, 0, 1, 0, 25, 0, 1200]]),
    }
    wanted = np.array([[10, 10, 0, 0, 0, 0], [0, 0, 0, 0, 10, 10]])
    found = replay_facts(drawn, wanted, CLASSES, NAMES)
    keys = ("class", "source", "quota", "drawn", "accepted", "topped_up")
    assert found["replay"] == [
        dict(zip(keys, values, strict=True))
        for values in [
            (3, "old", 10, 12, 10, 0),
            (1, "old", 10, 4, 4, 6),
            (5, "local", 10, 25, 10, 0),
            (4, "local", 10, 0, 0, 0),
        ]
    ]
    assert found["samples"] == {"old": 25, "local": 1233}
    (warning,) = found["warnings"]
    assert warning.startswith("class 4 (four) never appeared in 1,233 samples of the local model")
    assert replay_facts(drawn, wanted * [[1], [0]], CLASSES, NAMES)["samples"] == {"old": 25}


def facts(setup, counts):
    """What JDCL says of the second task's draw."""
    method = make_method("jdcl", setup, {**default_options("jdcl"), "quota": QUOTA, "replay_batch": BATCH})
    drawn = {**empty_draw(CLASSES, QUOTA, setup.image_shape), "counts": np.array(counts, np.int32)}
    memory = {**method.init_memory(PARAMS), "draw": drawn}
    found = {phase.name: (method, memory, phase) for phase in method.phases(1)}
    assert all(method.facts(memory, 1, phase) == {} for name, (_, _, phase) in found.items() if name != "draw")
    return method.facts(memory, 1, found["draw"][2])


def test_a_draw_without_any_image_ends_the_run_with_a_word_on_what_to_do(classifying) -> None:
    with pytest.raises(UserError, match=r"task 2: .*train\.steps.*method\.replay_steps") as error:
        facts(classifying, [0] * 6)
    assert "\n" not in str(error.value)
    found = facts(classifying, [0, 1, 0, 0, 0, 0])
    assert [entry["accepted"] for entry in found["replay"]] == [0, 1, 0, 0]
    assert [warning.split(" never")[0] for warning in found["warnings"]] == ["class 3", "class 0", "class 2"]
