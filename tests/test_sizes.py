"""What a stored answer teaches depends on the size at which the student sees the object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics.utils import YAML

from ultralytics_kd import YOLO
from ultralytics_kd.cache import make_cache
from ultralytics_kd.cache.answering import Detections, across_sizes
from ultralytics_kd.cache.answers import StoredAnswers
from ultralytics_kd.sizes import interpolate, pack, unpack


def test_between_two_sizes_lies_what_lies_between_their_answers():
    values = torch.tensor([[0.1, 0.5, 0.9]]).repeat(7, 1)
    scale = torch.tensor([0.5, 1.0, 2.0, 0.5**0.5, 2**0.25, 0.01, 50.0])
    expected = [0.1, 0.5, 0.9, 0.3, 0.6, 0.1, 0.9]  # in the middle of the logarithm; beyond the ends the end's
    assert interpolate(scale, [0.5, 1.0, 2.0], values).tolist() == pytest.approx(expected, abs=1e-6)
    assert interpolate(scale[:0], [0.5, 1.0], values[:0, :2]).shape == (0,)


def test_instances_are_taught_as_the_teacher_would_see_them():
    probs = np.array([[0.6, 0.3], [0.2, 0.8], [0.1, 0.0]], dtype=np.float32)
    seen = np.array([[0.2, 0.6], [0.0, 0.8], [0.02, 0.1]], dtype=np.float32)
    rows = torch.from_numpy(pack(probs, np.array([0.6, 0.8, 0.4], np.float32), seen, np.full(3, 10, np.float32)))
    full, half = (torch.tensor([[0.5, 0.5, side / 100, side / 50]]).repeat(3, 1) for side in (10.0, 5.0))
    said, taught = unpack(full, rows, [0.5, 1.0], (50, 100), conf=0.05)
    assert torch.allclose(said[:2], torch.from_numpy(probs[:2])) and taught.tolist() == [True, True, True]
    assert said[2].tolist() == pytest.approx([0.1 * 0.1 / 0.4, 0])  # the rest is of a class that is not taught
    said, taught = unpack(half, rows, [0.5, 1.0], (50, 100), conf=0.05)
    assert said[0].tolist() == pytest.approx([0.2, 0.1]) and taught.tolist() == [True, False, False]


def test_with_one_size_an_answer_is_the_same_at_all_sizes():
    probs = np.array([[0.6, 0.3]], dtype=np.float32)
    rows = pack(probs, probs.max(1), probs.max(1, keepdims=True), np.ones(1, np.float32))
    assert rows is probs
    said, taught = unpack(torch.full((1, 4), 0.01), torch.from_numpy(rows), [1.5], (64, 64), conf=0.9)
    assert torch.equal(said, torch.from_numpy(probs)) and taught.all()


def test_detections_of_one_object_at_several_sizes_are_one():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    far, third = box + 50, box + 100
    small = Detections(torch.cat((box + 1, third)), torch.tensor([[0.5, 0.2], [0.0, 0.3]]))
    plain = Detections(torch.cat((far, box)), torch.tensor([[0.7, 0.0], [0.0, 0.6]]))
    large = Detections(torch.cat((box, third + 1)), torch.tensor([[0.1, 0.9], [0.4, 0.0]]))
    found, seen = across_sizes([small, plain, large], plain=1)
    torch.testing.assert_close(seen, torch.tensor([[0.0, 0.7, 0.0], [0.5, 0.6, 0.9], [0.3, 0.0, 0.4]]))
    assert torch.equal(found.boxes, torch.cat((far, box, third)))  # of the plain size, where that shows the object
    assert torch.equal(found.probs, torch.tensor([[0.7, 0.0], [0.0, 0.6], [0.0, 0.3]]))
    nothing = Detections(box[:0], torch.zeros(0, 2))
    found, seen = across_sizes([nothing, nothing], plain=0)
    assert found.boxes.shape == (0, 4) and seen.shape == (0, 2)
    found, seen = across_sizes([nothing, plain], plain=0)
    assert len(found.boxes) == 2 and seen.tolist() == [[0, pytest.approx(0.7)], [0, pytest.approx(0.6)]]


def test_a_student_of_half_the_size_is_taught_what_the_teacher_saw_there(quick, tmp_path, data, teacher):
    """Trained on images of half the side that the teacher saw, with augmentation off."""
    given = {"data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_scales": [1, 0.5]}
    store = make_cache({**given, "imgsz": 128, "batch": 4, "workers": 0, "device": "cpu"})
    assert store.manifest().scales == [0.5, 1.0]
    batches = []
    model = YOLO("yolo26n.yaml")
    model.add_callback("on_train_start", lambda t: batches.extend(t.preprocess_batch(b) for b in t.train_loader))
    off = dict.fromkeys(("mosaic", "translate", "scale", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0)
    run = {**quick, **off, "data": data, "teacher": teacher, "kd_cache": str(store.folder), "epochs": 1}
    model.train(**run, augmentations=[])
    names = YAML.load(data)["names"]
    files = [f for b in batches for f in b["im_file"]]
    answers = StoredAnswers(store, files, model.trainer.stored_classes)
    told = dropped = 0
    for batch in batches:
        for i, file in enumerate(batch["im_file"]):
            start, end = answers._spans[file]
            seen = answers.seen[start:end, 0] / 65535
            large = answers.boxes[start:end, 2:].min(1) * 64 > 2.1  # Ultralytics drops what is smaller
            mine = batch["teacher"].batch_idx == i
            confidence = batch["teacher"].probs[mine].amax(1).numpy()
            assert batch["teacher"].probs.shape[1] == len(names)
            for expected in seen[large & (seen > 0.051)]:
                assert np.abs(confidence - expected).min() < 1e-3
            assert mine.sum() <= (seen > 0.049).sum()
            told, dropped = told + int(mine.sum()), dropped + int((seen < 0.049).sum())
    assert told > 10 and dropped > 10
