"""Compares resumed runs with uninterrupted ones, with a teacher and without.

    python examples/reliability/resumed.py data=bccd/data.yaml teacher=best.pt [epochs=24 seeds=3 imgsz=160 device=cpu]

Ultralytics' checkpoints hold the moving average of the weights in half precision, and a resumed run starts from it. So
no resumed run ends with exactly the weights of an uninterrupted one. A teacher must not make this difference larger.
The checkpoint in the middle of each run is copied and resumed in another folder.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ultralytics.cfg import parse_key_value_pair

from ultralytics_kd import YOLO

SCORE = "metrics/mAP50-95(B)"


def run(args: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train, resume from the checkpoint in the middle, and return the scores of both runs."""
    last = folder / "resumed" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)

    def keep(trainer: Any) -> None:
        if trainer.epoch + 1 == trainer.epochs // 2:
            shutil.copy2(trainer.last, last)

    model = YOLO("yolo26n.yaml")
    model.add_callback("on_model_save", keep)
    model.train(**args, project=str(folder), name="whole")
    resumed = YOLO(last)
    resumed.train(resume=True, save_dir=str(last.parents[1]))
    return {name: float(m.metrics.results_dict[SCORE]) for name, m in (("whole", model), ("resumed", resumed))}


def main(given: dict[str, Any]) -> None:
    """Run all seeds, plain and distilled, and print a table."""
    seeds, out = given.pop("seeds", 3), given.pop("out", "")
    teacher, arms = given.pop("teacher"), {}
    common = {"epochs": 24, "imgsz": 160, "batch": 16, "optimizer": "AdamW", "lr0": 0.002, "plots": False, **given}
    for arm, arm_args in {"plain": {}, "distilled": {"teacher": teacher}}.items():
        arms[arm] = []
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            with tempfile.TemporaryDirectory() as folder:
                arms[arm].append(run({**common, **arm_args, "seed": seed}, Path(folder)))
    print("\n| | uninterrupted | resumed | mean difference | largest |\n| --- | --- | --- | --- | --- |")
    for arm, pairs in arms.items():
        whole, resumed = ([pair[name] for pair in pairs] for name in ("whole", "resumed"))
        differences = [b - a for a, b in zip(whole, resumed)]
        means = f"{statistics.mean(whole):.4f} | {statistics.mean(resumed):.4f} | {statistics.mean(differences):+.4f}"
        print(f"| {arm} | {means} | {max(map(abs, differences)):.4f} |")
    if out:
        Path(out).write_text(json.dumps({"args": {**common, "teacher": teacher}, "scores": arms}, indent=1))


if __name__ == "__main__":
    main(dict(parse_key_value_pair(arg) for arg in sys.argv[1:]))
