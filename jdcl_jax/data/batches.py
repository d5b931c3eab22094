"""Which examples at which step: a pure function of names, computed inside the compiled step.

Training reads its data in shuffled epochs. Instead of a permutation that would have to be made, stored and sharded, the
place of example i in its epoch is computed from i alone by a small Feistel cipher with cycle walking, as index
shuffles of data loaders do. So any step can be computed first, and the number of examples may be a traced value.
"""

import flax.struct
import jax
import jax.numpy as jnp

ROUNDS = 6


@flax.struct.dataclass
class Examples:
    """A batch: image float32 [B, H, W, C] in [-1, 1], label int32 [B], and one PRNG key per example [B].

    `original` is the image before it was augmented; None where it was not.
    """

    image: jax.Array
    label: jax.Array
    key: jax.Array
    original: jax.Array | None = None


def _mix(x: jax.Array, key: jax.Array) -> jax.Array:
    """A keyed 32-bit hash (the finaliser of MurmurHash3)."""
    x = (x ^ key) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _encrypt(x: jax.Array, round_keys: jax.Array, half_bits: jax.Array) -> jax.Array:
    """A bijection of 0..4**half_bits - 1; x uint32 [B], round_keys uint32 [B, ROUNDS]."""
    mask = (jnp.uint32(1) << half_bits) - jnp.uint32(1)
    left, right = x >> half_bits, x & mask
    for i in range(ROUNDS):
        left, right = right, (left ^ _mix(right, round_keys[:, i])) & mask
    return (left << half_bits) | right


def shuffled_rows(key: jax.Array, positions: jax.Array, count: jax.Array) -> jax.Array:
    """Rows 0..count-1 in shuffled epochs: position p reads a row of epoch p // count; every epoch has its own order.

    Args:
      key: the key of the stream.
      positions: int32 [B], the examples' places in an endless stream (step * batch size + number in the batch).
      count: int32 [], how many rows there are; may be traced; at least 1.

    Returns: int32 [B]. Over the positions of one epoch every row comes exactly once.
    """
    count = jnp.asarray(count, jnp.int32)
    epochs, offsets = positions // count, (positions % count).astype(jnp.uint32)
    round_keys = jax.vmap(lambda epoch: jax.random.bits(jax.random.fold_in(key, epoch), (ROUNDS,)))(epochs)
    bits = 32 - jax.lax.clz(count.astype(jnp.uint32))
    half_bits = jnp.maximum((bits + 1) // 2, 1)
    limit = count.astype(jnp.uint32)

    def walk(x: jax.Array) -> jax.Array:
        return jnp.where(x >= limit, _encrypt(x, round_keys, half_bits), x)

    first = _encrypt(offsets, round_keys, half_bits)
    return jax.lax.while_loop(lambda x: jnp.any(x >= limit), walk, first).astype(jnp.int32)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """Float [-1, 1] (clipped) -> uint8 0..255, rounded to the nearest."""
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def random_flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors each image [B, H, W, C] left to right with probability 1/2, by its own key [B]."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1, :], images)
