"""Knowledge distillation for Ultralytics YOLO: a big frozen teacher guides a small student while it trains.

Names are imported on first use, so that importing the package costs nothing: after `yolo-kd enable` every Python
program of the environment imports it at its start. Therefore not even `typing` is imported here.
"""

import sys

__all__ = ("YOLO", "KDDetectionTrainer", "KDError", "__version__")

_MODULES = {"YOLO": ".model", "KDDetectionTrainer": ".trainer", "KDError": ".errors"}
# Modules that need nothing of Ultralytics, and modules that need its configuration alone; all others need all parts
_NEED_NOTHING = {"__main__", "_autoload", "activation", "compat", "errors", "screen"}
_NEED_ARGUMENTS = {"cli", "config", "files", "install"}

TYPE_CHECKING = False  # type checkers read it as True
if TYPE_CHECKING:
    from .errors import KDError
    from .model import YOLO
    from .trainer import KDDetectionTrainer

    __version__: str


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    if name == "__version__":
        globals()[name] = _read_version()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _read_version() -> str:
    """Return the version that was installed; the build takes it from the newest tag."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0+unknown"  # a checkout that was never installed


class _Gate:
    """A meta path finder that finds no module, but checks Ultralytics before a module of this package is imported.

    If a part of Ultralytics is missing, the error is then a sentence that says what to install, whichever module is
    imported first. Without this check the error would be an ImportError from the middle of some module.
    """

    open = False  # whether all parts have been checked

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Check the parts of Ultralytics that the module needs."""
        package, _, rest = name.partition(".")
        module = rest.partition(".")[0]
        if self.open or package != __name__ or not module or module in _NEED_NOTHING:
            return
        from .compat import CONFIGURATION, check_parts, check_ultralytics

        if module in _NEED_ARGUMENTS:
            check_parts(CONFIGURATION)
        else:
            check_ultralytics()
            self.open = True  # not removed: Python is iterating over the finders and would skip the next


sys.meta_path.insert(0, _Gate())
