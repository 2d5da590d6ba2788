"""The quick start's notebook: what is stored of it, and a run from top to bottom."""

from __future__ import annotations

import ast
import base64
import importlib
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")  # the oldest and newest releases are tested without notebooks
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from IPython.core.inputtransformer2 import TransformerManager  # noqa: E402
from notebook_runs import BYTES, NOTEBOOK, PICTURE, ROOT, execute, read, small_png, stripped  # noqa: E402

HOME = r"(?:^|[\s\"'(=])(?:/(?:home|root|tmp|Users|work|content|mnt)/|[A-Za-z]:\\)"  # begins of absolute paths


def code() -> dict[str, ast.Module]:
    """Return the parsed code of each cell by its id, with magics as IPython runs them."""
    transform = TransformerManager().transform_cell
    return {cell.id: ast.parse(transform(cell.source)) for cell in read().cells if cell.cell_type == "code"}


def test_the_notebook_is_valid_and_stored_as_the_script_stores_it():
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert nbformat.writes(stripped(notebook)) + "\n" == NOTEBOOK.read_text(encoding="utf-8")


def test_two_small_pictures_are_stored_and_no_other_output():
    outputs = {cell.id: cell.outputs for cell in read().cells if cell.get("outputs")}
    assert list(outputs) == [cell.id for cell in read().cells if PICTURE in cell.metadata.get("tags", ())]
    assert len(outputs) == 2
    for (output,) in outputs.values():
        assert list(output.data) == ["image/png"]
        data = base64.b64decode(output.data["image/png"])
        assert len(data) < BYTES and Image.open(io.BytesIO(data)).width > 600


def test_outputs_are_dropped_but_for_tagged_pictures():
    notebook = read()
    picture = io.BytesIO()
    Image.new("RGB", (2200, 300), "white").save(picture, "PNG")
    data = {"text/plain": "x", "image/png": base64.b64encode(picture.getvalue()).decode()}
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count, cell.metadata["execution"] = number, {"iopub.status.busy": "now"}
        cell.outputs = [nbformat.v4.new_output("stream", text="x"), nbformat.v4.new_output("display_data", data)]
    copy = stripped(notebook)
    kept = [output for cell in copy.cells for output in cell.get("outputs", ())]
    assert [list(output.data) for output in kept] == [["image/png"]] * 2
    assert Image.open(io.BytesIO(base64.b64decode(kept[0].data["image/png"]))).size == (1100, 150)
    assert "iopub" not in nbformat.writes(copy) and all(c.get("execution_count") is None for c in copy.cells)


def test_a_small_picture_is_stored_as_it_is():
    picture = io.BytesIO()
    Image.linear_gradient("L").save(picture, "PNG")
    once = small_png(picture.getvalue())
    assert small_png(once) == once


def test_every_cell_of_code_compiles_and_stands_below_a_text():
    cells = read().cells
    assert all(compile(tree, cell, "exec") for cell, tree in code().items())
    for above, cell in pairwise(cells):
        assert cell.cell_type == "markdown" or above.cell_type == "markdown", cell.id


def test_what_the_notebook_imports_is_there():
    for tree in code().values():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_no_machine_shows_in_the_notebook():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    assert re.search(HOME, 'Path("/home/me/data.yaml")') and re.search(HOME, text) is None
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_links_of_the_notebook_lead_to_pages_that_are_there():
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(https://github\.com/ultralytics-kd/ultralytics_kd/blob/main/([^)#]+)\)", text)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
    assert len(links) == text.count("](")


@pytest.mark.nightly
def test_the_notebook_runs_offline_from_top_to_bottom_and_the_distilled_student_gains(tmp_path):
    notebook = execute(read(), tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    table = json.loads((folder / "bench" / "bench.json").read_text())["table"]
    scores = {row["arm"]: row["score"] for row in table if row["head"] == "nms"}
    assert scores["kd"] > scores["alone"] + 0.02 and set(scores) == {"alone", "builtin", "kd"}
    shown = {
        cell.id: {kind for output in cell.get("outputs", ()) for kind in output.get("data", ())}
        for cell in notebook.cells
    }
    assert "text/markdown" in shown["table"] and "text/html" in shown["report"] and "image/jpeg" in shown["predict"]
    assert [len(cell.outputs) for cell in stripped(notebook).cells if PICTURE in cell.metadata.get("tags", ())] == [
        1,
        1,
    ]
    assert list(Path(folder).rglob("best.torchscript"))
