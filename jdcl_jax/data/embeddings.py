"""Label embeddings from a file: a vector for each class name, such as a text encoder gives."""

from collections.abc import Sequence

import numpy as np

from jdcl_jax.archives import ArchiveError, read_archive
from jdcl_jax.errors import UserError
from jdcl_jax.paths import named_path


def read_label_embeddings(path: str, class_names: Sequence[str]) -> np.ndarray:
    """Reads an npz file that holds one vector per class, under the class's name; further names are passed over.

    Args:
      path: the file.
      class_names: of all classes of the data set, in order.

    Returns: float32 [C, W].

    Raises:
      UserError: no such file, a class without a vector, or vectors that are not finite and of one length.
    """
    try:
        found, held = read_archive(named_path(path, "context.embeddings"), class_names)
    except (OSError, ArchiveError) as error:
        raise UserError(
            f"context.embeddings: {path} can't be read as npz ({error}); write an npz file of one vector per class name"
        ) from error
    missing = [name for name in class_names if name not in found]
    if missing:
        raise UserError(
            f"context.embeddings: {path} has no vector for the class '{missing[0]}'"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}; it holds {', '.join(held[:5])}, "
            "...; write an npz file of one vector per class name"
        )
    vectors = [found[name] for name in class_names]
    for name, vector in zip(class_names, vectors, strict=True):
        if vector.ndim != 1 or vector.shape != vectors[0].shape or vector.dtype.kind not in "fiu":
            raise UserError(
                f"context.embeddings: the vector of '{name}' in {path} is {vector.dtype} {list(vector.shape)}; write "
                f"numbers [W], of the same W for all classes ({class_names[0]} has {list(vectors[0].shape)})"
            )
        if not np.all(np.isfinite(vector)):
            raise UserError(f"context.embeddings: the vector of '{name}' in {path} is not finite")
    return np.stack(vectors).astype(np.float32)
