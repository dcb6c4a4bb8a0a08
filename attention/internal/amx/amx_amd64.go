package amx

// product sets d to d + a·b as the configuration shapes the tiles 0, 1 and 2, by TDPBF16PS. Strides are bytes from row to row.
//
//go:noescape
func product(config *[64]byte, d, a, b *byte, dStride, aStride, bStride int)

// others loads the tiles 0 to 7 from eight tiles, stores the configuration to kept, makes tile 5 zero, and stores the tiles 7 to 1
// and the product of the tiles 4 and 7, added to tile 0.
//
//go:noescape
func others(config *[64]byte, to, from *[8][1024]byte, kept *[64]byte)
