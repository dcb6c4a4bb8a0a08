package attention

import "encoding/binary"

// readKeys is the inverse of writeKeys: it reads the columns [at, at+n) of k [dim][64] as n rows, which lie stride bytes apart.
func readKeys(rows, k []byte, stride, at, n, dim, size int) {
	const line = 64 // of as many bytes of all rows, before it goes on: what it reads and writes then lies in the first cache
	for i := 0; i < dim; i += line / size {
		readPart(rows[i*size:], k[i*PageLen*size:], stride, at, n, min(line/size, dim-i), size)
	}
}

// readKeys is the function readKeys. Where a row has 64 elements, and the next follows it, rows and keys are each other's columns: what
// writes reads, too.
func (v *vector) readKeys(rows, k []byte, stride, at, n, dim, size int) {
	if v == nil || dim != PageLen || stride != PageLen*size {
		readKeys(rows, k, stride, at, n, dim, size)
		return
	}
	v.writeKeys(rows, k[at*size:], stride, 0, PageLen, n, size)
}

// readPart is readKeys. Eight bytes of each row are put together at once, of as many columns as they have elements.
func readPart(rows, k []byte, stride, at, n, dim, size int) {
	each := 8 / size
	for t := 0; t < n; t += each {
		i := 0
		if t+each <= n {
			i = dim / each * each
			to, from := rows[t*stride:], k[(at+t)*size:]
			switch size {
			case 1:
				readColumns1(to, from, stride, i)
			case 2:
				readColumns2(to, from, stride, i)
			case 4:
				readColumns4(to, from, stride, i)
			}
		}
		for ; i < dim; i++ { // what does not fill eight bytes
			for u := t; u < min(t+each, n); u++ {
				copy(rows[u*stride+i*size:], k[(i*PageLen+at+u)*size:][:size])
			}
		}
	}
}

// readColumns4 reads two columns of dim elements of 4 bytes, dim a multiple of 2; readColumns2 four of 2 bytes, and readColumns1 eight of
// one byte, likewise.
func readColumns4(rows, k []byte, stride, dim int) {
	const row = 4 * PageLen
	first, second := rows, rows[stride:]
	for i := 0; i < dim; i += 2 {
		from := k[i*row:]
		x, y := exchange(binary.LittleEndian.Uint64(from), binary.LittleEndian.Uint64(from[row:]), 32, 1<<32-1)
		binary.LittleEndian.PutUint64(first[4*i:], x)
		binary.LittleEndian.PutUint64(second[4*i:], y)
	}
}

func readColumns2(rows, k []byte, stride, dim int) {
	const row = 2 * PageLen
	for i := 0; i < dim; i += 4 {
		from := k[i*row:]
		var x [4]uint64
		for j := range x {
			x[j] = binary.LittleEndian.Uint64(from[j*row:])
		}
		for j := range 2 {
			x[j], x[j+2] = exchange(x[j], x[j+2], 32, 1<<32-1)
		}
		for j := 0; j < 4; j += 2 {
			x[j], x[j+1] = exchange(x[j], x[j+1], 16, 0x0000ffff0000ffff)
		}
		for j, word := range x {
			binary.LittleEndian.PutUint64(rows[j*stride+2*i:], word)
		}
	}
}

func readColumns1(rows, k []byte, stride, dim int) {
	const row = PageLen
	for i := 0; i < dim; i += 8 {
		from := k[i*row:]
		var x [8]uint64
		for j := range x {
			x[j] = binary.LittleEndian.Uint64(from[j*row:])
		}
		for j := range 4 {
			x[j], x[j+4] = exchange(x[j], x[j+4], 32, 1<<32-1)
		}
		for _, j := range [4]int{0, 1, 4, 5} {
			x[j], x[j+2] = exchange(x[j], x[j+2], 16, 0x0000ffff0000ffff)
		}
		for j := 0; j < 8; j += 2 {
			x[j], x[j+1] = exchange(x[j], x[j+1], 8, 0x00ff00ff00ff00ff)
		}
		for j, word := range x {
			binary.LittleEndian.PutUint64(rows[j*stride+i:], word)
		}
	}
}

// exchange exchanges the upper parts of x with the lower parts of y: each of shift bits, of which mask has the lower ones.
func exchange(x, y uint64, shift int, mask uint64) (uint64, uint64) {
	t := (x>>shift ^ y) & mask
	return x ^ t<<shift, y ^ t
}
