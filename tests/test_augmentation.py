"""Augmentation moves stored boxes as it moves labels: with the ground truth as answers, both stay equal."""

import random
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data import augment, build_yolo_dataset
from ultralytics.data.augment import BaseTransform, RandomPerspective
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG, YAML
from ultralytics.utils.instance import Instances

from ultralytics_kd import KDError
from ultralytics_kd.cache.augmentation import ANSWERS, carry_answers
from ultralytics_kd.cache.dataset import AnsweredDataset
from ultralytics_kd.cache.scales import decode_rows, encode_rows, interpolate

pytestmark = pytest.mark.core  # of .ci/releases

SIZE, CLASSES = 96, 3
OFF = {
    **dict.fromkeys(("mosaic", "mixup", "cutmix", "copy_paste", "degrees", "translate", "scale", "shear"), 0.0),
    **dict.fromkeys(("perspective", "flipud", "fliplr", "hsv_h", "hsv_s", "hsv_v", "multi_scale"), 0.0),
    "augmentations": [],  # Albumentations has its own random numbers
}
ALONE = {
    "none": {},
    "mosaic": {"mosaic": 1.0},
    "mixup": {"mixup": 1.0},
    "cutmix": {"cutmix": 1.0},
    "mixup of mosaics": {"mosaic": 1.0, "mixup": 1.0},
    "rotation": {"degrees": 90.0},
    "translation": {"translate": 0.4},
    "scale": {"scale": 0.9},
    "shear": {"shear": 30.0},
    "perspective": {"perspective": 0.001},
    "flipud": {"flipud": 1.0},
    "fliplr": {"fliplr": 1.0},
    "colours": {"hsv_h": 0.5, "hsv_s": 0.7, "hsv_v": 0.4},
    "all": {
        "mosaic": 0.7,
        "mixup": 0.5,
        "cutmix": 0.5,
        "degrees": 20.0,
        "translate": 0.2,
        "scale": 0.6,
        "shear": 10.0,
        "perspective": 0.0005,
        "flipud": 0.5,
        "fliplr": 0.5,
        "hsv_h": 0.1,
        "hsv_s": 0.5,
        "hsv_v": 0.4,
    },
}
PASTES = {
    f"{mode}, {name}": {"copy_paste": 1.0, "copy_paste_mode": mode, **others}
    for mode in ("flip", "mixup")
    for name, others in (("alone", {}), ("all", {**ALONE["all"], "cutmix": 0.0}))
}


