"""The recipe of docs/job-file.md for arrays that were transposed: the file holds the numbers that were meant."""

import pathlib
import re

import numpy as np
import pytest

safetensors = pytest.importorskip("safetensors.numpy")

PAGE = pathlib.Path(__file__).parents[3] / "docs/job-file.md"


def test_transposed_arrays_are_stored_as_meant(tmp_path, monkeypatch):
    (recipe,) = [
        code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "transpose" in code and "save_file" in code
    ]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(recipe, str(PAGE), "exec"), names)
    stored = safetensors.load_file("job.safetensors")
    assert sorted(stored) == ["k", "q", "v"]
    for name, array in stored.items():
        np.testing.assert_array_equal(array, names["heads_first"][name].transpose(1, 0, 2))
