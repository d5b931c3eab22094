"""Inception features from a user's weights file, against a plain numpy forward pass and PyTorch."""

import hashlib
import importlib.util
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from numpy.lib.stride_tricks import sliding_window_view

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.inception_features import (
    InceptionFeatures,
    conversion_command,
    inception_from_tensors,
)
from jdcl_jax.models.inception import inception_input


class NumpyInception:
    """The FID's InceptionV3 in numpy, from the published tables; it invents the weights it meets.

    Batch-norm statistics are drawn around those of the activations at hand, so that signals neither
    die nor explode on their way through 94 layers and every layer matters to the result.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.weights = {}

    def conv(self, name, x, out, height=1, width=1, stride=1, same=True):
        def draw(low, high):
            return self.rng.uniform(low, high, out).astype(np.float32)

        fan_in = x.shape[-1] * height * width
        kernel = self.rng.standard_normal((out, x.shape[-1], height, width), np.float32) * fan_in**-0.5
        if same:
            x = np.pad(x, [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)])
        windows = sliding_window_view(x, (height, width), axis=(1, 2))[:, ::stride, ::stride]
        y = windows.reshape(*windows.shape[:3], fan_in) @ kernel.reshape(out, fan_in).T
        mean, var = y.mean((0, 1, 2)) + 0.2 * draw(-1, 1) * y.std(), y.var((0, 1, 2)) * draw(0.5, 2)
        scale, shift = draw(0.5, 2), draw(-0.5, 0.5)
        values = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": var}
        self.weights[f"{name}.conv.weight"] = kernel
        self.weights |= {f"{name}.bn.{key}": value for key, value in values.items()}
        return np.maximum((y - mean) / np.sqrt(var + 1e-3) * scale + shift, 0)

    def chain(self, prefix, x, *layers):
        for name, *size in layers:
            x = self.conv(f"{prefix}.{name}", x, *size)
        return x

    def average(self, x):
        def window_sums(a):
            padded = np.pad(a, [(0, 0), (1, 1), (1, 1), (0, 0)])
            return sliding_window_view(padded, (3, 3), axis=(1, 2)).sum((-1, -2))

        return window_sums(x) / window_sums(np.ones_like(x))

    def maximum(self, x, stride, pad):
        padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=-np.inf)
        return sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride].max((-1, -2))

    def a(self, block, x, pool):
        branches = [
            self.chain(block, x, ("branch1x1", 64)),
            self.chain(block, x, ("branch5x5_1", 48), ("branch5x5_2", 64, 5, 5)),
            self.chain(
                block,
                x,
                ("branch3x3dbl_1", 64),
                ("branch3x3dbl_2", 96, 3, 3),
                ("branch3x3dbl_3", 96, 3, 3),
            ),
            self.chain(block, self.average(x), ("branch_pool", pool)),
        ]
        return np.concatenate(branches, -1)

    def b(self, block, x):
        double = [
            ("branch3x3dbl_1", 64),
            ("branch3x3dbl_2", 96, 3, 3),
            ("branch3x3dbl_3", 96, 3, 3, 2, False),
        ]
        branches = [
            self.chain(block, x, ("branch3x3", 384, 3, 3, 2, False)),
            self.chain(block, x, *double),
            self.maximum(x, 2, 0),
        ]
        return np.concatenate(branches, -1)

    def c(self, block, x, n):
        single = [("branch7x7_1", n), ("branch7x7_2", n, 1, 7), ("branch7x7_3", 192, 7, 1)]
        double = [("1", n), ("2", n, 7, 1), ("3", n, 1, 7), ("4", n, 7, 1), ("5", 192, 1, 7)]
        branches = [
            self.chain(block, x, ("branch1x1", 192)),
            self.chain(block, x, *single),
            self.chain(block, x, *[(f"branch7x7dbl_{name}", *size) for name, *size in double]),
            self.chain(block, self.average(x), ("branch_pool", 192)),
        ]
        return np.concatenate(branches, -1)

    def d(self, block, x):
        seven = [("1", 192), ("2", 192, 1, 7), ("3", 192, 7, 1), ("4", 192, 3, 3, 2, False)]
        branches = [
            self.chain(block, x, ("branch3x3_1", 192), ("branch3x3_2", 320, 3, 3, 2, False)),
            self.chain(block, x, *[(f"branch7x7x3_{name}", *size) for name, *size in seven]),
            self.maximum(x, 2, 0),
        ]
        return np.concatenate(branches, -1)

    def e(self, block, x, pooled):
        single = self.chain(block, x, ("branch3x3_1", 384))
        double = self.chain(block, x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, 3, 3))
        branches = [
            self.chain(block, x, ("branch1x1", 320)),
            self.chain(block, single, ("branch3x3_2a", 384, 1, 3)),
            self.chain(block, single, ("branch3x3_2b", 384, 3, 1)),
            self.chain(block, double, ("branch3x3dbl_3a", 384, 1, 3)),
            self.chain(block, double, ("branch3x3dbl_3b", 384, 3, 1)),
            self.chain(block, pooled, ("branch_pool", 192)),
        ]
        return np.concatenate(branches, -1)

    def __call__(self, x):
        """float32 [N, 299, 299, 3] -> features [N, 2048]."""
        x = self.conv("Conv2d_1a_3x3", x, 32, 3, 3, 2, False)
        x = self.conv("Conv2d_2a_3x3", x, 32, 3, 3, 1, False)
        x = self.maximum(self.conv("Conv2d_2b_3x3", x, 64, 3, 3), 2, 0)
        x = self.conv("Conv2d_3b_1x1", x, 80)
        x = self.maximum(self.conv("Conv2d_4a_3x3", x, 192, 3, 3, 1, False), 2, 0)
        for name, pool in {"5b": 32, "5c": 64, "5d": 64}.items():
            x = self.a(f"Mixed_{name}", x, pool)
        x = self.b("Mixed_6a", x)
        for name, inner in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items():
            x = self.c(f"Mixed_{name}", x, inner)
        x = self.d("Mixed_7a", x)
        x = self.e("Mixed_7b", x, self.average(x))
        x = self.e("Mixed_7c", x, self.maximum(x, 1, 1))
        self.weights["fc.weight"] = self.rng.standard_normal((1008, 2048), np.float32)
        self.weights["fc.bias"] = self.rng.standard_normal(1008, np.float32)
        return x.mean((1, 2))


def relative_difference(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def images():
    """Two pictures of the size of a CIFAR image: a ramp with noise, and a bright disc."""
    y, x = np.mgrid[:32, :32]
    ramp = np.stack([8 * y, 8 * x, 4 * (x + y)], -1) + np.random.default_rng(2).normal(0, 20, (32, 32, 3))
    disc = np.where((x - 12) ** 2 + (y - 18) ** 2 < 81, 230, 20)[..., None] * np.array([1.0, 0.6, 0.3])
    return np.stack([ramp, disc]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def oracle(images):
    """Random weights under PyTorch's names, and numpy's features of the two pictures."""
    network = NumpyInception(seed=3)
    features = network(np.asarray(inception_input(images)))
    return network.weights, features


@pytest.fixture(scope="module")
def weights(oracle):
    return oracle[0]


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.numpy.save_file(weights, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def extractor(weights_file):
    return InceptionFeatures(weights_file, batch_size=2)


def test_features_are_those_of_the_numpy_network(extractor, images, oracle):
    features = extractor(images)
    assert features.dtype == np.float32
    assert features.shape == (2, 2048)
    assert relative_difference(features, oracle[1]) < 1e-3
    assert relative_difference(features[0], features[1]) > 0.1  # the pictures are told apart at all


def test_batching_and_padding_do_not_change_features(extractor, images):
    three = np.concatenate([images, images[:1]])
    both = extractor(images)
    np.testing.assert_allclose(extractor(three), both[[0, 1, 0]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(extractor(images[1:]), both[1:], rtol=1e-4, atol=1e-4)


def test_no_pictures_have_no_features(extractor, images):
    assert extractor(images[:0]).shape == (0, 2048)


def test_gray_pictures_are_those_with_three_equal_channels(extractor, images):
    gray = images[..., :1]
    np.testing.assert_allclose(extractor(gray), extractor(np.repeat(gray, 3, -1)), rtol=1e-5, atol=1e-5)


def test_name_and_hash_are_recorded(extractor, weights_file):
    assert extractor.name == "inception"
    assert extractor.sha256 == hashlib.sha256(weights_file.read_bytes()).hexdigest()


def test_the_expected_hash_is_checked(extractor, weights_file):
    digits = extractor.sha256
    assert InceptionFeatures(weights_file, sha256=digits.upper()).sha256 == digits
    other = digits[:-1] + ("0" if digits[-1] != "0" else "1")
    with pytest.raises(UserError, match=f"have sha256 {digits}, not {other}"):
        InceptionFeatures(weights_file, sha256=other)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        InceptionFeatures(weights_file, sha256=digits[:-1])


def test_npz_holds_the_same_network(weights, extractor, images, tmp_path):
    path = tmp_path / "inception.npz"
    np.savez(path, **weights)
    try:
        np.testing.assert_array_equal(InceptionFeatures(path, batch_size=2)(images), extractor(images))
    finally:
        path.unlink()


def test_layouts_are_transposed(weights):
    model, variables = inception_from_tensors(weights, source="w")
    assert model.num_logits == 1008
    kernel = variables["params"]["Mixed_6b"]["branch7x7_2"]["conv"]["kernel"]
    assert kernel.shape == (1, 7, 128, 128)
    assert kernel[0, 5, 3, 9] == weights["Mixed_6b.branch7x7_2.conv.weight"][9, 3, 0, 5]
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], weights["fc.weight"].T)


def test_a_batch_of_nothing_is_refused(weights_file):
    with pytest.raises(UserError, match="batch size is 0"):
        InceptionFeatures(weights_file, batch_size=0)


def torch_fidelity_module(monkeypatch):
    """torch-fidelity's Inception without the rest of that package, which would need torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


def test_a_converted_pth_gives_the_features_of_torch_fidelity(weights, images, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    module = torch_fidelity_module(monkeypatch)
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    try:
        torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, source)
        line = conversion_command(str(source)).replace("python", sys.executable, 1)
        subprocess.run(line, shell=True, check=True)
        peer = module.FeatureExtractorInceptionV3(
            "peer", ["2048", "logits"], feature_extractor_weights_path=str(source)
        )
        expected, expected_logits = peer(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        features = InceptionFeatures(target, batch_size=2)(images)
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    model, variables = inception_from_tensors(weights, source="w")
    logits = jax.jit(model.apply)(variables, inception_input(images))[1]
    differences = [
        relative_difference(features, expected.numpy()),
        relative_difference(np.asarray(logits), expected_logits.numpy()),
    ]
    print(f"relative differences of features and logits from torch-fidelity: {differences}")
    assert max(differences) < 1e-3
