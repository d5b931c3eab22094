"""From a config to the parts of a run: data, network, schedule, method, optimiser."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jdcl_jax.data.datasets import Dataset, load
from jdcl_jax.data.embeddings import read_label_embeddings
from jdcl_jax.data.tasks import TaskSequence, make_sequence
from jdcl_jax.data.views import Views
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.diffusion.schedule import alpha_bars, make_schedule
from jdcl_jax.diffusion.variational import make_learned_bound
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.scores import check_counts
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import DENOISER, SOLVER, ClassTerm, Memory, Method, Phase, Setup, Solver
from jdcl_jax.methods.registry import make_method
from jdcl_jax.models.capture import captured
from jdcl_jax.models.conditioner import Conditioner, fixed_labels
from jdcl_jax.models.joint import ClassHead, JointNetwork
from jdcl_jax.models.resnet import ResNet, SmallCNN, make_classifier
from jdcl_jax.models.unet import UNet
from jdcl_jax.training.optimizer import learning_rate, make_optimizer, momentum_sgd
from jdcl_jax.training.state import PyTree, create_state
from jdcl_jax.training.step import Step, observe_step, train_step
from jdcl_jax.validation import check_image_size, validate


@dataclass(frozen=True)
class Parts:
    """Everything that a config stands for."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    sequence: TaskSequence
    network: JointNetwork
    setup: Setup
    method: Method

    @property
    def num_tasks(self) -> int:
        """Tasks of the sequence."""
        return len(self.sequence.groups)


@dataclass(frozen=True)
class RunArrays:
    """Makes the tree that a run changes: {"networks": name -> TrainState, "memory": the method's}."""

    parts: Parts

    def initial(self) -> dict[str, PyTree]:
        """Fresh parameters from the run's seed, and the method's empty memory."""
        params, method = init_params(self.parts), self.parts.method
        memory: Memory = method.init_memory(params)
        optimizer, ema = phase_optimizer(self.parts, 1), self.parts.config.train.ema > 0
        networks = {DENOISER: create_state(params, optimizer, ema=ema, tracked=method.init_tracked(params))}
        solver = self.parts.setup.solver
        if solver is not None:
            own = solver.fresh(named_key(self.parts.config.seed, "init", SOLVER))
            networks[SOLVER] = create_state(own, phase_optimizer(self.parts, 1, SOLVER), ema=False)
        return {"networks": networks, "memory": memory}

    def shapes(self) -> dict[str, PyTree]:
        """The same tree as shapes and types, nothing computed."""
        return jax.eval_shape(self.initial)


def assemble(config: ml_collections.ConfigDict) -> Parts:
    """Checks the config, loads the data and builds the rest.

    Raises:
      UserError: anything in the config or the data that cannot be.
    """
    validate(config)
    data = config.data
    dataset = load(data.name, directory=data.dir, image_size=data.image_size, fit=data.fit, domain=config.tasks.domain)
    image_shape = dataset.train.images.shape[1:]
    check_image_size(config, image_shape[0])
    sequence = make_sequence(
        dataset,
        num_tasks=config.tasks.num_tasks,
        groups=config.tasks.groups,
        order=config.tasks.order,
        first_tasks=config.tasks.first,
        validation=data.validation,
        label_fraction=data.label_fraction,
        seed=config.seed,
    )
    _check_samples(config, sequence)
    _check_probes(config, len({c for group in sequence.groups for c in group}))
    network = make_network(config, image_shape[-1], dataset.class_names)
    setup = make_setup(config, network, image_shape, sequence)
    options = {key: value for key, value in config.method.to_dict().items() if key != "name"}
    method = make_method(config.method.name, setup, options)
    _check_parts(config, method)
    _check_warmup(config, method)
    return Parts(config, dataset, sequence, network, setup, method)


def _check_parts(config: ml_collections.ConfigDict, method: Method) -> None:
    """A solver and a learned variance need a method that trains them."""
    name = config.method.name
    if method.setup.solver is not None and not any(p.network == SOLVER for p in method.phases(0)):
        raise UserError(f"classifier.kind=solver is trained in phases of its own, which {name} has not; write joint")
    if method.setup.with_variance is not None and not method.learns_variance:
        raise UserError(
            f"diffusion.variance=learned would not be learned by {name}, whose losses are of eps alone; "
            "write diffusion.variance=fixed_small"
        )


