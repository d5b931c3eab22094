"""Which classes come in which task."""

import pytest

from jdcl_jax.data.groups import domain_groups
from jdcl_jax.data.tasks import task_groups
from jdcl_jax.errors import UserError


def flat(groups):
    return [c for group in groups for c in group]


def test_equal_tasks_in_natural_order():
    assert task_groups(6, num_tasks=3) == ((0, 1), (2, 3), (4, 5))


def test_sizes_are_size_times_number():
    assert task_groups(10, groups="2x5") == task_groups(10, num_tasks=5)
    assert task_groups(7, groups="4+1x3") == ((0, 1, 2, 3), (4,), (5,), (6,))
    assert task_groups(7, groups=" 1 + 2x2 + 2 ") == ((0,), (1, 2), (3, 4), (5, 6))


def test_fifty_and_five_times_ten():
    groups = task_groups(100, groups="50+10x5")
    assert [len(group) for group in groups] == [50, 10, 10, 10, 10, 10]
    assert flat(groups) == list(range(100))


def test_explicit_groups_are_taken_as_written():
    assert task_groups(4, groups="3,1|0|2") == ((3, 1), (0,), (2,))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("gd-42", ((2, 6), (1, 8), (4, 5), (0, 9), (3, 7))),
        ("gd-69", ((0, 2), (3, 5), (4, 1), (6, 9), (8, 7))),
        ("gd-1714", ((7, 3), (8, 0), (1, 4), (6, 2), (9, 5))),
    ],
)
def test_the_three_orders_of_generative_distillation(order, expected):
    assert task_groups(10, num_tasks=5, order=order) == expected
    assert task_groups(10, groups="2x5", order=order) == expected


def test_an_explicit_order_fills_the_tasks():
    assert task_groups(4, num_tasks=2, order="3,1,2,0") == ((3, 1), (2, 0))
    assert task_groups(4, groups="1+3", order="3, 1, 2, 0") == ((3,), (1, 2, 0))


def test_a_shuffled_order_is_a_permutation_that_the_seed_alone_decides():
    first = task_groups(100, num_tasks=10, order="shuffled", seed=7)
    assert sorted(flat(first)) == list(range(100))
    assert flat(first) != list(range(100))
    assert first == task_groups(100, num_tasks=10, order="shuffled", seed=7)
    assert first != task_groups(100, num_tasks=10, order="shuffled", seed=8)
    assert first == task_groups(100, num_tasks=10, order="shuffled:7", seed=8)
    assert flat(first) == flat(task_groups(100, groups="50+10x5", order="shuffled:7"))


def test_only_the_first_tasks_can_be_kept():
    assert task_groups(10, num_tasks=5, first_tasks=2) == ((0, 1), (2, 3))
    assert task_groups(10, groups="2,6|1,8|4,5|0,9|3,7", first_tasks=1) == ((2, 6),)
    assert len(task_groups(10, num_tasks=5, first_tasks=5)) == 5


