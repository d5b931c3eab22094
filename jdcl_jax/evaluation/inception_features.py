"""Inception features from a weights file that the user names.

Only a Frechet distance on these features is an FID. The file holds the tensors of the common
PyTorch port of the FID's Inception under their state-dict names (`Conv2d_1a_3x3.conv.weight`,
`Mixed_5b.branch1x1.bn.running_mean`, ..., `fc.weight`) as `.safetensors` or `.npz`. Nothing is ever
fetched and nothing is ever unpickled.
"""

import functools
import hashlib
import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jdcl_jax.archives import ArchiveError, read_archive
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.features import in_batches
from jdcl_jax.models.inception import (
    IMAGE_SIZE,
    NUM_LOGITS,
    InceptionV3,
    inception_input,
)
from jdcl_jax.paths import named_path

_CONVERSION = (
    "import sys, torch; from safetensors.torch import save_file; "
    "save_file({k: v.contiguous() for k, v in torch.load(sys.argv[1], weights_only=True).items()}, "
    "sys.argv[2])"
)
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
_TORCH_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_OIHW_TO_HWIO = (2, 3, 1, 0)


def conversion_command(source: str = "weights.pth") -> str:
    """The shell line that turns a PyTorch state dict into a file readable here; it needs torch."""
    target = str(Path(source).with_suffix(".safetensors"))
    return f'python -c "{_CONVERSION}" {shlex.quote(source)} {shlex.quote(target)}'


# Two programs, so that another image size recompiles only the small one.
_input = jax.jit(inception_input)


@functools.partial(jax.jit, static_argnums=0)
def _features(model: InceptionV3, variables: Mapping[str, Any], x: jax.Array) -> jax.Array:
    return model.apply(variables, x)[0]


