"""The kd arguments are Ultralytics arguments like any other."""

import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from ultralytics.cfg import check_dict_alignment, get_cfg
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, remove_colorstr

from ultralytics_kd import KDError, config, trainer

pytestmark = pytest.mark.core  # of .ci/releases


def test_arguments_are_known_to_ultralytics_with_their_defaults():
    cfg = get_cfg()
    for name, argument in config.ARGUMENTS.items():
        assert DEFAULT_CFG_DICT[name] == argument.default
        assert getattr(DEFAULT_CFG, name) == getattr(cfg, name) == argument.default


def test_registering_twice_changes_nothing():
    from ultralytics import cfg

    before = cfg.check_cfg, cfg.CLI_HELP_MSG, len(DEFAULT_CFG_DICT)
    trainer.register()
    assert before == (cfg.check_cfg, cfg.CLI_HELP_MSG, len(DEFAULT_CFG_DICT))


@pytest.mark.parametrize("value", [-1, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["kd_cls", "kd_box", "kd_feat"])
def test_weights_must_be_finite_and_not_negative(name, value):
    with pytest.raises(KDError, match=f"'{name}={value}' is an invalid value"):
        get_cfg(overrides={name: value})


@pytest.mark.parametrize("value", ["much", True, [1]])
def test_weights_of_another_type_are_type_errors_as_ultralytics_own_are(value):
    with pytest.raises(TypeError, match="kd_cls="):
        get_cfg(overrides={"kd_cls": value})


def test_unknown_loss_name_is_answered_with_the_nearest():
    with pytest.raises(KDError, match="did you mean bckd"):
        get_cfg(overrides={"kd_cls_loss": "bkcd"})
    with pytest.raises(KDError, match="valid ones are pkd, cwd, mgd, sl2, crosskd"):
        get_cfg(overrides={"kd_feat_loss": "xyz"})


@pytest.mark.parametrize("value", [0, -1, 1e30])
@pytest.mark.parametrize("name", ["kd_tau", "kd_cls_tau", "kd_box_tau", "kd_feat_tau"])
def test_temperatures_are_greater_than_zero_and_small_enough_to_tell_probabilities_apart(name, value):
    with pytest.raises(KDError, match=rf"'{name}=.*(0 or more|greater than 0 and at most 1000)"):
        get_cfg(overrides={name: value})


@pytest.mark.parametrize("name", ["kd_cls", "kd_cls_loss", "kd_schedule", "kd_classes"])
def test_empty_values_are_no_values(name):
    with pytest.raises(TypeError, match=f"'{name}' is empty"):
        get_cfg(overrides={name: None})


def test_values_of_other_types_are_kept_as_those_that_a_yaml_can_hold():
    given = {"kd_cls": np.float64(0.5), "kd_classes": OrderedDict(a="b")}
    cfg = get_cfg(overrides=given)
    assert type(cfg.kd_cls) is float and type(cfg.kd_classes) is dict
    assert get_cfg(overrides={"kd_classes": Path("a.yaml")}).kd_classes == "a.yaml"
    with pytest.raises(KDError, match="0 or more"):
        get_cfg(overrides={"kd_cls": 10**400})
    with pytest.raises(KDError, match="map or a YAML with one"):
        get_cfg(overrides={"kd_classes": {}})


@pytest.mark.parametrize("wrong, right", [("teachr", "teacher"), ("kd_clss", "kd_cls"), ("epoch", "epochs")])
def test_misspelt_argument_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(SyntaxError) as error:
        check_dict_alignment(DEFAULT_CFG_DICT, {wrong: 1})
    assert re.search(rf"'{wrong}' is not a valid YOLO argument.*{right}", remove_colorstr(str(error.value)))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"kd_cls": 3.0}, "no effect without a teacher"),
        ({"kd_feat_loss": "cwd"}, "no effect without a teacher"),
        ({"teacher": "t.pt", "distill_model": "t.pt"}, "exclude each other"),
        ({"teacher": "[a.pt,b.pt]", "kd_cache": True, "kd_teacher_weights": [2, 1], "task": "detect"}, "weigh all"),
        ({"teacher": "t.pt", "kd_cls": 0, "kd_box": 0, "kd_feat": 0}, "all distillation weights are 0"),
        ({"teacher": "t.pt", "task": "caption"}, "task 'caption' cannot be distilled"),
    ],
)
def test_combinations_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(KDError, match=message):
        config.check_combination(vars(get_cfg(overrides=given)))


