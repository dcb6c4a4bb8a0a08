#!/usr/bin/env python
"""Runs the program coord of the package headwater in the place of this process, which so has its signals and exit code."""

import os
import sys
from importlib.util import find_spec

spec = find_spec("headwater")  # without importing it, which takes longer than the program
if spec is None or spec.origin is None:
    sys.exit("coord: the Python package headwater is not there")
path = os.path.join(os.path.dirname(spec.origin), "bin", "coord")
try:
    os.execv(path, ["coord", *sys.argv[1:]])
except OSError as e:
    sys.exit(f"coord: {path}: {e.strerror}")
