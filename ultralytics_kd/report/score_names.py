"""Names of the scores of each task, and of the heads that they come from."""

from __future__ import annotations

NMS, END2END, ONE = "nms", "end2end", "output"  # heads; ONE is the only output of models without boxes
HEADS = {NMS: "NMS", END2END: "NMS-free", ONE: ""}  # their names for people
# Two scores of each task: key of Ultralytics' metric, and name; models are compared by the first
METRICS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "detect": (("metrics/mAP50-95(B)", "mAP50-95"), ("metrics/mAP50(B)", "mAP50")),
    "obb": (("metrics/mAP50-95(B)", "mAP50-95"), ("metrics/mAP50(B)", "mAP50")),
    "segment": (("metrics/mAP50-95(M)", "mask mAP50-95"), ("metrics/mAP50-95(B)", "box mAP50-95")),
    "pose": (("metrics/mAP50-95(P)", "pose mAP50-95"), ("metrics/mAP50-95(B)", "box mAP50-95")),
    "classify": (("metrics/accuracy_top1", "top-1"), ("metrics/accuracy_top5", "top-5")),
    "semantic": (("metrics/mIoU", "mIoU"), ("metrics/pixel_acc", "pixel accuracy")),
    "depth": (("metrics/delta1", "delta1"), ("metrics/abs_rel", "abs_rel")),
}
PARTS = {"B": "box", "M": "mask", "P": "pose"}  # what the letter behind an Ultralytics metric stands for


def metric_text(key: str, alone: bool = True) -> str:
    """Return the name of one of Ultralytics' metrics for people.

    Args:
        key (str): Key of the metric.
        alone (bool): Whether all metrics beside it are of the same part, which is then left out.

    Examples:
        >>> metric_text("metrics/mAP50(B)"), metric_text("metrics/mAP50(M)", alone=False)
        ('mAP50', 'mask mAP50')
    """
    name, _, letter = key.removeprefix("metrics/").partition("(")
    part = PARTS.get(letter.removesuffix(")"), "")
    return name if alone or not part else f"{part} {name}"
