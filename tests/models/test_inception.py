"""The FID's InceptionV3: resize, pools and size, against closed forms and the literature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models import inception


def tf1_bilinear(image, height, width):
    """TensorFlow 1's rule, pixel by pixel in float64: source index = index * in / out."""
    rows, columns, channels = image.shape
    out = np.zeros((height, width, channels))
    for i in range(height):
        y = i * rows / height
        y0, y1 = int(y), min(int(y) + 1, rows - 1)
        for j in range(width):
            x = j * columns / width
            x0, x1 = int(x), min(int(x) + 1, columns - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


def resize(image, height, width):
    resized = jax.jit(inception.resize_bilinear_tf1, static_argnums=(1, 2))
    return np.asarray(resized(jnp.asarray(image, jnp.float32)[None], height, width)[0])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((8, 8), (29, 29)),
        ((28, 28), (67, 67)),
        ((5, 9), (16, 7)),
        ((40, 31), (13, 10)),
        ((1, 1), (4, 3)),
    ],
)
def test_resize_is_tf1_bilinear_for_any_shapes(source, target):
    image = np.random.default_rng(0).integers(0, 256, (*source, 3)).astype(np.float64)
    np.testing.assert_allclose(resize(image, *target), tf1_bilinear(image, *target), atol=2e-3)


def test_doubling_keeps_pixels_at_even_places_and_repeats_the_last():
    row = np.array([0.0, 10.0, 40.0]).reshape(1, 3, 1)
    np.testing.assert_array_equal(resize(row, 1, 6).ravel(), [0, 5, 10, 25, 40, 40])


def test_halving_takes_every_second_pixel_without_smoothing():
    row = np.array([0.0, 100.0, 8.0, 200.0]).reshape(1, 4, 1)
    np.testing.assert_array_equal(resize(row, 1, 2).ravel(), [0, 8])


def test_three_to_two_reads_positions_0_and_three_halves():
    row = np.array([0.0, 10.0, 40.0]).reshape(1, 3, 1)
    np.testing.assert_array_equal(resize(row, 1, 2).ravel(), [0, 25])


def test_resize_to_the_same_size_changes_nothing():
    image = np.random.default_rng(1).integers(0, 256, (299, 299, 1))
    np.testing.assert_array_equal(resize(image, 299, 299), image)


def test_input_is_centred_at_128_and_gray_becomes_rgb():
    gray = np.array([0, 64, 128, 255], np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    x = np.asarray(inception.inception_input(jnp.asarray(gray)))
    assert x.shape == (4, 299, 299, 3)
    assert x.dtype == np.float32
    for picture, value in zip(x, [-1.0, -0.5, 0.0, 127 / 128], strict=True):
        np.testing.assert_array_equal(picture, value)


def test_input_keeps_the_order_of_channels():
    rgb = np.zeros((1, 4, 4, 3), np.uint8) + np.array([0, 128, 192], np.uint8)
    np.testing.assert_array_equal(inception.inception_input(jnp.asarray(rgb))[0, 0, 0], [-1, 0, 0.5])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
    ids=["float", "four channels", "no batch"],
)
def test_input_refuses_what_is_not_uint8_gray_or_rgb(images):
    with pytest.raises(ValueError, match="uint8 images"):
        inception.inception_input(jnp.asarray(images))


def test_average_pool_divides_by_the_pixels_inside_the_image():
    x = jnp.asarray([[4.0, 8.0, 12.0], [16.0, 20.0, 24.0], [28.0, 32.0, 36.0]])[None, :, :, None]
    pooled = np.asarray(inception.average_pool(x))[0, :, :, 0]
    np.testing.assert_allclose(pooled, [[12, 14, 16], [18, 20, 22], [24, 26, 28]], rtol=1e-6)


def pool_branch(block, x, features):
    """What the block's pool branch returns when its 1x1 convolution copies channel 0."""
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(block.init, jax.random.key(0), x))
    kernel = variables["params"]["branch_pool"]["conv"]["kernel"]
    variables["params"]["branch_pool"]["conv"]["kernel"] = kernel.at[0, 0, 0].set(1.0)
    variables["params"]["branch_pool"]["bn"]["scale"] = jnp.ones(features)
    variables["batch_stats"]["branch_pool"]["bn"]["var"] = jnp.full(features, 1 - 1e-3)
    return np.asarray(jax.jit(lambda variables, x: block.apply(variables, x)[0, :, :, -1])(variables, x))


@pytest.mark.parametrize(
    ("block", "features", "pooled"),
    [
        (inception.BlockA(32), 32, "average"),
        (inception.BlockC(128), 192, "average"),
        (inception.BlockE("average"), 192, "average"),
        (inception.BlockE("max"), 192, "max"),
    ],
    ids=["A", "C", "E_1", "E_2"],
)
def test_pool_branches_exclude_padding_and_only_the_last_takes_the_maximum(block, features, pooled):
    x = jnp.zeros((1, 3, 3, 4)).at[0, 0, 0, 0].set(36.0)
    expected = {
        "average": [[9, 6, 0], [6, 4, 0], [0, 0, 0]],  # 36/4, 36/6, 36/9
        "max": [[36, 36, 0], [36, 36, 0], [0, 0, 0]],
    }
    np.testing.assert_allclose(pool_branch(block, x, features), expected[pooled], rtol=1e-5)


@pytest.fixture(scope="module")
def shapes():
    picture = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    return jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), picture)


def test_number_of_parameters_is_that_of_the_literature(shapes):
    """Keras' InceptionV3 with 1000 classes has 23,817,352 trainable and 34,432 other parameters.

    Its batch norms have a shift but no scale, and two stored statistics, so there are 34,432 / 2 =
    17,216 channels and 23,817,352 - 17,216 - (2048 * 1000 + 1000) = 21,751,136 convolution weights.
    The FID's graph has the same convolutions, here with scale and shift, and 1008 logits.
    """
    channels = 34_432 // 2
    convolutions = 23_817_352 - channels - (2048 * 1000 + 1000)
    expected = convolutions + 2 * channels + 2048 * 1008 + 1008
    assert expected == 23_850_960

    def count(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    assert count(shapes["params"]) == expected
    assert count(shapes["batch_stats"]) == 34_432


def test_there_are_94_convolutions(shapes):
    kernels = [leaf for leaf in jax.tree.leaves(shapes["params"]) if len(leaf.shape) == 4]
    assert len(kernels) == 94


def test_without_a_last_layer_there_are_features_only():
    model = inception.InceptionV3(num_logits=0)
    picture = jnp.zeros((1, 299, 299, 3))
    (features, logits), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), picture)
    assert features.shape == (1, 2048)
    assert logits is None
    assert "fc" not in variables["params"]
