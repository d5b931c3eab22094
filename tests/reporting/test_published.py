import copy
import json
from typing import Any

import numpy as np
import pytest

from jdcl_jax.reporting.comparable import protocol_differences, published_cell
from jdcl_jax.reporting.protocol import Published
from jdcl_jax.reporting.published import PUBLISHED, find, unstated

NATURAL = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
SAME = {
    "data": {"name": "fashion_mnist", "image_size": 32},
    "method": {
        "name": "rank1_ewc+gd",
        "replay": "stored",
        "stored_per_class": 5000,
        "weighting": "sum",
        "replay_weight": 1.0,
        "distil_on": "renoised",
        "stop_snr": 0.0,
        "timesteps": "uniform",
        "rank1_ewc": {"strength": 15000.0, "form": "mean", "rank": 1},
    },
    "model": {"class_conditional": True},
    "classifier": {"kind": "none"},
    "diffusion": {"timesteps": 1000, "prediction": "eps"},
    "sampler": {"kind": "ddim", "steps": 50, "eta": 0.0},
    "train": {"epochs": 200, "steps": 9400, "batch_size": 128, "optimizer": "adam", "learning_rate": 0.0002},
}


def record(method: str = "rank1_ewc+gd", dataset: str = "fashion_mnist", groups: Any = None, **keys: Any) -> dict:
    """A run made exactly as published, but for the settings given: `train__epochs=3` sets train.epochs."""
    config = copy.deepcopy(SAME)
    for key, value in keys.items():
        *path, name = key.split("__")
        section: Any = config
        for part in path:
            section = section[part]
        section[name] = value
    return {
        "status": "finished",
        "dataset": dataset,
        "method": method,
        "tasks": [{"task": i + 1, "classes": group} for i, group in enumerate(groups or NATURAL)],
        "scores": {"fid": {}, "kld": {}},
        "config": config,
    }


def entry(dataset: str = "fashion_mnist", method: str = "rank1_ewc+gd", summary: str = "average") -> Published:
    (found,) = find(dataset, method, summary, "fid")
    return found


@pytest.mark.parametrize(
    ("dataset", "method", "tag", "average", "rise"),
    [
        ("mnist", "joint", "2nd", 2.6, None),
        ("mnist", "gd", "2nd", 10.1, 2.3),
        ("mnist", "ewc+gd", "paper", 14.3, 5.2),
        ("mnist", "rank1_ewc+gd", "paper", 7.6, 0.6),
        ("fashion_mnist", "joint", "2nd", 5.7, None),
        ("fashion_mnist", "finetune", "2nd", 104, 88),
        ("fashion_mnist", "gd", "2nd", 19.1, 3.9),
        ("fashion_mnist", "ewc+gd", "paper", 27.7, 9.1),
        ("fashion_mnist", "rank1_ewc+gd", "paper", 15.4, 0.9),
        ("cifar10", "joint", "2nd", 23.3, None),
        ("cifar10", "finetune", "2nd", 115.4, 72.5),
        ("cifar10", "gd", "2nd", 61.2, 16.6),
        ("cifar10", "ewc+gd", "paper", 72.6, 17.9),
        ("cifar10", "rank1_ewc+gd", "paper", 50.5, 7.4),
        ("imagenet_resized/32x32", "ewc+gd", "paper", 73.8, 25.8),
        ("imagenet_resized/32x32", "rank1_ewc+gd", "paper", 48.5, 15.2),
    ],
)
def test_the_table_with_its_tags_and_source(dataset, method, tag, average, rise):
    for summary, value in (("average", average), ("rise", rise)):
        found = find(dataset, method, summary, "fid")
        assert [(one.value, one.tag, one.source) for one in found] == (
            [] if value is None else [(value, tag, "2509.23593")]
        )


def test_nothing_stands_in_the_table_but_those_sixteen_rows():
    distances = [one for one in PUBLISHED if one.score == "fid"]
    assert len({(one.dataset, one.method) for one in distances}) == 16
    assert len(distances) == 16 + 13  # no rise of the three joint runs


def test_the_protocol_that_is_stated():
    known = entry(method="gd").protocol
    assert (known.num_tasks, known.classes_per_task, known.label_order) == (5, 2, True)
    assert (known.class_conditional, known.stored_per_class, known.timesteps) == (True, 5000, 1000)
    assert (known.sampler, known.epochs, known.batch_size) == (("ddim", 50), 200, 128)
    assert (known.optimizer, known.learning_rate) == ("adam", 2e-4)
    assert known.penalty_strength is None
    assert entry().protocol.penalty_strength == 15000
    assert entry(method="finetune").protocol.stored_per_class is None


