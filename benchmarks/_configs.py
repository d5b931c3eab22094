"""Runs of the repository's own config files, on random pixels where their data would have to be prepared."""

import runpy
from pathlib import Path

import _ours
import ml_collections

from jdcl_jax.assembly import Parts, assemble

ROOT = Path(__file__).parents[1]


def config_of(config: str, *words: str) -> ml_collections.ConfigDict:
    """FILE:ARG, the file below the repository's root, with more words before those of ARG."""
    path, _, argument = config.partition(":")
    return runpy.run_path(str(ROOT / path))["get_config"](",".join(filter(None, [*words, argument])))


def parts_of(config: str, *words: str) -> Parts:
    """The run of FILE:ARG; ten classes of random pixels, but for digits, which come with scikit-learn."""
    made = config_of(config, *words)
    if made.data.name == "digits":
        return assemble(made)
    side = made.data.image_size
    return _ours.on_random_pixels(made, (side, side, 3), classes=10)
