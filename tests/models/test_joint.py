"""One network that generates and classifies: sizes, what the classifier reads, what it costs, what guides by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.assembly import classifying_flops, forward_flops
from jdcl_jax.keys import example_keys
from jdcl_jax.models.conditioner import Conditioner
from jdcl_jax.models.joint import ClassHead, JointNetwork, pool
from jdcl_jax.models.unet import UNet

CIFAR = UNet(
    3, (128, 256, 256, 256), layers_per_block=3, attention_resolutions=(16, 8), head_channels=0, heads=4,
    scale_shift=True, dropout=0.1,
)  # fmt: skip
LARGER = CIFAR.clone(channels=(192, 384, 384, 384), attention_resolutions=(8,), head_channels=64, heads=0)

TINY = UNet(1, (8, 16), layers_per_block=1, groups=4)
SMALL = UNet(1, (4,), layers_per_block=1, groups=2, head_channels=4)  # whose gradients compile in seconds
HEAD = ClassHead(num_classes=5, hidden=12, dropout=0.0)
JOINT, SEPARATE, ALONE = JointNetwork(TINY, HEAD), JointNetwork(TINY, HEAD, separate=True), JointNetwork(TINY)
SMALL_JOINT, SMALL_SEPARATE, SMALL_ALONE = (dataclasses.replace(n, unet=SMALL) for n in (JOINT, SEPARATE, ALONE))
SHAPE, BATCH = (8, 8, 1), 3
DECODER = ("up", "norm_out", "conv_out")

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time
bound = functools.cache(lambda network, name: quick(getattr(network, name)))


def classify(network: JointNetwork, params: dict, x: jax.Array, keys: jax.Array | None = None) -> np.ndarray:
    return np.asarray(bound(network, "classify")(params, x, keys))


def pooled_of(network: JointNetwork, params: dict, x: jax.Array) -> np.ndarray:
    return np.asarray(bound(network, "pooled")(params, x))


def denoise(network: JointNetwork, params: dict, x: jax.Array, t: jax.Array) -> np.ndarray:
    return np.asarray(bound(network, "denoise")(params, x, t, None, None))


def images(batch: int = BATCH, number: int = 1) -> jax.Array:
    return jax.random.uniform(jax.random.key(number), (batch, *SHAPE), minval=-1.0)


@functools.cache
def random_params(network: JointNetwork) -> dict:
    """None of them zero."""
    shapes, generator = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE)), np.random.default_rng(2)
    return jax.tree.map(lambda s: np.asarray(0.3 * generator.standard_normal(s.shape), np.float32), shapes)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def head_by_hand(params: dict, pooled: np.ndarray) -> np.ndarray:
    """Logits in float64."""
    hidden, logits = (jax.tree.map(lambda x: np.asarray(x, np.float64), params[n]) for n in ("hidden", "logits"))
    h = np.asarray(pooled, np.float64) @ hidden["kernel"] + hidden["bias"]
    h = np.where(h > 0, h, 0.2 * h)
    return h @ logits["kernel"] + logits["bias"]


def log_p_by_hand(params: dict, pooled: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The log-likelihood of each example's class in float64, [B]."""
    logits = head_by_hand(params, pooled)
    top = logits.max(1, keepdims=True)
    return (logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True)))[np.arange(len(classes)), classes]


