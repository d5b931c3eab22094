"""Random keys made from names, never from history.

A key says what it is for: `named_key(seed, "task", 2, "train")` folded with the step and the example's number. Results
then do not depend on where a run was resumed, how many steps one call makes, or how many devices share the batch, and
no key is ever carried along or saved.
"""

import zlib

import jax


def fold_name(key: jax.Array, name: str | int | jax.Array) -> jax.Array:
    """Folds a name into a key; a number (traced or not) as it is, a str by its CRC-32."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)


def named_key(seed: int, *names: str | int) -> jax.Array:
    """The key of a name such as `(seed, "task", 2, "train")`."""
    key = jax.random.key(seed)
    for name in names:
        key = fold_name(key, name)
    return key


def example_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """One key per example: key [], ids int [B] -> keys [B]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def subkeys(keys: jax.Array, name: str | int | jax.Array) -> jax.Array:
    """Folds one name into every key of a batch: keys [B] -> keys [B]."""
    return jax.vmap(lambda key: fold_name(key, name))(keys)


def example_normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise with a key per example: keys [B] -> float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
