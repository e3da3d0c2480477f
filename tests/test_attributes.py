"""The vocabulary and its groupings."""

import pytest

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES, GROUPINGS, resolve_attributes, resolve_groups
from faceattr_lightning.errors import ConfigError


def test_forty_names_in_alphabetical_order() -> None:
    assert len(CELEBA_ATTRIBUTES) == len(set(CELEBA_ATTRIBUTES)) == 40
    assert list(CELEBA_ATTRIBUTES) == sorted(CELEBA_ATTRIBUTES)


@pytest.mark.parametrize("name", GROUPINGS)
def test_named_groupings_are_partitions(name: str) -> None:
    members = [attribute for group in GROUPINGS[name].values() for attribute in group]
    assert sorted(members) == list(CELEBA_ATTRIBUTES)


def test_dmm_groups_have_24_and_16_members() -> None:
    assert {group: len(members) for group, members in GROUPINGS["objective_subjective"].items()} == {
        "objective": 24,
        "subjective": 16,
    }


def test_a_named_grouping_is_cut_down_to_the_attributes() -> None:
    assert resolve_groups("objective_subjective", ["Smiling", "Male", "Young"]) == {
        "objective": ["Male"],
        "subjective": ["Smiling", "Young"],
    }
    assert resolve_groups("objective_subjective", ["Male"]) == {"objective": ["Male"]}
    assert resolve_groups(None, ["a", "b"]) == {"all": ["a", "b"]}


def test_every_problem_of_a_grouping_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_groups({"x": ["Male", "Smilling"], "y": ["Male"], "z": []}, ["Male", "Smiling"])
    text = str(raised.value)
    for expected in (
        "group 'z' is empty",
        "Did you mean 'Smiling'?",
        "'Male' is in 'x' and in 'y'",
        "1 of the attributes are in no group; add each to one: 'Smiling'",
    ):
        assert expected in text
    with pytest.raises(ConfigError, match="Did you mean 'objective_subjective'"):
        resolve_groups("objectiv_subjective", CELEBA_ATTRIBUTES)


def test_attributes_are_chosen_by_name() -> None:
    assert resolve_attributes(None, ["a", "b"]) == ["a", "b"]
    assert resolve_attributes(["b", "a"], ["a", "b"]) == ["b", "a"]
    with pytest.raises(ConfigError) as raised:
        resolve_attributes(["Smilling", "Male", "Male"], CELEBA_ATTRIBUTES)
    assert "Did you mean 'Smiling'?" in str(raised.value) and "'Male' is given twice" in str(raised.value)
    with pytest.raises(ConfigError, match="the list is empty"):
        resolve_attributes([], CELEBA_ATTRIBUTES)
