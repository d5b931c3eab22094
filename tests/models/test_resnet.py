"""Classifiers: sizes, the formula in other words, whom a prediction depends on, and classes that do not compete yet."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jdcl_jax.models.resnet import (
    CLASSIFIERS,
    BasicBlock,
    ResNet,
    SmallCNN,
    make_classifier,
    masked,
    shortcut_without_parameters,
)

NARROW = {
    "A": ResNet(5, (4, 8), (1, 2), groups=2, projection=False),
    "B": ResNet(5, (4, 8), (2, 1), groups=2, projection=True),
}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time


@functools.partial(quick, static_argnums=0)
def logits_of(network: nn.Module, params, images) -> jax.Array:
    return network.apply({"params": params}, images)


def images_of(shape, batch: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, *shape)).astype(np.float32)


def shapes_of(network: nn.Module, shape):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape))))["params"]


def random_params(network: nn.Module, shape, seed: int = 1):
    """Kernels that keep the size of their input; scales about 1 and biases about 0, none of them so."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape)
        if path[-1] == "kernel":
            return np.float32(noise * np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return np.float32((path[-1] == "scale") + 0.3 * noise)

    return flax.traverse_util.path_aware_map(draw, shapes_of(network, shape))


# -- sizes and shapes


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "classes", "size"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("resnet32", 10, 464_154),
        ("resnet32", 100, 470_004),
    ],
)
def test_networks_have_their_well_known_sizes(name, classes, size) -> None:
    assert count(shapes_of(make_classifier(name, classes), (32, 32, 3))) == size


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_images_of_many_sizes_give_a_logit_for_every_class_and_there_are_only_parameters(name, shape) -> None:
    network, images = make_classifier(name, 7), jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert set(variables) == {"params"}


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet32, cnn, not 'resnet50'"):
        make_classifier("resnet50", 10)


# -- the formula in NumPy and float64


def conv(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """A window of zeros and pixels around every `stride`-th pixel, times the kernel."""
    size = len(kernel)
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True)


