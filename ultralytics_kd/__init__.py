"""Knowledge distillation for Ultralytics YOLO: a big frozen teacher guides a small student while it trains.

Names are imported on first use, so that importing the package costs nothing: after `yolo-kd enable` every Python
program of the environment does so at its start. Even `typing` stays out for that.
"""

import sys

__version__ = "0.1.0"
__all__ = ("YOLO", "KDDetectionTrainer", "KDError", "__version__")

_HOMES = {"YOLO": ".model", "KDDetectionTrainer": ".trainer", "KDError": ".errors"}
# Modules that lean on nothing of Ultralytics, and on no more than the arguments do; all others lean on more
_FREE = {"__main__", "_autoload", "activation", "compat", "errors"}
_ARGUMENTS = {"cli", "config", "files", "install"}

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    from .errors import KDError
    from .model import YOLO
    from .trainer import KDDetectionTrainer


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Gate:
    """A meta path finder that finds nothing, but looks at Ultralytics before a module of ours is imported.

    Where a part of Ultralytics is missing, the first to say so is then a sentence, and no import in the middle of ours.
    """

    open = False  # whether all has been looked at

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Check what the module leans on."""
        package, _, rest = name.partition(".")
        module = rest.partition(".")[0]
        if self.open or package != __name__ or not module or module in _FREE:
            return
        from .compat import CONFIGURATION, check_parts, check_ultralytics

        if module in _ARGUMENTS:
            check_parts(CONFIGURATION)
        else:
            check_ultralytics()
            self.open = True  # it stays in its place, as removing it would let Python miss the finder behind it


sys.meta_path.insert(0, _Gate())
