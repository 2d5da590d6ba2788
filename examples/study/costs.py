"""What a teacher costs in the `coco-` stages: the time of whole trainings, from steps that take turns.

    python examples/study/costs.py FOLDER STAGE ...     writes results/STAGE/costs.json

A bench's own times are those of a machine on which other trainings ran, at other times for each arm. `yolo-kd advise`
lets the student alone, with the teacher, and with stored answers take turns, step by step, and takes medians. The stage
has been run before, as its teacher and a student alone are needed. FOLDER is that of `study.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from study import RESULTS, stage_arguments

from ultralytics_kd.advice import run_advice

OF_BENCH = ("arms", "seeds", "jobs", "teacher_model", "teacher_imgsz", "teacher_epochs", "val")


def measure(stage: str, data: Path, runs: Path) -> None:
    """Measure a stage's trainings and save their hours.

    Args:
        stage (str): Name of the stage.
        data (Path): Folder of the data sets.
        runs (Path): Folder of the runs.
    """
    arguments = {k: v for k, v in stage_arguments(stage, data, runs).items() if k not in OF_BENCH}
    best = Path("weights") / "best.pt"
    teacher = arguments.pop("teacher", runs / stage / "runs" / "teacher" / best)
    baseline = runs / stage / "runs" / "alone-0" / best
    places = {"teacher": str(teacher), "baseline": str(baseline), "project": str(runs), "images": 0, "plots": False}
    (advice,) = (found := run_advice({**arguments, **places}))["teachers"]
    costs = {name: advice["costs"][name] for name in ("steps", "arms")}
    kept = {"device": found["device"], "threads": found["threads"], "versions": found["versions"], **costs}
    (RESULTS / stage / "costs.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")


if __name__ == "__main__":
    for each in sys.argv[2:]:
        measure(each, Path(sys.argv[1]).resolve(), Path("runs/study").resolve())
