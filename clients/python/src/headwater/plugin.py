"""Makes attention "headwater" known to transformers, whichever of the two is imported first, without importing torch before the
program does."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

# Who loads a model has imported it, and it has the tables of attention functions.
_MODULE = "transformers.modeling_utils"


class _Watch(importlib.abc.MetaPathFinder):
    """Sees the library's module being imported, and has it loaded by its own loader and then told of headwater."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:  # fmt: skip
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module

            def execute_and_tell(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("headwater.transformers.interface").register()

            loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Has the library told now if it is there already, else once it is imported."""
    if _MODULE in sys.modules:
        importlib.import_module("headwater.transformers.interface").register()
    else:
        sys.meta_path.insert(0, _Watch())
