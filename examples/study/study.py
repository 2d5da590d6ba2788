"""The measurements behind the default weights, and the ones that the README shows: `yolo-kd bench`, stage by stage.

    python examples/study/study.py FOLDER [STAGE ...]     all stages, or those named; run again to go on

FOLDER holds `bccd/data.yaml` (364 blood smear images, 3 classes, github.com/Shenggan/BCCD_Dataset) and
`helmet/data.yaml` (2,336 site photos, 2 classes). The `tune-` stages choose settings: they train on 80% of the training
images and score on the other 20%. The `final-` stages train on all of them and read the val sets, once. Each leaves its
table and the record of every run in `results/STAGE`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from ultralytics.utils import YAML

from ultralytics_kd.bench import run_bench

HERE = Path(__file__).resolve().parent
TABLES = ("bench.json", "bench.csv", "bench.md", "bench.png", "records")


def run_stage(name: str, data: Path, runs: Path) -> dict[str, Any]:
    """Run one stage of stages.yaml, and keep its table.

    Args:
        name (str): Name of the stage.
        data (Path): Folder of the data sets.
        runs (Path): Where weights go.
    """
    stages = YAML.load(HERE / "stages.yaml")
    arguments = {**stages["common"], **stages["stages"][name]}
    for key in ("data", "model", "teacher"):
        value = str(arguments.get(key, ""))
        if key == "data":
            arguments[key] = str(data / value / "data.yaml")
        elif value.endswith(".pt"):  # of an earlier stage
            arguments[key] = str(runs / value)
    report = run_bench({**arguments, "project": str(runs), "name": name})
    for table in TABLES:
        source, target = runs / name / table, HERE / "results" / name / table
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    return report


if __name__ == "__main__":
    folder, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    for stage in wanted or YAML.load(HERE / "stages.yaml")["stages"]:
        run_stage(stage, folder, Path("runs/study").resolve())