BAD = [
    ({}, "exactly one"),
    ({"num_tasks": 5, "groups": "2x5"}, "exactly one"),
    ({"num_tasks": 11}, r"11 with 10 classes: write 1\.\.10"),
    ({"num_tasks": -2}, "-2 with 10"),
    ({"num_tasks": 3}, "num_tasks can be 1, 2, 5, 10; or give groups"),
    ({"groups": "2x4"}, "takes 8 classes but the data set has 10"),
    ({"groups": "5+5+5"}, "takes 15 classes"),
    ({"groups": "10+0x3"}, "sizes of 1 or more"),
    ({"groups": "10+1x0"}, "sizes of 1 or more"),
    ({"groups": "two each"}, "cannot read groups"),
    ({"groups": "2*5"}, "cannot read groups"),
    ({"groups": "2x5+"}, "cannot read groups"),
    ({"groups": "-2x5"}, "cannot read groups"),
    ({"groups": "0,1|2,x"}, "cannot read task 2"),
    ({"groups": "0,1||2,3"}, "cannot read task 2"),
    ({"groups": "0,1|2,3|"}, "cannot read task 3"),
    ({"groups": "0,1,2,3,4|5,6,7,3,8,9"}, "class 3 is in task 1 and again in task 2"),
    ({"groups": "0,1,2,3|4,5,6,7"}, "class 8, 9 is in no task"),
    ({"groups": "0,1,2,3,4|5,6,7,8,10"}, "class 10 in task 2 does not exist"),
    ({"groups": "0,1,2,3,4|5,6,7,8,9", "order": "shuffled"}, "both say which classes"),
    ({"groups": "0,1,2,3,4|5,6,7,8,9", "order": "gd-42"}, "both say which classes"),
    ({"num_tasks": 2, "order": "gd-42"}, "five tasks of two"),
    ({"groups": "4+2x3", "order": "gd-42"}, "five tasks of two"),
    ({"num_tasks": 5, "order": "gd-43"}, "did you mean 'gd-42'"),
    ({"num_tasks": 5, "order": "qq"}, "natural, shuffled, gd-42"),
    ({"num_tasks": 5, "order": "shuffled:x"}, "did you mean 'shuffled'"),
    ({"num_tasks": 5, "order": "0,1,2,3,4,5,6,7,8,8"}, "names class 8 twice"),
    ({"num_tasks": 5, "order": "0,1,2,3,4,5,6,7,8,11"}, "class 11, which does not exist"),
    ({"num_tasks": 5, "order": "0,1,2,3,4,5,6,7,8"}, "class 9 is in no task"),
    ({"num_tasks": 5, "order": "shuffled", "seed": -1}, "seed is -1"),
    ({"num_tasks": 5, "first_tasks": 6}, "first_tasks is 6 of 5 tasks"),
    ({"num_tasks": 5, "first_tasks": -1}, "first_tasks is -1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_wrong_arguments_get_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        task_groups(10, **arguments)
    assert "\n" not in str(caught.value)


SESSIONS = (1, 2, 4, 5, 6, 8, 9, 11)


def test_domains_are_divided_by_their_own_numbers_which_may_have_gaps():
    assert domain_groups(SESSIONS, groups="1x8") == tuple((d,) for d in SESSIONS)
    assert domain_groups(SESSIONS, num_tasks=4) == ((1, 2), (4, 5), (6, 8), (9, 11))
    assert domain_groups(SESSIONS, groups="5+1x3", first_tasks=2) == ((1, 2, 4, 5, 6), (8,))
    assert domain_groups(SESSIONS, groups="11|1,2|8,9,4|5,6") == ((11,), (1, 2), (8, 9, 4), (5, 6))
    assert domain_groups(SESSIONS, num_tasks=2, order="11,9,8,6,5,4,2,1") == ((11, 9, 8, 6), (5, 4, 2, 1))


def test_a_shuffled_order_of_domains_is_that_of_their_places():
    shuffled = flat(domain_groups(SESSIONS, groups="1x8", order="shuffled:3"))
    assert shuffled == [SESSIONS[place] for place in flat(task_groups(8, num_tasks=8, order="shuffled:3"))]
    assert shuffled != list(SESSIONS)


BAD_DOMAINS = [
    ({}, "exactly one"),
    ({"num_tasks": 9}, r"9 with 8 domains: write 1\.\.8"),
    ({"num_tasks": 3}, "8 domains do not divide into 3 .* num_tasks can be 1, 2, 4, 8; or give groups, such as '1x8'"),
    ({"groups": "1x7"}, "takes 7 domains but the data set has 8"),
    ({"groups": "session"}, r"such as '1x8' or '2x5', or domains, such as '1\|2\|4'"),
    ({"groups": "1|2|x"}, "cannot read task 3 .* write domain numbers"),
    ({"groups": "1|2|3"}, "domain 3 in task 3 does not exist: the data set has the domains 1, 2, 4, 5, 6, 8, 9, 11"),
    ({"groups": "1|2|2"}, "domain 2 is in task 2 and again in task 3: every domain belongs to exactly one task"),
    ({"groups": "1|2|4,5,6"}, "domain 8, 9, 11 is in no task"),
    ({"groups": "1,2,4,5|6,8,9,11", "order": "shuffled"}, "both say which domains"),
    ({"num_tasks": 8, "order": "gd-42"}, "is one of classes .* such as '11,9,8,6,5,4,2,1'"),
    ({"num_tasks": 8, "order": "qq"}, "write natural, shuffled, shuffled:SEED or every domain number"),
    ({"num_tasks": 8, "order": "1,2,4,5,6,8,9,10"}, "names domain 10, which does not exist: write each of 1, 2, 4"),
    ({"num_tasks": 8, "order": "1,2,4,5,6,8,9"}, "domain 11 is in no task of order"),
    ({"num_tasks": 8, "first_tasks": 9}, "first_tasks is 9 of 8 tasks"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_DOMAINS, ids=[message for _, message in BAD_DOMAINS])
def test_wrong_arguments_of_domains_get_one_line_about_domains(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        domain_groups(SESSIONS, **arguments)
    assert "\n" not in str(caught.value)
    assert "class" not in str(caught.value) or "gd-42" in str(caught.value)
