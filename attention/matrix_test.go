package attention

import "testing"

// TestKernelsWithAMatrixUnit: what a kernel's name says of it is what it has.
func TestKernelsWithAMatrixUnit(t *testing.T) {
	for i := range kernels {
		if k := &kernels[i]; HasMatrixUnit(k.name) != k.vector.hasMatrix() {
			t.Errorf("%s: has a matrix unit: %v, its name says %v", k.name, k.vector.hasMatrix(), HasMatrixUnit(k.name))
		}
	}
}
