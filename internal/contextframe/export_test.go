package contextframe

// SetVectors uses the assembly or not, and returns what was before.
func SetVectors(use bool) (was bool) {
	was, vectors = vectors, use
	return was
}
