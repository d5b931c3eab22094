"""What is known of how a published number was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """How a published value was made; None is "not stated", or has no meaning for the method.

    Attributes:
      num_tasks: tasks of the sequence.
      classes_per_task: the same for every task.
      label_order: classes come in the order of their labels.
      image_size: side of the square images, in pixels.
      class_conditional: the denoiser is told the class.
      stored_per_class: teacher samples of each old class, drawn once a task; 0 would be fresh ones at each step.
      distil_on: "renoised": teacher samples are noised again before they are distilled.
      stop_snr: signal-to-noise ratio at which the teacher's reverse process stops; 0 lets it end.
      replay_timesteps: how the timesteps of replayed images are drawn.
      weighting: "sum" if the losses of current and replayed images are added.
      replay_weight: what the loss of replayed images is multiplied by besides.
      penalty_strength: lambda of the rank-1 penalty.
      penalty_form: its curvature, "mean" for E[(mu . g)^2] / |mu|^4.
      penalty_rank: its directions a task.
      compute_matched: joint training spends more steps on later tasks.
      epochs: passes over each task's data.
      batch_size: images of the current task in one step.
      optimizer: its name.
      learning_rate: its rate.
      timesteps: T of the diffusion.
      prediction: what the network says.
      sampler: its kind and its steps, for the scored images.
      settings: what else is known, as keys of a run's config and their values there.
    """

    num_tasks: int
    classes_per_task: int | None = None
    label_order: bool | None = None
    image_size: int | None = None
    class_conditional: bool | None = None
    stored_per_class: int | None = None
    distil_on: str | None = None
    stop_snr: float | None = None
    replay_timesteps: str | None = None
    weighting: str | None = None
    replay_weight: float | None = None
    penalty_strength: float | None = None
    penalty_form: str | None = None
    penalty_rank: int | None = None
    compute_matched: bool | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    timesteps: int | None = None
    prediction: str | None = None
    sampler: tuple[str, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
      dataset: a name as in `data.name`.
      method: a canonical method name, such as "rank1_ewc+gd".
      score: a name as in `evaluation.scores`.
      summary: "average", the final mean over tasks of the per-task value; or "rise", the mean over tasks of its
        increase since the task was learned.
      value: the number, in the score's unit.
      tag: "paper" if from the method's own paper, "2nd" if reported by another publication.
      source: arXiv number of the publication that prints it.
      protocol: what is known of how it was made.
      unknowns: what is not, each as "not stated: ...".
    """

    dataset: str
    method: str
    score: str
    summary: str
    value: float
    tag: str
    source: str
    protocol: Protocol
    unknowns: tuple[str, ...]

    def cite(self) -> str:
        """The value as it may be printed, never without its tag and source: "19.1 [2nd, 2509.23593]"."""
        return f"{self.value:g} [{self.tag}, {self.source}]"
