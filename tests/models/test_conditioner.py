"""What a class gives the denoiser: tokens and images by hand, nothing for "no class", and what can be kept exactly."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.models.conditioner import Conditioner, average_pool, fixed_labels
from jdcl_jax.models.joint import JointNetwork
from jdcl_jax.models.unet import UNet

CLASSES, WIDTH, LABEL_WIDTH, SIDE = 5, 6, 3, 8
LABELS = np.array([4, 0, 5, 4])  # the third has no class
BARE = Conditioner(CLASSES, WIDTH, LABEL_WIDTH)
WHOLE = BARE.clone(prototypes=True, image_channels=True, token=True, pooled=4)
EMBEDDINGS = np.random.default_rng(7).standard_normal((CLASSES, LABEL_WIDTH), np.float32)
UNET = UNet(2, (4,), layers_per_block=1, groups=2, head_channels=2, context_resolutions=(8,))
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time
KINDS = ("query", "key", "value", "out")


def images(batch: int = len(LABELS)) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (batch, SIDE, SIDE, 2)).astype(np.float32)


def random_like(shapes, seed: int = 2):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: np.asarray(0.5 * random.standard_normal(s.shape), np.float32), shapes)


def random_params(conditioner: Conditioner) -> dict:
    """None of them zero."""
    key, first = jax.random.key(0), jnp.asarray(LABELS[:1])
    return random_like(jax.eval_shape(lambda: conditioner.init(key, images(1), first))["params"])


def call(conditioner: Conditioner, params: dict, x_t=None, labels=LABELS) -> tuple[np.ndarray, np.ndarray]:
    x_t = images(len(labels)) if x_t is None else x_t
    read = jax.jit(conditioner.apply)({"params": params}, x_t, jnp.asarray(labels))
    return np.asarray(read[0]), np.asarray(read[1])


def label_token(params: dict, label: int, embeddings: np.ndarray | None = None) -> np.ndarray:
    table = params["labels"] if embeddings is None else embeddings
    return table[label] @ params["label"]["kernel"]


def pooled_by_hand(image: np.ndarray) -> np.ndarray:
    """8x8 to 4x4, one pixel at a time."""
    return np.stack([[image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for j in range(4)] for i in range(4)])


def shapes_of(params: dict) -> dict:
    return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}


# -- what is read


def test_the_label_token_is_its_embedding_through_a_linear_layer() -> None:
    params = random_params(BARE)
    read, context = call(BARE, params)
    np.testing.assert_array_equal(read, images())
    assert context.shape == (4, 1, WIDTH)
    for token, label in zip(context[:, 0], LABELS, strict=True):
        np.testing.assert_allclose(token, label_token(params, label) if label < 5 else 0 * token, atol=1e-6)


def test_the_prototype_is_channels_behind_x_t_and_pooled_a_second_token() -> None:
    params = random_params(WHOLE)
    read, context = call(WHOLE, params)
    assert read.shape == (4, SIDE, SIDE, 4)
    assert context.shape == (4, 2, WIDTH)
    np.testing.assert_array_equal(read[..., :2], images())
    for example in (0, 1, 3):
        label, prototype = LABELS[example], params["prototypes"][LABELS[example]]
        np.testing.assert_array_equal(read[example, ..., 2:], prototype)
        np.testing.assert_allclose(context[example, 0], label_token(params, label), atol=1e-6)
        by_hand = pooled_by_hand(prototype).ravel() @ params["prototype"]["kernel"]
        np.testing.assert_allclose(context[example, 1], by_hand, atol=1e-5)


@pytest.mark.parametrize(("channels", "token"), [(True, False), (False, True)])
def test_the_prototype_is_one_without_the_other(channels: bool, token: bool) -> None:
    some, params = WHOLE.clone(image_channels=channels, token=token), random_params(WHOLE)
    params = params if token else {name: leaf for name, leaf in params.items() if name != "prototype"}
    assert shapes_of(random_params(some)) == shapes_of(params)
    read, context = call(some, params)
    whole = call(WHOLE, random_params(WHOLE))
    np.testing.assert_array_equal(read, whole[0] if channels else images())
    np.testing.assert_allclose(context, whole[1] if token else whole[1][:, :1], atol=1e-6)


def test_a_prototype_no_larger_than_the_pooled_side_is_taken_as_it_is() -> None:
    for pooled in (SIDE, SIDE + 3):
        same = WHOLE.clone(pooled=pooled)
        params = random_params(same)
        assert params["prototype"]["kernel"].shape == (SIDE * SIDE * 2, WIDTH)
        by_hand = params["prototypes"][4].ravel() @ params["prototype"]["kernel"]
        np.testing.assert_allclose(call(same, params)[1][0, 1], by_hand, atol=1e-5)


def test_pooling_takes_the_means_of_equal_squares_of_each_side() -> None:
    image = np.arange(24.0).reshape(1, 6, 4, 1)
    np.testing.assert_allclose(average_pool(image, 2)[0, ..., 0], [[4.5, 6.5], [16.5, 18.5]])
    np.testing.assert_allclose(average_pool(image, 1)[0, ..., 0], [[11.5]])
    np.testing.assert_allclose(average_pool(image[:, :3], 4)[0, ..., 0], image[0, :3, :, 0])


def test_half_precision_makes_tokens_and_leaves_the_image_in_float32() -> None:
    half, params = WHOLE.clone(dtype=jnp.bfloat16), random_params(WHOLE)
    read, context = call(half, params)
    np.testing.assert_array_equal(read, call(WHOLE, params)[0])
    assert context.dtype == jnp.bfloat16
    error = np.abs(context.astype(np.float32) - call(WHOLE, params)[1])
    assert 0 < error.max() < 0.05


# -- parameters


def test_parameters_are_two_tables_and_two_kernels() -> None:
    labels = {"labels": (CLASSES, LABEL_WIDTH), "label/kernel": (LABEL_WIDTH, WIDTH)}
    prototypes = {"prototypes": (CLASSES, SIDE, SIDE, 2), "prototype/kernel": (4 * 4 * 2, WIDTH)}
    assert shapes_of(random_params(BARE)) == labels
    assert shapes_of(random_params(WHOLE)) == labels | prototypes
    del labels["labels"]
    assert shapes_of(random_params(WHOLE.clone(labels_given=fixed_labels(EMBEDDINGS)))) == labels | prototypes


def test_label_tokens_begin_with_variance_1_and_prototypes_at_zero() -> None:
    large = WHOLE.clone(num_classes=400, label_width=64, width=100)
    params = jax.jit(large.init)(jax.random.key(0), images(1), jnp.zeros(1, jnp.int32))["params"]
    assert not np.any(params["prototypes"])
    assert float(jnp.mean(params["labels"])) == pytest.approx(0.0, abs=0.03)
    assert float(jnp.var(params["labels"])) == pytest.approx(1.0, rel=0.05)
    assert np.var(call(large, params, labels=np.arange(400))[1][:, 0]) == pytest.approx(1.0, rel=0.1)


def test_a_loss_reaches_the_rows_of_its_own_classes_only_and_nothing_without_a_class() -> None:
    def loss(params, labels):
        read, context = WHOLE.apply({"params": params}, images(len(labels)), labels)
        return jnp.sum(jnp.sin(read + 1)) + jnp.sum(jnp.sin(context + 1))

    gradient = jax.jit(jax.grad(loss))
    by_class = gradient(random_params(WHOLE), jnp.asarray(LABELS))
    for table in ("labels", "prototypes"):
        rows = np.abs(by_class[table]).reshape(CLASSES, -1).max(1)
        assert list(rows > 0) == [True, False, False, False, True]
    without = gradient(random_params(WHOLE), jnp.full(4, CLASSES))
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(without)) == 0.0


def test_no_class_is_zeros_whatever_the_parameters_are() -> None:
    read, context = call(WHOLE, jax.tree.map(lambda leaf: 1e6 * leaf, random_params(WHOLE)))
    np.testing.assert_array_equal(read[2, ..., 2:], np.zeros((SIDE, SIDE, 2)))
    np.testing.assert_array_equal(context[2], np.zeros((2, WIDTH)))


@pytest.mark.parametrize("table,layer,token", [("labels", "label", 0), ("prototypes", "prototype", 1)])
def test_updates_off_the_old_inputs_leave_old_tokens_and_no_class_as_they_were(table, layer, token) -> None:
    """Gradient projection: u - M M^T u, with M a basis of what the old classes feed the kernel."""
    params, old, new = random_params(WHOLE), [0, 3], 4
    inputs = params["labels"] if token == 0 else np.stack([pooled_by_hand(p).ravel() for p in params["prototypes"]])
    basis = np.linalg.svd(inputs[old].T, full_matrices=False)[0]
    update = np.random.default_rng(5).standard_normal(params[layer]["kernel"].shape).astype(np.float32)
    projected = update - basis @ (basis.T @ update)
    rows = np.array(params[table])
    rows[new] += 1
    learned = {**params, table: rows, layer: {"kernel": params[layer]["kernel"] + projected}}
    labels = np.array([*old, CLASSES, new])
    before, after = (call(WHOLE, p, labels=labels)[1][:, token] for p in (params, learned))
    np.testing.assert_allclose(after[:3], before[:3], atol=1e-5)
    assert np.abs(after[3] - before[3]).max() > 0.1
    careless = {**params, layer: {"kernel": params[layer]["kernel"] + update}}
    assert np.abs(call(WHOLE, careless, labels=labels)[1][:2, token] - before[:2]).max(1).min() > 0.1


# -- embeddings that are given


def test_given_embeddings_are_read_as_they_are() -> None:
    fixed = BARE.clone(labels_given=fixed_labels(EMBEDDINGS))
    params = random_params(fixed)
    _, context = call(fixed, params)
    for example in (0, 1, 3):
        expected = label_token(params, LABELS[example], EMBEDDINGS)
        np.testing.assert_allclose(context[example, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(context[2], np.zeros((1, WIDTH)))


def test_networks_of_equal_embeddings_are_equal_keys_and_of_others_are_not() -> None:
    calls = []

    @functools.cache
    def once(network: JointNetwork) -> int:
        calls.append(network)
        return len(calls)

    def network(embeddings) -> JointNetwork:
        return JointNetwork(UNET, conditioner=BARE.clone(labels_given=fixed_labels(embeddings)))

    assert once(network(EMBEDDINGS)) == once(network(EMBEDDINGS.astype(np.float64))) == 1
    assert once(network(EMBEDDINGS + 1)) == once(network(EMBEDDINGS + 1)) == 2
    assert once(network(EMBEDDINGS.reshape(LABEL_WIDTH, CLASSES))) == 3
    assert repr(fixed_labels(EMBEDDINGS)) == "FixedLabels(shape=(5, 3))"


@pytest.mark.parametrize(
    ("embeddings", "shape"), [(np.zeros(4), r"\[4\]"), (np.full((2, 3), np.nan), r"\[2, 3\]"), (1.0, r"\[\]")]
)
def test_embeddings_that_are_no_table_of_numbers_are_refused(embeddings, shape) -> None:
    with pytest.raises(UserError, match=rf"of shape {shape}: pass finite numbers \[classes, width\]"):
        fixed_labels(embeddings)


def test_embeddings_of_another_number_of_classes_are_refused() -> None:
    wrong = BARE.clone(labels_given=fixed_labels(EMBEDDINGS[:4]))
    with pytest.raises(ValueError, match=r"labels_given are \(4, 3\), num_classes and label_width \(5, 3\)"):
        random_params(wrong)


# -- what else is refused


@pytest.mark.parametrize("pooled", [3, 5, 0])
def test_a_side_that_does_not_divide_is_refused(pooled: int) -> None:
    with pytest.raises(UserError, match=f"8x8 pixels cannot be pooled to {pooled} a side: write a divisor of 8"):
        random_params(WHOLE.clone(pooled=pooled))


@pytest.mark.parametrize(
    "uses", [{"prototypes": True}, {"image_channels": True}, {"token": True}, {"token": True, "image_channels": True}]
)
def test_prototypes_go_with_a_use_and_only_with_one(uses: dict) -> None:
    with pytest.raises(ValueError, match="prototypes go with image_channels or token, and only with them"):
        random_params(BARE.clone(**uses))


# -- why two tokens


@pytest.mark.parametrize("token", [False, True])
def test_only_with_two_tokens_do_the_cross_attentions_queries_and_keys_have_a_gradient(token: bool) -> None:
    """Softmax over one key is 1 whatever query and key are."""
    network = JointNetwork(UNET, conditioner=WHOLE.clone(token=token))
    params = random_like(jax.eval_shape(lambda: network.init(jax.random.key(0), images().shape[1:])))

    def loss(params):
        return jnp.sum(network.denoise(params, images(), jnp.arange(4), jnp.asarray(LABELS), None) ** 2)

    gradients = flax.traverse_util.flatten_dict(quick(jax.grad(loss))(params), sep="/")
    largest = {name: float(np.abs(leaf).max()) for name, leaf in gradients.items() if "/cross/" in name}
    kinds = {kind: [size for name, size in largest.items() if f"cross/{kind}/kernel" in name] for kind in KINDS}
    assert [len(sizes) for sizes in kinds.values()] == [4, 4, 4, 4]  # down, middle, twice up
    assert min(kinds["value"] + kinds["out"]) > 1e-4
    if token:
        assert min(kinds["query"] + kinds["key"]) > 1e-4
    else:
        assert max(kinds["query"] + kinds["key"]) == 0.0