def norm(x: np.ndarray, p: dict, groups: int) -> np.ndarray:
    split = x.reshape(*x.shape[:3], groups, -1)
    split = split - split.mean((1, 2, 4), keepdims=True)
    split = split / np.sqrt((split**2).mean((1, 2, 4), keepdims=True) + 1e-5)
    return split.reshape(x.shape) * p["scale"] + p["bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def head(p: dict, x: np.ndarray) -> np.ndarray:
    return x.mean((1, 2)) @ p["kernel"] + p["bias"]


def resnet_by_hand(params, images, *, stages: int, blocks: int | tuple, groups: int) -> np.ndarray:
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h = relu(norm(conv(np.asarray(images, np.float64), p["stem"]["kernel"]), p["stem_norm"], groups))
    for stage, number in enumerate((blocks,) * stages if isinstance(blocks, int) else blocks):
        for block in range(number):
            q, stride = p[f"stage{stage}_block{block}"], 2 if stage and not block else 1
            inner = relu(norm(conv(h, q["conv1"]["kernel"], stride), q["norm1"], groups))
            inner = norm(conv(inner, q["conv2"]["kernel"]), q["norm2"], groups)
            if "shortcut" in q:
                h = norm(conv(h, q["shortcut"]["kernel"], stride), q["shortcut_norm"], groups)
            elif h.shape != inner.shape:
                h = np.concatenate([h[:, ::2, ::2], np.zeros_like(h[:, ::2, ::2])], axis=3)
            h = relu(h + inner)
    return head(p["logits"], h)


def cnn_by_hand(params, images, *, strides: tuple[int, ...], groups: int) -> np.ndarray:
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h = np.asarray(images, np.float64)
    for stage, stride in enumerate(strides):
        h = relu(norm(conv(h, p[f"stage{stage}"]["kernel"], stride), p[f"stage{stage}_norm"], groups))
    return head(p["logits"], h)


RESNET18 = functools.partial(resnet_by_hand, stages=4, blocks=2, groups=32)
RESNET32 = functools.partial(resnet_by_hand, stages=3, blocks=5, groups=8)
KEEPING, HALVING = (functools.partial(cnn_by_hand, strides=(first, 2, 2), groups=8) for first in (1, 2))


@pytest.mark.parametrize(
    ("name", "shape", "by_hand"),
    [
        ("resnet18", (8, 8, 1), RESNET18),
        ("resnet18", (28, 28, 1), RESNET18),  # 28, 14, 7, 4: an odd side is halved upward
        ("resnet32", (32, 32, 3), RESNET32),
        ("resnet32", (9, 14, 1), RESNET32),
        ("cnn", (8, 8, 1), KEEPING),
        ("cnn", (16, 16, 1), KEEPING),
        ("cnn", (16, 17, 1), HALVING),
        ("cnn", (28, 28, 1), HALVING),
    ],
)
def test_networks_are_their_formula(name, shape, by_hand) -> None:
    network = make_classifier(name, 6)
    params, images = random_params(network, shape), images_of(shape)
    found, wanted = logits_of(network, params, images), by_hand(params, images)
    assert wanted.std(axis=0).min() > 0.02  # images differ
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("option", "blocks"), [("A", (1, 2)), ("B", (2, 1))])
def test_gradients_are_the_slopes_of_the_formula(option, blocks) -> None:
    """Central differences in float64, along directions in which one layer's parameters move at a time."""
    network, shape = NARROW[option], (9, 8, 2)
    params, images = random_params(network, shape), images_of(shape)
    weights = np.random.default_rng(2).standard_normal((3, 5))
    by_hand = functools.partial(resnet_by_hand, stages=2, blocks=blocks, groups=2)
    gradient = quick(jax.grad(lambda p, x: jnp.sum(weights * network.apply({"params": p}, x)), (0, 1)))(params, images)
    gradient, flat = flax.traverse_util.flatten_dict(gradient[0]), flax.traverse_util.flatten_dict(params)
    generator = np.random.default_rng(3)
    for path, leaf in flat.items():
        direction = generator.standard_normal(leaf.shape)
        ends = [
            np.sum(
                weights * by_hand(flax.traverse_util.unflatten_dict({**flat, path: leaf + step * direction}), images)
            )
            for step in (1e-6, -1e-6)
        ]
        slope = (ends[0] - ends[1]) / 2e-6
        tolerance = 1e-4 * np.linalg.norm(gradient[path]) * np.sqrt(leaf.size)
        assert np.sum(gradient[path] * direction) == pytest.approx(slope, rel=1e-3, abs=tolerance), path


def test_the_shortcut_without_parameters_takes_every_other_pixel_and_puts_zeros_behind_the_channels() -> None:
    x = np.arange(18, dtype=np.float32).reshape(1, 3, 3, 2)
    found = shortcut_without_parameters(x, 5, 2)
    np.testing.assert_array_equal(found[0, :, :, 0], [[0, 4], [12, 16]])
    np.testing.assert_array_equal(found[0, :, :, 1], [[1, 5], [13, 17]])
    assert found.shape == (1, 2, 2, 5) and not np.any(found[..., 2:])


def test_resnet32_has_the_outputs_and_gradients_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    network, shape = make_classifier("resnet32", 10), (16, 16, 3)
    params, images = random_params(network, shape), images_of(shape, 2)
    labels = np.array([7, 2])

    def turned(path, leaf):  # HWIO -> OIHW; Dense [in, out] -> [out, in]
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        return torch.from_numpy(np.array(leaf.transpose(order))).requires_grad_()

    theirs = flax.traverse_util.path_aware_map(turned, params)
    functional = torch.nn.functional

    def norm_of(x, p):
        return functional.group_norm(x, 8, p["scale"], p["bias"])

    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    h = functional.relu(norm_of(functional.conv2d(x, theirs["stem"]["kernel"], padding=1), theirs["stem_norm"]))
    for stage in range(3):
        for block in range(5):
            q, stride = theirs[f"stage{stage}_block{block}"], 2 if stage > 0 and block == 0 else 1
            inner = functional.conv2d(h, q["conv1"]["kernel"], stride=stride, padding=1)
            inner = functional.conv2d(functional.relu(norm_of(inner, q["norm1"])), q["conv2"]["kernel"], padding=1)
            if stride == 2:
                h = functional.pad(functional.max_pool2d(h, 1, 2), (0, 0, 0, 0, 0, h.shape[1]))
            h = functional.relu(h + norm_of(inner, q["norm2"]))
    last = theirs["logits"]
    logits = functional.linear(functional.adaptive_avg_pool2d(h, 1).flatten(1), last["kernel"], last["bias"])
    functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

    def loss(p):
        found = network.apply({"params": p}, images)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean(), found

    gradient, found = quick(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(found, logits.detach(), atol=1e-4)
    wanted = jax.tree.map(lambda leaf: leaf.grad.numpy(), theirs)
    for path, leaf in flax.traverse_util.flatten_dict(gradient).items():
        by_torch = flax.traverse_util.flatten_dict(wanted)[path]
        by_torch = by_torch.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[leaf.ndim])
        np.testing.assert_allclose(leaf, by_torch, atol=2e-4 * np.abs(by_torch).max(), err_msg=str(path))


