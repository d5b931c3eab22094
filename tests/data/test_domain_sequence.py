"""Tasks that are groups of domains: the same classes come again in other tasks."""

import numpy as np
import pytest

from jdcl_jax.data.arrays import Dataset, Split, strata, with_test_of_each_domain
from jdcl_jax.data.tasks import domain_sequence, make_sequence, task_sequence
from jdcl_jax.errors import UserError

# Of every class and domain so many training images; class 2 is not in domain 7.
COUNTS = {(0, 2): 10, (1, 2): 20, (2, 2): 10, (0, 5): 30, (1, 5): 10, (2, 5): 5, (0, 7): 10, (1, 7): 25}


def split(counts, seed, first=0, twice=1):
    """Images in a random order whose pixels are their number, their label and their domain."""
    names = np.array([name for name, count in counts.items() for _ in range(count * twice)], np.int32)
    labels, domains = np.random.default_rng(seed).permutation(names).T
    numbers = np.arange(first, first + len(labels))
    pixels = np.stack([numbers // 256, numbers % 256, labels, domains], axis=1).astype(np.uint8)
    return Split(pixels.reshape(-1, 2, 2, 1), labels, domains)


def dataset(counts=None, test=None):
    counts = COUNTS if counts is None else counts
    test = dict.fromkeys(counts, 2) if test is None else test
    return Dataset("some", split(counts, 0), split(test, 1, first=1000), ("a", "b", "c"), "made here")


def facts(images):
    """(number, label, domain) of every image."""
    pixels = images.reshape(-1, 4).astype(int)
    return [(256 * high + low, label, domain) for high, low, label, domain in pixels]


def numbers(part):
    return {number for number, _, _ in facts(part.images)}


DOMAINS = ((7,), (2, 5))


def test_a_task_has_the_images_of_its_domains_and_the_classes_that_occur_in_them():
    sequence = domain_sequence(dataset(), DOMAINS, validation=0.2)
    assert sequence.groups == ((0, 1), (0, 1, 2))
    assert sequence.domains == DOMAINS
    for part in (sequence.train, sequence.validation, sequence.test):
        for k, own in enumerate(DOMAINS):
            found = facts(part.task(k).images)
            assert {domain for _, _, domain in found} == set(own)
            assert [label for _, label, _ in found] == part.task(k).labels.tolist()


def test_nothing_is_lost_and_nothing_is_in_two_parts():
    whole = dataset()
    sequence = domain_sequence(whole, DOMAINS, validation=0.2)
    assert numbers(sequence.train) | numbers(sequence.validation) == numbers(whole.train)
    assert not numbers(sequence.train) & numbers(sequence.validation)
    assert numbers(sequence.test) == numbers(whole.test)
    assert len(sequence.train.labels) + len(sequence.validation.labels) == len(whole.train)


def test_rows_are_sorted_by_class_within_a_task_and_then_as_in_the_data_set():
    train = domain_sequence(dataset(), DOMAINS, validation=0).train
    assert train.counts.tolist() == [35, 85]
    assert train.starts.tolist() == [0, 35]
    for k, own in enumerate(DOMAINS):
        found = facts(train.task(k).images)
        assert [label for _, label, _ in found] == sorted(label for _, label, _ in found)
        for c in range(3):
            expected = [one for one in facts(dataset().train.images) if one[1] == c and one[2] in own]
            assert [one for one in found if one[1] == c] == expected


def test_validation_is_the_same_share_of_every_class_of_every_domain():
    validation = domain_sequence(dataset(), DOMAINS, validation=0.2).validation
    found = [one[1:] for one in facts(validation.images)]
    assert {name: found.count(name) for name in COUNTS} == {name: count // 5 for name, count in COUNTS.items()}


@pytest.mark.parametrize("other", [((2, 5), (7,)), ((5,), (2,), (7,)), ((7, 5, 2),)])
def test_validation_and_known_labels_do_not_depend_on_the_order_of_domains(other):
    def chosen(domains, seed):
        sequence = domain_sequence(dataset(), domains, validation=0.2, label_fraction=0.25, seed=seed)
        known = [
            one for one, label in zip(facts(sequence.train.images), sequence.train.labels, strict=True) if label >= 0
        ]
        return numbers(sequence.validation), set(known)

    assert chosen(DOMAINS, 0) == chosen(other, 0)
    assert chosen(DOMAINS, 0)[0] != chosen(DOMAINS, 1)[0]
    assert chosen(DOMAINS, 0)[1] != chosen(DOMAINS, 1)[1]


def test_every_class_of_every_domain_has_its_share_of_known_labels():
    sequence = domain_sequence(dataset(), DOMAINS, validation=0, label_fraction=0.2)
    known = [
        one[1:] for one, label in zip(facts(sequence.train.images), sequence.train.labels, strict=True) if label >= 0
    ]
    assert {name: known.count(name) for name in COUNTS} == {name: count // 5 for name, count in COUNTS.items()}
    assert sequence.true_train_labels.tolist() == [label for _, label, _ in facts(sequence.train.images)]


def test_two_domains_of_a_class_hold_out_different_places():
    equal = dict.fromkeys([(0, d) for d in range(8)], 20)
    whole = dataset({**equal, (1, 0): 20, (2, 0): 20})
    held_out = numbers(domain_sequence(whole, (tuple(range(8)),), validation=0.25).validation)
    places = {
        tuple(place for place, row in enumerate(rows) if row in held_out)
        for (c, _), rows in strata(whole.train.labels, whole.train.domains)
        if c == 0
    }
    assert len(places) == 8


def test_domains_of_no_task_take_no_part():
    sequence = domain_sequence(dataset(), ((5,),), validation=0)
    assert {domain for _, _, domain in facts(sequence.train.images)} == {5}
    assert len(sequence.class_names) == 3


def test_a_class_of_a_domain_without_test_or_training_images_is_named():
    with pytest.raises(UserError, match=r"some: class 1 \(b\) of domain 7 of task 2 has no test image: add one"):
        domain_sequence(dataset(test={name: 1 for name in COUNTS if name != (1, 7)}), ((2,), (7,)))
    with pytest.raises(UserError, match=r"class 2 \(c\) of domain 7 of task 1 has no training image: add one"):
        domain_sequence(dataset(test=dict.fromkeys([*COUNTS, (2, 7)], 1)), ((7,),), validation=0)
    few = dataset({**COUNTS, (2, 7): 1})
    with pytest.raises(UserError, match=r"class 2 .* of domain 7 .* no training image left beside validation 0.5"):
        domain_sequence(few, ((7,),), validation=0.5)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (((2,), (2, 5)), "has a domain twice"),
        (((2,), (3,)), r"has one that no training image is of: they are \[2, 5, 7\]"),
        (((2,), ()), "has a task without domains"),
        ((), "has a task without domains"),
    ],
)
def test_domains_written_by_hand_are_checked(domains, message):
    with pytest.raises(UserError, match=message):
        domain_sequence(dataset(), domains)


def test_classes_can_still_be_divided_where_images_have_domains():
    sequence = task_sequence(dataset(), ((2, 0), (1,)), validation=0)
    assert sequence.domains is None
    assert sequence.train.counts.tolist() == [65, 55]
    with pytest.raises(UserError, match="its images have no domains"):
        plain = dataset()
        domain_sequence(
            Dataset("some", Split(plain.train.images, plain.train.labels), plain.test, plain.class_names, ""), DOMAINS
        )


def test_a_sequence_is_one_of_domains_exactly_where_there_are_any():
    division = {"num_tasks": 3, "groups": "", "validation": 0.0, "label_fraction": 1.0, "seed": 0}
    own = make_sequence(dataset(), order="7,5,2", first_tasks=2, **division)
    assert (own.domains, own.groups) == (((7,), (5,)), ((0, 1), (0, 1, 2)))
    plain = dataset()
    without = Dataset(
        "some", Split(plain.train.images, plain.train.labels), Split(plain.test.images, plain.test.labels), "abc", ""
    )
    assert make_sequence(without, order="2,0,1", first_tasks=2, **division).groups == ((2,), (0,))


# -- test images of each domain


def test_test_images_of_the_same_domains_are_kept():
    whole = dataset()
    assert with_test_of_each_domain(whole, 0.2) is whole
    more = dataset(test=dict.fromkeys([*COUNTS, (0, 9)], 2))
    assert with_test_of_each_domain(more, 0.2) is more
    assert (sequence := domain_sequence(more, DOMAINS)).test.counts.sum() == 2 * len(COUNTS)
    assert 9 not in {domain for _, _, domain in facts(sequence.test.images)}


@pytest.mark.parametrize("others", [(8, 9), (2, 9)])
def test_where_test_images_are_of_other_domains_a_fifth_of_every_class_and_domain_is_test(others):
    whole = dataset(test={(c, d): 3 for c in range(3) for d in others})
    held = with_test_of_each_domain(whole, 0.2)
    found = [one[1:] for one in facts(held.test.images)]
    assert {name: found.count(name) for name in COUNTS} == {name: count // 5 for name, count in COUNTS.items()}
    assert numbers(held.test) | numbers(held.train) == numbers(whole.train)
    assert not numbers(held.test) & numbers(held.train)
    assert held.test.domains.tolist() == [domain for _, _, domain in facts(held.test.images)]
    assert held.train.domains.tolist() == [domain for _, _, domain in facts(held.train.images)]
    assert held.provenance == (
        "made here, a fixed 20% of every class and domain of the training images as test images, its own test images "
        f"(of the domains {others[0]}, {others[1]}) left out"
    )


def test_every_fifth_image_of_a_class_of_a_domain_is_test():
    whole = dataset(test={(0, 9): 3, (1, 9): 3, (2, 9): 3})
    held = numbers(with_test_of_each_domain(whole, 0.2).test)
    for _, rows in strata(whole.train.labels, whole.train.domains):
        assert [place for place, row in enumerate(rows) if row in held] == list(range(4, len(rows), 5))


def test_a_class_too_small_in_a_domain_is_named():
    with pytest.raises(UserError, match=r"some: class 2 of domain 7 has 4 images, too few to split off"):
        with_test_of_each_domain(dataset({**COUNTS, (2, 7): 4}, test={(0, 9): 1}), 0.2)


def test_strata_are_the_rows_of_each_class_and_domain():
    labels, domains = np.array([1, 0, 1, 1, 0]), np.array([5, 5, 3, 5, 5])
    found = [(name, rows.tolist()) for name, rows in strata(labels, domains)]
    assert found == [((0, 5), [1, 4]), ((1, 3), [2]), ((1, 5), [0, 3])]
    assert [(name, rows.tolist()) for name, rows in strata(labels)] == [((0,), [1, 4]), ((1,), [0, 2, 3])]
    assert strata(labels[:0], domains[:0]) == []
