package shard

import (
	"fmt"
	"slices"
	"strings"

	"headwater.example/tensor"
)

// storages are the types in which keys and values are held. The index is the type's number on the wire and in files.
var storages = [...]struct {
	dtype tensor.DType
	name  string
}{
	1: {tensor.F32, "f32"},
	2: {tensor.F16, "f16"},
	3: {tensor.BF16, "bf16"},
	4: {tensor.I8, "int8"},
}

// StorageTypes returns the types in which keys and values can be held, by their numbers.
func StorageTypes() []tensor.DType {
	types := make([]tensor.DType, 0, len(storages)-1)
	for _, s := range storages[1:] {
		types = append(types, s.dtype)
	}
	return types
}

// StorageNumber returns the number of a storage type on the wire and in files, 0 for a type that is none.
func StorageNumber(dtype tensor.DType) uint8 {
	for number, s := range storages {
		if number > 0 && s.dtype == dtype {
			return uint8(number)
		}
	}
	return 0
}

// StorageByNumber is the inverse of StorageNumber.
func StorageByNumber(number uint8) (tensor.DType, error) {
	if number == 0 || int(number) >= len(storages) {
		return 0, fmt.Errorf("storage type %d is unknown", number)
	}
	return storages[number].dtype, nil
}

// StorageNames returns the names that ParseStorage reads, by their types' numbers.
func StorageNames() []string {
	names := make([]string, 0, len(storages)-1)
	for _, s := range storages[1:] {
		names = append(names, s.name)
	}
	return names
}

// StorageName returns "f32", "f16", "bf16" or "int8", and for a type that is none of these what tensor calls it.
func StorageName(dtype tensor.DType) string {
	if number := StorageNumber(dtype); number != 0 {
		return storages[number].name
	}
	return dtype.String()
}

// ParseStorage reads a name of a storage type.
func ParseStorage(name string) (tensor.DType, error) {
	if i := slices.Index(StorageNames(), name); i >= 0 {
		return storages[i+1].dtype, nil
	}
	return 0, fmt.Errorf("storage type %.40q is none of %s", name, strings.Join(StorageNames(), ", "))
}