def _check_warmup(config: ml_collections.ConfigDict, method: Method) -> None:
    """Where every phase has a schedule of its own, none may end before it is warm."""
    if not config.train.reset_optimizer:
        return
    for task in range(method.setup.num_tasks):
        phases = list(method.phases(task))
        for place, phase in enumerate(phases):
            if phase.observe is not None or phase.network != DENOISER:
                continue
            steps = chain_steps(phases, place)
            if config.train.warmup >= steps:
                raise UserError(
                    f"train.warmup={config.train.warmup} is not below the {steps} steps of the phase {phase.name}"
                )


def _check_samples(config: ml_collections.ConfigDict, sequence: TaskSequence) -> None:
    """Enough of them for every task; where classes are asked for, also of its classes."""
    scores, number, groups = config.evaluation.scores, config.evaluation.num_samples, sequence.groups
    asking = config.model.class_conditional or config.sampler.classifier_guidance > 0
    check_counts(scores, number, len(groups), groups if asking else None)


def _check_probes(config: ml_collections.ConfigDict, classes: int) -> None:
    probes = [name for name in config.evaluation.scores if name.endswith("_probe")]
    most = config.evaluation.probe.images
    if probes and most < classes:
        raise UserError(
            f"evaluation.probe.images is {most}, and {probes[0]} is fitted to images of {classes} classes; write at "
            f"least {classes}"
        )


def make_network(config: ml_collections.ConfigDict, channels: int, class_names: Sequence[str]) -> JointNetwork:
    """The denoiser and classifier of a config, for images of 1 or 3 channels and all classes of a data set.

    Raises:
      UserError: the file of label embeddings is not one of these classes.
    """
    model, classifier, num_classes = config.model, config.classifier, len(class_names)
    conditioner = _conditioner(config, class_names) if model.conditioning == "context" else None
    unet = UNet(
        out_channels=channels * (2 if config.diffusion.variance == "learned" else 1),
        channels=tuple(model.channels),
        layers_per_block=model.layers_per_block,
        attention_resolutions=tuple(model.attention_resolutions),
        head_channels=model.head_channels,
        heads=model.heads,
        groups=model.groups,
        scale_shift=model.scale_shift,
        dropout=model.dropout,
        num_classes=num_classes if model.class_conditional and conditioner is None else 0,
        dtype=jnp.dtype(model.dtype),
        context_resolutions=tuple(config.context.resolutions) if conditioner is not None else (),
    )
    if classifier.kind in ("none", "solver"):
        return JointNetwork(unet, conditioner=conditioner)
    head = ClassHead(num_classes, hidden=classifier.hidden, dropout=classifier.dropout)
    return JointNetwork(unet, head, separate=classifier.kind == "separate", conditioner=conditioner)


def _conditioner(config: ml_collections.ConfigDict, class_names: Sequence[str]) -> Conditioner:
    context = config.context
    given = read_label_embeddings(context.embeddings, class_names) if context.embeddings else None
    return Conditioner(
        len(class_names),
        width=context.width,
        label_width=context.label_width if given is None else given.shape[1],
        labels_given=None if given is None else fixed_labels(given),
        prototypes=context.prototypes != "none",
        image_channels=context.prototypes in ("both", "channels"),
        token=context.prototypes in ("both", "token"),
        pooled=context.pooled,
        dtype=jnp.dtype(config.model.dtype),
    )


