"""Confidence per scale: what a stored answer teaches depends on the size at which the student sees the object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import STUDENT

from ultralytics_kd import YOLO
from ultralytics_kd.cache import make_cache
from ultralytics_kd.cache.answering import match_across_scales
from ultralytics_kd.cache.answers import StoredAnswers
from ultralytics_kd.cache.scales import decode_rows, encode_rows, interpolate
from ultralytics_kd.teachers.detections import Detections


def test_values_between_scales_are_interpolated():
    values = torch.tensor([[0.1, 0.5, 0.9]]).repeat(7, 1)
    scale = torch.tensor([0.5, 1.0, 2.0, 0.5**0.5, 2**0.25, 0.01, 50.0])
    expected = [0.1, 0.5, 0.9, 0.3, 0.6, 0.1, 0.9]  # linear in the logarithm, constant outside the range
    assert interpolate(scale, [0.5, 1.0, 2.0], values).tolist() == pytest.approx(expected, abs=1e-6)
    assert interpolate(scale[:0], [0.5, 1.0], values[:0, :2]).shape == (0,)


def test_probabilities_follow_the_size_of_the_box():
    probs = np.array([[0.6, 0.3], [0.2, 0.8], [0.1, 0.0]], dtype=np.float32)
    by_scale = np.array([[0.2, 0.6], [0.0, 0.8], [0.02, 0.1]], dtype=np.float32)
    sides = np.array([[10, 20]] * 3, np.float32)
    rows = torch.from_numpy(encode_rows(probs, np.array([0.6, 0.8, 0.4], np.float32), by_scale, sides))

    def decode(width: float, height: float) -> tuple[torch.Tensor, list[int]]:
        boxes = torch.tensor([[0.5, 0.5, width / 100, height / 50]]).repeat(3, 1)
        decoded, taught = decode_rows(boxes, rows, [0.5, 1.0], (50, 100), conf=0.05)
        return decoded, taught.tolist()

    decoded, taught = decode(10, 20)
    assert torch.allclose(decoded[:2], torch.from_numpy(probs[:2])) and taught == [0, 1]
    assert decoded[2].tolist() == pytest.approx([0.1 * 0.1 / 0.4, 0])  # mostly of a class that is not taught
    decoded, taught = decode(5, 10)
    assert decoded[0].tolist() == pytest.approx([0.2, 0.1]) and taught == [0]
    for decoded, taught in (decode(3, 20), decode(10, 4)):  # an object that a border cuts keeps its scale
        assert torch.allclose(decoded[:2], torch.from_numpy(probs[:2])) and taught == [0, 1]


def test_with_one_scale_the_probabilities_do_not_depend_on_size():
    probs = np.array([[0.6, 0.3]], dtype=np.float32)
    rows = encode_rows(probs, probs.max(1), probs.max(1, keepdims=True), np.ones((1, 2), np.float32))
    assert rows is probs
    decoded, taught = decode_rows(torch.full((1, 4), 0.01), torch.from_numpy(rows), [1.5], (64, 64), conf=0.9)
    assert torch.equal(decoded, torch.from_numpy(probs)) and taught.tolist() == [0]


def test_detections_of_one_object_at_several_scales_are_merged():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    far, third = box + 50, box + 100
    small = Detections(torch.cat((box + 1, third)), torch.tensor([[0.5, 0.2], [0.0, 0.3]]))
    base = Detections(torch.cat((far, box)), torch.tensor([[0.7, 0.0], [0.0, 0.6]]))
    large = Detections(torch.cat((box, third + 1)), torch.tensor([[0.1, 0.9], [0.4, 0.0]]))
    objects, confidence = match_across_scales([small, base, large], base=1)
    torch.testing.assert_close(confidence, torch.tensor([[0.0, 0.7, 0.0], [0.5, 0.6, 0.9], [0.3, 0.0, 0.4]]))
    assert torch.equal(objects.boxes, torch.cat((far, box, third)))  # from the base scale, where it has the object
    assert torch.equal(objects.probs, torch.tensor([[0.7, 0.0], [0.0, 0.6], [0.0, 0.3]]))
    nothing = Detections(box[:0], torch.zeros(0, 2))
    objects, confidence = match_across_scales([nothing, nothing], base=0)
    assert objects.boxes.shape == (0, 4) and confidence.shape == (0, 2)
    objects, confidence = match_across_scales([nothing, base], base=0)
    assert len(objects.boxes) == 2 and confidence.tolist() == [[0, pytest.approx(0.7)], [0, pytest.approx(0.6)]]


def test_a_weak_duplicate_takes_no_detections_from_an_object():
    base = Detections(torch.tensor([[0.0, 0, 100, 100], [20, 0, 120, 100]]), torch.tensor([[0.9], [0.06]]))
    other = Detections(torch.tensor([[12.0, 0, 112, 100]]), torch.tensor([[0.8]]))
    assert match_across_scales([base, other], base=0)[1].tolist() == [
        pytest.approx([0.9, 0.8]),
        pytest.approx([0.06, 0]),
    ]
    neighbour = Detections(torch.tensor([[22.0, 0, 122, 100]]), torch.tensor([[0.5]]))  # overlaps the second most
    base.probs[1] = 0.7
    assert match_across_scales([base, neighbour], base=0)[1].tolist() == [
        pytest.approx([0.9, 0]),
        pytest.approx([0.7, 0.5]),
    ]


def test_a_batch_of_half_the_size_is_taught_the_confidence_at_that_scale(quick, tmp_path, data, teacher):
    """With augmentation off; the cache's image size differs from the training's."""
    given = {"data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_scales": [1, 0.5]}
    store = make_cache({**given, "imgsz": 64, "kd_cache_imgsz": 128, "batch": 4, "workers": 0, "device": "cpu"})
    assert store.manifest().scales == [0.5, 1.0] and store.manifest().imgsz == 128
    batches = {0: [], 1: []}  # by index of the scale

    def look(trainer):
        for batch in trainer.train_loader:
            batch = trainer.preprocess_batch(batch)
            batches[1].append(batch)
            small = torch.nn.functional.interpolate(batch["img"], scale_factor=0.5)
            batches[0].append(trainer.distillation.answers.add_answer({**batch, "img": small}))

    model = YOLO(STUDENT)
    model.add_callback("on_train_start", look)
    off = dict.fromkeys(("mosaic", "translate", "scale", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0)
    run = {**quick, **off, "data": data, "teacher": teacher, "kd_cache": str(store.folder), "epochs": 1}
    model.train(**run, augmentations=[])
    files = [f for b in batches[0] for f in b["im_file"]]
    answers = StoredAnswers(store, files, model.trainer.distillation.cached.classes, 64)
    for scale, of_scale in batches.items():
        taught = dropped = 0
        for batch in of_scale:
            for i, file in enumerate(batch["im_file"]):
                boxes, rows = answers[file]
                stored = rows[:, scale - 4]  # before them class shares, after them two sides
                large = boxes[:, 2:].min(1) * 64 > 2.1  # Ultralytics drops smaller boxes
                confidence = batch["teacher"].probs[batch["teacher"].batch_idx == i].amax(1).numpy()
                for expected in stored[large & (stored > 0.051)]:
                    assert np.abs(confidence - expected).min() < 1e-3
                assert len(confidence) <= (stored > 0.049).sum()
                taught, dropped = taught + len(confidence), dropped + int((stored < 0.049).sum())
        assert taught > 10 and dropped > 10
