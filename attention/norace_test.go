//go:build !race

package attention

const raceDetector = false