def make_setup(
    config: ml_collections.ConfigDict, network: JointNetwork, image_shape: tuple[int, ...], sequence: TaskSequence
) -> Setup:
    """What methods may know of the run."""
    diffusion, sampler, train = config.diffusion, config.sampler, config.train
    schedule = make_schedule(diffusion.schedule, diffusion.timesteps, **_betas(config))
    height, width, channels = image_shape
    learned = diffusion.variance == "learned"
    chain = Sampler(sampler.kind, sampler.steps, sampler.eta, sampler.clip, diffusion.prediction)
    return Setup(
        apply=functools.partial(_prediction, network.denoise, channels) if learned else network.denoise,
        schedule=schedule,
        sampler=dataclasses.replace(chain, variance=diffusion.variance),
        image_shape=(height, width, channels),
        num_classes=network.num_classes,
        guidance=sampler.guidance,
        label_dropout=config.model.label_dropout,
        groups=sequence.groups,
        task_sizes=tuple(int(n) for n in sequence.train.counts),
        labels=sequence.train.labels,
        steps=task_steps(config, [int(n) for n in sequence.train.counts]),
        batch_size=train.batch_size,
        ema=train.ema > 0,
        seed=config.seed,
        reset_optimizer=train.reset_optimizer,
        class_names=sequence.class_names,
        views=Views(config.data.flip, **config.views.to_dict()),
        classifier=_class_term(config, network, sequence, (height, width, channels)),
        classifier_guidance=sampler.classifier_guidance,
        fresh=functools.partial(network.init, image_shape=(height, width, channels)),
        solver=_solver(config, network, sequence, (height, width, channels)),
        with_variance=network.denoise if learned else None,
        bound=make_learned_bound(alpha_bars(diffusion.schedule, diffusion.timesteps, **_betas(config)))
        if learned
        else None,
        prototypes=network.conditioner is not None and network.conditioner.prototypes,
        inputs=functools.partial(_inputs, network),
    )


def _betas(config: ml_collections.ConfigDict) -> dict[str, Any]:
    diffusion = config.diffusion
    return {"beta_start": diffusion.beta_start, "beta_end": diffusion.beta_end, "zero_snr": diffusion.zero_snr}


def _prediction(denoise: Callable[..., jax.Array], channels: int, *args: Any) -> jax.Array:
    """The first half of what a network says that learns its variance."""
    return denoise(*args)[..., :channels]


def _inputs(
    network: JointNetwork, params: PyTree, x_t: jax.Array, t: jax.Array, labels: jax.Array | None, layers: Sequence[str]
) -> dict[str, jax.Array]:
    roots = {UNet: "unet" if network.head or network.conditioner else "", Conditioner: "conditioner"}
    return captured(lambda: network.denoise(params, x_t, t, labels, None), layers, roots)


def _solver(
    config: ml_collections.ConfigDict,
    network: JointNetwork,
    sequence: TaskSequence,
    image_shape: tuple[int, int, int],
) -> Solver | None:
    if config.classifier.kind != "solver":
        return None
    chosen, sizes = config.solver, [int(n) for n in sequence.train.counts]
    own = make_classifier(chosen.network, len(sequence.class_names), jnp.dtype(config.model.dtype))

    def fresh(key: jax.Array) -> PyTree:
        return own.init(key, jnp.zeros((1, *image_shape)))["params"]

    return Solver(
        logits=lambda params, images: jnp.asarray(own.apply({"params": params}, images)),
        fresh=fresh,
        steps=(chosen.steps,) * len(sizes) if chosen.steps else task_steps(config, sizes),
        passes=solver_flops(own, image_shape) / forward_flops(network, image_shape),
        warm_start=chosen.warm_start,
    )


def _class_term(
    config: ml_collections.ConfigDict,
    network: JointNetwork,
    sequence: TaskSequence,
    image_shape: tuple[int, int, int],
) -> ClassTerm | None:
    if network.head is None:
        return None
    return ClassTerm(
        network.classify,
        None if network.separate else network.denoise_towards,
        weight=config.classifier.weight,
        passes=classifying_flops(network, image_shape) / forward_flops(network, image_shape),
        label_fraction=float(np.mean(sequence.train.labels >= 0)),
    )


