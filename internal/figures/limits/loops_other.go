//go:build !amd64

package limits

var available []loops
