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

# What numpy.load reads as well, and what no one else writes so: other names of types, lengths of Python 2, members without
# the ending, and compressions that only Python's zipfile makes.
def array(descr, data, shape="(2L, 3L)"):
    header = "{'descr': %s, 'fortran_order': False, 'shape': %s, }" % (descr, shape)
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def archive(name, method, ending):
    with zipfile.ZipFile(path(name), "w", method) as z:
        for key, t in (("native", "'=f4'"), ("bare", "'f4'"), ("named", "'float32'"), ("letter", "u'f'")):
            member = zipfile.ZipInfo(key + ending)
            member.compress_type = method
            z.writestr(member, array(t, tensors["F32"].tobytes()))


archive("python2.npz", zipfile.ZIP_DEFLATED, "")
archive("bzip2.npz", zipfile.ZIP_BZIP2, ".npy")
archive("lzma.npz", zipfile.ZIP_LZMA, ".npy")
for name in ("python2.npz", "bzip2.npz", "lzma.npz"):
    with np.load(path(name)) as z:
        assert all(np.array_equal(z[key], tensors["F32"]) for key in ("native", "bare", "named", "letter")), name
np.save(path("objects.npy"), np.array([None, 1]), allow_pickle=True)
np.save(path("text.npy"), np.array(["sea"]))
np.save(path("float8.npy"), np.zeros(2, ml_dtypes.float8_e4m3fn))
np.save(path("dates.npy"), np.array(["2026-01-01"], "datetime64[D]"))
