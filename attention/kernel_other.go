//go:build !amd64 && !arm64

package attention

// kernels are what this machine can run, the best first.
var kernels = []kernel{portable}
