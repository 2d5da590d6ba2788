"""Every argument of Ultralytics at another value than its default, with a teacher and with stored answers."""

from __future__ import annotations

from typing import Any

import pytest
from beside_plain import LIVE, PLAIN, STORED, differences, print_row, train
from conftest import QUICK, STUDENT, TEACHER, draw_dataset, save_model
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import DEFAULT_CFG_PATH, YAML

from ultralytics_kd import KDError

pytestmark = pytest.mark.nightly
DEFAULTS: dict[str, Any] = YAML.load(DEFAULT_CFG_PATH)  # of the installed release, without the kd arguments

FILES = ["weights.pt", "shapes/images/val", "recipe.yaml"]  # in the folder of the matrix
# Values of each argument; a case of several arguments is a dict
VALUES: dict[str, tuple] = {
    "task": ("segment",),
    "mode": ("val",),
    "model": (TEACHER,),
    "epochs": (2, {"epochs": 2, "patience": 1}),
    "time": (0.0002,),
    "patience": (1, 0),
    "batch": (3, 1, 16, -1, 0.5),
    "imgsz": (96, 70, [64, 96]),
    "save": (False,),
    "save_period": (1,),
    "cache": (True, "ram", "disk"),
    "workers": (1,),
    "project": ("a project",),
    "name": ("a name", "émile"),
    "exist_ok": (True,),
    "pretrained": (False, FILES[0]),
    "cls_remap": (False,),
    "optimizer": ("SGD", "MuSGD", "Adam", "Adamax", "NAdam", "RAdam", "RMSProp", "auto"),
    "verbose": (True,),
    "seed": (7,),
    "deterministic": (False,),
    "single_cls": (True,),
    "rect": (True,),
    "cos_lr": (True,),
    "close_mosaic": (0, 1),
    "amp": (True, "fp16", "bf16", "fp32", False),
    "fraction": (0.5, 4, [0.5, 0.5]),
    "profile": (True,),
    "freeze": (2, [0, 1], ["5.cv2", "5.cv3"]),
    "multi_scale": (0.5,),
    "channels_last": (True, False),
    "overlap_mask": (False,),
    "mask_ratio": (2,),
    "dropout": (0.2,),
    "val": (False,),
    "split": ("train",),
    "save_json": (True,),
    "conf": (0.3,),
    "iou": (0.5,),
    "max_det": (5,),
    "quantize": (16, 32, "fp16"),
    "dnn": (True,),
    "plots": (True,),
    "nms": (True, False),
    "source": (FILES[1],),
    "vid_stride": (2,),
    "stream_buffer": (True,),
    "visualize": (True,),
    "augment": (True,),
    "agnostic_nms": (True,),
    "classes": (1, [0, 2], 0),
    "retina_masks": (True,),
    "embed": ([1],),
    "show": (True,),
    "save_frames": (True,),
    "save_txt": (True,),
    "save_conf": (True, {"save_txt": True, "save_conf": True}),
    "save_crop": (True,),
    "show_labels": (False,),
    "show_conf": (False,),
    "show_boxes": (False,),
    "line_width": (2,),
    "format": ("onnx",),
    "optimize": (True,),
    "dynamic": (True,),
    "simplify": (False,),
    "opset": (17,),
    "workspace": (2.0,),
    "lr0": (0.0001,),
    "lrf": (0.5,),
    "momentum": (0.8,),
    "weight_decay": (0.0,),
    "warmup_epochs": (0.0, 0.5),
    "warmup_momentum": (0.5,),
    "warmup_bias_lr": (0.0,),
    "dis": (3.0,),
    "box": (1.0, 0.0),
    "cls": (2.0, 0.0),
    "cls_pw": (0.5, 1.0),
    "dfl": (0.0,),
    "pose": (1.0,),
    "kobj": (2.0,),
    "rle": (0.0,),
    "angle": (0.5,),
    "dlog": (0.5,),
    "dgrad": (0.0,),
    "dlam": (0.5,),
    "nbs": (4, 1),
    "hsv_h": (0.5,),
    "hsv_s": (0.0,),
    "hsv_v": (0.0,),
    "degrees": (90.0,),
    "translate": (0.9,),
    "scale": (0.9, [0.5, 1.5]),
    "shear": (30.0,),
    "perspective": (0.001,),
    "flipud": (1.0,),
    "fliplr": (0.0, 1.0),
    "bgr": (1.0,),
    "mosaic": (0.0, 0.5),
    "mixup": (1.0,),
    "cutmix": (1.0,),
    "copy_paste": (1.0,),
    "copy_paste_mode": ("mixup", {"copy_paste": 1.0, "copy_paste_mode": "mixup"}),
    "auto_augment": ("augmix",),
    "erasing": (0.0,),
    "cfg": (FILES[2],),
    "tracker": ("botsort.yaml",),
    "compile": ("reduce-overhead",),
    "resume": (True,),
}
# Arguments that this matrix does not go through, each with the reason
ELSEWHERE = {
    "device": "other devices than the CPU need their hardware: test_cuda.py",
    "data": "every other test of the matrix has data of its own: test_matrix_data.py",
    "distill_model": "Ultralytics' own distillation, which excludes `teacher`: test_config.py",
}
WRONG = ("nonsense", -1, 1.5, [1, 2], None)  # for some arguments they are right
# Arguments of which plain Ultralytics takes more values at first, each with the reason
STRICTER = {
    "task": "plain Ultralytics refuses an unknown task later",
    "classes": "no class of the data is left, so there is nothing to teach",
    "distill_model": "excludes `teacher`",
    "device": "`nonsense` makes Ultralytics hide all GPUs of the process",
}
CASES = [
    pytest.param(value if isinstance(value, dict) else {name: value}, id=f"{name}={value}")
    for name, values in VALUES.items()
    for value in values
]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Return a folder with a data set, a teacher, weights of a student and a recipe."""
    folder = tmp_path_factory.mktemp("matrix")
    draw_dataset(folder / "shapes")
    save_model(folder / "teacher.pt", TEACHER)
    save_model(folder / "weights.pt", STUDENT)
    YAML.save(folder / "recipe.yaml", {"lr0": 0.005, "degrees": 10.0})
    return folder


def test_every_argument_of_the_release_has_a_value_here():
    assert set(VALUES) | set(ELSEWHERE) == set(DEFAULTS) and not set(VALUES) & set(ELSEWHERE)


def test_every_argument_has_a_value_that_is_not_its_default():
    usual = DEFAULTS | {k: v for k, v in QUICK.items() if k in ("plots", "verbose")}  # for speed, other runs set these
    assert not [k for k, values in VALUES.items() if all(v == usual[k] for v in values)]


@pytest.mark.parametrize("given", CASES)
def test_detection_takes_what_plain_ultralytics_takes(room, given, tmp_path, monkeypatch):
    given = {k: str(room / v) if v in FILES else v for k, v in given.items()}
    if "project" in given:
        monkeypatch.chdir(tmp_path)
    args = {**QUICK, "epochs": 1, "data": str(room / "shapes" / "data.yaml"), "project": str(tmp_path), **given}
    model = given.get("model", STUDENT)
    plain, live, stored = (train(way, model, args, str(room / "teacher.pt")) for way in (PLAIN, LIVE, STORED))
    validated = () if given.get("val") is False else ("kd_cls", "kd_box")
    wrong = {
        LIVE: differences(plain, live, ("kd_cls", "kd_box"), validated),
        STORED: differences(plain, stored, ("kd_cls", "kd_box")),
    }
    wrong = {way: what for way, what in wrong.items() if what}
    print_row(given, plain, wrong)
    assert not wrong


class _StartedError(Exception):
    """Training would start now."""


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - STRICTER.keys()))
def test_values_that_plain_ultralytics_refuses_are_refused(room, name, value, tmp_path, monkeypatch):
    def start(trainer: Any) -> None:
        raise _StartedError

    monkeypatch.setattr(BaseTrainer, "train", start)
    monkeypatch.chdir(tmp_path)
    args = {**QUICK, "data": str(room / "shapes" / "data.yaml"), "project": str(tmp_path), name: value}
    plain, live = (train(way, STUDENT, args, str(room / "teacher.pt")).error for way in (PLAIN, LIVE))
    started = [isinstance(error, _StartedError) for error in (plain, live)]
    assert started[0] == started[1], f"plain: {plain!r}; with a teacher: {live!r}"
    assert started[0] or isinstance(live, KDError) or type(live) is type(plain)
