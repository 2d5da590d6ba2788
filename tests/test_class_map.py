"""Teacher classes are matched to student classes by name or by a map."""

import string
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ultralytics_kd import KDError
from ultralytics_kd.cache.answers import map_probabilities
from ultralytics_kd.teachers.class_map import UNKNOWN, match_classes
from ultralytics_kd.training.data_classes import class_rules

pytestmark = pytest.mark.core  # of .ci/releases

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
    assert classes.all_scores(scores).tolist() == [[2.0, 0.0, UNKNOWN]]


def test_a_class_that_a_map_names_twice_counts_once():
    assert match_classes({0: "x"}, {0: "car"}, {"car": "x", "Car": "x"}).sources == {0: (0,)}


def test_names_match_however_their_accents_are_written_and_without_regard_to_any_case():
    composed, decomposed = "Z\u00fcndkerze", "Zu\u0308ndkerze"  # a Mac writes the second one
    assert match_classes({0: composed}, {0: "bolt", 1: decomposed}).sources == {0: (1,)}
    assert match_classes({0: "stra\u00dfe"}, {0: "STRASSE"}).sources == {0: (0,)}
    assert match_classes({0: "part"}, {0: composed}, {decomposed: "part"}).sources == {0: (0,)}


def test_a_map_may_send_several_teacher_classes_to_one():
    classes = match_classes(DATA, {0: "man", 1: "woman", 2: "helmet"}, {"man": "person", "woman": "person"})
    assert classes.map_scores(torch.tensor([[0.1, 0.7, 0.9]])).tolist() == [[pytest.approx(0.7)]]


def test_names_that_differ_only_in_case_are_classes_of_their_own():
    letters = dict(enumerate([*string.ascii_uppercase, *string.ascii_lowercase]))
    assert match_classes(letters, letters).identity
    turned = {i: letters[51 - i] for i in letters}
    classes = match_classes(letters, turned)
    assert classes.unmatched == [] and all(classes.sources[i] == (51 - i,) for i in letters)
    assert match_classes(letters, turned, {"a": "A", "A": "a"}).sources == {0: (25,), 26: (51,)}


def test_imagenets_numbers_and_words_are_the_same_classes():
    numbers, words = {0: "n01440764", 1: "n02102040"}, {0: "tench", 1: "English_springer"}
    for student, teacher in ((numbers, words), (words, numbers), (numbers, numbers)):
        classes = match_classes(student, teacher)
        assert classes.sources == {0: (0,), 1: (1,)} and classes.student_names == student
    assert match_classes({0: "hard_hat"}, {0: "Hard hat"}).student == [0]
    assert match_classes({0: "n0", 1: "b"}, {0: "n0"}).unmatched == ["b"]  # no number of ImageNet


def test_teacher_classes_that_share_a_name_teach_together():
    assert match_classes({0: "car"}, {0: "car", 1: "bus", 2: "car"}).sources == {0: (0, 2)}


def test_only_classes_that_are_learned_are_taught_and_can_be_missing():
    assert match_classes(DATA, DATA, keep=[1]).sources == {1: (1,)}
    classes = match_classes(DATA, {0: "person", 1: "dog"}, keep=[0, 2])
    assert classes.unmatched == ["vest"] and classes.learned_names == {0: "person", 2: "vest"}
    assert match_classes(DATA, {0: "person"}, keep=[0]).unmatched == []
    assert match_classes(DATA, {0: "person"}, keep=[0], single_cls=True).learned_names == {0: "item"}


@pytest.mark.parametrize("task, keep", [("detect", [0]), ("classify", None)])
def test_classes_that_ultralytics_ignores_are_all_learned(task, keep):
    """It trains a classifier on all classes, whatever `classes` says."""
    args = SimpleNamespace(kd_classes="auto", classes=[0], single_cls=False, task=task)
    assert class_rules(args, {"names": DATA})["keep"] == keep


