"""One model of a report: what it costs, how fast it is and what it sees."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from ultralytics.utils import LOGGER, TQDM
from ultralytics.utils.nms import non_max_suppression

from .. import outputs
from ..config.arguments import GRID_TASKS
from ..teachers import Teacher
from .score_names import END2END, NMS, ONE
from .validation import Seen, watch

TEACHER, BASELINE, STUDENT = "teacher", "baseline", "student"
ROUNDS, WARM_UP, PATIENCE = 30, 3, 5.0  # of the latency; the last one in seconds for each model


@dataclass
class Contestant:
    """A model beside others.

    Attributes:
        role (str): "teacher", "baseline" or "student".
        opened (Teacher): The model, its classes matched with those of the data.
        seen (dict[str, Seen]): What it sees, by head.
        times (list[float]): Seconds for one image, each.
    """

    role: str
    opened: Teacher
    seen: dict[str, Seen] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    @property
    def heads(self) -> list[str]:
        """Its heads: NMS over one2many, then the end-to-end one; a single one of other models and tasks."""
        if self.opened.task not in GRID_TASKS:
            return [ONE]
        layout = self.opened.layout
        return [NMS, END2END] if layout is not None and outputs.ONE2ONE in layout.branches else [NMS]

    def head(self, wanted: str) -> str:
        """Return the head that stands for it, its only one if it has not the one that is wanted."""
        return wanted if wanted in self.heads else self.heads[0]

    def model(self, names: Mapping[int, str]) -> Any:
        """Return a copy that answers in the classes of the data; None if it has none."""
        return self.opened.validator_model(len(names), names)

    def look(self, validator: type, args: Namespace, names: Mapping[int, str], folder: Path) -> None:
        """Validate every head.

        Args:
            validator (type[BaseValidator]): The task's validator.
            args (Namespace): Ultralytics' arguments.
            names (Mapping[int, str]): Classes of the data.
            folder (Path): Folder for what Ultralytics writes.
        """
        for head in self.heads:
            LOGGER.info(f"\n{self.role} {self.opened.name}, {head}:")
            said = Namespace(**{**vars(args), "nms": False if head == END2END else None})
            self.seen[head] = watch(self.model(names), validator, said, folder)

    def costs(self, imgsz: int) -> dict[str, Any]:
        """Return parameters, GFLOPs, megabytes of the file and milliseconds; None for what nobody knows.

        Args:
            imgsz (int): Image size of the GFLOPs.
        """
        file = Path(self.opened.source)
        time = None
        if self.times:
            low, _, high = quantiles(self.times, n=4)
            time = {"ms": median(self.times) * 1e3, "low": low * 1e3, "high": high * 1e3}
        return {
            "parameters": self.opened.parameters() or None,
            "gflops": self.opened.gflops(imgsz) or None,
            "megabytes": file.stat().st_size / 2**20 if file.is_file() else None,
            "latency": time,
        }


def measure_latency(
    contestants: Sequence[Contestant], wanted: str, args: Namespace, names: Mapping[int, str], device: torch.device
) -> None:
    """Time every model on one image after another, in turns, so that what else the machine does hits all of them.

    What is timed is what a user waits for between a prepared image and its detections: the forward pass in float32,
    fused, and the suppression where there is any.

    Args:
        contestants (Sequence[Contestant]): Models; their `times` are filled.
        wanted (str): Head to time.
        args (Namespace): Ultralytics' arguments.
        names (Mapping[int, str]): Classes of the data.
        device (torch.device): Where they run.
    """
    work = [(each, _once(each, wanted, args, names, device)) for each in contestants]
    with torch.inference_mode():
        for turn in TQDM(range(WARM_UP + ROUNDS), desc="Measuring latency"):
            for each, once in work:
                seconds = once()
                if turn >= WARM_UP:
                    each.times.append(seconds)
            if turn >= WARM_UP + 4 and any(sum(each.times) > PATIENCE for each in contestants):
                return


def _once(
    contestant: Contestant, wanted: str, args: Namespace, names: Mapping[int, str], device: torch.device
) -> Callable[[], float]:
    """Return what runs a model on one image and returns the seconds."""
    model = contestant.model(names).to(device).float().eval()
    end2end = contestant.head(wanted) == END2END
    if hasattr(model, "end2end"):
        model.end2end = end2end
    model = model.fuse(verbose=False)
    channels = contestant.opened.channels
    image = torch.rand(1, channels, args.imgsz, args.imgsz, device=device)
    boxes = contestant.opened.task in GRID_TASKS
    rest = {"nc": len(names), "max_det": args.max_det, "rotated": contestant.opened.task == "obb", "end2end": end2end}

    def once() -> float:
        """Run it once."""
        _wait(device)
        start = perf_counter()
        out = model(image)
        while boxes and not isinstance(out, torch.Tensor):  # beside masks' prototypes and raw outputs
            out = out[0]
        if boxes:
            non_max_suppression(out, 0.25, args.iou, **rest)
        _wait(device)
        return perf_counter() - start

    return once


def _wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
