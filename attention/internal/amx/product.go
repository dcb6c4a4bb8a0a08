package amx

// tileRows is how many rows a tile has at most, and how many words a row.
const tileRows = 16

// MostRows is how many rows a product has at most.
const MostRows = 2 * tileRows

// Product is C = A·B, or C += A·B, in the order of sums that TDPBF16PS has, for tiles of A one after the other and for each of the
// parts of A from the last to the first. Strides are bytes from row to row.
type Product struct {
	// C is [Rows][16·Columns] of float32.
	C       *float32
	CStride int
	// A is Parts times [Rows][Tiles·32] of bf16, APart bytes from part to part. Parts is 1 or 3, Rows 1 to MostRows.
	A              *byte
	AStride, APart int
	Parts, Rows    int
	// B is [Tiles·16][16·Columns] of pairs of bf16.
	B       *byte
	BStride int
	Columns int
	Tiles   int
	// Pairs is how many pairs a tile has, 16 unless there is only one.
	Pairs int
	// Carry says that C is added to.
	Carry bool
	// Ahead is what memory is asked for meanwhile, as much as B has, in equal parts from each address on; of 0 nothing is. The
	// addresses go on by what was asked for.
	Ahead [4]uintptr

	config      [64]byte
	shapedRows  int
	shapedPairs int
}

// shape sets the configuration for the rows. Up to 16 are those of four tiles of C and three of A, beside one of B. Of more, two
// tiles of C and one of A have 16, two and one the rest, and two are of B.
func (p *Product) shape() {
	if p.shapedRows == p.Rows && p.shapedPairs == p.Pairs {
		return
	}
	p.shapedRows, p.shapedPairs = p.Rows, p.Pairs
	set := func(tile, rows, words int) { p.config[48+tile], p.config[16+2*tile] = byte(rows), byte(4*words) }
	p.config[0] = 1
	if p.Rows <= tileRows {
		for i := range 4 {
			set(i, p.Rows, tileRows)
		}
		for i := range 3 {
			set(4+i, p.Rows, p.Pairs)
		}
		set(7, p.Pairs, tileRows)
		return
	}
	for i := range 2 {
		set(i, tileRows, tileRows)
		set(2+i, p.Rows-tileRows, tileRows)
		set(6+i, p.Pairs, tileRows)
	}
	set(4, tileRows, p.Pairs)
	set(5, p.Rows-tileRows, p.Pairs)
}
