"""scikit-learn's 8x8 digits: 1,797 real handwritten digits inside an installed package."""

import numpy as np

from jdcl_jax.data.arrays import Dataset, Split, split_off_test
from jdcl_jax.data.resize import Fit


def read(fit: Fit, test_fraction: float) -> Dataset:
    """Reads the digits, 1 channel, 8x8.

    scikit-learn gives whole values 0..16; a pixel is round(value * 255 / 16). There is no official
    split: every 5th image of each class, in scikit-learn's order, is test (with `test_fraction`
    0.2) [ours].
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    everything = Split(fit.images(pixels), bunch.target.astype(np.int32))
    train, test = split_off_test("digits", everything, test_fraction)
    provenance = (
        f"digits: scikit-learn's 8x8 handwritten digits, a fixed stratified {test_fraction:.0%} "
        f"of them as test images{fit.describe(8, 8)}"
    )
    class_names = tuple(str(name) for name in bunch.target_names)
    return Dataset("digits", train, test, class_names, provenance)