def test_little_is_stated_on_imagenet():
    known = entry("imagenet_resized/32x32").protocol
    assert (known.num_tasks, known.image_size, known.penalty_strength) == (20, 32, 15000)
    assert (known.epochs, known.batch_size, known.stored_per_class, known.class_conditional) == (None,) * 4
    groups = np.arange(1000).reshape(20, 50).tolist()
    name = "imagenet_resized/32x32"
    assert protocol_differences(entry(name), record(dataset=name, groups=groups, data__image_size=0)) == []
    larger = protocol_differences(entry(name), record(dataset=name, groups=groups, data__image_size=64))
    assert larger == ["64x64 images instead of 32x32 images"]
    ten = protocol_differences(entry(name), record(dataset=name, groups=groups[:10]))
    assert ten == ["10 tasks instead of 20"]


def test_every_value_says_what_is_not_known_of_it():
    for one in PUBLISHED:
        assert all(line.startswith("not stated: ") for line in one.unknowns)
        lines = " ".join(one.unknowns)
        if one.score != "fid":
            continue
        assert "network" in lines
        assert "Inception" in lines
        assert ("last task" in lines) == (one.summary == "rise")
        assert ("teacher" in lines) == one.method.endswith("gd")
        assert ("on ImageNet-1k" in lines) == one.dataset.startswith("imagenet")


def test_the_same_protocol_has_no_differences():
    assert protocol_differences(entry(), record()) == []
    assert protocol_differences(entry(method="joint"), record("joint")) == []
    for side in (0, 32):
        assert protocol_differences(entry("cifar10"), record(dataset="cifar10:3.0.2", data__image_size=side)) == []


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"model__class_conditional": False}, "unconditional instead of class-conditional"),
        ({"method__replay": "fresh"}, "teacher samples fresh at each step instead of 5,000 stored per class"),
        (
            {"method__stored_per_class": 250},
            "teacher samples 250 stored per class instead of 5,000 stored per class",
        ),
        ({"method__distil_on": "all_states"}, "distilled on all_states instead of renoised"),
        ({"method__stop_snr": 0.5}, "reverse process stopped at SNR 0.5 instead of 0"),
        ({"method__timesteps": "beta"}, "timesteps of replay beta instead of uniform"),
        ({"method__t_min": 600}, "timesteps of replay uniform from 600 on instead of uniform"),
        ({"train__epochs": 0}, "9,400 steps a task instead of 200 epochs"),
        ({"train__epochs": 20}, "20 epochs instead of 200 epochs"),
        ({"method__rank1_ewc__strength": 1500.0}, "penalty strength 1,500 instead of 15,000"),
        ({"method__rank1_ewc__form": "power"}, "penalty form power instead of mean"),
        ({"method__rank1_ewc__rank": 2}, "penalty rank 2 instead of 1"),
        ({"method__weighting": "by_task"}, "losses weighted by_task instead of sum"),
        ({"method__replay_weight": 0.75}, "replay weight 0.75 instead of 1"),
        ({"train__batch_size": 64}, "batch 64 instead of 128"),
        ({"train__optimizer": "adamw"}, "adamw instead of adam"),
        ({"train__learning_rate": 1e-3}, "learning rate 0.001 instead of 0.0002"),
        ({"diffusion__timesteps": 100}, "T = 100 instead of 1000"),
        ({"diffusion__prediction": "v"}, "v-prediction instead of eps-prediction"),
        ({"sampler__steps": 10}, "ddim of 10 steps instead of ddim of 50 steps"),
        ({"sampler__kind": "ddpm"}, "ddpm of 50 steps instead of ddim of 50 steps"),
        ({"sampler__eta": 0.5}, "ddim with eta 0.5 of 50 steps instead of ddim of 50 steps"),
        ({"groups": NATURAL[:2]}, "reduced: 2 of 5 tasks"),
        ({"groups": [NATURAL[0] + NATURAL[1], *NATURAL[2:]]}, "4 tasks instead of 5"),
        (
            {"groups": [[0, 1], [5, 4], [2, 3], *NATURAL[3:]]},
            "classes in the order 0, 1, 4, 5, 2, 3, ... instead of label order",
        ),
        ({"dataset": "cifar10"}, "cifar10 instead of fashion_mnist"),
        ({"method": "rank1_ewc+gr"}, "rank1_ewc+gr instead of rank1_ewc+gd"),
    ],
)
def test_each_departure_has_its_phrase(changes, phrase):
    assert protocol_differences(entry(), record(**changes))[:1] == [phrase]
    if "groups" not in changes:
        assert len(protocol_differences(entry(), record(**changes))) == 1


def test_cifar10_of_another_size_is_another_protocol():
    tree = record(dataset="cifar10", data__image_size=64)
    assert protocol_differences(entry("cifar10"), tree) == ["64x64 images instead of 32x32 images"]
    assert "61.2" not in published_cell(tree | {"method": "gd"}, "fid", "average")


def test_what_an_epoch_of_joint_training_is_stays_open():
    assert any("an epoch of joint training" in line for line in unstated("cifar10", ["joint"], "fid"))


def test_the_last_tasks_alone_are_not_the_first_ones():
    assert protocol_differences(entry(), record(groups=NATURAL[1:])) == [
        "reduced: 4 of 5 tasks",
        "classes in the order 2, 3, 4, 5, 6, 7, ... instead of label order",
    ]


