"""From the name of a data set to uint8 arrays."""

from jdcl_jax.data.arrays import Dataset, Split, checked, with_test_of_each_domain
from jdcl_jax.data.resize import Fit
from jdcl_jax.data.sources import digits, folder, npz, tfds_records
from jdcl_jax.errors import UserError
from jdcl_jax.paths import named_path

__all__ = ["Dataset", "Split", "load"]

BUILT_IN = ("digits", "npz:PATH", "folder:PATH")


def load(
    name: str,
    *,
    directory: str = "",
    image_size: int = 0,
    fit: str = "resize",
    test_fraction: float = 0.2,
    domain: str = "",
) -> Dataset:
    """Loads a whole image-classification data set into memory. Nothing is ever downloaded.

    Args:
      name: `digits` (scikit-learn's 8x8 digits, embedded in its package), `npz:PATH`, `folder:PATH`
        (see the files of those names in `sources/` for their layouts), or the name of a TFDS data
        set prepared as array_record, such as `cifar10`, `fashion_mnist:3.0.1` or
        `imagenet_resized/32x32`.
      directory: For TFDS names the folder that holds prepared data sets ("": TFDS's own,
        `~/tensorflow_datasets` or `TFDS_DATA_DIR`); for npz and folder the folder that a relative
        PATH starts from ("": the current one).
      image_size: Height and width in pixels that every image is brought to; 0 keeps the native
        size.
      fit: `resize` or `pad`; see `jdcl_jax.data.resize.Fit`.
      test_fraction: Share of each class that becomes test where the source has no test images of
        its own (digits, some npz and folders); data sets with a test split of their own keep it.
        See `arrays.rows_for_test`.
      domain: What says each image's domain, such as its session: for TFDS names a feature, for npz
        "domains", its array; "": images have no domains. With domains, test images have those of
        the training images; see `arrays.with_test_of_each_domain`.

    Returns:
      `Dataset`: images uint8 [N, H, W, C], C = 1 or 3, pixels 0..255; labels int32 [N]; every class
      0..C-1 has at least one training and one test image; domains int32 [N] if there are any.

    Raises:
      UserError: An unknown name, data that are missing, broken, or not what is described here.
    """
    if not 0.000001 <= test_fraction <= 0.999999:
        raise UserError(f"test_fraction {test_fraction} is no share: write a number between 0 and 1")
    read = _read(name, directory, Fit(image_size, fit), test_fraction, domain)
    return checked(with_test_of_each_domain(read, test_fraction))


def _read(name: str, directory: str, fit: Fit, test_fraction: float, domain: str) -> Dataset:
    kind, _, path = name.partition(":")
    if domain and (name == "digits" or kind == "folder"):
        raise UserError(
            f"data set {name!r} has no domains and tasks.domain is {domain!r}: leave it empty, or name a TFDS data "
            "set or an npz file whose images have domains"
        )
    if name == "digits":
        return digits.read(fit, test_fraction)
    if kind not in ("npz", "folder"):
        return tfds_records.read(name, directory, fit, BUILT_IN, domain)
    if not path:
        raise UserError(f"data set {name!r} names no path: write {kind}:PATH")
    full_path = named_path(named_path(directory, "data.dir") / named_path(path, "data.name"), "data.name")
    if kind == "npz":
        return npz.read(name, full_path, fit, test_fraction, domain)
    return folder.read(name, full_path, fit, test_fraction)
