"""Teacher classes are matched to student classes by name or by a map."""

import pytest
import torch

from ultralytics_kd import KDError
from ultralytics_kd.classes import match_classes

DATA = {0: "person", 1: "hard hat", 2: "vest"}


def test_same_classes_are_passed_through():
    classes = match_classes(DATA, DATA)
    scores = torch.rand(2, 5, 3)
    assert classes.identity and classes.map_scores(scores) is scores and classes.unmatched == []


def test_names_match_without_regard_to_case_spaces_and_order():
    classes = match_classes(DATA, {0: " Hard  Hat ", 1: "dog", 2: "PERSON"})
    scores = torch.arange(3.0).view(1, 3)
    assert classes.student == [0, 1] and classes.unmatched == ["vest"] and not classes.identity
    assert classes.map_scores(scores).tolist() == [[2.0, 0.0]]
    assert classes.lookup() == [1, -1, 0]


def test_a_map_may_send_several_teacher_classes_to_one():
    classes = match_classes(DATA, {0: "man", 1: "woman", 2: "helmet"}, {"man": "person", "woman": "person"})
    assert classes.map_scores(torch.tensor([[0.1, 0.7, 0.9]])).tolist() == [[pytest.approx(0.7)]]


def test_a_map_may_stand_in_a_yaml(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text("helmet: hard hat\n")
    assert match_classes(DATA, {0: "helmet"}, str(file)).student == [1]


@pytest.mark.parametrize(
    "teacher, spec, message",
    [
        ({0: "cat"}, "auto", "no class in common"),
        ({0: "cat"}, {"dog": "person"}, "'dog', which is no class of the teacher"),
        ({0: "cat"}, {"cat": "persn"}, "'persn', which is no class of the data"),
        ({0: "cat"}, "nowhere.yaml", "neither 'auto' nor a readable YAML"),
    ],
)
def test_maps_that_match_nothing_are_refused(teacher, spec, message):
    with pytest.raises(KDError, match=message):
        match_classes(DATA, teacher, spec)
