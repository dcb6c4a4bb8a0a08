package attention

import "slices"

// What AVX-512 does otherwise on other processors is tried on this one.
func init() {
	if !slices.Contains(KernelNames(), "avx512") {
		return
	}
	for _, k := range []kernel{assembled("avx512", &avx512), assembled("avx512 on a Zen 4", &zen4), assembled("avx512 on a Zen 5", &zen5)} {
		if !slices.ContainsFunc(kernels, func(used kernel) bool { return used.vector == k.vector }) {
			otherKernels = append(otherKernels, k)
		}
	}
}
