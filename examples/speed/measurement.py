"""What the measurements of this folder share: settings from a command line, the machine, and the files of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import ultralytics
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import get_cpu_info

import ultralytics_kd

SettingsT = TypeVar("SettingsT")


def read_settings(kind: type[SettingsT], arguments: Sequence[str]) -> SettingsT:
    """Return settings from `name=value`, each of the type of its default.

    Args:
        kind (type): A dataclass whose fields have defaults.
        arguments (Sequence[str]): `name=value` for its fields.

    Raises:
        ValueError: If a setting is unknown or has no value.
    """
    types = {f.name: type(f.default) for f in fields(kind)}  # type: ignore[arg-type]
    pairs = [argument.partition("=") for argument in arguments]
    if unknown := [name for name, equals, _ in pairs if name not in types or not equals]:
        raise ValueError(f"unknown settings {', '.join(unknown)}: give name=value with {', '.join(types)}")
    given = {name: value for name, _, value in pairs}
    return kind(**{k: v != "False" if types[k] is bool else types[k](v) for k, v in given.items()})


def machine(device: str = "", **more: Any) -> dict[str, Any]:
    """Return what a measurement was made on: the device, and the releases.

    Args:
        device (str): Name of the device; that of the CPU if empty.
        **more (Any): Further entries, which come after the device.
    """
    return {
        "device": device or get_cpu_info(),
        **more,
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
        "ultralytics_kd": ultralytics_kd.__version__,
    }


def save(report: dict[str, Any], text: str, out: str | Path) -> None:
    """Write a report as JSON, and its table beside it.

    Args:
        report (dict): The report.
        text (str): Its table in Markdown.
        out (str | Path): File for the report, `.json`.
    """
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(text, encoding="utf-8")


def publish(
    settings: Any, table: list[dict[str, Any]], to_markdown: Callable[[dict[str, Any]], str], **facts: Any
) -> dict[str, Any]:
    """Write the report of a measurement, print its table, and return it.

    Args:
        settings (Any): A dataclass with the settings; its field `out` is the file for the report, `.json`.
        table (list[dict]): Rows of the report.
        to_markdown (Callable): Returns the table of a report.
        **facts (Any): Further entries on the machine.
    """
    report = {
        "settings": {k: v for k, v in asdict(settings).items() if k != "out"},
        "machine": machine(**facts),
        "table": table,
    }
    text = to_markdown(report)
    save(report, text, settings.out)
    LOGGER.info(text)
    return report
