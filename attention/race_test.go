//go:build race

package attention

// raceDetector makes the portable kernel more than ten times as slow.
const raceDetector = true
