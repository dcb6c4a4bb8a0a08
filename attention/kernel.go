package attention

import (
	"fmt"
	"math"
	"os"
	"strings"
	"sync/atomic"
)

// kernel is the part of attention that touches every element of K and V. Every kernel computes the same bits; the
// portable one below says which.
type kernel struct {
	name string
	// vector, if there is one, does the same in assembly, from the storage type and many rows at a time.
	vector *vector
	// scores carries on the chains s [rows][64] with the products q·k over n dimensions ascending: row r of q is
	// q[r·stride:][:n], k is [n][64].
	scores func(s, q, k []float32, rows, stride, n int)
	// softmax takes the scores s [64] of a page, −Inf where a position is invisible, and replaces them by their weights
	// exp(s − m), +0 where invisible. It returns their maximum m and the sum l of the weights; m is −Inf, and s and l
	// mean nothing, if nothing is visible, and NaN if any score is.
	softmax func(s *[PageLen]float32) (m, l float32)
	// accumulate sets o to the chains Σ w[t]·v[t] over t ascending, each begun at +0: v is [64][stride], of which it
	// reads len(o) columns, and no row t whose w[t] is 0.
	accumulate func(o []float32, w *[PageLen]float32, v []float32, stride int)
	// merge sets o[i] = fma(o[i], a, x[i]·b), the product rounded; x is as long as o.
	merge func(o, x []float32, a, b float32)
	// divide sets dst[i] = o[i]/l + 0, and says whether all of them are finite; o is at least as long.
	divide func(dst, o []float32, l float32) bool
}

// KernelVariable names the kernel to use, in the environment; unset or empty leaves the choice to the machine.
const KernelVariable = "HEADWATER_KERNEL"

// selection is the kernel in use, or why there is none.
type selection struct {
	kernel *kernel
	err    error
}

var selected atomic.Pointer[selection]

func init() {
	k, err := findKernel(os.Getenv(KernelVariable))
	if err != nil {
		err = fmt.Errorf("%s: %w", KernelVariable, err)
	}
	selected.Store(&selection{kernel: k, err: err})
}

// KernelNames names what this machine can run, the best first; portable is always the last.
func KernelNames() []string {
	var names []string
	for _, k := range kernels {
		names = append(names, k.name)
	}
	return names
}

// KernelName names the kernel that Attend and Project use: the best that this machine has, unless SelectKernel or
// HEADWATER_KERNEL in the environment chose another. It is empty if what they chose can not run here.
func KernelName() string {
	if s := selected.Load(); s.err == nil {
		return s.kernel.name
	}
	return ""
}

// HasMatrixUnit says whether the kernel that Attend uses has a matrix unit for arithmetic in tiles. One that has none takes longer
// for it than for Chain.
func HasMatrixUnit() bool {
	s := selected.Load()
	return s.err == nil && s.kernel.vector.hasMatrix()
}

// KernelError says why the choice in the environment can not run here; Attend and Project return it. It is nil after a
// successful SelectKernel.
func KernelError() error { return selected.Load().err }

// SelectKernel chooses the kernel for the calls of Attend and Project that begin from now on: one of KernelNames, or the
// empty string for the best. After an error the one before stays in use.
func SelectKernel(name string) error {
	k, err := findKernel(name)
	if err != nil {
		return err
	}
	selected.Store(&selection{kernel: k})
	return nil
}

func findKernel(name string) (*kernel, error) {
	if name == "" {
		return &kernels[0], nil
	}
	for i := range kernels {
		if kernels[i].name == name {
			return &kernels[i], nil
		}
	}
	return nil, fmt.Errorf("kernel %q is unknown or not supported by this machine, which has %s", name, strings.Join(KernelNames(), ", "))
}

var portable = kernel{
	name:       "portable",
	scores:     portableScores,
	softmax:    portableSoftmax,
	accumulate: portableAccumulate,
	merge:      portableMerge,
	divide:     portableDivide,
}