def slope_by_hand(params: dict, pooled: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Its gradient with respect to the pooled features in float64, [B, F]."""
    hidden, logits = (jax.tree.map(lambda x: np.asarray(x, np.float64), params[n]) for n in ("hidden", "logits"))
    before = np.asarray(pooled, np.float64) @ hidden["kernel"] + hidden["bias"]
    scores = head_by_hand(params, pooled)
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = np.eye(scores.shape[1])[classes] - p / p.sum(1, keepdims=True)
    return (error @ logits["kernel"].T * np.where(before > 0, 1.0, 0.2)) @ hidden["kernel"].T


# -- sizes


@pytest.mark.parametrize(
    ("unet", "side", "classes", "hidden", "sizes"),
    [(CIFAR, 32, 10, 1024, (52.5e6, 3.8e6)), (LARGER, 64, 100, 2048, (114e6, 11.6e6))],
)
def test_networks_have_their_published_sizes(unet, side, classes, hidden, sizes) -> None:
    network = JointNetwork(unet, ClassHead(classes, hidden=hidden))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (side, side, 3)))
    assert set(params) == {"unet", "head"}
    assert count(params["unet"]) == pytest.approx(sizes[0], rel=0.01)
    assert count(params["head"]) == pytest.approx(sizes[1], rel=0.01)
    features = network.num_features((side, side, 3))
    assert count(params["head"]) == (features + 1) * hidden + (hidden + 1) * classes


def test_the_cifar_network_has_3712_features_in_17_maps() -> None:
    assert JointNetwork(CIFAR).num_features((32, 32, 3)) == 3712
    x, t = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    key = jax.random.key(0)
    maps = jax.eval_shape(lambda x, t: CIFAR.init_with_output(key, x, t, method=UNet.features)[0], x, t)
    widths = [128] * 5 + [256] * 12
    sides = [32] * 4 + [16] * 4 + [8] * 4 + [4] * 5
    assert [h.shape for h in maps] == [(1, side, side, width) for side, width in zip(sides, widths, strict=True)]


def test_a_separate_classifier_costs_an_encoder_more() -> None:
    joint, separate = random_params(JOINT), random_params(SEPARATE)
    assert set(separate) == {"unet", "head", "encoder"}
    shapes = functools.partial(jax.tree.map, jnp.shape)
    assert shapes(separate["head"]) == shapes(joint["head"])
    without_decoder = {name: leaf for name, leaf in joint["unet"].items() if not name.startswith(DECODER)}
    assert shapes(separate["encoder"]) == shapes(without_decoder)
    assert 0 < count(separate["encoder"]) < count(joint["unet"])


# -- the denoiser is the same in all of them


def test_the_denoiser_begins_the_same_whether_something_classifies_or_not() -> None:
    """And a separate encoder begins with weights of its own."""

    @quick
    def begun(key):
        return [network.init(key, SHAPE) for network in (SMALL_ALONE, SMALL_JOINT, SMALL_SEPARATE)]

    alone, joint, separate = begun(jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, joint["unet"], alone)
    jax.tree.map(np.testing.assert_array_equal, separate["unet"], alone)
    jax.tree.map(np.testing.assert_array_equal, separate["head"], joint["head"])
    for layer in ("conv_in", "time1", "time2"):
        own, shared = (np.asarray(separate[part][layer]["kernel"]) for part in ("encoder", "unet"))
        assert np.corrcoef(own.ravel(), shared.ravel())[0, 1] < 0.9
        assert own.std() == pytest.approx(shared.std(), rel=0.5)


def test_the_denoiser_says_the_same_whether_something_classifies_or_not() -> None:
    params, t = random_params(SMALL_SEPARATE), jnp.array([0, 5, 900])
    output = denoise(SMALL_ALONE, params["unet"], images(), t)
    for network in (SMALL_JOINT, SMALL_SEPARATE):
        np.testing.assert_array_equal(denoise(network, params, images(), t), output)


# -- what the classifier reads


@functools.partial(quick, static_argnums=(0, 1))
def captured(unet: UNet, names: tuple[str, ...], params: dict, x: jax.Array, labels: jax.Array | None = None) -> list:
    """What layers of these names gave in a whole pass of the denoiser at t = 0."""
    t = jnp.zeros(len(x), jnp.int32)
    _, seen = unet.apply({"params": params}, x, t, labels, capture_intermediates=True, mutable=["intermediates"])
    return [seen["intermediates"][name]["__call__"][0] for name in names]


def means(maps) -> np.ndarray:
    return np.concatenate([np.asarray(h, np.float64).mean((1, 2)) for h in maps], axis=1)


def test_pooled_features_are_the_means_of_every_encoder_output_and_the_middle_block_in_order() -> None:
    network = JointNetwork(TINY.clone(attention_resolutions=(4,)), HEAD)
    params = random_params(network)
    names = ("conv_in", "down0_res0", "down0_sample", "down1_attention0", "mid_res2")
    maps = captured(network.unet, names, params["unet"], images())
    assert [h.shape[1:] for h in maps] == [(8, 8, 8), (8, 8, 8), (4, 4, 8), (4, 4, 16), (4, 4, 16)]
    by_hand = means(maps)
    assert by_hand.shape == (BATCH, network.num_features(SHAPE)) == (BATCH, 56)
    np.testing.assert_allclose(pooled_of(network, params, images()), by_hand, rtol=1e-4, atol=1e-4)


def test_pooling_is_done_in_float32_over_the_pixels_alone() -> None:
    first = jnp.arange(24.0).reshape(2, 2, 3, 2)
    second = jnp.full((2, 64, 64, 1), 1.0, jnp.bfloat16).at[:, 0, 0, 0].set(1.5)
    pooled = pool((first, second))
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled[:, :2], [[5, 6], [17, 18]])
    np.testing.assert_allclose(pooled[:, 2], 1 + 0.5 / 64**2, rtol=1e-6)


def test_logits_are_two_linear_layers_and_a_leaky_relu_on_the_pooled_features() -> None:
    params = random_params(JOINT)
    pooled = pooled_of(JOINT, params, images())
    before = pooled @ np.asarray(params["head"]["hidden"]["kernel"])
    assert (before > 0).any()
    assert (before < 0).any()
    logits = classify(JOINT, params, images())
    assert logits.shape == (BATCH, 5)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, head_by_hand(params["head"], pooled), rtol=1e-4, atol=1e-4)


def test_a_separate_classifier_reads_its_own_encoder_and_pooled_features_are_the_denoisers() -> None:
    params = random_params(SEPARATE)
    as_joint = {"unet": {**params["unet"], **params["encoder"]}, "head": params["head"]}
    np.testing.assert_array_equal(classify(SEPARATE, params, images()), classify(JOINT, as_joint, images()))
    np.testing.assert_array_equal(pooled_of(SEPARATE, params, images()), pooled_of(ALONE, params["unet"], images()))
    assert np.abs(pooled_of(SEPARATE, params, images()) - pooled_of(JOINT, as_joint, images())).max() > 0.1


def test_a_conditional_network_is_asked_without_a_class() -> None:
    unet, names = SMALL.clone(num_classes=5), ("conv_in", "down0_res0", "mid_res2")
    for network in (JointNetwork(unet, HEAD), JointNetwork(unet, HEAD, separate=True)):
        params = random_params(network)
        encoder = {**params["unet"], **(params["encoder"] if network.separate else {})}  # and what makes a whole pass
        by_label = [means(captured(unet, names, encoder, images(), jnp.full(BATCH, label))) for label in range(6)]
        logits = classify(network, params, images())
        np.testing.assert_allclose(logits, head_by_hand(params["head"], by_label[5]), rtol=1e-3, atol=1e-3)
        for label in range(5):
            assert np.abs(logits - head_by_hand(params["head"], by_label[label])).max() > 0.02


def test_half_precision_ends_with_the_features() -> None:
    """Maps in bfloat16, head and logits in float32."""
    network, params = JointNetwork(SMALL.clone(dtype=jnp.bfloat16), HEAD), random_params(SMALL_JOINT)
    pooled, logits = pooled_of(network, params, images()), classify(network, params, images())
    assert pooled.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(logits, head_by_hand(params["head"], pooled), rtol=1e-4, atol=1e-4)
    assert np.any(pooled != pooled_of(SMALL_JOINT, params, images()))


# -- whom the gradients reach


def largest(tree) -> float:
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


def class_loss(network: JointNetwork, params: dict) -> jax.Array:
    logits = network.classify(params, images())
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(BATCH)))


def denoising_loss(network: JointNetwork, params: dict) -> jax.Array:
    x = images()
    return jnp.sum((network.denoise(params, x, jnp.array([0, 5, 900]), None, None) - 1.0) ** 2)


@functools.cache
def gradient_of(loss, network: JointNetwork) -> dict:
    return quick(jax.grad(functools.partial(loss, network)))(random_params(network))


def test_the_classifier_teaches_the_whole_encoder_and_nothing_of_the_decoder() -> None:
    gradient = gradient_of(class_loss, SMALL_JOINT)
    decoder = {name: g for name, g in gradient["unet"].items() if name.startswith(DECODER)}
    assert set(decoder) == {"up0_res0", "up0_res1", "norm_out", "conv_out"}
    assert largest(decoder) == 0.0
    encoder = {name: g for name, g in gradient["unet"].items() if name not in decoder}
    for path, leaf in jax.tree_util.tree_leaves_with_path({**encoder, "head": gradient["head"]}):
        if "key_bias" not in jax.tree_util.keystr(path):  # never trained
            assert largest(leaf) > 0, jax.tree_util.keystr(path)


def test_a_separate_classifier_and_the_denoiser_teach_each_other_nothing() -> None:
    classes, denoising = (gradient_of(loss, SMALL_SEPARATE) for loss in (class_loss, denoising_loss))
    assert largest(classes["unet"]) == 0.0
    assert largest(classes["encoder"]["conv_in"]) > 0
    assert largest(classes["head"]) > 0
    assert largest((denoising["encoder"], denoising["head"])) == 0.0
    assert largest(denoising["unet"]["conv_in"]) > 0


# -- what it costs


def conv_flops(side: int, inputs: int, outputs: int) -> int:
    """Of a 3x3 convolution that keeps the size: a multiplication and an addition for each tap inside the image."""
    return 2 * (3 * side - 2) ** 2 * inputs * outputs


def test_classifying_costs_encoder_and_head_and_no_decoder() -> None:
    network, plain, features = JOINT, TINY.clone(form="plain"), JOINT.num_features(SHAPE)

    def encode(params, x, t):
        return plain.apply({"params": params}, x, t, method=UNet.features)

    params = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    x, t = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    encoding = jax.jit(encode).lower(params["unet"], x, t).cost_analysis()["flops"]
    head = 2 * features * HEAD.hidden + 2 * HEAD.hidden * HEAD.num_classes
    pixels = 64 * (8 + 8) + 16 * (8 + 16 + 16)  # of the five maps, each added once
    classifying = classifying_flops(network, SHAPE)
    assert encoding + head + pixels <= classifying <= encoding + head + 1.2 * pixels + 10 * HEAD.hidden
    inner = conv_flops(4, 32, 16) + conv_flops(4, 24, 16) + 2 * conv_flops(4, 16, 16)  # blocks of the lower level
    outer = conv_flops(8, 24, 8) + conv_flops(8, 16, 8) + 2 * conv_flops(8, 8, 8) + conv_flops(8, 8, 1)  # of the upper
    decoder = inner + outer + conv_flops(8, 16, 16)  # and of the way up
    assert forward_flops(network, SHAPE) - (classifying - head - pixels) > decoder - 10 * HEAD.hidden
    assert forward_flops(network, SHAPE) - encoding < 1.3 * decoder
    assert classifying_flops(SEPARATE, SHAPE) == classifying


def test_the_forward_pass_costs_the_same_whether_something_classifies_or_not() -> None:
    assert forward_flops(JOINT, SHAPE) == forward_flops(SEPARATE, SHAPE) == forward_flops(ALONE, SHAPE)


# -- dropout


def keys_of(number: int, batch: int = 4) -> jax.Array:
    return example_keys(jax.random.key(number), jnp.arange(batch))


@pytest.mark.parametrize(("where", "plain"), [("encoder", SMALL_JOINT), ("head", SMALL_SEPARATE)])
def test_dropout_needs_keys_and_has_one_mask_per_example(where: str, plain: JointNetwork) -> None:
    unet, head = plain.unet.clone(dropout=0.5 * (where == "encoder")), HEAD.clone(dropout=0.5 * (where == "head"))
    network, params, x, keys = (
        dataclasses.replace(plain, unet=unet, head=head),
        random_params(plain),
        images(4),
        keys_of(3),
    )
    whole, dropped = classify(network, params, x), classify(network, params, x, keys)
    np.testing.assert_allclose(whole, classify(plain, params, x), rtol=1e-4, atol=1e-4)
    assert np.abs(dropped - whole).max(1).min() > 1e-2
    np.testing.assert_array_equal(classify(network, params, x, keys), dropped)
    np.testing.assert_array_equal(classify(network, params, x[::-1], keys[::-1]), dropped[::-1])
    assert np.abs(dropped - classify(network, params, x, keys_of(4))).max() > 1e-2
    same = classify(network, params, jnp.broadcast_to(x[:1], x.shape), keys)  # one image, four masks
    assert len(np.unique(same.round(3), axis=0)) == 4
    np.testing.assert_array_equal(same[0], dropped[0])


def test_the_heads_dropout_does_not_change_what_is_said_on_average() -> None:
    """The second layer is linear in what is dropped."""
    head, params, number = HEAD.clone(dropout=0.3), random_params(JOINT)["head"], 20_000
    pooled = jnp.broadcast_to(pooled_of(JOINT, random_params(JOINT), images())[:1], (number, JOINT.num_features(SHAPE)))
    said = np.asarray(quick(head.apply)({"params": params}, pooled, keys_of(5, number)), np.float64)
    error = said.mean(0) - head_by_hand(params, np.asarray(pooled[:1]))[0]
    assert np.all(np.abs(error) < 5 * said.std(0) / np.sqrt(number))
    assert np.all(said.std(0) > 0.05)


# -- guidance by the classifier


class Watched:
    """A UNet that keeps its features before and after they are edited."""

    def apply(self, variables, x_t, t, labels, keys, edit):
        assert labels is None
        assert keys is None

        def watched(features):
            self.before, self.after = features, edit(features)
            return self.after

        return TINY.apply(variables, x_t, t, None, None, watched)


CLASSES, TIMES = jnp.array([4, 0, 2]), jnp.array([900, 5, 300])


@quick
def guided(scale: float, classes: jax.Array = CLASSES) -> tuple[jax.Array, tuple, tuple]:
    """The output, and the features before and after the edit."""
    watched, params = Watched(), random_params(JOINT)
    output = dataclasses.replace(JOINT, unet=watched).denoise_towards(params, images(), TIMES, classes, scale)
    return output, watched.before, watched.after


def test_guidance_of_scale_0_changes_nothing_at_all() -> None:
    """What the decoder reads is the same to the bit; two compiled programs round what it makes of it differently."""
    output, before, after = guided(0.0)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    np.testing.assert_allclose(output, denoise(JOINT, random_params(JOINT), images(), TIMES), rtol=1e-4, atol=1e-5)


def test_guidance_changes_the_output_of_each_example_by_its_own_class() -> None:
    output = np.asarray(guided(20.0)[0])
    assert np.abs(output - guided(0.0)[0]).max((1, 2, 3)).min() > 1e-3
    other = np.asarray(guided(20.0, CLASSES.at[1].set(3))[0])
    np.testing.assert_allclose(other[::2], output[::2], rtol=1e-4, atol=1e-4)
    assert np.abs(other[1] - output[1]).max() > 1e-3


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_every_map_moves_by_scale_times_the_gradient_in_its_pixels_the_same_at_all_of_them(scale) -> None:
    """A map's mean is what is read, so the gradient in a pixel is that in the mean over the number of pixels."""
    _, before, after = guided(scale)
    slope = slope_by_hand(random_params(JOINT)["head"], means(before), np.asarray(CLASSES))
    moves = np.split(scale * slope, np.cumsum([8, 8, 8, 16]), axis=1)
    assert len(before) == len(after) == len(moves) == 5
    for old, new, move in zip(before, after, moves, strict=True):
        move = move / (old.shape[1] * old.shape[2])
        np.testing.assert_allclose(new - old, np.broadcast_to(move[:, None, None, :], old.shape), rtol=1e-3, atol=1e-6)
        assert np.abs(move).max(1).min() > 1e-5


def test_the_decoder_reads_the_edited_features() -> None:
    """All of them: each map alone, moved by hand, changes the output."""

    @quick
    def decoded(moves):
        def edit(features):
            return tuple(h + move for h, move in zip(features, moves, strict=True))

        return TINY.apply({"params": random_params(JOINT)["unet"]}, images(), TIMES, None, None, edit)

    output, before, after = guided(20.0)
    moves = [np.asarray(new - old) for old, new in zip(before, after, strict=True)]
    np.testing.assert_allclose(decoded(moves), output, rtol=1e-4, atol=1e-4)
    for place in range(5):
        others = [move * (i != place) for i, move in enumerate(moves)]
        assert np.abs(decoded(others) - output).max() > 1e-3


def test_guidance_raises_log_p_of_the_class_by_scale_times_the_squared_gradient_to_first_order() -> None:
    head, classes, scale = random_params(JOINT)["head"], np.asarray(CLASSES), 0.2
    _, before, after = guided(scale)
    pixels = np.concatenate([np.full(h.shape[-1], h.shape[1] * h.shape[2]) for h in before])
    squared = np.sum(slope_by_hand(head, means(before), classes) ** 2 / pixels, axis=1)
    increase = log_p_by_hand(head, means(after), classes) - log_p_by_hand(head, means(before), classes)
    assert (scale * squared).min() > 2e-4
    np.testing.assert_allclose(increase, scale * squared, rtol=0.02)
    _, before, after = guided(3.0)
    assert np.all(log_p_by_hand(head, means(after), classes) > log_p_by_hand(head, means(before), classes))


def test_the_slope_by_hand_is_that_of_finite_differences() -> None:
    head, classes = random_params(JOINT)["head"], np.asarray(CLASSES)
    pooled = means(guided(0.0)[1])
    slope, generator = slope_by_hand(head, pooled, classes), np.random.default_rng(4)
    for _ in range(3):
        direction = generator.standard_normal(pooled.shape)
        ends = [log_p_by_hand(head, pooled + sign * 1e-6 * direction, classes) for sign in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, np.sum(slope * direction, axis=1), rtol=1e-4, atol=1e-5)


def test_a_separate_classifier_cannot_guide() -> None:
    with pytest.raises(AssertionError, match="separate"):
        SEPARATE.denoise_towards(random_params(SEPARATE), images(), TIMES, CLASSES, 1.0)


def test_a_network_without_a_classifier_says_so() -> None:
    with pytest.raises(AssertionError, match="no classifier"):
        ALONE.classify(random_params(ALONE), images())


# -- a conditioner

ATTENDING = SMALL.clone(context_resolutions=(8,))
TELLING = Conditioner(5, 6, 3, prototypes=True, image_channels=True, token=True, pooled=4)
TOLD = JointNetwork(ATTENDING, HEAD, conditioner=TELLING)
TOLD_SEPARATE, TOLD_ALONE = dataclasses.replace(TOLD, separate=True), dataclasses.replace(TOLD, head=None)


def given(params: dict, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    read, context = TELLING.apply({"params": params["conditioner"]}, x, labels)
    return jnp.asarray(read), jnp.asarray(context)


def test_a_conditioners_parameters_stand_beside_the_unets() -> None:
    assert set(random_params(TOLD)) == {"unet", "conditioner", "head"}
    assert set(random_params(TOLD_SEPARATE)) == {"unet", "conditioner", "head", "encoder"}
    assert set(random_params(TOLD_ALONE)) == {"unet", "conditioner"}
    params = random_params(TOLD_SEPARATE)
    for part in ("unet", "encoder"):
        assert params[part]["conv_in"]["kernel"].shape == (3, 3, 2, 4)
        assert params[part]["mid_transformer"]["cross"]["key"]["kernel"].shape == (6, 4)
    assert set(params["conditioner"]) == {"labels", "label", "prototypes", "prototype"}
    for network in (TOLD, TOLD_SEPARATE):
        assert params["head"]["hidden"]["kernel"].shape == (network.num_features(SHAPE), HEAD.hidden) == (12, 12)


@pytest.mark.long
def test_with_a_conditioner_too_the_denoiser_begins_the_same_whether_something_classifies_or_not() -> None:
    begun = quick(lambda key: [network.init(key, SHAPE) for network in (TOLD_ALONE, TOLD)])
    alone, joint = begun(jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, {"unet": joint["unet"], "conditioner": joint["conditioner"]}, alone)
    assert np.std(alone["conditioner"]["labels"]) > 0.1


def test_the_classes_of_a_network_are_its_conditioners_or_its_unets() -> None:
    assert [network.num_classes for network in (TOLD, TOLD_ALONE, JOINT, ALONE)] == [5, 5, 0, 0]
    assert JointNetwork(SMALL.clone(num_classes=3)).num_classes == 3


def test_the_denoiser_reads_what_the_conditioner_makes_of_the_labels() -> None:
    x, t, labels = images(), jnp.array([0, 5, 900]), jnp.array([4, 5, 0])
    params = random_params(TOLD_SEPARATE)
    read, context = given(params, x, labels)
    expected = quick(ATTENDING.apply)({"params": params["unet"]}, read, t, context=context)
    for network in (TOLD, TOLD_SEPARATE, TOLD_ALONE):
        output = np.asarray(bound(network, "denoise")(params, x, t, labels, None))
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
        other = bound(network, "denoise")(params, x, t, labels.at[1].set(2), None)
        assert [bool(np.abs(change).max() > 1e-2) for change in other - output] == [False, True, False]


def test_a_network_with_a_conditioner_classifies_without_a_class() -> None:
    nothing, time = jnp.full(BATCH, 5), jnp.zeros(BATCH, jnp.int32)
    params = random_params(TOLD_SEPARATE)
    read, context = given(params, images(), nothing)
    encode = quick(functools.partial(ATTENDING.apply, method=UNet.features))
    by_unet, by_encoder = (
        means(encode({"params": params[part]}, read, time, context=context)) for part in ("unet", "encoder")
    )
    np.testing.assert_allclose(pooled_of(TOLD, params, images()), by_unet, rtol=1e-4, atol=1e-4)
    for network, pooled in ((TOLD, by_unet), (TOLD_SEPARATE, by_encoder)):
        logits = classify(network, params, images())
        np.testing.assert_allclose(logits, head_by_hand(params["head"], pooled), rtol=1e-3, atol=1e-3)
    assert np.abs(by_unet - by_encoder).max() > 0.1
    elsewhere = {**params, "conditioner": jax.tree.map(lambda leaf: -3 * leaf, params["conditioner"])}
    np.testing.assert_array_equal(classify(TOLD, elsewhere, images()), classify(TOLD, params, images()))


def test_dropout_reaches_a_network_with_a_conditioner() -> None:
    network, params = dataclasses.replace(TOLD_ALONE, unet=ATTENDING.clone(dropout=0.5)), random_params(TOLD_ALONE)
    x, t, labels = images(), jnp.array([0, 5, 900]), jnp.array([4, 5, 0])
    whole = bound(TOLD_ALONE, "denoise")(params, x, t, labels, None)
    dropped = bound(network, "denoise")(params, x, t, labels, keys_of(3, BATCH))
    assert np.abs(dropped - whole).max((1, 2, 3)).min() > 1e-2


def test_a_conditioner_needs_labels_and_a_unet_that_reads_them() -> None:
    params, (x, t) = random_params(TOLD), (images(), jnp.zeros(BATCH, jnp.int32))
    with pytest.raises(ValueError, match="a network with a conditioner needs labels"):
        TOLD.denoise(params, x, t, None, None)
    with pytest.raises(ValueError, match="a context goes with context_resolutions"):
        JointNetwork(SMALL, conditioner=TELLING).init(jax.random.key(0), SHAPE)
    with pytest.raises(ValueError, match="labels go with num_classes"):
        JointNetwork(ATTENDING.clone(num_classes=5), conditioner=TELLING).init(jax.random.key(0), SHAPE)
    with pytest.raises(ValueError, match="a context goes with context_resolutions"):
        TOLD.denoise_towards(params, x, t, t, 1.0)