class InceptionFeatures:
    """The 2048 pooled features of the FID's InceptionV3.

    Args:
        path: weights file, `.safetensors` or `.npz`, with or without the last layer `fc`.
        sha256: hexadecimal hash that the file must have; empty accepts any.
        batch_size: pictures per call of the compiled network; memory grows with it, features do not
            depend on it.

    Attributes:
        name: "inception".
        sha256: hash of the file that was read, to be written beside every score.

    Raises:
        UserError: the file cannot be read, has another hash, or does not hold this network.
    """

    name: str = "inception"

    def __init__(self, path: str | Path, *, sha256: str = "", batch_size: int = 32) -> None:
        if batch_size < 1:
            raise UserError(f"Inception's batch size is {batch_size}: it must be at least 1")
        self.batch_size = batch_size
        data = _read_bytes(named_path(path, "evaluation.inception_weights", home=False))
        self.sha256 = _checked_hash(data, sha256, path)
        tensors = _read_tensors(data, Path(path))
        self._model, variables = inception_from_tensors(tensors, source=str(path))
        self._variables = jax.device_put(variables)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of pictures: uint8 [N, H, W, 1 or 3] -> float32 [N, 2048].

        Raises:
            ValueError: for another dtype, rank or number of channels.
        """

        def run(batch: np.ndarray) -> jax.Array:
            return _features(self._model, self._variables, _input(batch))

        return np.concatenate(list(in_batches(run, images, self.batch_size)))


def inception_from_tensors(tensors: Mapping[str, np.ndarray], source: str) -> tuple[InceptionV3, dict[str, Any]]:
    """The network and its Flax variables from tensors with PyTorch's names and layouts.

    Args:
        tensors: name -> floats of any precision; convolutions OIHW, `fc.weight` [1008, 2048] or
            absent together with `fc.bias`.
        source: where they come from, for error messages.

    Returns:
        the module (without a last layer if there is no `fc`), and float32 variables for `apply`.

    Raises:
        UserError: naming the first tensor that is missing, unknown, wrongly shaped, not of floats,
            or not finite.
    """
    model = InceptionV3(num_logits=NUM_LOGITS if any(name.startswith("fc.") for name in tensors) else 0)
    expected = _expected_shapes(model)
    # A counter that PyTorch's batch norm keeps for training; many files carry it.
    names = {name for name in tensors if not name.endswith(".num_batches_tracked")}
    wanted = dict(sorted((_torch_name(leaf), leaf) for leaf in expected))
    if absent := [name for name in wanted if name not in names]:
        raise _not_inception(source, f"{absent[0]} is missing ({len(absent)} of {len(wanted)} are)")
    if unknown := sorted(names - wanted.keys()):
        raise _not_inception(source, f"{unknown[0]} does not belong to it ({len(unknown)} such)")
    variables = {}
    for name, leaf in wanted.items():
        variables[leaf] = _to_flax(tensors[name], name, expected[leaf], source)
    return model, unflatten_dict(variables)


@functools.cache
def _expected_shapes(model: InceptionV3) -> dict[tuple[str, ...], tuple[int, ...]]:
    picture = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), picture)
    return {leaf: value.shape for leaf, value in flatten_dict(shapes).items()}


def _torch_name(leaf: tuple[str, ...]) -> str:
    """("params", "Mixed_5b", "branch1x1", "conv", "kernel") -> "Mixed_5b.branch1x1.conv.weight"."""
    return ".".join((*leaf[1:-1], _TORCH_LEAF[leaf[-1]]))


def _to_flax(tensor: np.ndarray, name: str, shape: tuple[int, ...], source: str) -> np.ndarray:
    axes = _OIHW_TO_HWIO if len(shape) == 4 else tuple(reversed(range(len(shape))))
    torch_shape = [shape[axes.index(axis)] for axis in range(len(shape))]
    if list(tensor.shape) != torch_shape:
        raise _not_inception(source, f"{name} has shape {list(tensor.shape)}, not {torch_shape}")
    if not np.issubdtype(tensor.dtype, np.floating):
        raise _not_inception(source, f"{name} holds {tensor.dtype}, not floats")
    if not np.isfinite(tensor).all():
        raise _not_inception(source, f"{name} holds NaN or infinity")
    if name.endswith("running_var") and tensor.min() < 0:
        raise _not_inception(source, f"{name} holds a negative variance")
    return np.ascontiguousarray(tensor.transpose(axes), dtype=np.float32)


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() in _PICKLES:
        raise UserError(
            f"{path} is a pickle, which is never loaded here: write the weights as safetensors "
            f"with {conversion_command(str(path))}"
        )
    if path.suffix.lower() not in (".safetensors", ".npz"):
        raise UserError(
            f"Inception weights {path}: name a .safetensors or .npz file; a .pth becomes one with "
            + conversion_command()
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Inception weights {path} cannot be read ({error.strerror}): name a .safetensors or "
            f".npz file; a .pth becomes one with {conversion_command()}"
        ) from error


def _checked_hash(data: bytes, expected: str, path: str | Path) -> str:
    if expected and not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise UserError(f"expected hash {expected!r} is not a sha256: write its 64 hexadecimal digits")
    found = hashlib.sha256(data).hexdigest()
    if expected and found != expected.lower():
        raise UserError(
            f"Inception weights {path} have sha256 {found}, not {expected.lower()}: name the right file or hash"
        )
    return found


def _read_tensors(data: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.numpy.load(data)
        return read_archive(io.BytesIO(data))[0]
    except KeyError as error:  # safetensors' name of a number format that numpy lacks
        raise _not_inception(str(path), f"it holds {error} numbers, not float32") from error
    except (safetensors.SafetensorError, ArchiveError, ValueError, TypeError, OverflowError, MemoryError) as error:
        kind = path.suffix.lower()
        raise _not_inception(str(path), f"it is damaged, cut short, or not a {kind} file of plain arrays") from error


def _not_inception(source: str, problem: str) -> UserError:
    message = (
        f"{source} is not the FID's Inception: {problem}; a PyTorch .pth of it becomes safetensors "
        f"with {conversion_command()}"
    )
    return UserError(" ".join(message.split()))
