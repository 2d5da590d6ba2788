"""Imported at interpreter start after `yolo-kd enable`: adds the kd arguments to Ultralytics once it is imported.

It imports `sys` only, so that a program that never imports Ultralytics loads this file and nothing else.
"""

import sys

_HOOKS = {
    "ultralytics.cfg": ("ultralytics_kd.config.registration", "register_arguments"),
    "ultralytics.models": ("ultralytics_kd.install", "install"),
}
_failed: list[str] = []  # the module of the hook that failed


class _Finder:
    """A meta path finder that lets the others find two modules of Ultralytics, and calls a hook after each has run."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec that another finder returns, with a loader that calls the hook after the module has run."""
        if name not in _HOOKS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, _HOOKS[name])
                return spec
        return None


class _Loader:
    """The module's own loader, and a function to call once the module has run."""

    def __init__(self, loader, hook):
        self.loader, self.hook = loader, hook

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        module.__loader__ = module.__spec__.loader = self.loader
        name, function = self.hook
        if _failed:
            return
        try:
            __import__(name)
            # The function does not exist yet if its own module is what imports Ultralytics; that module then calls it
            getattr(sys.modules[name], function, lambda: None)()
        except Exception as e:  # an untested release of Ultralytics, perhaps: its own commands must go on
            _failed.append(name)
            changes = sys.modules.get("ultralytics_kd.config.changes")
            if changes is not None:  # an earlier hook's changes would let Ultralytics accept a teacher and ignore it
                changes.undo()
            sys.stderr.write(f"WARNING: ultralytics_kd adds nothing to Ultralytics here: {e}\n")


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
