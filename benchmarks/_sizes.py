"""The networks that are timed; imported by both sides, so it imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A denoiser and its batches.

    Attributes:
      image: side and channels of the image.
      channels: feature channels of each level.
      layers_per_block: residual blocks of a level.
      attention: feature-map heights with self-attention (the middle has it always), 8 channels a head.
      batch: images a step on a CPU.
      train_batch: images a train step on an accelerator.
      sample_batch: images drawn at a time on an accelerator.
      steps: train steps in one call and one round on a CPU; on an accelerator five times as many.
    """

    image: tuple[int, int]
    channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[int, ...]
    batch: int
    train_batch: int
    sample_batch: int
    steps: int

    def batch_on(self, platform: str, job: str) -> int:
        """Images at a time; job "train" or "sample"."""
        if platform == "cpu":
            return self.batch
        return self.train_batch if job == "train" else self.sample_batch


SIZES = {
    # 1,623,169 parameters, 0.62 GFLOP an image forward.
    "small": Size((28, 1), (32, 64, 64), 2, (14,), 64, 512, 2048, 4),
    # 35,746,307 parameters: the CIFAR-10 network of arXiv 2311.14028 [code]; 12.4 GFLOP.
    "large": Size((32, 3), (128, 256, 256, 256), 2, (16,), 8, 256, 1024, 2),
    # To see that the benchmarks run at all.
    "tiny": Size((8, 1), (32, 32), 1, (), 4, 8, 8, 2),
}
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, EMA = 2e-4, 0.01, 1.0, 0.9999
NUM_IMAGES = 2048
TIMESTEPS = 1000
