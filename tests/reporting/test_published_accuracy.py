"""JDCL's published accuracies, and which runs may stand beside them."""

import pytest

from jdcl_jax.reporting.comparable import protocol_differences, published_cell
from jdcl_jax.reporting.published import PUBLISHED, find, unstated

COUNTS = {"cifar10": 10, "cifar100": 100}


@pytest.fixture
def results(config_file, as_results):
    """`results("cifar10", "jdcl,paper")`: what results.json of a finished run of that config says of its protocol."""
    return lambda file, words: as_results(config_file(file).get_config(words), COUNTS[file])


@pytest.mark.parametrize(
    ("file", "words", "share"),
    [
        ("cifar10", "paper", 0.8369),
        ("cifar10", "released", 0.8369),
        ("cifar10", "paper,data.label_fraction=0.05", 0.7996),
        ("cifar10", "paper,data.label_fraction=0.008", 0.7893),
        ("cifar10", "paper,classifier.kind=separate", 0.684),
        ("cifar10", "paper,method.distillation=False", 0.482),
        ("cifar100", "paper", 0.4795),
        ("cifar100", "paper,ten", 0.2904),
        ("cifar100", "paper,ten,data.label_fraction=0.05", 0.2639),
        ("cifar100", "paper,ten,data.label_fraction=0.008", 0.2219),
    ],
)
def test_a_run_of_the_papers_protocol_stands_beside_its_own_number(results, file, words, share) -> None:
    cell = published_cell(results(file, words), "accuracy", "average")
    assert cell == f"{share:g} [2nd, 2411.08224], same protocol where stated"


@pytest.mark.parametrize(
    ("file", "words", "said"),
    [
        ("cifar10", "paper,data.label_fraction=0.1", "data.label_fraction=0.1 instead of"),
        ("cifar10", "paper,train.steps=500", "train.steps=500 instead of 50000"),
        ("cifar10", "paper,train.epochs=1", "train.epochs=1 instead of 0"),
        ("cifar10", "paper,method.global_steps=20000", "method.global_steps=20000 instead of 30000"),
        ("cifar10", "paper,method.quota=500", "method.quota=500 instead of 1000"),
        ("cifar10", "paper,method.local=False", "method.local=False instead of True"),
        ("cifar10", "paper,data.label_fraction=0.05,method.unlabelled=ignore", "method.unlabelled=ignore instead of"),
        ("cifar10", "paper,method.first_steps=10", "method.first_steps=10 instead of 0"),
        ("cifar10", "paper,method.replay_steps=2", "method.replay_steps=2 instead of 250"),
        ("cifar10", "paper,model.channels=(32,32,32,32)", "model.channels=(32, 32, 32, 32) instead of (128, 256, 256"),
        ("cifar10", "paper,classifier.weight=1.0", "classifier.weight=1 instead of 0.001"),
        ("cifar10", "paper,method.class_weight=2e-5", "method.class_weight=2e-05 instead of 1e-05"),
        ("cifar10", "paper,method.class_delay=0", "method.class_delay=0 instead of 10000"),
        ("cifar10", "paper,train.ema=0.999", "train.ema=0.999 instead of 0.9999"),
        ("cifar100", "paper,data.image_size=64", "64x64 images instead of 32x32 images"),
        ("cifar10", "paper,classifier.kind=separate,method.distillation=False", "instead of"),
        ("cifar10", "paper,tasks.first=2", "reduced: 2 of 5 tasks"),
        ("cifar100", "paper,half", "6 tasks instead of 5; tasks of 50, 10, 10, 10, 10, 10 classes instead of 20"),
        ("cifar10", "small", "method.quota=250 instead of 1000"),
    ],
)
def test_any_other_run_gets_the_difference_and_no_number(results, file, words, said) -> None:
    cell = published_cell(results(file, words), "accuracy", "average")
    assert cell.startswith("another protocol: ")
    assert said in cell
    assert "2411.08224" not in cell


def test_the_nearest_protocol_is_the_one_compared(results) -> None:
    cell = published_cell(
        results("cifar10", "paper,data.label_fraction=0.05,train.batch_size=64"), "accuracy", "average"
    )
    assert cell == "another protocol: batch 64 instead of 256"


@pytest.mark.parametrize("score", ["accuracy_masked", "accuracy_validation", "fd_classifier"])
def test_other_scores_have_none(results, score) -> None:
    assert published_cell(results("cifar10", "paper"), score, "average") == "none published"


def test_accuracies_and_distances_are_never_mixed_up(results) -> None:
    """Joint training on CIFAR-10 has a FID in one publication and an accuracy in another."""
    assert [one.value for one in find("cifar10", "joint", "average", "fid")] == [23.3]
    assert [one.value for one in find("cifar10", "joint", "average", "accuracy")] == [0.8641]
    assert "Inception" in " ".join(unstated("cifar10", ["joint"], "fid"))
    assert "Inception" not in " ".join(unstated("cifar10", ["joint"], "accuracy"))


def test_none_is_said_to_be_known_better_than_it_is() -> None:
    of_accuracy = [one for one in PUBLISHED if one.score == "accuracy"]
    assert len(of_accuracy) == 15
    for one in of_accuracy:
        assert (one.tag, one.source, one.summary) == ("2nd", "2411.08224", "average")
        assert any("number of seeds" in line for line in one.unknowns)
        assert any("its code does" in line for line in one.unknowns) == (one.method == "jdcl")
        assert one.protocol.sampler is None


@pytest.mark.parametrize(
    ("file", "words", "share"),
    [("cifar10", "joint,paper", 0.8641), ("cifar100", "joint,paper", 0.7307), ("cifar100", "joint,paper,ten", 0.6415)],
)
def test_of_joint_training_it_is_said_that_its_length_is_not_known(results, file, words, share) -> None:
    cell = published_cell(results(file, words), "accuracy", "average")
    assert cell == f"{share:g} [2nd, 2411.08224], same protocol where stated; not its length"


@pytest.mark.parametrize(
    ("file", "words", "share"),
    [
        ("cifar10", "guide,guide_released", 0.6447),
        ("cifar100", "guide,guide_released", 0.4166),
        ("cifar100", "guide,ten,guide_released,method.scale=1.0", 0.2613),
    ],
)
def test_guides_published_accuracy_stands_beside_its_guidance_and_classifier(results, file, words, share) -> None:
    cell = published_cell(results(file, words), "accuracy", "average")
    assert cell == f"{share:g} [2nd, 2411.08224], same protocol where stated; not its length"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("method.scale=0.0", "method.scale=0 instead of 0.5"),
        ("method.direction=away", "method.direction=away instead of toward"),
        ("solver.network=cnn", "solver.network=cnn instead of resnet18"),
    ],
)
def test_another_guidance_gets_the_difference_and_no_number(results, words, said) -> None:
    cell = published_cell(results("cifar10", f"guide,guide_released,{words}"), "accuracy", "average")
    assert cell == f"another protocol: {said}"


def test_a_run_that_does_not_record_a_setting_gets_no_number(results) -> None:
    tree = results("cifar10", "paper")
    del tree["config"]["views"]
    (published, *_) = find("cifar10", "jdcl", "average", "accuracy")
    assert protocol_differences(published, tree, "accuracy") == [
        f"views.{key} not recorded" for key in ("crop_scale", "operations", "magnitude", "cutout")
    ]
