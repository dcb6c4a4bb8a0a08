package attention

import (
	"slices"
	"strings"
)

// What AVX-512 and AVX2 do otherwise on other processors is tried on this one.
func init() {
	for _, k := range []kernel{
		assembled("avx512", &avx512), assembled("avx512 on a Zen 4", &zen4), assembled("avx512 on a Zen 5", &zen5),
		assembled("avx2", &avx2), assembled("avx2 on a Zen 3", &avx2Zen3), assembled("avx2 on a Zen 4", &avx2Zen4),
	} {
		name, _, _ := strings.Cut(k.name, " ")
		used := func(used kernel) bool { return used.vector == k.vector }
		if slices.Contains(KernelNames(), name) && !slices.ContainsFunc(kernels, used) {
			otherKernels = append(otherKernels, k)
		}
	}
}