def task_steps(config: ml_collections.ConfigDict, sizes: list[int]) -> tuple[int, ...]:
    """Train steps of tasks with so many training images: `train.steps`, or as many whole calls as `train.epochs` holds.

    Raises:
      UserError: a task is too small for one call, or the warm-up is longer than a task.
    """
    train = config.train
    if train.epochs == 0:
        return (train.steps,) * len(sizes)
    calls = [train.epochs * size // (train.batch_size * train.steps_per_call) for size in sizes]
    if min(calls) == 0:
        raise UserError(
            f"{train.epochs} passes over the {min(sizes)} images of a task are less than one call of "
            f"{train.steps_per_call} steps of {train.batch_size}; write train.steps_per_call=1, a smaller "
            "train.batch_size or more train.epochs"
        )
    steps = tuple(n * train.steps_per_call for n in calls)
    if train.warmup >= min(steps):
        raise UserError(f"train.warmup={train.warmup} is not below the {min(steps)} steps of a task")
    return steps


def init_params(parts: Parts) -> PyTree:
    """The network's parameters before any training."""
    assert parts.setup.fresh is not None
    return jax.jit(parts.setup.fresh)(named_key(parts.config.seed, "init"))


def chain_steps(phases: Sequence[Phase], place: int) -> int:
    """Training steps of a phase together with those before and after it that go on with the same optimiser."""
    first, last = place, place + 1
    while phases[first].continues:
        first -= 1
    while last < len(phases) and phases[last].continues:
        last += 1
    return sum(phase.steps for phase in phases[first:last] if phase.observe is None)


def _steps_of_run(parts: Parts, network: str) -> int:
    """Training steps of a network over all tasks."""
    phases = [phase for task in range(parts.num_tasks) for phase in parts.method.phases(task)]
    return sum(phase.steps for phase in phases if phase.observe is None and phase.network == network)


def phase_optimizer(parts: Parts, steps: int, network: str = DENOISER) -> optax.GradientTransformation:
    """The optimiser of `steps` steps, see `chain_steps`; a learning-rate schedule that is not reset spans the run."""
    train, solver = parts.config.train, parts.config.solver
    horizon = steps if train.reset_optimizer else _steps_of_run(parts, network)
    if network == SOLVER:
        rate = learning_rate(solver.learning_rate, schedule=solver.schedule, warmup=0, steps=horizon)
        return momentum_sgd(rate, momentum=solver.momentum, weight_decay=solver.weight_decay)
    rate = learning_rate(train.learning_rate, schedule=train.schedule, warmup=train.warmup, steps=horizon)
    made = make_optimizer(train.optimizer, rate, clip_norm=train.clip_norm, weight_decay=train.weight_decay)
    return parts.method.optimizer(made)


def phase_step(parts: Parts, phase: Phase, steps: int) -> Step:
    """One step of a phase; a training phase's optimiser is that of `steps` steps, see `phase_optimizer`."""
    if phase.observe is not None:
        return functools.partial(observe_step, observe=phase.observe, streams=phase.streams)
    return functools.partial(
        train_step,
        gradient=phase.descent,
        streams=phase.streams,
        optimizer=phase_optimizer(parts, steps, phase.network),
        ema=parts.config.train.ema,
        penalty=phase.penalty,
        track=phase.track,
        skip=parts.config.train.skip_bad_steps > 0,
    )


@functools.cache
def forward_flops(network: JointNetwork, image_shape: tuple[int, int, int]) -> float:
    """Floating-point operations of the denoiser's forward pass on one image, by XLA's own count."""
    return _flops(network, image_shape, lambda plain, p, x, t, y: plain.denoise(p, x, t, y, None))


@functools.cache
def classifying_flops(network: JointNetwork, image_shape: tuple[int, int, int]) -> float:
    """Floating-point operations of classifying one image; the decoder has no part in them."""
    return _flops(network, image_shape, lambda plain, p, x, t, y: plain.classify(p, x))


def solver_flops(network: ResNet | SmallCNN, image_shape: tuple[int, int, int]) -> float:
    """Floating-point operations of classifying one image by a network of its own; see `_flops`."""
    plain = network.clone(form="plain")
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(lambda: plain.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return float((jax.jit(plain.apply).lower(params, x).cost_analysis() or {})["flops"])


def _flops(network: JointNetwork, image_shape: tuple[int, int, int], of: Callable[..., jax.Array]) -> float:
    """Counted on the plain form, whatever form runs.

    XLA counts the body of a loop once, and a model's operations should depend neither on the backend nor on the
    algorithm that suits it.
    """
    plain = dataclasses.replace(network, unet=network.unet.clone(form="plain"))
    params = jax.eval_shape(lambda: plain.init(jax.random.key(0), image_shape))
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    labels = t if network.num_classes else None
    lowered = jax.jit(functools.partial(of, plain)).lower(params, x, t, labels)
    return float((lowered.cost_analysis() or {})["flops"])
