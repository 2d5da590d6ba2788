"""`yolo-kd enable` and `yolo-kd disable`: the kd arguments for the plain `yolo` command of this environment.

Python itself runs the code in a `.pth` file of site-packages at interpreter start.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from .errors import KDError

# Python runs each line of a .pth file on its own, so this is one line; it does nothing after an uninstallation
LINE = "import sys; exec('try:\\n import ultralytics_kd._autoload\\nexcept ImportError:\\n pass')\n"


def disabled() -> str:
    """Disable the plugin, and return what was done as a sentence."""
    file = disable()
    if file is None:
        return "'yolo' is Ultralytics' own: kd arguments were not enabled."
    return f"Disabled: 'yolo' is Ultralytics' own again ({file} was removed)."


def pth_file() -> Path:
    """Return the path of the file that enables the plugin."""
    return Path(sysconfig.get_path("purelib")) / "ultralytics_kd-autoload.pth"


def enabled() -> bool:
    """Return whether the plain `yolo` command of this environment understands kd arguments."""
    return pth_file().is_file()


def enable() -> Path:
    """Let every Python process of this environment add the kd arguments when it imports Ultralytics.

    Returns:
        (Path): The file that was written.

    Raises:
        KDError: If site-packages cannot be written.
    """
    file = pth_file()
    try:
        file.write_text(LINE, encoding="utf-8")
    except OSError as e:
        raise KDError(f"'{file}' cannot be written: {e.strerror}; use a virtual environment of your own.") from e
    return file


def disable() -> Path | None:
    """Undo [enable][ultralytics_kd.activation.enable]; nothing remains.

    Returns:
        (Path | None): The file that was removed, None if there was none.

    Raises:
        KDError: If the file cannot be removed.
    """
    file = pth_file()
    try:
        file.unlink()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise KDError(f"'{file}' cannot be removed: {e.strerror}.") from e
    return file