def test_tasks_of_other_sizes_are_told():
    groups = [[0, 1, 2], [3], [4, 5], [6, 7], [8, 9]]
    assert protocol_differences(entry(), record(groups=groups)) == ["tasks of 3, 1, 2, 2, 2 classes instead of 2"]


def test_the_order_of_classes_inside_a_task_does_not_matter():
    assert protocol_differences(entry(), record(groups=[[1, 0], *NATURAL[1:]])) == []


def test_an_unfinished_run_and_another_score_are_told_first():
    tree = record(train__batch_size=64) | {"status": "running", "scores": {"fd_classifier": {}, "kld": {}}}
    assert protocol_differences(entry(), tree) == [
        "other score: fd_classifier instead of fid",
        "the run is not finished",
        "batch 64 instead of 128",
    ]
    assert protocol_differences(entry(), tree, "kld")[0] == "other score: kld instead of fid"
    assert protocol_differences(entry(), record(), "fid") == []


def test_settings_of_the_method_that_others_lack_are_not_asked_of_them():
    plain = record("finetune")
    plain["config"]["method"] = {"name": "finetune"}
    assert protocol_differences(entry(method="finetune"), plain) == []
    plain["method"] = plain["config"]["method"]["name"] = "joint"
    plain["config"]["method"]["compute_matched"] = True
    assert protocol_differences(entry(method="joint"), plain) == ["more steps on later tasks instead of as many on all"]


def test_a_run_from_before_the_settings_existed_counts_as_what_it_did():
    tree = record("gd")
    tree["config"]["method"] = {"name": "gd", "replay_weight": 0.75, "teacher_steps": 2}
    del tree["config"]["train"]["epochs"]
    assert protocol_differences(entry(method="gd"), tree) == [
        "teacher samples fresh at each step instead of 5,000 stored per class",
        "9,400 steps a task instead of 200 epochs",
    ]


def test_what_is_not_recorded_is_never_taken_for_the_same():
    tree = record()
    del tree["config"]["model"], tree["config"]["train"]["batch_size"], tree["config"]["sampler"]["steps"]
    del tree["config"]["train"]["steps"], tree["config"]["train"]["epochs"]
    assert protocol_differences(entry(), tree) == [
        "class conditional not recorded",
        "epochs not recorded",
        "batch size not recorded",
        "sampler not recorded",
    ]
    assert len(protocol_differences(entry(), tree | {"config": None})) >= 8


def test_a_run_is_read_the_same_from_its_file():
    tree = record(model__class_conditional=False)
    assert protocol_differences(entry(), json.loads(json.dumps(tree))) == protocol_differences(entry(), tree)


def test_a_cell_of_the_same_protocol_has_value_tag_and_source():
    assert published_cell(record(), "fid", "average") == "15.4 [paper, 2509.23593], same protocol where stated"
    assert published_cell(record(), "fid", "rise") == "0.9 [paper, 2509.23593], same protocol where stated"
    tree = record("finetune")
    assert published_cell(tree, "fid", "average").startswith("104 [2nd, 2509.23593]")


def test_a_cell_of_another_protocol_has_all_differences_and_no_value():
    one = published_cell(record("gd", model__class_conditional=False), "fid", "average")
    assert one == "another protocol: unconditional instead of class-conditional"
    changes = {"train__batch_size": 64, "train__epochs": 0, "diffusion__timesteps": 100, "sampler__steps": 10}
    many = published_cell(record("gd", groups=NATURAL[:2], **changes), "fd_classifier", "rise")
    assert many == (
        "another protocol: other score: fd_classifier instead of fid; reduced: 2 of 5 tasks; "
        "9,400 steps a task instead of 200 epochs; batch 64 instead of 128; T = 100 instead of 1000; "
        "ddim of 10 steps instead of ddim of 50 steps"
    )


def test_what_is_not_stated_is_of_the_methods_asked_for():
    both = unstated("fashion_mnist:3.0.1", ["gd", "rank1_ewc+gd"], "fid")
    assert "not stated: the network" in both
    assert "not stated: how many examples estimate the penalty" in both
    assert "not stated: how many examples estimate the penalty" not in unstated("fashion_mnist", ["gd"], "fid")
    assert len(set(both)) == len(both)
    assert unstated("fashion_mnist", ["er"], "fid") == unstated("digits", ["gd"], "fid") == []


def test_a_cell_where_nothing_is_published():
    assert published_cell(record(dataset="digits"), "fid", "average") == "none for digits"
    assert published_cell(record(dataset="npz:mnist.npz"), "fid", "average") == "none for npz:mnist.npz"
    assert published_cell(record("er"), "fid", "average") == "none published"
    assert published_cell(record("joint"), "fid", "rise") == "none published"
    assert published_cell(record(), "fid", "incremental") == "none published"
    assert published_cell(record(), "kld", "average") == "none published"  # a FID says nothing of another kind of score
