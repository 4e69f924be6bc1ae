"""An encoder and one linear layer: a network for whole images of one size, as papers on encoders train them."""

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder


class LinearClassifier(nn.Module):
    """Logits of an image from its vector."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.classify = encoder, nn.Linear(encoder.vector_size, classes)

    def forward(
        self, images: Float[Tensor, "image channels size size"] | UInt8[Tensor, "image channels size size"]
    ) -> Float[Tensor, "image label"]:
        """Return logits of images in 0..1, or bytes, of the encoder's base resolution."""
        logits: Tensor = self.classify(self.encoder(images).vector)
        return logits
