"""Exported files as teachers, by backends that the tests write: what a file is given, and how its output is read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import NAMES

from ultralytics_kd.cache.build import answered_size
from ultralytics_kd.errors import KDError
from ultralytics_kd.teachers import exported, open_teacher
from ultralytics_kd.teachers.detections import Thresholds
from ultralytics_kd.teachers.sizes import size_warnings
from ultralytics_kd.training.images.large_images import LargeImageTeacher

CPU = torch.device("cpu")
SIDE = 64


class Backend:
    """Stands for Ultralytics' AutoBackend: a file of one size that gives a drawn output.

    Attributes:
        given (list[Tensor]): The batches that it was given.
    """

    names, task, channels, dynamic, imgsz, device = NAMES, "detect", 3, False, (SIDE, SIDE), CPU

    def __init__(self, output, batch: int = 1, **metadata):
        self.output, self.metadata, self.given = output, {"batch": batch, "names": NAMES, **metadata}, []

    def __call__(self, images):
        assert images.is_contiguous()
        self.given.append(images)
        return self.output(images)


@pytest.fixture
def teacher_of(monkeypatch, tmp_path):
    """Return a function that opens a file with a backend."""

    def opened(backend: Backend):
        (tmp_path / "teacher.onnx").touch()
        monkeypatch.setattr(exported, "AutoBackend", lambda **_: backend)
        teacher = open_teacher(str(tmp_path / "teacher.onnx"))
        teacher.match(NAMES)
        return teacher.prepare(CPU)

    return opened


def rows(*boxes, confidence: float = 0.9) -> torch.Tensor:
    """Return final detections of one image, of class 1."""
    return torch.tensor([[[*box, confidence, 1] for box in boxes]])


def test_a_backend_may_write_every_result_to_the_same_memory(teacher_of):
    memory = torch.zeros(1, 1, 6)

    def output(images):
        memory[:] = rows((images[0, 0, 0, 0] * 10, 1, 50, 40))
        return memory

    teacher = teacher_of(Backend(output))
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, SIDE, SIDE)
    found, _ = teacher.detect(images, Thresholds())
    assert [round(d.boxes[0, 0].item()) for d in found] == [0, 10, 20, 30]


def test_thresholds_are_those_that_are_asked_for(teacher_of):
    boxes = [[20, 20, 16, 16, 0, 0.9, 0], [20, 22, 16, 16, 0, 0.8, 0], [50, 50, 9, 9, 0, 0.01, 0]]
    backend = Backend(lambda images: torch.tensor(boxes).T[None])
    teacher, image = teacher_of(backend), torch.zeros(1, 3, SIDE, SIDE)
    for conf, iou, count in ((0.05, 0.7, 1), (0.05, 0.9, 2), (0.001, 0.7, 2), (0.001, 0.9, 3)):
        assert len(teacher.detect(image, Thresholds(conf, iou))[0][0].boxes) == count
    assert teacher.detect(image, Thresholds())[0][0].boxes[0].tolist() == [12, 12, 28, 28]


@pytest.mark.parametrize("height, width, box", [(32, 64, (0, 0, 64, 32)), (128, 64, (0, 0, 64, 128))])
def test_images_of_another_shape_are_padded_and_not_stretched(teacher_of, height, width, box):
    inside = (0, 16, 64, 48) if width > height else (16, 0, 48, 64)  # where the image lies in the file's square
    backend = Backend(lambda images: rows(inside))
    image = torch.ones(1, 3, height, width)
    found, _ = teacher_of(backend).detect(image, Thresholds())
    assert found[0].boxes[0].tolist() == pytest.approx(box)
    seen, (left, top, right, bottom) = backend.given[0][0], inside
    assert seen.shape == (3, SIDE, SIDE) and (seen[:, top:bottom, left:right] == 1).all()
    assert (seen < 1).sum() == 3 * SIDE * SIDE / 2 and seen.min() == pytest.approx(114 / 255)


def test_boxes_of_rt_detr_are_shares_of_the_image(teacher_of):
    backend = Backend(lambda images: rows((0.5, 0.25, 0.5, 0.25)), head="RTDETRDecoder")
    found, _ = teacher_of(backend).detect(torch.zeros(1, 3, SIDE, SIDE), Thresholds())
    assert found[0].boxes[0].tolist() == [16, 8, 48, 24]


def test_a_batch_is_split_and_filled_as_the_file_needs(teacher_of):
    backend = Backend(lambda images: rows((1, 2, 30, 40)).expand(len(images), 1, 6), batch=2)
    found, _ = teacher_of(backend).detect(torch.zeros(3, 3, SIDE, SIDE), Thresholds())
    assert len(found) == 3 and [len(images) for images in backend.given] == [2, 2]


def test_rows_of_zeros_that_fill_an_answer_are_no_wrong_boxes(teacher_of):
    """A file exported with nms=True always returns 300 rows; the first images may show nothing."""
    answers = [torch.zeros(1, 300, 6), rows((1, 2, 30, 40))]
    teacher, image = teacher_of(Backend(lambda images: answers.pop(0))), torch.zeros(1, 3, SIDE, SIDE)
    assert len(teacher.detect(image, Thresholds())[0][0].boxes) == 0
    assert len(teacher.detect(image, Thresholds())[0][0].boxes) == 1


def test_confident_boxes_without_a_pixel_are_still_refused(teacher_of):
    teacher = teacher_of(Backend(lambda images: rows((0.1, 0.1, 0.5, 0.5))))
    with pytest.raises(KDError, match="none of the first 1 boxes covers a pixel"):
        teacher.detect(torch.zeros(1, 3, SIDE, SIDE), Thresholds())


def test_a_file_of_any_size_is_given_multiples_of_its_stride(teacher_of):
    backend = Backend(lambda images: rows((1, 2, 30, 40)))
    backend.dynamic, backend.stride = True, 64
    found, _ = teacher_of(backend).detect(torch.ones(1, 3, 96, 160), Thresholds())
    assert backend.given[0].shape == (1, 3, 128, 192)
    assert (backend.given[0][..., :96, :160] == 1).all() and (backend.given[0][..., 96:, :] < 1).all()
    assert found[0].boxes[0].tolist() == [1, 2, 30, 40]


def test_the_sizes_that_a_file_of_one_size_cannot_read_are_refused_or_warned_of(teacher_of):
    teacher = teacher_of(Backend(lambda images: rows((1, 2, 30, 40))))
    with pytest.raises(KDError, match=r"reads images of 64 px alone, so 'kd_teacher_imgsz=128.0' has no effect"):
        LargeImageTeacher(teacher, 128.0).imgsz(32)
    assert LargeImageTeacher(teacher, 64.0).imgsz(32) == 64
    args = SimpleNamespace(imgsz=32, kd_teacher_imgsz=None)
    with pytest.raises(KDError, match="'kd_cache_imgsz=128' has no effect: export it with imgsz=128 or dynamic=True"):
        answered_size(args, [teacher], 128)
    assert "so those of 128 px are shrunk for it" in size_warnings([teacher], 128)[0]
    assert not size_warnings([teacher], 64)


def test_a_file_without_class_names_is_refused_before_they_are_invented(teacher_of):
    with pytest.raises(KDError, match="lacks the class names"):
        teacher_of(Backend(lambda images: rows((1, 2, 30, 40)), names=None))


def test_as_many_final_rows_as_raw_values_are_final_rows(teacher_of):
    final = torch.zeros(1, 4 + len(NAMES), 6)
    final[0, 0] = torch.tensor([1, 2, 30, 40, 0.9, 1])
    teacher = teacher_of(Backend(lambda images: final, end2end=True))
    assert teacher.detect(torch.zeros(1, 3, SIDE, SIDE), Thresholds())[0][0].boxes[0].tolist() == [1, 2, 30, 40]


def test_the_error_of_a_runtime_is_one_sentence_about_the_teacher(teacher_of):
    def fail(images):
        raise RuntimeError("mismatched dimensions of 5 and 6\nat Concat_7")

    with pytest.raises(KDError, match=r"teacher.onnx failed for images of shape \(1, 3, 64, 64\): mismatched"):
        teacher_of(Backend(fail)).detect(torch.zeros(1, 3, SIDE, SIDE), Thresholds())


def test_memory_that_a_runtime_lacks_is_left_to_the_trainer(teacher_of):
    def fail(images):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match=r"^CUDA out of memory") as error:
        teacher_of(Backend(fail)).detect(torch.zeros(1, 3, SIDE, SIDE), Thresholds())
    assert not isinstance(error.value, KDError)
