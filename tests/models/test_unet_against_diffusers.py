"""The UNet computes what diffusers' UNet2DModel computes with the same weights: output and gradients."""

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models.unet import UNet

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

LEVELS = 2
RES_LAYERS = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION_LAYERS = {
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}
TOP_LAYERS = {
    "conv_in": "conv_in",
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def diffusers_name(path):
    """("down0_res1", "conv1", "kernel") -> "down_blocks.0.resnets.1.conv1.weight"."""
    *layers, leaf = path
    if leaf == "key_bias":
        layers, leaf = [*layers, "key"], "bias"
    ending = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
    if layers[0] in TOP_LAYERS:
        return f"{TOP_LAYERS[layers[0]]}.{ending}"
    if match := re.fullmatch(r"mid_(res|attention)(\d?)", layers[0]):
        place, number = "mid_block", int(match[2] or 1) - 1
        kind = match[1]
    else:
        side, level, kind, number = re.fullmatch(r"(down|up)(\d)_(res|attention|sample)(\d?)", layers[0]).groups()
        level = int(level) if side == "down" else LEVELS - 1 - int(level)
        place = f"{side}_blocks.{level}"
    if kind == "sample":
        return f"{place}.{side}samplers.0.conv.{ending}"
    if kind == "res":
        return f"{place}.resnets.{number}.{RES_LAYERS[layers[1]]}.{ending}"
    return f"{place}.attentions.{number}.{ATTENTION_LAYERS[layers[1]]}.{ending}"


def to_flax(path, tensor):
    """OIHW -> HWIO and [out, in] -> [in, out]; vectors as they are."""
    array = tensor.detach().numpy()
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@pytest.fixture(scope="module", params=[1, 2], ids=["one res layer", "two res layers"])
def pair(request):
    """(ours, our parameters, theirs): every weight random, also norms and biases."""
    ours = UNet(3, (32, 64), layers_per_block=request.param, attention_resolutions=(4,), groups=8)
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=request.param,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1, jnp.int32))
    weights = dict(theirs.named_parameters())
    flat = {
        path: to_flax(path, weights.pop(diffusers_name(path)))
        for path in flax.traverse_util.flatten_dict(shapes["params"])
    }
    assert not weights, f"parameters that ours has not: {sorted(weights)}"
    params = flax.traverse_util.unflatten_dict(flat)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes["params"])
    return ours, params, theirs


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 8, 8, 3), np.float32)
    target = random.standard_normal((3, 8, 8, 3), np.float32)
    return x, np.array([0, 17, 999], np.int32), target


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def test_outputs_agree(pair, inputs):
    ours, params, theirs = pair
    x, t, _ = inputs
    with torch.no_grad():
        expected = theirs(nchw(x), torch.from_numpy(t)).sample.numpy().transpose(0, 2, 3, 1)
    actual = jax.jit(ours.apply)({"params": params}, x, t)
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_gradients_of_all_weights_and_of_the_image_agree(pair, inputs):
    ours, params, theirs = pair
    x, t, target = inputs
    theirs.zero_grad()
    image = nchw(x).requires_grad_()
    torch.nn.functional.mse_loss(theirs(image, torch.from_numpy(t)).sample, nchw(target)).backward()

    def loss(params, x):
        return jnp.mean(jnp.square(ours.apply({"params": params}, x, t) - target))

    by_params, by_image = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    weights = dict(theirs.named_parameters())
    for path, gradient in flax.traverse_util.flatten_dict(by_params).items():
        expected = to_flax(path, weights[diffusers_name(path)].grad)
        tolerance = 1e-6 + 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=tolerance, err_msg=str(path))
    expected = image.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(by_image, expected, atol=1e-3 * np.abs(expected).max())
