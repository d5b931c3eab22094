"""Images of four pixels: the first is their class, the other three are their features."""

from types import SimpleNamespace

import numpy as np


class PixelClassifier:
    """Reads the class and the features off; counts how many images it saw."""

    name = "classifier"

    def __init__(self, classes: int = 6):
        self.probabilities = np.where(np.eye(classes), 0.9, 0.02)
        self.images_seen = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.features_and_probabilities(images)[0]

    def features_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.images_seen += len(images)
        pixels = images.reshape(len(images), 4)
        return pixels[:, 1:].astype(np.float32), self.probabilities[pixels[:, 0]]


def images_of(labels, seed: int) -> np.ndarray:
    """Images uint8 [M, 2, 2, 1] of these classes; the first feature is larger for larger ones."""
    pixels = np.random.default_rng(seed).integers(0, 50, size=(len(labels), 4), dtype=np.uint8)
    pixels[:, 0] = labels
    pixels[:, 1] += 3 * np.asarray(labels, np.uint8)
    return pixels.reshape(-1, 2, 2, 1)


def features(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), 4)[:, 1:].astype(np.float64)


def sequence_of(groups, labels) -> SimpleNamespace:
    """Tasks of the test images `labels`, one list of classes for each task."""
    counts = np.array([len(of_task) for of_task in labels])
    every = np.concatenate([np.asarray(of_task) for of_task in labels])
    test = SimpleNamespace(images=images_of(every, 0), labels=every, starts=np.cumsum(counts) - counts, counts=counts)
    return SimpleNamespace(groups=groups, test=test)
