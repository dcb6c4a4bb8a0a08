package attention

import (
	"math/bits"
	"unsafe"
)

// What follows is the part of a backward pass that touches every element, for the kernel in use. Where a kernel has no
// routine of assembly for a step, portable Go takes it.

// product sets c [rows][64] to a·b, or carries on its chains if there are any: a is [rows][stride], of which it reads n
// columns, and b [n][64].
func (k *kernel) product(c, a, b []float32, rows, stride, n int, carry bool) {
	if k.vector == nil {
		if !carry {
			clear(c[:rows*PageLen])
		}
		k.scores(c, a, b, rows, stride, n)
		return
	}
	on := 0
	if carry {
		on = 1
	}
	k.vector.scores[0](&c[0], &a[0], (*byte)(unsafe.Pointer(&b[0])), 4*stride, n, rows, on, nil)
}

// addRows adds to 64 columns of o [rows][stride] the chains Σ w[t]·x[t] over the positions seen ascending: w is
// [rows][64] and x [64][64].
func (k *kernel) addRows(o, w, x []float32, stride, rows int, seen uint64) {
	if v := k.vector; v != nil {
		v.accumulate[0](&o[0], &w[0], (*byte)(unsafe.Pointer(&x[0])), 4*stride, 4*PageLen, PageLen/vectorLen, rows, seen,
			&unitScales[0], &unitScales[0], nil)
		return
	}
	var sum [PageLen]float32
	for r := range rows {
		k.accumulate(sum[:], (*[PageLen]float32)(w[r*PageLen:]), x, PageLen)
		k.add(o[r*stride:][:PageLen], sum[:])
	}
}

// add adds x to o; there are a multiple of vectorLen elements.
func (k *kernel) add(o, x []float32) {
	if k.vector != nil {
		k.vector.merge(&o[0], &x[0], 1, 1, len(o))
		return
	}
	for i, y := range x[:len(o)] {
		o[i] += y
	}
}

// turn writes rows of n elements, stride apart, as columns of dst [n][64]; n is a multiple of 8.
func (k *kernel) turn(dst, src []float32, rows, stride, n int) {
	if v := k.vector; v != nil {
		row := 0
		for ; row+8 <= rows; row += 8 {
			v.transpose(&dst[row], &src[row*stride], 4*stride, n)
		}
		for ; row < rows; row++ {
			v.column[4]((*byte)(unsafe.Pointer(&dst[row])), (*byte)(unsafe.Pointer(&src[row*stride])), n)
		}
		return
	}
	for row := range rows {
		for i, x := range src[row*stride:][:n] {
			dst[i*PageLen+row] = x
		}
	}
}

// rowDots sets d to the chains x·y over each of the rows [rows][n], elements ascending.
func (k *kernel) rowDots(d, x, y []float32, rows, n int) {
	if v := k.vector; v != nil && v.dots != nil {
		v.dots(&d[0], &x[0], &y[0], rows, n)
		return
	}
	for r := range rows {
		sum := float32(0)
		for i, a := range x[r*n:][:n] {
			sum = fma32(a, y[r*n+i], sum)
		}
		d[r] = sum
	}
}

// weigh takes rows of scores s [rows][64], still to be multiplied by scale, and of dS [rows][64], which holds the
// derivatives by the weights: s becomes the weights exp(s − lse), and dS the derivatives by the scores, both +0 where a
// position is not visible. It says whether any visible score is above its row's lse.
func (k *kernel) weigh(s, dS []float32, scale float32, lse, dots []float32, visible []uint64) (above bool) {
	if v := k.vector; v != nil && v.weigh != nil {
		return v.weigh(&s[0], &dS[0], scale, len(visible), &lse[0], &dots[0], &visible[0])
	}
	for r, seen := range visible {
		row, d := s[r*PageLen:][:PageLen], dS[r*PageLen:][:PageLen]
		weights, slopes := [PageLen]float32{}, [PageLen]float32{}
		for ; seen != 0; seen &= seen - 1 {
			t := bits.TrailingZeros64(seen)
			x := float32(row[t]*scale) - lse[r]
			above = above || x > 0
			weights[t] = exp32(x)
			slopes[t] = float32(weights[t] * (d[t] - dots[r]))
		}
		copy(row, weights[:])
		copy(d, slopes[:])
	}
	return above
}

// soften multiplies dS [rows][64] by what the soft cap's slope 1 − tanh² is at the products raw [rows][64], where
// positions are visible.
func (k *kernel) soften(dS, raw []float32, scale, softcap float32, visible []uint64) {
	if v := k.vector; v != nil && v.soften != nil {
		v.soften(&dS[0], &raw[0], scale, softcap, len(visible), &visible[0])
		return
	}
	for r, seen := range visible {
		for ; seen != 0; seen &= seen - 1 {
			at := r*PageLen + bits.TrailingZeros64(seen)
			th := tanh32(float32(raw[at]*scale) / softcap)
			dS[at] = float32(dS[at] * (1 - float32(th*th)))
		}
	}
}
