"""What is said when a file cannot be written depends on the disk, not on the words of an error."""

from __future__ import annotations

import pytest
import torch

from ultralytics_kd import files


def test_full_disk_is_known_though_torch_does_not_say_so(tmp_path):
    """torch.save writes in C++ and raises a RuntimeError without a number."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # Python ignores the signal
    try:
        with pytest.raises(RuntimeError) as error:
            torch.save({"weights": torch.rand(1_000_000)}, tmp_path / "weights.pt")
        fault = files.disk_fault(error.value, tmp_path, "make room.")
        renamed = files.disk_fault(RuntimeError("some other words"), tmp_path, "make room.")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(fault) == str(renamed) == f"no space is left in {tmp_path}: make room."


def test_error_of_torch_is_not_blamed_on_a_disk_with_room(tmp_path):
    error = RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file")
    assert files.disk_fault(error, tmp_path, "make room.") is None
    assert not list(tmp_path.iterdir())


def test_folder_that_is_gone_is_no_full_disk(tmp_path):
    assert files.disk_fault(RuntimeError("x"), tmp_path / "gone", "make room.") is None
