"""What help() shows: every public name is documented and typed."""

from __future__ import annotations

import inspect
import pydoc
import typing
from importlib import metadata
from pathlib import Path

import pytest

import headwater


def test_every_public_name_is_there_once() -> None:
    assert sorted(headwater.__all__, key=lambda n: (n.islower(), n)) is not None
    assert len(set(headwater.__all__)) == len(headwater.__all__)
    assert all(hasattr(headwater, name) for name in headwater.__all__)


def test_the_version_is_the_packages() -> None:
    try:
        installed = metadata.version("headwater")
    except metadata.PackageNotFoundError:
        installed = headwater.__version__
    assert headwater.__version__ == installed
    project = (Path(headwater.__file__).parents[2] / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and "__init__.py" in project


def public() -> dict[str, object]:
    """Public functions, classes, and what classes have that is public, by name."""
    found: dict[str, object] = {}
    for name in headwater.__all__:
        value = getattr(headwater, name)
        if not callable(value) or typing.get_origin(value) is not None:
            continue
        found[name] = value
        if inspect.isclass(value):
            for method, attribute in vars(value).items():
                is_method = isinstance(attribute, (property, staticmethod)) or inspect.isfunction(attribute)
                if is_method and (not method.startswith("_") or method == "__init__" and value.__module__ != "headwater.errors"):
                    found[f"{name}.{method}"] = attribute
    return found


@pytest.mark.parametrize("name", [n for n in public() if not n.endswith(".__init__")])
def test_it_is_documented(name: str) -> None:
    value = public()[name]
    text = value.__doc__ or ""  # not one that is inherited
    generated = inspect.isclass(value) and text.startswith(f"{name}(")
    assert text and not generated, f"{name} has no text of its own"


@pytest.mark.parametrize("name", public())
def test_it_is_typed(name: str) -> None:
    value = public()[name]
    if inspect.isclass(value):
        return
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, staticmethod):
        value = value.__func__
    hints = value.__annotations__
    for parameter in inspect.signature(value).parameters.values():
        assert parameter.name in hints or parameter.name == "self", f"{name}: {parameter.name} has no type"
    assert "return" in hints


@pytest.mark.parametrize("name", [n for n, value in public().items() if inspect.isclass(value)])
def test_help_tells_of_every_field(name: str) -> None:
    """help() shows a class's own text and not what stands at its fields."""
    kind = getattr(headwater, name)
    for field in getattr(kind, "__annotations__", {}) if "__annotations__" in vars(kind) else ():
        assert field.startswith("_") or field in kind.__doc__, f"{name}.{field}"


def test_help_is_made() -> None:
    text = pydoc.plain(pydoc.render_doc(headwater))
    for name in ("class Client", "open(self", "window_left", "direct has the steps", "class TryAgainError", "batch(steps", "step_many(sessions"):
        assert name in text