# -- how they begin


def test_a_block_begins_as_its_shortcut_where_that_is_the_identity() -> None:
    x, block = images_of((6, 6, 8)), BasicBlock(8, 1, 4, False, jnp.float32)
    np.testing.assert_array_equal(quick(block.init_with_output)(jax.random.key(0), x)[0], relu(x))


def test_no_channel_of_a_shortcut_of_zeros_begins_dead() -> None:
    """Zeros of a shortcut and of a norm's scale must not meet before a ReLU, which would pass no gradient."""
    x, block = images_of((6, 6, 4), 16), BasicBlock(8, 2, 4, False, jnp.float32)

    @quick
    def begin(key):
        params = block.init(key, x)["params"]
        return jax.grad(lambda p: jnp.sum(block.apply({"params": p}, x) ** 2))(params)

    gradient = begin(jax.random.key(0))
    for layer, name in (("norm2", "scale"), ("norm2", "bias"), ("norm1", "scale")):
        assert np.abs(gradient[layer][name]).min() > 1e-3
    assert np.abs(gradient["conv1"]["kernel"]).max((0, 1, 2)).min() > 1e-3


@pytest.mark.parametrize(
    "network",
    [SmallCNN(5), ResNet(5, (64, 72), (1, 1), groups=8, projection=True)],
)
def test_kernels_begin_with_variance_2_over_inputs_and_no_convolution_has_a_bias(network) -> None:
    params = quick(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    flat = flax.traverse_util.flatten_dict(params)
    large = 0
    for path, leaf in flat.items():
        if leaf.ndim == 4:
            assert (*path[:-1], "bias") not in flat
            if leaf.size > 4000:
                large += 1
                assert np.var(leaf) == pytest.approx(2 / np.prod(leaf.shape[:3]), rel=0.1), path
    assert large >= 2


# -- whom a prediction depends on


@pytest.mark.parametrize("network", [*NARROW.values(), make_classifier("cnn", 6)])
def test_an_images_logits_do_not_change_with_the_rest_of_the_batch(network) -> None:
    shape = (8, 8, 1)
    params, images = random_params(network, shape), images_of(shape, 4)
    found = logits_of(network, params, images)
    others = np.concatenate([images[:1], images_of(shape, 3, seed=9) * 0.1 + 0.7])
    np.testing.assert_array_equal(logits_of(network, params, others)[0], found[0])
    np.testing.assert_allclose(logits_of(network, params, images[:1]), found[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits_of(network, params, images[::-1])[::-1], found)
    assert np.abs(found[1:] - found[0]).max(axis=1).min() > 0.01


@pytest.mark.parametrize("network", [NARROW["B"], SmallCNN(5, widths=(8, 8))])
def test_half_precision_ends_with_the_last_map(network) -> None:
    """Maps in bfloat16; parameters, the mean over pixels and the last layer in float32."""
    half, shape = network.clone(dtype=jnp.bfloat16), (12, 12, 2)
    params, images = random_params(network, shape), images_of(shape, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half, shape))} == {jnp.dtype(jnp.float32)}
    whole, found = logits_of(network, params, images), logits_of(half, params, images)
    assert found.dtype == np.float32
    error = np.abs(found - whole).max() / np.abs(whole).max()
    assert 1e-4 < error < 0.05
    last = "stage1_norm" if isinstance(network, SmallCNN) else "stage1_block0"

    @quick  # one program: the rounding to bfloat16 depends on how layers were merged into one pass
    def with_last_map(images):
        found, seen = half.apply({"params": params}, images, capture_intermediates=True, mutable=["intermediates"])
        return found, seen["intermediates"][last]["__call__"][0]

    found, h = with_last_map(images)
    assert h.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, head(params["logits"], np.asarray(h, np.float64)), rtol=1e-4, atol=1e-5)


