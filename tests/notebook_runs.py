"""Runs the quick start's notebook, and says which of its outputs are stored.

`python tests/notebook_runs.py` runs it from top to bottom and stores its two pictures anew. Run it after a change that
shows in them. It takes minutes.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PICTURE = "picture"  # tag of a cell whose picture is stored
WIDTH, COLOURS, BYTES = 1100, 128, 150_000  # of a stored picture, at most
# A download fails at once: nothing listens at the proxy
OFFLINE = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
}


def read() -> NotebookNode:
    """Return the notebook as it is stored."""
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run a notebook from top to bottom in a folder, without the network, and return it with its outputs."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    client = NotebookClient(notebook, timeout=7200, resources={"metadata": {"path": str(folder)}})
    return client.execute(env={**os.environ, **OFFLINE, "PYTHONPATH": path})


def stripped(notebook: NotebookNode) -> NotebookNode:
    """Return a copy as it is stored: without outputs but for the pictures of tagged cells, which are made small."""
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type != "code":
            continue
        shown = PICTURE in cell.metadata.get("tags", ())
        cell.execution_count = None
        cell.metadata = {"tags": [PICTURE]} if shown else {}
        cell.outputs = [_picture(output) for output in cell.outputs if shown and "image/png" in output.get("data", {})]
    return copy


def _picture(output: NotebookNode) -> NotebookNode:
    """Return an output with nothing but its picture, small."""
    data = small_png(base64.b64decode(output.data["image/png"]))
    return nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(data).decode()})


def small_png(data: bytes) -> bytes:
    """Return a picture with a limited width and number of colours, as a PNG; one that is small already as it is."""
    image = Image.open(io.BytesIO(data))
    if image.width <= WIDTH and image.mode == "P":
        return data
    if image.width > WIDTH:
        image = image.convert("RGB").resize(
            (WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Run the notebook, and store it with its pictures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notebook = stripped(execute(read(), Path(folder)))
    nbformat.write(notebook, NOTEBOOK)
    sizes = [len(base64.b64decode(o.data["image/png"])) for cell in notebook.cells for o in cell.get("outputs", ())]
    print(f"{time.perf_counter() - start:.0f} seconds; stored pictures of {sizes} bytes")


if __name__ == "__main__":
    main()
