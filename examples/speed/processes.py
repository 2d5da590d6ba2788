"""Measures what a second process adds to a training step: DDP over Gloo on the CPU, with and without a teacher.

    python examples/speed/processes.py                        writes results/processes.json and .md
    python examples/speed/processes.py imgsz=128 rounds=41    other sizes, and less noise

Every process takes as many images as one process alone. `apart` is two trainings that take their steps at the same time
and send nothing, so it shows what sharing the machine costs; what `together` takes longer is the work of DDP: averaging
the gradients of the student, and those of the adapters. In each round every arm takes one step in each way, in random
order. A step of two processes lasts until the slower one is done. Each process has one thread.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import speed
import torch
from measurement import publish, read_settings
from torch import distributed as dist
from torch import nn
from ultralytics.utils import TQDM
from ultralytics.utils.dist import find_free_network_port

from ultralytics_kd.bench.table import markdown

RESULTS = Path(__file__).resolve().parent / "results"
ARMS = ("plain", "kd_cls + kd_box", "all three")  # of speed.py
WAYS = {"one": 1, "apart": 2, "together": 2}  # number of processes
PATIENCE = 600  # seconds that a process may take to get ready, or to take a step


@dataclass
class Settings:
    """Settings of a measurement.

    Attributes:
        teacher (str): Scale of the teacher.
        student (str): Scale of the student.
        imgsz (int): Image size in pixels.
        batch (int): Images of each process.
        rounds (int): Steps of every arm in each way.
        out (str): File for the results, `.json`; the table is written beside it.
    """

    teacher: str = "s"
    student: str = "n"
    imgsz: int = 128
    batch: int = 8
    rounds: int = 21
    out: str = str(RESULTS / "processes.json")


class Member(speed.Arm):
    """A trainer of one of several processes, with the CPU in the place of its GPU."""

    def __init__(self, *args: Any):
        """Build the trainer, as `speed.Arm` does; the batch is that of all processes."""
        with patch("ultralytics.engine.trainer.select_device", return_value=torch.device("cpu")):
            super().__init__(*args)

    def set_up(self) -> None:
        """Build the trainer's model, terms and loaders; the model sends its gradients."""
        stock = nn.parallel.DistributedDataParallel
        self.trainer.world_size = dist.get_world_size()  # Ultralytics counts GPUs
        with patch.object(nn.parallel, "DistributedDataParallel", lambda *args, device_ids, **kw: stock(*args, **kw)):
            super().set_up()


def take_steps(connection: Connection, settings: speed.Settings, folder: Path, joined: bool) -> None:
    """Build all arms in this process, then take a step of each arm that is asked for; the main function of a process.

    Args:
        connection (Connection): Gives names of arms, and takes the seconds of their steps.
        settings (speed.Settings): Settings of the step.
        folder (Path): Folder of data and teacher.
        joined (bool): Whether the processes train together.
    """
    torch.set_num_threads(1)
    if joined:
        dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    build = Member if joined else speed.Arm
    arms = {name: build(name, settings, folder, settings.teachers) for name in ARMS}
    connection.send(0.0)  # ready
    while (name := connection.recv()) is not None:
        connection.send(arms[name].step())
    if joined:
        dist.destroy_process_group()


