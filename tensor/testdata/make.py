"""Writes the files that numpy, ml_dtypes and safetensors make of the tensors that interop_test.go expects.

Run by hand, python3 make.py, after pip install numpy ml_dtypes safetensors; the tests need only the files.
"""
import json
import os
import zipfile

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

here = os.path.dirname(os.path.abspath(__file__))
path = lambda name: os.path.join(here, name)

types = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "U16": np.uint16, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F32": np.float32, "F64": np.float64,
}


def values(t):
    """Element i is i mod 2 for booleans, i for integers, and 1.5·i − 2 for floats; shape [2, 3]."""
    i = np.arange(6, dtype=np.float64).reshape(2, 3)
    if t is np.bool_:
        return (i % 2).astype(t)
    return (i if np.issubdtype(t, np.integer) else 1.5 * i - 2).astype(t)


tensors = {name: values(t) for name, t in types.items()}
metadata = {"headwater": '{"kind":"attention"}', "é\n": "ü"}

save_file(tensors, path("safetensors.safetensors"), metadata=metadata)
np.savez(path("stored.npz"), **tensors)
np.savez_compressed(path("deflated.npz"), **tensors)
with zipfile.ZipFile(path("deflated.npz"), "a", zipfile.ZIP_DEFLATED) as z:
    z.writestr("__metadata__.json", json.dumps(metadata))
np.save(path("array.npy"), tensors["F32"])
np.save(path("scalar.npy"), np.float64(2.5))
np.save(path("vector.npy"), np.arange(5, dtype=np.int64))
np.save(path("empty.npy"), np.zeros((3, 0), dtype=np.float32))
np.save(path("fortran.npy"), np.asfortranarray(tensors["F32"]))
np.save(path("bigendian.npy"), tensors["F32"].astype(">f4"))
np.save(path("complex.npy"), tensors["F32"].astype(np.complex64))
np.save(path("structured.npy"), np.zeros(2, dtype=[("a", "<f4"), ("b", "<i4")]))