# -- learning


def test_the_small_cnn_learns_digits_in_forty_steps() -> None:
    data = load_digits()
    images, labels = np.float32(data.images[..., None] / 8 - 1), data.target
    network, optimizer = make_classifier("cnn", 10), optax.sgd(0.1, momentum=0.9)
    rows = np.random.default_rng(0).integers(0, len(labels), (40, 128))

    def step(carry, batch):
        def loss(p):
            logits = network.apply({"params": p}, batch[0])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = quick(network.init)(jax.random.key(0), images[:1])["params"]
    (params, _), _ = jax.jit(lambda *xs: jax.lax.scan(step, *xs))(
        (params, optimizer.init(params)), (images[rows], labels[rows])
    )
    assert np.mean(np.argmax(logits_of(network, params, images), axis=1) == labels) > 0.93


# -- classes that do not compete yet


SEEN = np.array([False, True, False, True, True])


def class_loss(network, seen, params, images, labels):
    logits = network.apply({"params": params}, images)
    logits = logits if seen is None else masked(logits, seen)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_masking_leaves_the_seen_classes_logits_and_makes_the_others_impossible() -> None:
    logits = images_of((5,), 4)
    found = np.asarray(jax.jit(masked)(logits, SEEN))
    np.testing.assert_array_equal(found[:, SEEN], logits[:, SEEN])
    assert np.all(found[:, ~SEEN] == -np.inf)
    assert masked(jnp.bfloat16(logits), SEEN).dtype == jnp.bfloat16


step_of = quick(jax.value_and_grad(class_loss, argnums=2), static_argnums=0)
SMALL, SHAPE, LABELS = SmallCNN(5, widths=(8, 8), groups=2), (8, 8, 1), np.array([3, 1, 4, 3])


def test_a_masked_head_learns_as_one_that_has_the_seen_classes_rows_alone() -> None:
    params, images = random_params(SMALL, SHAPE), images_of(SHAPE, 4)
    fewer = {**params, "logits": {name: leaf[..., SEEN] for name, leaf in params["logits"].items()}}
    own_number = np.array([-1, 0, -1, 1, 2])[LABELS]
    value, gradient = step_of(SMALL, SEEN, params, images, LABELS)
    wanted_value, wanted = step_of(SMALL.clone(num_classes=3), None, fewer, images, own_number)
    assert float(value) == pytest.approx(float(wanted_value), rel=1e-5)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(gradient["logits"][name][..., SEEN], wanted["logits"][name], rtol=1e-4, atol=1e-6)
        assert np.all(gradient["logits"][name][..., ~SEEN] == 0.0)
    for layer in set(params) - {"logits"}:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient[layer], wanted[layer]
        )
    assert np.abs(gradient["stage0"]["kernel"]).max() > 1e-3


def test_the_bias_gets_the_mean_of_probability_less_label_over_the_seen_classes() -> None:
    params, images = random_params(SMALL, SHAPE), images_of(SHAPE, 4)
    odds = np.exp(cnn_by_hand(params, images, strides=(1, 2), groups=2)) * SEEN
    p = odds / odds.sum(1, keepdims=True)
    value, gradient = step_of(SMALL, SEEN, params, images, LABELS)
    np.testing.assert_allclose(gradient["logits"]["bias"], (p - np.eye(5)[LABELS]).mean(0), atol=1e-5)
    assert float(value) == pytest.approx(-np.log(p[np.arange(4), LABELS]).mean(), rel=1e-5)
