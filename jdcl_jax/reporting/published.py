"""What publications report, and how it was made as far as that is known.

A published value is worth comparing with only if it was made in the same way (`comparable.py`). What a publication does
not state cannot be checked: it is named in `unknowns`, and agreement is never claimed for it.
"""

from collections.abc import Sequence

from jdcl_jax.reporting.protocol import Published
from jdcl_jax.reporting.published_accuracy import accuracies
from jdcl_jax.reporting.published_fid import frechet_distances

PUBLISHED = (*frechet_distances(), *accuracies())


def find(dataset: str, method: str, summary: str, score: str) -> list[Published]:
    """The published values of a data set (with or without a TFDS version), method, summary and score.

    There are several where a publication has several protocols, such as shares of known labels.
    """
    wanted = (without_version(dataset), method, summary, score)
    return [entry for entry in PUBLISHED if (entry.dataset, entry.method, entry.summary, entry.score) == wanted]


def unstated(dataset: str, methods: Sequence[str], score: str) -> list[str]:
    """What the publications leave open about a data set's values of these methods, each as "not stated: ..."."""
    wanted = [(without_version(dataset), method, score) for method in methods]
    own = [entry for entry in PUBLISHED if (entry.dataset, entry.method, entry.score) in wanted]
    return list(dict.fromkeys(unknown for entry in own for unknown in entry.unknowns))


def without_version(dataset: str) -> str:
    """A TFDS name without ":1.2.3"; npz:PATH and folder:PATH as they are."""
    name = dataset.partition(":")[0]
    return dataset if name in ("npz", "folder") else name
