//go:build !amd64 && !arm64

package limits

var available []loops