def test_a_map_may_stand_in_a_yaml(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text("helmet: hard hat\n")
    assert match_classes(DATA, {0: "helmet"}, str(file)).student == [1]


@pytest.mark.parametrize(
    "teacher, spec, message",
    [
        ({0: "cat"}, "auto", "no class in common"),
        ({0: "cat"}, {"dog": "person"}, "'dog', which is not a class of the teacher"),
        ({0: "cat"}, {"cat": "persn"}, "'persn', which is not a class of the data"),
        ({0: "cat"}, "nowhere.yaml", "neither 'auto', nor a map, nor a readable YAML"),
        ({0: "Cat", 1: "cAt"}, {"cat": "person"}, "'cat', which stands for 2 classes of the teacher"),
    ],
)
def test_maps_that_match_nothing_are_refused(teacher, spec, message):
    with pytest.raises(KDError, match=message):
        match_classes(DATA, teacher, spec)


def test_names_that_the_data_gives_twice_are_not_taught(caplog):
    data = {0: "car", 1: "car", 2: "bus"}
    assert match_classes(data, {0: "bus", 1: "car"}).sources == {2: (0,)}
    assert "the data has 2 classes named 'car' ([0, 1]), which are not taught" in caplog.text
    assert match_classes(data, {0: "bus", 1: "car"}, single_cls=True).sources == {0: (0, 1)}
    assert match_classes(data, {**data}).sources == {0: (0,), 1: (1,), 2: (2,)}
    with pytest.raises(KDError, match="no class in common"):
        match_classes({0: "car", 1: "car"}, {0: "car", 1: "cars"})


@pytest.mark.parametrize("text", ["{a: [", "- a\n- b\n", "", "7"])
def test_yaml_that_holds_no_map_is_one_sentence(tmp_path, text):
    file = tmp_path / "classes.yaml"
    file.write_text(text)
    with pytest.raises(KDError, match="kd_classes=") as error:
        match_classes(DATA, DATA, str(file))
    assert "\n" not in str(error.value)


def test_keep_that_leaves_nothing_says_so():
    with pytest.raises(KDError, match=r"^classes=\[2\] leaves none .* that the teacher teaches: person \(0\)\.$"):
        match_classes(DATA, {0: "person"}, keep=[2])


# Plurals --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "singular, plural",
    [
        ("bus", "buses"),
        ("knife", "knives"),
        ("lens", "lenses"),
        ("glass", "glasses"),
        ("person", "people"),
        ("person", "persons"),
        ("man", "men"),
        ("Box", "boxes"),
        ("cookie", "Cookies"),
        ("traffic  light", "traffic lights"),
        ("scissors", "scissors"),
    ],
)
def test_plural_and_singular_match_in_both_directions(singular, plural):
    for student, teacher in ((singular, plural), (plural, singular)):
        classes = match_classes({0: student, 1: "zebra"}, {0: "apple", 1: teacher})
        assert classes.sources == {0: (1,)}
        assert classes.plurals == (() if student == teacher else ((teacher, student),))


@pytest.mark.parametrize(
    "student, teacher",
    [("len", "glasses"), ("bu", "bus"), ("a", "as"), ("glass", "grass"), ("scissor", "glass"), ("", "s")],
)
def test_names_that_are_not_plural_and_singular_do_not_match(student, teacher):
    with pytest.raises(KDError, match="no class in common"):
        match_classes({0: student}, {0: teacher, 1: "zebra"})


def test_name_without_a_plural_does_not_stop_the_others():
    assert match_classes({0: "-of-b'", 1: "box"}, {0: "boxes", 1: "日本"}).sources == {1: (0,)}


def test_equal_names_match_before_plurals():
    assert match_classes({0: "bus", 1: "buses"}, {0: "buses", 1: "bus"}).sources == {0: (1,), 1: (0,)}


# single_cls -----------------------------------------------------------------------------------------------------------
def test_single_cls_makes_one_class_of_all_teacher_classes_that_match():
    classes = match_classes(DATA, {0: "dog", 1: "people", 2: "hard hat"}, single_cls=True)
    assert classes.sources == {0: (1, 2)} and classes.student_names == {0: "item"} and classes.unmatched == []
    assert classes.map_scores(torch.tensor([[9.0, 0.2, 0.7]])).tolist() == [[pytest.approx(0.7)]]
    assert classes.all_scores(torch.tensor([[9.0, 0.2, 0.7]])).tolist() == [[pytest.approx(0.7)]]
    assert classes.taught(torch.device("cpu")).tolist() == [0]


def test_single_cls_takes_a_map_and_the_classes_that_are_kept():
    teacher = {0: "man", 1: "dog", 2: "jacket"}
    assert match_classes(DATA, teacher, {"man": "person", "jacket": "vest"}, single_cls=True).sources == {0: (0, 2)}
    assert match_classes(DATA, DATA, keep=[1, 2], single_cls=True).sources == {0: (1, 2)}


def test_teacher_with_one_class_teaches_the_single_class_whatever_its_name():
    classes = match_classes(DATA, {0: "thing"}, keep=[1], single_cls=True)
    assert classes.sources == {0: (0,)} and classes.identity


def test_single_cls_with_no_class_in_common_is_refused():
    with pytest.raises(KDError, match="no class in common"):
        match_classes(DATA, {0: "cat", 1: "dog"}, single_cls=True)


def test_stored_probabilities_of_a_single_class_are_the_largest_of_those_that_match():
    classes = match_classes(DATA, {0: "dog", 1: "person", 2: "vest"}, single_cls=True)
    probs = np.array([[9, 2, 7], [9, 5, 1]], dtype=np.uint16)
    assert map_probabilities(probs, classes).tolist() == [[7], [5]]
