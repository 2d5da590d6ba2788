"""One model of a report: its heads, its validation and its cost."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from ultralytics.utils import LOGGER, colorstr

from .. import outputs
from ..config.arguments import GRID_TASKS
from ..teachers import Teacher
from .score_names import END2END, HEADS, NMS, ONE
from .validation import ValidationResult, validate

TEACHER, BASELINE, STUDENT = "teacher", "baseline", "student"


@dataclass
class ComparedModel:
    """One of the models that a report compares.

    Attributes:
        role (str): "teacher", "baseline" or "student".
        loaded (Teacher): The model, opened as a teacher; its classes are matched with those of the data.
        results (dict[str, ValidationResult]): Its validation, by head.
        times (list[float]): Seconds per image of each timed run.
        imgsz (int | None): Size of its images in pixels; None for that of the report.
    """

    role: str
    loaded: Teacher
    results: dict[str, ValidationResult] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    imgsz: int | None = None

    @property
    def heads(self) -> list[str]:
        """Its heads: `NMS` (one2many) and, if it has one, `END2END`; `ONE` for tasks without boxes."""
        if self.loaded.task not in GRID_TASKS:
            return [ONE]
        layout = self.loaded.layout
        return [NMS, END2END] if layout is not None and outputs.ONE2ONE in layout.branches else [NMS]

    def head(self, preferred: str) -> str:
        """Return the preferred head if the model has it, else its first one."""
        return preferred if preferred in self.heads else self.heads[0]

    def copy(self, names: Mapping[int, str]) -> Any:
        """Return a copy of the model whose predictions have the classes of the data.

        Args:
            names (Mapping[int, str]): Classes of the data.
        """
        return self.loaded.validator_model(len(names), names)

    def validate(self, validator: type, args: Namespace, names: Mapping[int, str], folder: Path) -> None:
        """Validate every head; fills `results`.

        Args:
            validator (type[BaseValidator]): The task's validator.
            args (Namespace): Ultralytics' arguments.
            names (Mapping[int, str]): Classes of the data.
            folder (Path): Folder for what Ultralytics writes.
        """
        for head in self.heads:
            with_head = f" ({HEADS[head]})" if HEADS[head] else ""
            LOGGER.info(f"\n{colorstr('Report:')} scoring {self.role} {self.loaded.name}{with_head}")
            own = {"nms": False if head == END2END else None, "imgsz": self.imgsz or args.imgsz}
            head_args = Namespace(**{**vars(args), **own})
            self.results[head] = validate(self.copy(names), validator, head_args, folder)

    def costs(self, imgsz: int) -> dict[str, Any]:
        """Return the model's size and speed; an unknown value is None.

        Args:
            imgsz (int): Image size of the report in pixels; GFLOPs are for the model's own, if it has one.

        Returns:
            (dict): "imgsz" in pixels, "parameters" (count), "gflops", "megabytes" of the file (MiB), and "latency": the
                median "ms" of an image with the quartiles "low" and "high", in milliseconds.
        """
        file = Path(self.loaded.source)
        latency, side = None, self.imgsz or imgsz
        if self.times:
            low, _, high = quantiles(self.times, n=4)
            latency = {"ms": median(self.times) * 1e3, "low": low * 1e3, "high": high * 1e3}
        return {
            "imgsz": side,
            "parameters": self.loaded.parameters() or None,
            "gflops": self.loaded.gflops(side) or None,
            "megabytes": file.stat().st_size / 2**20 if file.is_file() else None,
            "latency": latency,
        }
