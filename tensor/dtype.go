package tensor

import "fmt"

// DType is the type of a tensor's elements. The zero value is no type.
type DType uint8

// The element types, by the names of safetensors: booleans of one byte, integers, IEEE binary16, bfloat16, IEEE
// binary32 and binary64.
const (
	Bool DType = iota + 1
	U8
	I8
	I16
	U16
	I32
	U32
	I64
	U64
	F16
	BF16
	F32
	F64
)

var dtypes = [...]struct {
	name string
	size int
}{
	Bool: {"BOOL", 1},
	U8:   {"U8", 1},
	I8:   {"I8", 1},
	I16:  {"I16", 2},
	U16:  {"U16", 2},
	I32:  {"I32", 4},
	U32:  {"U32", 4},
	I64:  {"I64", 8},
	U64:  {"U64", 8},
	F16:  {"F16", 2},
	BF16: {"BF16", 2},
	F32:  {"F32", 4},
	F64:  {"F64", 8},
}

// ParseDType returns the type that safetensors calls name, such as "F32" or "BOOL".
func ParseDType(name string) (DType, error) {
	for i, d := range dtypes {
		if d.name == name && name != "" {
			return DType(i), nil
		}
	}
	return 0, fmt.Errorf("unknown dtype %s, must be one of BOOL, U8, I8, I16, U16, I32, U32, I64, U64, F16, BF16, F32, F64", quote(name))
}

func (d DType) valid() bool { return d >= Bool && int(d) < len(dtypes) }

// Size returns the bytes of one element, 0 for no type.
func (d DType) Size() int {
	if !d.valid() {
		return 0
	}
	return dtypes[d].size
}

// String returns the name that ParseDType takes.
func (d DType) String() string {
	if !d.valid() {
		return fmt.Sprintf("DType(%d)", uint8(d))
	}
	return dtypes[d].name
}

// MarshalText writes the name that ParseDType takes.
func (d DType) MarshalText() ([]byte, error) {
	if !d.valid() {
		return nil, fmt.Errorf("%s has no name", d)
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads the name that ParseDType takes.
func (d *DType) UnmarshalText(text []byte) error {
	parsed, err := ParseDType(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
