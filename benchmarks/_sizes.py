"""The networks that are timed; imported by both sides, so it imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A denoiser and its batch.

    Attributes:
      image: side and channels of the image.
      channels: feature channels of each level.
      layers_per_block: residual blocks of a level.
      attention: feature-map heights with self-attention (the middle has it always), 8 channels a head.
      batch: images a step.
    """

    image: tuple[int, int]
    channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[int, ...]
    batch: int


SIZES = {
    # 1,623,169 parameters, 0.62 GFLOP an image forward.
    "small": Size((28, 1), (32, 64, 64), 2, (14,), 64),
    # 35,746,307 parameters: the CIFAR-10 network of arXiv 2311.14028 [code]; 12.4 GFLOP.
    "large": Size((32, 3), (128, 256, 256, 256), 2, (16,), 8),
    # For the test that the benchmarks run at all.
    "tiny": Size((8, 1), (32, 32), 1, (), 4),
}
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, EMA = 2e-4, 0.01, 1.0, 0.9999
NUM_IMAGES = 2048
TIMESTEPS = 1000
