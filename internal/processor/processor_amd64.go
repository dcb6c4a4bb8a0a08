package processor

import (
	"github.com/klauspost/cpuid/v2"
)

var features = func() (all []Feature) {
	for _, f := range []struct {
		name Feature
		id   cpuid.FeatureID
	}{
		{AVX2, cpuid.AVX2},
		{FMA, cpuid.FMA3},
		{F16C, cpuid.F16C},
		{BMI1, cpuid.BMI1},
		{BMI2, cpuid.BMI2},
		{POPCNT, cpuid.POPCNT},
		{AVX512F, cpuid.AVX512F},
		{AVX512BW, cpuid.AVX512BW},
		{AVX512DQ, cpuid.AVX512DQ},
		{AVX512VL, cpuid.AVX512VL},
		{AVX512BF16, cpuid.AVX512BF16},
	} {
		if cpuid.CPU.Supports(f.id) {
			all = append(all, f.name)
		}
	}
	if here.lacks() == nil {
		all = append(all, AMXTile, AMXBF16)
	}
	return all
}()

// Name is what the processor calls itself.
func Name() string { return cpuid.CPU.BrandName }

// AMD says whether AMD makes it, and it is of that family or a later one.
func AMD(family int) bool { return cpuid.CPU.VendorID == cpuid.AMD && cpuid.CPU.Family >= family }

// Families of AMD's processors.
const (
	Zen3 = 0x19 // and Zen 4
	Zen5 = 0x1a
)

// SlowPEXT says that PEXT and PDEP are microcode, as AMD's processors before Zen 3 have them.
func SlowPEXT() bool { return AMD(0) && !AMD(Zen3) }
