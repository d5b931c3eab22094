"""A small convolutional classifier: the features that generated images are scored on."""

import flax.linen as nn
import jax

# Up to this many pixels a side, the first stage keeps the resolution.
_SMALL_IMAGE = 16


class ImageClassifier(nn.Module):
    """A plain CNN that returns class logits and the features just below them [ours].

    One stage per entry of `channels`: a 3x3 convolution and ReLU. Every stage halves the image,
    except that the first keeps an image of up to 16 pixels a side as it is; so 8x8 digits with two
    stages end at 4x4 and 64x64 images with three at 8x8. The last map, flattened, goes through a
    dense layer, layer norm and SiLU: these are the features that scores compare. The
    norm keeps their scale alike from one training to another and leaves no unit dead. There is no
    state besides the parameters (no batch norm), so one set of arrays is the whole network.

    Attributes:
        num_classes: number of logits, one for every class of the whole sequence.
        channels: channels of each stage.
        features: width of the returned features.
    """

    num_classes: int
    channels: tuple[int, ...] = (32, 64)
    features: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Classifies a batch.

        Args:
            images: float32 [N, H, W, C] in [-1, 1], 8 to 64 pixels a side.

        Returns:
            Logits float32 [N, num_classes] and features float32 [N, features].
        """
        small = max(images.shape[1:3]) <= _SMALL_IMAGE
        hidden = images
        for stage, channels in enumerate(self.channels):
            hidden = nn.Conv(
                channels,
                (3, 3),
                strides=1 if small and stage == 0 else 2,
                kernel_init=nn.initializers.he_uniform(),
                name=f"stage_{stage + 1}",
            )(hidden)
            hidden = nn.relu(hidden)
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = nn.Dense(self.features, kernel_init=nn.initializers.he_uniform(), name="features")(hidden)
        features = nn.silu(nn.LayerNorm(epsilon=1e-5, name="features_norm")(hidden))
        logits = nn.Dense(self.num_classes, kernel_init=nn.initializers.lecun_uniform(), name="logits")(features)
        return logits, features