@pytest.mark.parametrize(
    "given, idle",
    [
        ({}, []),
        ({"kd_feat_loss": "crosskd"}, ["kd_feat_loss=crosskd"]),
        ({"kd_box": 0, "kd_box_loss": "l1"}, ["kd_box_loss=l1"]),
        ({"kd_tau": 4}, ["kd_tau=4.0"]),
        ({"kd_tau": 4, "kd_cls_loss": "kl"}, []),
        ({"kd_tau": 4, "kd_cls": 0, "kd_cls_loss": "kl"}, ["kd_cls_loss=kl", "kd_tau=4.0"]),
        ({"kd_tau": 4, "task": "classify"}, []),
        ({"kd_tau": 4, "task": "classify", "kd_cls": 0, "kd_feat": 1}, ["kd_tau=4.0"]),
        ({"kd_tau": 4, "kd_feat_loss": "cwd"}, ["kd_feat_loss=cwd", "kd_tau=4.0"]),
        ({"kd_cls_tau": 4}, ["kd_cls_tau=4.0"]),
        ({"kd_cls_tau": 4, "kd_cls_loss": "kl"}, []),
        ({"kd_cls_tau": 4, "task": "depth"}, ["kd_cls_tau=4.0"]),
        ({"kd_box_tau": 4, "kd_cls_loss": "kl"}, ["kd_box_tau=4.0"]),
        ({"kd_box_tau": 4, "kd_box_loss": "ld"}, []),
        ({"kd_feat_tau": 4, "kd_feat_loss": "cwd"}, ["kd_feat_loss=cwd", "kd_feat_tau=4.0"]),
        ({"kd_feat_tau": 4, "kd_feat_loss": "cwd", "kd_feat": 1}, []),
        ({"kd_tau": 4, "kd_cls_tau": 2, "kd_cls_loss": "kl"}, ["kd_tau=4.0"]),
        ({"kd_tau": 4, "kd_cls_tau": 2, "kd_cls_loss": "kl", "kd_box_loss": "ld"}, []),
        ({"kd_unlabeled_ratio": 2}, ["kd_unlabeled_ratio=2"]),
        ({"kd_cache": "c", "kd_precision": "fp16"}, ["kd_precision=fp16"]),
    ],
)
def test_arguments_that_change_nothing_are_named(given, idle):
    given = {"teacher": "t.pt", "task": "detect", **given}
    without_effect = config.idle_arguments(vars(get_cfg(overrides=given)))
    assert [f"{each.argument}={each.value}" for each in without_effect] == idle
    assert all(f"'{i}' has no effect: " in each.sentence for i, each in zip(idle, without_effect))


def test_a_list_is_given_as_a_list_a_text_or_its_only_element():
    for value in (["a.pt", "b.pt"], ("a.pt", "b.pt"), "[a.pt,b.pt]", "['a.pt', \"b.pt\",]"):
        assert config.as_list(value) == ["a.pt", "b.pt"]
    assert config.as_list("a.pt") == ["a.pt"] and config.as_list("[]") == [] and config.as_list(None) == [None]


@pytest.mark.parametrize("teacher", [None, False])
def test_no_teacher_is_plain_training(teacher):
    config.check_combination(vars(get_cfg(overrides={"teacher": teacher})))


@pytest.mark.parametrize("teacher", ["", " "])
def test_an_empty_teacher_is_refused(teacher):
    """It comes from a variable of the shell that is not set; the run would train plainly without a word."""
    with pytest.raises(KDError, match=r"teacher is an empty text.*teacher=None"):
        config.check_combination(vars(get_cfg(overrides={"teacher": teacher})))


def test_help_and_cfg_text_name_every_argument():
    for name in config.ARGUMENTS:
        assert f"{name}=" in config.help_text()
        assert f"\n{name}:" in config.cfg_text()
