"""The latency of the models of a report, one image at a time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
from ultralytics.utils import TQDM
from ultralytics.utils.nms import non_max_suppression

from ..config.arguments import GRID_TASKS
from .compared_model import ComparedModel
from .score_names import END2END

ROUNDS, WARM_UP = 30, 3  # timed runs of each model, and untimed runs before them
MAX_SECONDS = 5.0  # as soon as one model has taken longer, timing ends for all
CONF = 0.25  # lowest confidence that NMS keeps: Ultralytics' default for predictions


def measure_latency(
    models: Sequence[ComparedModel],
    preferred_head: str,
    args: Namespace,
    names: Mapping[int, str],
    device: torch.device,
) -> None:
    """Time every model on one image, in turns, so that other load on the machine affects all models alike.

    The time is from the prepared image to its detections: the forward pass of the fused model in float32, and NMS if
    the head needs it.

    Args:
        models (Sequence[ComparedModel]): Models; fills their `times`.
        preferred_head (str): Head to time, if a model has it.
        args (Namespace): Ultralytics' arguments.
        names (Mapping[int, str]): Classes of the data.
        device (torch.device): Where the models run.
    """
    runs = [(model, _timed_run(model, preferred_head, args, names, device)) for model in models]
    with torch.inference_mode():
        for turn in TQDM(range(WARM_UP + ROUNDS), desc="Measuring latency"):
            for model, run in runs:
                seconds = run()
                if turn >= WARM_UP:
                    model.times.append(seconds)
            if turn >= WARM_UP + 4 and any(sum(model.times) > MAX_SECONDS for model in models):
                return


def _timed_run(
    compared: ComparedModel,
    preferred_head: str,
    args: Namespace,
    names: Mapping[int, str],
    device: torch.device,
) -> Callable[[], float]:
    """Return a function that runs a model on one image and returns the seconds."""
    model = compared.copy(names).to(device).float().eval()
    end2end = compared.head(preferred_head) == END2END
    if hasattr(model, "end2end"):
        model.end2end = end2end
    model = model.fuse(verbose=False)
    side = compared.imgsz or args.imgsz
    image = torch.rand(1, compared.loaded.channels, side, side, device=device)
    task = compared.loaded.task
    has_boxes = task in GRID_TASKS
    nms = {"nc": len(names), "max_det": args.max_det, "rotated": task == "obb", "end2end": end2end}

    def run() -> float:
        """Return the seconds of one image."""
        _synchronize(device)
        start = perf_counter()
        output = model(image)
        if has_boxes:
            while not isinstance(output, torch.Tensor):  # the boxes come before masks' prototypes and raw outputs
                output = output[0]
            non_max_suppression(output, CONF, args.iou, **nms)
        _synchronize(device)
        return perf_counter() - start

    return run


def _synchronize(device: torch.device) -> None:
    """Wait for the work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
