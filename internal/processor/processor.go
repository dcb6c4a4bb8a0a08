// Package processor says what the processor has of what the routines in assembly use. It is read once, when the program starts.
package processor

import "slices"

// Feature is a set of instructions, by the name that Linux has for it in /proc/cpuinfo.
type Feature string

// The features that are looked for.
const (
	AVX2       Feature = "avx2"
	FMA        Feature = "fma"
	F16C       Feature = "f16c"
	BMI1       Feature = "bmi1"
	BMI2       Feature = "bmi2"
	POPCNT     Feature = "popcnt"
	AVX512F    Feature = "avx512f"
	AVX512BW   Feature = "avx512bw"
	AVX512DQ   Feature = "avx512dq"
	AVX512VL   Feature = "avx512vl"
	AVX512BF16 Feature = "avx512_bf16"
	// AMXTile and AMXBF16 say that the system saves tiles too. A process uses none before Tiles has said that it may.
	AMXTile Feature = "amx_tile"
	AMXBF16 Feature = "amx_bf16"
	ASIMD   Feature = "asimd"
)

// Names are the features that this machine has, in the order above.
func Names() []string {
	var words []string
	for _, f := range features {
		words = append(words, string(f))
	}
	return words
}

// Has says whether this machine has all of them.
func Has(all ...Feature) bool {
	for _, f := range all {
		if !slices.Contains(features, f) {
			return false
		}
	}
	return true
}