func portableScores(s, q, k []float32, rows, stride, n int) {
	for r := range rows {
		dst := s[r*PageLen:][:PageLen]
		row := q[r*stride:][:n]
		i := 0
		for ; i+4 <= n; i += 4 {
			tile := k[i*PageLen:][:4*PageLen]
			chain4(dst, tile[:PageLen], tile[PageLen:2*PageLen], tile[2*PageLen:3*PageLen], tile[3*PageLen:],
				row[i], row[i+1], row[i+2], row[i+3])
		}
		for ; i < n; i++ {
			chain(dst, k[i*PageLen:][:PageLen], row[i])
		}
	}
}

// portableSoftmax sums in 16 lanes, lane j the positions j, j+16, j+32 and j+48, and the lanes as a tree.
func portableSoftmax(s *[PageLen]float32) (m, l float32) {
	m = float32(math.Inf(-1))
	for _, x := range s {
		m = max(m, x)
	}
	if m == float32(math.Inf(-1)) {
		return m, 0
	}
	var lanes [16]float32
	for t, x := range s {
		p := float32(0)
		if x != float32(math.Inf(-1)) {
			p = exp32(x - m)
		}
		s[t] = p
		lanes[t%16] += p
	}
	for _, n := range [...]int{8, 4, 2, 1} {
		for j := range n {
			lanes[j] += lanes[j+n]
		}
	}
	return m, lanes[0]
}

// portableAccumulate passes over weights of 0, those of visible positions too: v is finite, so they could change no more
// than the sign of a zero, which the finished context does not keep.
func portableAccumulate(o []float32, w *[PageLen]float32, v []float32, stride int) {
	clear(o)
	var at [PageLen]uint8
	n := 0
	for t, x := range w {
		if x != 0 {
			at[n&(PageLen-1)] = uint8(t)
			n++
		}
	}
	row := func(i int) (x []float32, a float32) {
		t := int(at[i])
		return v[t*stride:][:len(o)], w[t]
	}
	i := 0
	for ; i+4 <= n; i += 4 {
		x0, a0 := row(i)
		x1, a1 := row(i + 1)
		x2, a2 := row(i + 2)
		x3, a3 := row(i + 3)
		chain4(o, x0, x1, x2, x3, a0, a1, a2, a3)
	}
	for ; i < n; i++ {
		x, a := row(i)
		chain(o, x, a)
	}
}

func portableMerge(o, x []float32, a, b float32) {
	x = x[:len(o)]
	for i, y := range o {
		o[i] = fma32(y, a, float32(x[i]*b))
	}
}

func portableDivide(dst, o []float32, l float32) bool {
	ok := true
	for i, x := range o[:len(dst)] {
		dst[i] = x/l + 0
		ok = ok && finite(dst[i])
	}
	return ok
}

// chain sets dst[j] = fma(a, x[j], dst[j]). It holds fma32 in line, as does chain4.
func chain(dst, x []float32, a float32) {
	d := float64(a)
	x = x[:len(dst)]
	for j, c := range dst {
		s := d*float64(x[j]) + float64(c)
		c = float32(s)
		if !once(s) {
			c = fmaOdd(d*float64(x[j]), float64(dst[j]))
		}
		dst[j] = c
	}
}

// chain4 is chain with x0 and a0, then x1 and a1, x2 and a2, x3 and a3.
func chain4(dst, x0, x1, x2, x3 []float32, a0, a1, a2, a3 float32) {
	d0, d1, d2, d3 := float64(a0), float64(a1), float64(a2), float64(a3)
	n := len(dst)
	x0, x1, x2, x3 = x0[:n], x1[:n], x2[:n], x3[:n]
	for j, c := range dst {
		s0 := d0*float64(x0[j]) + float64(c)
		c0 := float32(s0)
		if !once(s0) {
			c0 = fmaOdd(d0*float64(x0[j]), float64(c))
		}
		s1 := d1*float64(x1[j]) + float64(c0)
		c1 := float32(s1)
		if !once(s1) {
			c1 = fmaOdd(d1*float64(x1[j]), float64(c0))
		}
		s2 := d2*float64(x2[j]) + float64(c1)
		c2 := float32(s2)
		if !once(s2) {
			c2 = fmaOdd(d2*float64(x2[j]), float64(c1))
		}
		s3 := d3*float64(x3[j]) + float64(c2)
		c3 := float32(s3)
		if !once(s3) {
			c3 = fmaOdd(d3*float64(x3[j]), float64(c2))
		}
		dst[j] = c3
	}
}
