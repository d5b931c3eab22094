"""The logits that a run's classifier gives to real and to generated images."""

import numpy as np

from jdcl_jax.keys import named_key
from jdcl_jax.measuring.classifying import Mapper
from jdcl_jax.measuring.generation import Generator, balanced_labels
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.restored import Restored
from jdcl_jax.training.parallel import Parallel


def own_logits(restored: Restored, num: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By class name: the class's logit on its test images, and on generated images to which it is given, float32 [n].

    Args:
      restored: a run with a classifier after a task; classes are those seen by then.
      num: how many images are generated.
    """
    parts, parallel = restored.parts, Parallel(restored.parts.config.parallel.mode)
    classifier, test = parts.setup.classifier, parts.sequence.test.seen(restored.task - 1)
    assert classifier is not None
    seen = parts.setup.seen_classes(restored.task - 1)
    progress = Progress()
    progress.start("sample", num, task=restored.task, counts=False)
    generator = Generator(parts.setup, parallel, min(num, parts.config.evaluation.batch_size))
    labels = balanced_labels(seen, num) if parts.setup.asks_for_classes else None
    images = generator(restored.params, named_key(0, "logits"), num, labels, progress.update)
    progress.close()
    logits = Mapper(parallel, lambda p, x: classifier.logits(p, x, None), max(num, len(test)))
    of_real, of_generated = logits(restored.params, test.images), logits(restored.params, images)
    answers, names = of_generated.argmax(axis=1), parts.sequence.class_names
    real = {names[c]: of_real[test.labels == c, c] for c in seen}
    return real, {names[c]: of_generated[answers == c, c] for c in seen}
