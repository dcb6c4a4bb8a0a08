package tensor

import (
	"fmt"
	"strings"
)

// npyTypes are numpy's codes of the element types, as it writes them. bfloat16 is what ml_dtypes makes of it: two bytes of
// no type.
var npyTypes = map[string]DType{
	"|b1": Bool, "|u1": U8, "|i1": I8, "<i2": I16, "<u2": U16, "<i4": I32, "<u4": U32, "<i8": I64, "<u8": U64,
	"<f2": F16, "<V2": BF16, "<f4": F32, "<f8": F64,
}

func npyType(dt DType) string {
	for name, d := range npyTypes {
		if d == dt {
			return name
		}
	}
	return ""
}

// npyNames are other names that numpy.dtype takes, and other writers use. Those whose size depends on the machine ("int",
// "l") are not among them.
var npyNames = map[string]DType{
	"?": Bool, "bool": Bool, "bool_": Bool,
	"b": I8, "byte": I8, "int8": I8, "B": U8, "ubyte": U8, "uint8": U8,
	"h": I16, "short": I16, "int16": I16, "H": U16, "ushort": U16, "uint16": U16,
	"i": I32, "intc": I32, "int32": I32, "I": U32, "uintc": U32, "uint32": U32,
	"q": I64, "longlong": I64, "int64": I64, "Q": U64, "ulonglong": U64, "uint64": U64,
	"e": F16, "half": F16, "float16": F16,
	"f": F32, "single": F32, "float32": F32,
	"d": F64, "double": F64, "float64": F64,
}

// npyRefused says of numpy's kinds of types that are no numbers of this package what they are.
var npyRefused = map[byte]string{
	'O': "Python objects", 'U': "text", 'S': "text", 'a': "text", 'c': "complex numbers", 'F': "complex numbers", 'D': "complex numbers",
	'V': "bytes without a type", 'M': "dates", 'm': "spans of time", 'f': "floating-point numbers of another size", 'g': "floating-point numbers of another size",
}

// npyReadable is the advice that goes with a type that is not read.
const npyReadable = "store bool, int8 to int64, uint8 to uint64, float16, bfloat16 (of ml_dtypes), float32 or float64, as array.astype(numpy.float32) does"

// parseNPYType reads the name of an element type as numpy.dtype does: "<f4", "=f4", "f4", "float32".
func parseNPYType(descr string) (DType, error) {
	if dt, ok := npyTypes[descr]; ok {
		return dt, nil
	}
	order, code := "", descr
	if descr != "" && strings.Contains("<=|>", descr[:1]) {
		order, code = descr[:1], descr[1:]
	}
	dt, ok := npyNames[code]
	if !ok {
		for _, written := range []string{"<", "|"} {
			if dt, ok = npyTypes[written+code]; ok {
				break
			}
		}
	}
	switch {
	case ok && dt == BF16: // any two bytes without a type, but for the spelling of ml_dtypes
		ok = false
	case ok && order == ">" && dt.Size() > 1:
		return 0, fmt.Errorf("dtype %s is big-endian: store it as little-endian, array.astype(array.dtype.newbyteorder('<'))", quote(descr))
	}
	if ok {
		return dt, nil
	}
	if code != "" {
		if what := npyRefused[code[0]]; what != "" {
			return 0, fmt.Errorf("dtype %s is not read, it is %s: %s", quote(descr), what, npyReadable)
		}
	}
	return 0, fmt.Errorf("unknown dtype %s: %s", quote(descr), npyReadable)
}
