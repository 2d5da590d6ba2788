"""Imported at interpreter start after `yolo-kd enable`: waits for Ultralytics, then adds the kd arguments to it.

Standard library only, and next to nothing of it: programs that never import Ultralytics pay for this file alone.
"""

import sys

_HOOKS = {
    "ultralytics.cfg": ("ultralytics_kd.config.registration", "register_arguments"),
    "ultralytics.models": ("ultralytics_kd.install", "install"),
}


class _Finder:
    """A meta path finder that lets others find two modules of Ultralytics, and follows up when they have loaded."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec that the other finders find, with a loader that runs the hook after the module."""
        if name not in _HOOKS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, _HOOKS[name])
                return spec
        return None


class _Loader:
    """The module's own loader, and a function to call when the module has run."""

    def __init__(self, loader, hook):
        self.loader, self.hook = loader, hook

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        module.__loader__ = module.__spec__.loader = self.loader
        home, function = self.hook
        __import__(home)
        # Absent while our own module is the one that is importing Ultralytics: it then sees to this itself
        getattr(sys.modules[home], function, lambda: None)()


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
