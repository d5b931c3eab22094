"""With a context the UNet computes what diffusers' UNet2DConditionModel computes with the same weights."""

import functools
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models.transformer import TransformerBlock
from jdcl_jax.models.unet import UNet

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

LEVELS, TOKENS, WIDTH = 2, 3, 12
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time
LAYERS = {
    "time": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "own": "transformer_blocks.0.attn1",
    "cross": "transformer_blocks.0.attn2",
    "own_norm": "transformer_blocks.0.norm1",
    "cross_norm": "transformer_blocks.0.norm2",
    "gated_norm": "transformer_blocks.0.norm3",
    "gated": "transformer_blocks.0.ff.net.0.proj",
    "narrow": "transformer_blocks.0.ff.net.2",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "conv_in": "conv_in",
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
"""Our names of layers that have another name there, and of those outside of all blocks."""


def diffusers_name(path: tuple[str, ...]) -> str:
    """("down1_transformer0", "cross", "key", "kernel") -> "down_blocks.1.attentions.0.transformer_blocks....weight"."""
    first, *inner, leaf = path
    ending = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
    if first in LAYERS:
        return f"{LAYERS[first]}.{ending}"
    side, level, kind, number = re.fullmatch(r"(down|up|mid)(\d?)_(res|transformer|sample)(\d?)", first).groups()
    place, number = f"{side}_blocks.{level}", number or 0
    if side == "up":
        place = f"up_blocks.{LEVELS - 1 - int(level)}"
    if side == "mid":
        place, number = "mid_block", max(int(number) - 1, 0)
    if kind == "sample":
        return f"{place}.{side}samplers.0.conv.{ending}"
    layers = [LAYERS.get(layer, layer) for layer in inner]
    return ".".join([place, "resnets" if kind == "res" else "attentions", str(number), *layers, ending])


def to_flax(tensor, ours) -> np.ndarray:
    """Torch's layout to Flax's, of the same shape as `ours`: 1x1 convolutions are dense layers here."""
    array = tensor.detach().numpy()
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return array.reshape(ours.shape) if array.shape[:2] == (1, 1) else array


def shake(model) -> None:
    """Diffusers begins with zeros and ones here and there, which would hide an error."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(scope="module", params=[False, True], ids=["one level", "both levels, two layers"])
def pair(request):
    """Our network, its parameters and diffusers' network, with four heads and with heads of eight channels."""
    both, layers = request.param, 1 + request.param
    heights = (8, 4) if both else (4,)
    ours = UNet(3, (32, 64), layers, heads=0 if both else 4, head_channels=8 if both else 0, groups=8,
                context_resolutions=heights)  # fmt: skip
    torch.manual_seed(0)
    down = ("CrossAttnDownBlock2D" if both else "DownBlock2D", "CrossAttnDownBlock2D")
    theirs = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=6,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=layers,
        down_block_types=down,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in down[::-1]),
        attention_head_dim=(4, 8) if both else 4,  # the number of heads, not their width
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    ).eval()
    shake(theirs)
    x, t, context, _ = arrays()
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, t, context=context))["params"]
    weights = dict(theirs.named_parameters())
    flat = flax.traverse_util.flatten_dict(shapes)
    flat = {path: to_flax(weights.pop(diffusers_name(path)), leaf) for path, leaf in flat.items()}
    assert not weights, f"parameters that ours has not: {sorted(weights)}"
    params = flax.traverse_util.unflatten_dict(flat)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return ours, params, theirs


def arrays() -> tuple[np.ndarray, ...]:
    """x_t, timesteps, tokens and a target."""
    random = np.random.default_rng(0)
    x, target = (random.standard_normal((3, 8, 8, channels), np.float32) for channels in (6, 3))
    return x, np.array([0, 17, 999], np.int32), random.standard_normal((3, TOKENS, WIDTH), np.float32), target


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def passes(pair):
    """Our output and gradients of a squared error, and their output and gradients of image and context."""
    ours, params, theirs = pair
    x, t, context, target = arrays()
    image, tokens = nchw(x).requires_grad_(), torch.from_numpy(context).requires_grad_()
    output = theirs(image, torch.from_numpy(t), tokens).sample
    torch.nn.functional.mse_loss(output, nchw(target)).backward()

    def loss(params, x, context):
        output = ours.apply({"params": params}, x, t, context=context)
        return jnp.mean(jnp.square(output - target)), output

    (_, actual), gradients = quick(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, x, context)
    return actual, gradients, output.detach().numpy().transpose(0, 2, 3, 1), image.grad.permute(0, 2, 3, 1), tokens.grad