class Group:
    """The processes of one way, which wait until a step is asked for."""

    def __init__(self, way: str, settings: Settings, folder: Path):
        """Start the processes, and wait until they are ready.

        Args:
            way (str): Name in `WAYS`.
            settings (Settings): Settings of the measurement.
            folder (Path): Folder for data, teachers and runs.
        """
        count, joined, context = WAYS[way], way == "together", get_context("spawn")
        port = find_free_network_port()
        self.way, self.processes, self.connections = way, [], []
        for rank in range(count):
            step = step_settings(settings, count if joined else 1)
            own = folder / (way if joined else f"{way}-{rank}")
            if not own.exists():
                own.mkdir()
                speed.prepare(step, own)
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
            env = {name: str(value) for name, value in ({**ranks, "MASTER_PORT": port} if joined else {}).items()}
            here, there = context.Pipe()
            process = context.Process(target=take_steps, args=(there, step, own, joined), daemon=True)
            with patch.dict(os.environ, {**env, "OMP_NUM_THREADS": "1"}):  # Ultralytics reads them when it is imported
                process.start()
            there.close()  # so that reading ends if the process does
            self.processes.append(process)
            self.connections.append(here)
        self.answers()

    def answers(self) -> list[float]:
        """Return what each process sends next.

        Raises:
            RuntimeError: If one of them has ended, or sends nothing.
        """
        try:
            if all(connection.poll(PATIENCE) for connection in self.connections):
                return [connection.recv() for connection in self.connections]
        except EOFError:
            raise RuntimeError(f"{self.way}: a process has ended; its error stands above.") from None
        raise RuntimeError(f"{self.way}: a process did not answer within {PATIENCE} s.")

    def step(self, arm: str) -> float:
        """Take a step in all processes at the same time, and return the seconds of the slowest."""
        for connection in self.connections:
            connection.send(arm)
        return max(self.answers())

    def end(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join()


def step_settings(settings: Settings, processes: int) -> speed.Settings:
    """Return the settings of a step that some processes take together."""
    return speed.Settings(
        teachers=settings.teacher,
        student=settings.student,
        imgsz=settings.imgsz,
        batch=settings.batch * processes,
        device="cpu" if processes == 1 else ",".join(map(str, range(processes))),
        arms=",".join(ARMS),
    )


def measure(settings: Settings, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every step, by arm and way."""
    groups = {way: Group(way, settings, folder) for way in WAYS}
    times: dict[str, dict[str, list[float]]] = {arm: {way: [] for way in WAYS} for arm in ARMS}
    tasks = [(arm, way) for arm in ARMS for way in WAYS]
    for turn in TQDM(range(settings.rounds + 2), desc="Rounds"):
        for arm, way in random.sample(tasks, len(tasks)):
            seconds = groups[way].step(arm)
            if turn > 1:  # the first two rounds are a warm-up
                times[arm][way].append(seconds)
    for group in groups.values():
        group.end()
    return times


def summarize(times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return a row for each arm: milliseconds with quartiles of each way, and ratios.

    `over_one` is the time of two processes together divided by that of one. `over_apart` is the same divided by that of
    two that send nothing. `over_plain` is the time of two together divided by that of the arm without a teacher.
    """
    rows = []
    for arm, ways in times.items():
        middle = {way: median(seconds) * 1e3 for way, seconds in ways.items()}
        row: dict[str, Any] = {"arm": arm}
        for way, seconds in ways.items():
            low, _, high = quantiles(seconds, n=4)
            row[way] = {"ms": middle[way], "low": low * 1e3, "high": high * 1e3}
            row[way]["over_plain"] = middle[way] / (median(times["plain"][way]) * 1e3)
        row["over_one"] = middle["together"] / middle["one"]
        row["over_apart"] = middle["together"] / middle["apart"]
        rows.append(row)
    return rows


def to_markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    names = {"one": "one process, ms (quartiles)", "apart": "two apart", "together": "two together"}
    head = ["arm", *(cell for name in names.values() for cell in (name, "over plain"))]
    lines = [[*head, "together over one", "together over apart"]]
    for row in report["table"]:
        cells = [row["arm"]]
        for way in names:
            own = row[way]
            cells += [f"{own['ms']:.0f} ({own['low']:.0f} to {own['high']:.0f})", f"{own['over_plain']:.2f}x"]
        lines.append([*cells, f"{row['over_one']:.2f}x", f"{row['over_apart']:.2f}x"])
    return markdown(lines)


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, write the results and print the table.

    Args:
        arguments (list[str]): `name=value` for the fields of `Settings`.
    """
    settings = read_settings(Settings, arguments)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(settings, Path(folder))
    return publish(settings, summarize(times), to_markdown, cores=os.cpu_count(), threads=1)


if __name__ == "__main__":
    main(sys.argv[1:])
