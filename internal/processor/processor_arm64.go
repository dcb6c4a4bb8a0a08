package processor

import "github.com/klauspost/cpuid/v2"

// Every processor of this architecture that Go runs on has it.
var features = []Feature{ASIMD}

// Name is what the processor calls itself, where it can be read.
func Name() string { return cpuid.CPU.BrandName }