def test_outputs_agree(passes) -> None:
    actual, _, expected, *_ = passes
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_gradients_of_all_weights_agree(pair, passes) -> None:
    weights = dict(pair[2].named_parameters())
    for path, gradient in flax.traverse_util.flatten_dict(passes[1][0]).items():
        expected = to_flax(weights[diffusers_name(path)].grad, gradient)
        tolerance = 1e-6 + 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=tolerance, err_msg=str(path))


def test_gradients_of_the_image_and_of_the_context_agree(passes) -> None:
    for gradient, expected in zip(passes[1][1:], passes[3:], strict=True):
        assert expected.abs().max() > 1e-4
        np.testing.assert_allclose(gradient, expected.numpy(), atol=1e-3 * float(expected.abs().max()))


def test_small_values_meet_the_same_eps_in_every_norm() -> None:
    """Transformer2DModel's GroupNorm has 1e-6, unlike all others."""
    torch.manual_seed(1)
    theirs = diffusers.Transformer2DModel(4, 8, in_channels=32, norm_num_groups=8, cross_attention_dim=WIDTH).eval()
    shake(theirs)
    with torch.no_grad():
        for name in ("proj_in", "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.attn2.to_out.0"):
            for parameter in theirs.get_submodule(name).parameters():
                parameter.mul_(5e-3)
    random, block = np.random.default_rng(2), TransformerBlock(8, 4, jnp.float32)
    x = 1e-3 * random.standard_normal((2, 4, 4, 32), np.float32)
    context = random.standard_normal((2, TOKENS, WIDTH), np.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, context))["params"]
    weights, flat = dict(theirs.named_parameters()), flax.traverse_util.flatten_dict(shapes)
    prefix = "mid_block.attentions.0."
    flat = {
        path: to_flax(weights[diffusers_name(("mid_transformer", *path)).removeprefix(prefix)], leaf)
        for path, leaf in flat.items()
    }
    actual = block.apply({"params": flax.traverse_util.unflatten_dict(flat)}, x, context)
    with torch.no_grad():
        expected = theirs(nchw(x), encoder_hidden_states=torch.from_numpy(context)).sample.numpy()
    np.testing.assert_allclose(actual, expected.transpose(0, 2, 3, 1), atol=1e-4)


def test_the_network_of_the_released_prototypes_has_exactly_diffusers_size() -> None:
    """143.6 M parameters, 144.2 M with a linear layer before the context; it is read at 4x4 and, in the middle, 2x2."""
    channels, plain = (128, 128, 256, 256, 512, 512), ["DownBlock2D"] * 6
    kinds = [*plain[:4], "CrossAttnDownBlock2D", plain[5]]
    sizes = {}
    for projected in (None, 768):
        with torch.device("meta"):
            theirs = diffusers.UNet2DConditionModel(
                sample_size=64,
                in_channels=6,
                out_channels=3,
                block_out_channels=channels,
                layers_per_block=2,
                down_block_types=tuple(kinds),
                up_block_types=tuple(kind.replace("Down", "Up") for kind in kinds[::-1]),
                cross_attention_dim=768,
                encoder_hid_dim=projected,
            )
        sizes[projected] = sum(parameter.numel() for parameter in theirs.parameters())
    assert sizes == {None: 143_607_171, 768: 144_197_763}
    ours = UNet(3, channels, layers_per_block=2, context_resolutions=(4,))
    x, context = jnp.zeros((1, 64, 64, 6)), jnp.zeros((1, 1, 768))
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, jnp.zeros(1, jnp.int32), context=context))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sizes[None]
