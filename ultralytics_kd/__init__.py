"""Knowledge distillation for Ultralytics YOLO: a big frozen teacher guides a small student while it trains.

Names are imported on first use, so that importing the package costs nothing: after `yolo-kd enable` every Python
program of the environment does so at its start. Even `typing` stays out for that.
"""

__version__ = "0.1.0"
__all__ = ("YOLO", "KDDetectionTrainer", "KDError", "__version__")

_HOMES = {"YOLO": ".model", "KDDetectionTrainer": ".trainer", "KDError": ".errors"}

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
