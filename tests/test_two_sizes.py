"""Training images at two sizes: kd_teacher_imgsz shows the teacher what the student sees, with more pixels."""

from __future__ import annotations

import pickle
import random

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Mosaic, RandomPerspective
from ultralytics.data.build import build_dataloader, build_yolo_dataset
from ultralytics.data.dataset import ClassificationDataset, YOLODataset
from ultralytics.data.utils import check_det_dataset

from ultralytics_kd.training.images import two_sizes
from ultralytics_kd.training.images.two_sizes import LARGE, at_two_sizes

SMALL, BIG = 64, 160


def args(**given):
    """Return arguments of a training."""
    return get_cfg(overrides={"task": "detect", "imgsz": SMALL, "mosaic": 1.0, "mixup": 0.5, **given})


def built(data, cfg):
    """Return a data set at two sizes, and the plain one."""
    info = check_det_dataset(data)

    def build():
        return build_yolo_dataset(cfg, info["train"], 4, info, mode="train", stride=32)

    return at_two_sizes(build, cfg, BIG), build()


def seeded(seed=0):
    """Seed all generators."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


@pytest.mark.parametrize("given", [{}, {"mosaic": 0.0}, {"degrees": 20.0, "copy_paste": 0.5}])
def test_the_student_gets_the_samples_of_a_plain_training_and_the_teacher_the_same_scene(data, given):
    both, plain = built(data, args(**given))
    seeded()
    samples = [both[i] for i in range(len(both))]
    end = random.random(), np.random.rand(), torch.rand(1)
    seeded()
    for index, (sample, expected) in enumerate(zip(samples, [plain[i] for i in range(len(plain))])):
        large = sample.pop(LARGE)
        assert sample.keys() == expected.keys()
        assert all(torch.equal(sample[k], v) for k, v in expected.items() if isinstance(v, torch.Tensor))
        assert large.shape == (3, BIG, BIG) and large.dtype == torch.uint8
        seen = F.interpolate(large[None].float(), SMALL, mode="bilinear", antialias=True)[0]
        distances = [(seen - other["img"].float()).abs().mean() for other in samples]
        assert 2 * distances.pop(index) < min(distances)
    assert end == (random.random(), np.random.rand(), torch.rand(1))


@pytest.mark.parametrize("big", [128, 160])
def test_the_images_of_a_mosaic_meet_at_the_same_place_at_both_sizes(data, big, monkeypatch):
    """Ultralytics rounds the place down to whole pixels of each size."""
    monkeypatch.setitem(globals(), "BIG", big)
    both, _ = built(data, args())
    ours, theirs = (
        next(t for t in transforms_of(d.transforms) if isinstance(t, Mosaic)) for d in (both.small, both.large)
    )
    for seed in range(20):
        places = []
        for mosaic in (ours, theirs):
            seeded(seed)
            label = mosaic.dataset.get_image_and_label(0)
            places.append([mosaic.get_params(label)["layout"][0][side] for side in ("x2a", "y2a")])
        assert places[1] == [round(place * big / SMALL) for place in places[0]]


def distance(sample):
    """Return how far the two images of a sample differ, on a scale of 255."""
    seen = F.interpolate(sample[LARGE][None].float(), SMALL, mode="bilinear", antialias=True)[0]
    return float((seen - sample["img"].float()).abs().mean())


@pytest.mark.parametrize("closed", [False, True])
def test_a_perspective_is_the_same_at_both_sizes(data, closed):
    cfg = args(perspective=0.001, degrees=10.0)
    both, _ = built(data, cfg)
    if closed:
        both.close_mosaic(cfg)
    places = []
    for dataset, size in ((both.small, SMALL), (both.large, BIG)):
        warp = next(t for t in transforms_of(dataset.transforms) if isinstance(t, RandomPerspective))
        corners = np.array([[0.3, 0.4], [0.7, 0.4], [0.7, 0.6], [0.3, 0.6]]) * size
        seeded(3)
        matrix, _ = warp._compute_affine_matrix(np.zeros((size, size, 3)), (size, size))
        x, y, w = matrix @ np.c_[corners, np.ones(4)].T
        places.append(np.stack((x / w, y / w)) / size)
    assert np.allclose(*places, atol=1e-5) and cfg.perspective == 0.001


def transforms_of(transform):
    """Yield a transform and its parts."""
    yield transform
    for part in (*getattr(transform, "transforms", ()), getattr(transform, "pre_transform", None)):
        yield from transforms_of(part) if part is not None else ()


@pytest.mark.parametrize("cached", [0, 1])
def test_both_show_one_scene_if_memory_has_room_for_one_size_alone(data, monkeypatch, cached):
    room = iter([cached == 0, cached == 1])

    def check(dataset, *_):
        """Return whether there is room for a data set, and switch its cache off if there is none."""
        enough = next(room)
        dataset.cache = "ram" if enough else None
        return enough

    monkeypatch.setattr(YOLODataset, "check_cache_ram", check)
    cfg = args(cache="ram", mixup=0.0)
    info = check_det_dataset(data)
    both = at_two_sizes(lambda: build_yolo_dataset(cfg, info["train"], 4, info, mode="train", stride=32), cfg, BIG)
    assert [both.small.cache, both.large.cache] == (["ram", None] if cached == 0 else [None, "ram"])
    monkeypatch.setattr(two_sizes, "_resized", None)  # no sample gets the student's pixels
    seeded()
    found = [distance(both[i]) for i in list(range(len(both))) * 4]
    assert max(found) < 15


def test_both_load_the_same_images_after_a_sample_in_which_they_parted(data):
    both, _ = built(data, args(mixup=0.0))
    load, extra = type(both.large).get_image_and_label, iter([3])
    seeded()
    both[0]

    class Once(type(both.large)):
        """Loads one image more in one sample, as pasted objects do that are too small at one size."""

        def get_image_and_label(self, index):
            for other in extra:
                both.large.get_image_and_label(other)
            return load(self, index)

    both.large.__class__ = Once
    assert both[1][LARGE].shape == (3, BIG, BIG)
    assert not both.images[1].same
    for index in range(len(both)):
        assert distance(both[index]) < 15 and both.images[1].same


def test_batches_hold_both_and_workers_can_pickle_the_data_set(data):
    both, _ = built(data, args())
    loader = build_dataloader(pickle.loads(pickle.dumps(both)), 4, 0, shuffle=False)
    batch = next(iter(loader))
    assert batch["img"].shape == (4, 3, SMALL, SMALL) and batch[LARGE].shape == (4, 3, BIG, BIG)
    pickle.dumps(both.collate_fn)


def test_mosaics_end_at_both_sizes(data):
    cfg = args()
    both, _ = built(data, cfg)
    both.close_mosaic(cfg)
    seeded()
    sample = both[0]
    assert distance(sample) < 10
    mosaics = [t for d in (both.small, both.large) for t in d.transforms.transforms if isinstance(t, Mosaic)]
    assert all(mosaic.p == 0 for mosaic in mosaics) and cfg.mosaic == 1.0


def test_building_the_second_draws_no_random_number(data):
    cfg = args()
    info = check_det_dataset(data)

    def build():
        random.random(), np.random.rand()
        return build_yolo_dataset(cfg, info["train"], 4, info, mode="train", stride=32)

    seeded()
    build()
    expected = random.random(), np.random.rand()
    seeded()
    at_two_sizes(build, cfg, BIG)
    assert (random.random(), np.random.rand()) == expected and cfg.imgsz == SMALL


class Uneven(Dataset):
    """Draws once more at the larger size, as a transform may for an object that is too small at the other."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return 1

    def __getitem__(self, index):
        value = random.randrange(200)
        if self.size == BIG:
            random.random()
        return {"img": torch.full((3, self.size, self.size), value, dtype=torch.uint8)}


def test_where_augmentations_part_the_teacher_gets_the_students_pixels():
    cfg = args()
    both = at_two_sizes(lambda: Uneven(cfg.imgsz), cfg, BIG)
    seeded(1)
    sample = both[0]
    after = random.random()
    assert sample[LARGE].shape == (3, BIG, BIG) and sample[LARGE].unique().tolist() == sample["img"].unique().tolist()
    seeded(1)
    random.randrange(200)
    assert random.random() == after


def test_a_classifiers_teacher_sees_the_rectangle_that_the_student_lost(tmp_path):
    folder = tmp_path / "set"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(str(folder / name / f"{i}.png"), np.full((80, 80, 3), 255, np.uint8))
    cfg = get_cfg(overrides={"task": "classify", "imgsz": SMALL, "erasing": 1.0, "hsv_v": 0.0})
    cfg.auto_augment = None

    def build():
        return ClassificationDataset(str(folder), cfg, augment=True)

    seeded()
    both = at_two_sizes(build, cfg, BIG)
    for i in range(len(both)):
        sample = both[i]
        assert sample[LARGE].shape == (3, BIG, BIG) and sample[LARGE].min() > 0.5 and sample["img"].min() == 0