def draw(folder: Path, polygons: bool, images: int = 12) -> dict:
    """Write images of several shapes with boxes, or with rectangles as polygons; some have none; return the data."""
    rng = np.random.default_rng(0)
    (folder / "images/train").mkdir(parents=True)
    (folder / "labels/train").mkdir(parents=True)
    for i in range(images):
        height, width = ((64, 96), (96, 64), (80, 80), (200, 90))[i % 4]
        cv2.imwrite(str(folder / f"images/train/{i}.png"), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        lines = []
        for _ in range(0 if i == 5 else rng.integers(1, 7)):
            w, h = rng.uniform(0.05, 0.4, 2)
            x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
            left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
            place = (left, top, right, top, right, bottom, left, bottom) if polygons else (x, y, w, h)
            lines.append(" ".join(str(v) for v in (rng.integers(CLASSES), *place)))
        (folder / f"labels/train/{i}.txt").write_text("\n".join(lines))
    names = {i: str(i) for i in range(CLASSES)}
    YAML.save(
        folder / "data.yaml", {"path": str(folder), "train": "images/train", "val": "images/train", "names": names}
    )
    return check_det_dataset(str(folder / "data.yaml"))


def dataset(data: dict, arguments: dict, **kwargs):
    """Return the training data set of Ultralytics' trainer."""
    hyp = SimpleNamespace(**{**vars(DEFAULT_CFG), **OFF, "imgsz": SIZE, "task": "detect", **arguments})
    return build_yolo_dataset(hyp, data["train"], 4, data, mode="train", **kwargs)


class Truth:
    """The ground truth in place of stored answers, with probabilities of 0 and 1."""

    sided = False

    def __init__(self, labels: list[dict]):
        self.labels = {item["im_file"]: item for item in labels}

    def check_shape(self, file: str, shape: tuple[int, int]) -> None:
        assert tuple(shape) == self.labels[file].get("shape", shape)  # rect=True takes it out

    def __getitem__(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        item = self.labels[file]
        return item["bboxes"].copy(), np.eye(CLASSES, dtype=np.float32)[item["cls"].reshape(-1).astype(int)]


def batches(data: dict, arguments: dict, answered: bool, rounds: int = 4, **kwargs) -> list[dict]:
    """Return batches of a data set, always drawn with the same random numbers."""
    images = dataset(data, arguments, **kwargs)
    if answered:
        AnsweredDataset.adopt(images, Truth(images.labels))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    order = [range(i, min(i + 4, len(images))) for i in range(0, len(images), 4)]  # as rect=True groups them
    return [images.collate_fn([images[i] for i in indices]) for _ in range(rounds) for indices in order]


def as_rows(boxes: torch.Tensor, cls: torch.Tensor, index: torch.Tensor) -> np.ndarray:
    """Return instances as sorted rows."""
    rows = torch.cat((index.view(-1, 1), cls.view(-1, 1).float(), boxes), 1).numpy()
    return rows[np.lexsort(rows.T[::-1].round(4))]


def compare(data: dict, arguments: dict, atol: float = 0.0, **kwargs) -> int:
    """Check that stored instances equal labels, and that answers change no image or label; return their number."""
    count = 0
    for plain, both in zip(batches(data, arguments, False, **kwargs), batches(data, arguments, True, **kwargs)):
        for key in ("img", "cls", "bboxes", "batch_idx"):
            assert torch.equal(plain[key], both[key]), key
        stored = as_rows(both["kd_bboxes"], both["kd_rows"].argmax(1), both["kd_batch_idx"])
        labels = as_rows(both["bboxes"], both["cls"], both["batch_idx"])
        assert stored.shape == labels.shape
        np.testing.assert_allclose(stored, labels, rtol=0, atol=atol)
        assert (both["kd_rows"].sum(1) == 1).all()
        count += len(labels)
    return count


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> dict:
    """Return a data set with boxes."""
    return draw(tmp_path_factory.mktemp("boxes"), polygons=False)


@pytest.fixture(scope="module")
def polygons(tmp_path_factory) -> dict:
    """Return a data set with polygons."""
    return draw(tmp_path_factory.mktemp("polygons"), polygons=True)


@pytest.mark.parametrize("name", ALONE)
def test_the_truth_as_answers_equals_the_labels(boxes, name):
    assert compare(boxes, ALONE[name]) > 50


@pytest.mark.parametrize("name", [*PASTES, "all"])
def test_the_truth_as_answers_equals_labels_with_polygons(polygons, name):
    """Objects are pasted with their answers. Boxes may differ, as Ultralytics samples an outline at 1000 points."""
    arguments = PASTES.get(name) or ALONE[name]
    assert compare(polygons, arguments, atol=1e-6 if "alone" in name else 4 / 1000) > 50


def test_cutmix_shows_instances_by_the_rule_of_polygons(polygons):
    assert compare(polygons, {"cutmix": 1.0, "mosaic": 0.5}, atol=1e-6, rounds=20) > 1000


def test_copy_paste_does_paste(polygons):
    plain, pasted = (batches(polygons, {"copy_paste": p}, True) for p in (0.0, 1.0))
    assert sum(len(b["kd_bboxes"]) for b in pasted) > sum(len(b["kd_bboxes"]) for b in plain)


def test_rectangular_batches_and_their_letterbox(boxes):
    assert compare(boxes, {"rect": True}, rect=True) > 50


def test_nine_images_in_a_mosaic(boxes):
    """Ultralytics has no argument for it, but a custom trainer may use it."""
    images = dataset(boxes, {"mosaic": 1.0})
    mosaic = images.transforms.transforms[0].transforms[0]
    mosaic.n = 9
    mosaic.buffer_enabled = False
    AnsweredDataset.adopt(images, Truth(images.labels))
    random.seed(0)
    batch = images.collate_fn([images[i] for i in range(len(images))])
    stored = as_rows(batch["kd_bboxes"], batch["kd_rows"].argmax(1), batch["kd_batch_idx"])
    assert np.array_equal(stored, as_rows(batch["bboxes"], batch["cls"], batch["batch_idx"])) and len(stored) > 50


def test_after_the_mosaic_closes(boxes):
    """Ultralytics builds new transforms for the last epochs."""
    hyp = SimpleNamespace(**{**vars(DEFAULT_CFG), **OFF, "mosaic": 1.0, "fliplr": 1.0})
    images = dataset(boxes, {"mosaic": 1.0})
    AnsweredDataset.adopt(images, Truth(images.labels))
    images.close_mosaic(hyp)
    batch = images.collate_fn([images[i] for i in range(4)])
    assert torch.equal(batch["kd_bboxes"], batch["bboxes"]) and len(batch["bboxes"])


@pytest.mark.parametrize("part", [None, "HorizontalFlip", "Affine", "Crop", "CoarseDropout"])
def test_albumentations_move_both(boxes, part):
    albumentations = pytest.importorskip("albumentations")
    makers = {
        "HorizontalFlip": lambda: albumentations.HorizontalFlip(p=1.0),
        "Affine": lambda: albumentations.Affine(rotate=(-30, 30), scale=(0.7, 1.3), p=1.0),
        "Crop": lambda: albumentations.RandomSizedBBoxSafeCrop(SIZE, SIZE, p=0.7),
        "CoarseDropout": lambda: albumentations.CoarseDropout(p=1.0),
    }
    chosen = [make() for name, make in makers.items() if part in (None, name)]
    assert compare(boxes, {"augmentations": chosen, "mosaic": 1.0, "fliplr": 0.5}, atol=1e-6) > 50


def test_stored_instances_that_differ_from_labels_move_with_the_image(boxes):
    """Boxes of half the size keep their centres near the labels' centres."""
    images = dataset(boxes, {"fliplr": 1.0, "degrees": 180.0, "scale": 0.3})
    truth = Truth(images.labels)

    class Shrunk(Truth):
        def __getitem__(self, file):
            boxes, probs = truth[file]
            boxes[:, 2:] /= 2
            return boxes, probs

    AnsweredDataset.adopt(images, Shrunk(images.labels))
    random.seed(0)
    for i in range(len(images)):
        sample = images[i]
        for centre in sample["kd_bboxes"][:, :2]:  # near the border a box may be cut, and its centre moves
            distance = (sample["bboxes"][:, :2] - centre).abs().amax(1)
            inside = ((centre > 0.25) & (centre < 0.75)).all()
            assert not inside or distance.min() < 0.1


def test_augmentation_does_not_change_stored_answers(boxes):
    """Transforms work in place, so every epoch needs new copies of the boxes."""
    images = dataset(boxes, {})
    AnsweredDataset.adopt(images, Truth(images.labels))
    first, second = (images.collate_fn([images[i] for i in range(4)])["kd_bboxes"] for _ in range(2))
    assert torch.equal(first, second)


def test_an_unknown_augmentation_is_refused(boxes):
    class Turn(BaseTransform):
        """A custom class."""

    images = dataset(boxes, {})
    images.transforms.append(Turn())
    with pytest.raises(KDError, match="kd_cache does not support the augmentation 'Turn'"):
        AnsweredDataset.adopt(images, Truth(images.labels))


def test_another_kind_of_data_set_is_refused(boxes):
    class Other(type(dataset(boxes, {}))):
        """A custom class."""

    images = dataset(boxes, {})
    images.__class__ = Other
    with pytest.raises(KDError, match="does not support the data set class 'Other'"):
        AnsweredDataset.adopt(images, Truth(images.labels))


def test_carrying_answers_twice_changes_nothing(boxes):
    images = dataset(boxes, {"mosaic": 1.0})
    AnsweredDataset.adopt(images, Truth(images.labels))
    carry_answers(images.transforms)
    assert ANSWERS in images.get_image_and_label(0) and len(images[0]["kd_rows"]) > 0


def sided_sample(box: np.ndarray, confidence: list[float], side: int) -> dict:
    """Return an empty image with a box as its label and as its stored answer, which has a confidence at each scale."""
    one = np.ones((1, 1), np.float32)
    rows = encode_rows(one, one[0], np.array([confidence], np.float32), box[:, 2:] * side)
    sample = {"img": np.zeros((side, side, 3), np.uint8), "cls": one, ANSWERS: {"cls": rows}}
    for part in (sample, sample[ANSWERS]):
        part["instances"] = Instances(box.copy(), bbox_format="xywh", normalized=True)
    return sample


def warped(warp: RandomPerspective, sample: dict) -> tuple[float, dict]:
    """Return the zoom that a warp draws, and the stored answer after it, with boxes as x, y, w, h."""
    state = random.getstate()
    zoom = warp.get_params(sample)["scale"]
    random.setstate(state)
    moved = warp(sample)[ANSWERS]
    moved["instances"].convert_bbox("xywh")
    return zoom, moved


@pytest.mark.parametrize("given", [{"degrees": 90.0}, {"shear": 40.0}, {"degrees": 20.0, "scale": 0.4}])
def test_a_rotated_object_is_taught_with_the_confidence_at_its_zoom(given):
    confidence, scales, side = [0.1, 0.3, 0.9, 0.5], [0.5, 0.7, 1.0, 1.4], 640
    warp = RandomPerspective(**{"degrees": 0.0, "translate": 0.0, "scale": 0.0, "size": (side, side), **given})
    carry_answers(warp, sided=True)
    box = np.array([[0.5, 0.5, 0.3, 0.06]], np.float32)  # five times as wide as high
    random.seed(0)
    for _ in range(5):
        zoom, moved = warped(warp, sided_sample(box, confidence, side))
        boxes = torch.from_numpy(moved["instances"].bboxes / side)
        probs, _ = decode_rows(boxes, torch.from_numpy(moved["cls"]), scales, (side, side), 0.05)
        expected = interpolate(torch.tensor([zoom]), scales, torch.tensor([confidence]))
        assert probs.item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_perspective_is_no_zoom_of_an_object_that_is_turned():
    side = 640
    warp = RandomPerspective(degrees=10.0, translate=0.1, scale=0.4, perspective=0.0005, size=(side, side))
    carry_answers(warp, sided=True)
    box = np.array([[0.5, 0.5, 0.06, 0.06]], np.float32)
    random.seed(0)
    for _ in range(50):
        zoom, moved = warped(warp, sided_sample(box, [1.0, 1.0], side))
        seen = (moved["instances"].bboxes[:, 2:] / moved["cls"][:, -2:]).max()
        assert 0.98 < seen / zoom < 1.06


@pytest.mark.parametrize("turn", ["Transpose", "Rotate", "RandomRotate90", "HorizontalFlip", "Rescaled"])
def test_an_object_that_albumentations_turns_is_taught_with_the_confidence_at_its_zoom(turn, tmp_path):
    albumentations = pytest.importorskip("albumentations")
    made = {
        "Transpose": lambda: albumentations.Transpose(p=1.0),
        "Rotate": lambda: albumentations.Rotate(limit=(45, 45), p=1.0),
        "RandomRotate90": lambda: albumentations.RandomRotate90(p=1.0),
        "HorizontalFlip": lambda: albumentations.HorizontalFlip(p=1.0),
        "Rescaled": lambda: albumentations.Affine(scale=(0.5, 0.5), rotate=(90, 90), p=1.0),
    }[turn]()
    confidence, scales, zoom = [0.1, 0.3, 0.6, 0.95], [0.5, 0.7, 1.0, 1.4], 0.5 if turn == "Rescaled" else 1.0
    transform = augment.Albumentations(p=1.0, transforms=[made], flip_idx=None)
    carry_answers(transform, sided=True)
    moved = transform(sided_sample(np.array([[0.5, 0.5, 0.5, 0.1]], np.float32), confidence, SIZE))
    assert moved["instances"].keypoints is None and moved[ANSWERS]["instances"].keypoints is None
    boxes, answers = torch.from_numpy(moved[ANSWERS]["instances"].bboxes), torch.from_numpy(moved[ANSWERS]["cls"])
    probs, _ = decode_rows(boxes, answers, scales, (SIZE, SIZE), 0.05)
    assert probs.item() == pytest.approx(confidence[scales.index(zoom)], abs=0.03)
