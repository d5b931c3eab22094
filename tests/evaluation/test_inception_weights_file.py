"""Files that are not the FID's Inception: one line naming the first problem, nothing unpickled."""

import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.inception_features import (
    InceptionFeatures,
    conversion_command,
    inception_from_tensors,
)
from jdcl_jax.models.inception import InceptionV3

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@pytest.fixture(scope="module")
def weights():
    """Every tensor of a good file, all halves."""
    picture = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    tree = flatten_dict(jax.eval_shape(InceptionV3().init, jax.random.key(0), picture))
    tensors = {}
    for path, leaf in tree.items():
        halves = np.broadcast_to(np.float32(0.5), leaf.shape)
        layout = (3, 2, 0, 1) if leaf.ndim == 4 else None
        tensors[".".join((*path[1:-1], LEAVES[path[-1]]))] = halves.transpose(layout)
    return tensors


def test_the_last_layer_and_batch_norm_counters_are_optional(weights):
    bare = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    bare["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(7)
    model, variables = inception_from_tensors(bare, source="w")
    assert model.num_logits == 0
    assert "fc" not in variables["params"]


def without(name):
    return lambda weights: weights.pop(name)


def with_value(name, value):
    return lambda weights: weights.update({name: value})


def float32(*shape, fill=0.5):
    return np.full(shape, fill, np.float32)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            without("Mixed_6c.branch_pool.conv.weight"),
            "Mixed_6c.branch_pool.conv.weight is missing (1 of 472",
        ),
        (without("fc.bias"), "fc.bias is missing (1 of 472"),
        (lambda weights: weights.clear(), "Conv2d_1a_3x3.bn.bias is missing (470 of 470"),
        (with_value("AuxLogits.fc.bias", float32(1000)), "AuxLogits.fc.bias does not belong"),
        (
            with_value("fc.weight", float32(1000, 2048)),
            "fc.weight has shape [1000, 2048], not [1008, 2048]",
        ),
        (
            with_value("Mixed_7c.branch3x3_2a.conv.weight", float32(384, 384, 3, 1)),
            "Mixed_7c.branch3x3_2a.conv.weight has shape [384, 384, 3, 1], not [384, 384, 1, 3]",
        ),
        (
            with_value("Conv2d_1a_3x3.bn.bias", np.zeros(32, np.int8)),
            "Conv2d_1a_3x3.bn.bias holds int8",
        ),
        (
            with_value("Mixed_5b.branch1x1.bn.weight", float32(64, fill=np.nan)),
            "bn.weight holds NaN",
        ),
        (
            with_value("Mixed_5b.branch1x1.bn.running_var", float32(64, fill=-1)),
            "negative variance",
        ),
    ],
)
def test_tensors_of_another_network_are_refused_by_name(weights, spoil, problem):
    spoiled = dict(weights)
    spoil(spoiled)
    with pytest.raises(UserError) as error:
        inception_from_tensors(spoiled, source="some/file.npz")
    message = str(error.value)
    assert message.startswith("some/file.npz is not the FID's Inception: ")
    assert problem in message
    assert message.endswith(conversion_command())
    assert "\n" not in message


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"no weights", bytes(200), npy(float32(3))])
def test_files_of_another_format_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not the FID's Inception: it is damaged.*python -c"):
        InceptionFeatures(path)


def test_truncated_files_are_refused(tmp_path):
    arrays = {"Conv2d_1a_3x3.conv.weight": float32(32, 3, 3, 3)}
    for name, whole in {
        "w.safetensors": safetensors.numpy.save(arrays),
        "w.npz": npz(**arrays),
    }.items():
        path = tmp_path / name
        path.write_bytes(whole)
        with pytest.raises(UserError, match="is missing"):
            InceptionFeatures(path)
        path.write_bytes(whole[:-100])
        with pytest.raises(UserError, match="it is damaged, cut short"):
            InceptionFeatures(path)


def test_number_formats_that_numpy_lacks_are_named(tmp_path):
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(UserError, match="it holds 'BF16' numbers, not float32"):
        InceptionFeatures(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.npz", "w.safetensors"])
def test_pickles_are_never_loaded(tmp_path, name):
    path, sprung = tmp_path / name, tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError, match="python -c"):
        InceptionFeatures(path)
    path.with_suffix(".npz").write_bytes(npz(w=np.array([Trap(sprung)], dtype=object)))
    with pytest.raises(UserError, match="python -c"):
        InceptionFeatures(path.with_suffix(".npz"))
    assert not sprung.exists()


def test_a_pth_gets_its_own_conversion_line(tmp_path):
    with pytest.raises(UserError, match="is a pickle, which is never loaded") as error:
        InceptionFeatures(tmp_path / "my weights.pth")
    line = str(error.value)
    assert line.endswith(f"'{tmp_path}/my weights.pth' '{tmp_path}/my weights.safetensors'")


@pytest.mark.parametrize("name", ["absent.safetensors", "folder.npz", "weights.h5"])
def test_missing_files_folders_and_other_suffixes_are_refused(tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match=f"{name}.*name a .safetensors or .npz file"):
        InceptionFeatures(tmp_path / name)
