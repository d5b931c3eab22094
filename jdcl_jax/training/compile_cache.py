"""Compiled programs kept on disk, so that the second start of a run does not compile again."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in ~/.cache/jdcl_jax/xla, unless the user chose a place or switched it off."""
    chosen = jax.config.values
    if chosen["jax_compilation_cache_dir"] or not chosen["jax_enable_compilation_cache"]:
        return
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(root) / "jdcl_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
