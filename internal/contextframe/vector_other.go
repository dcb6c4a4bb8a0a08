//go:build !amd64

package contextframe

// vectors says whether assembly is used; there is none here.
var vectors = false

func (c *coder) split4Vector([]float32) int                               { return 0 }
func join4Vector([]float32, [4][]byte) int                                { return 0 }
func (c *coder) split2Vector([]float32, Codec) int                        { return 0 }
func join2Vector([]float32, [4][]byte, Codec) int                         { return 0 }
func largestVector([]float32) (bits uint32, done int)                     { return 0, 0 }
func quantizeVector([]byte, []float32, float32) int                       { return 0 }
func dequantizeVector([]float32, []byte, float32) int                     { return 0 }
func packLevelVector(_, _, _ []byte, _ int, _ uint, _ byte) (int, bool)   { return 0, false }
func unpackLevelVector(_, _, _ []byte, _ int, _ uint, _ byte) (int, bool) { return 0, false }
func packLowVector(_, _, _ []byte, _ int, _ uint) bool                    { return false }
func unpackLowVector(_, _ []byte, _ int, _ uint) bool                     { return false }
func subtractRowsVector(_, _ []byte, _ int) int                           { return 0 }
func addRowsVector([]byte, int) int                                       { return 0 }
