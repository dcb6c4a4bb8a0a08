package contextframe

import "time"

// Auto chooses how the answers of one link come back, of the two ways that return every bit: as they are, or as an exact
// frame. It goes by what was measured: a frame pays when the bytes that it saves would take the link longer than the
// coding takes both ends. The zero value has measured nothing and sends answers as they are, but for the samples.
//
// It is not for concurrent use.
type Auto struct {
	saved   mean // part of the bytes that a frame saves, may be negative
	coding  mean // nanoseconds to encode and decode, for each raw byte
	link    mean // nanoseconds of the link, for each byte
	answers int
	framed  bool
}

// How often an answer is a frame although frames do not pay, so that it is seen when they do; and by how much the other
// way must be better to be taken, so that the choice does not flutter.
const (
	autoSample = 64
	autoMargin = 0.1
)

// Coded is told of an answer that was a frame: the bytes that it stands for, its own, and the time that both ends took.
func (a *Auto) Coded(rawBytes, frameBytes int, encode, decode time.Duration) {
	if rawBytes <= 0 || frameBytes <= 0 || encode < 0 || decode < 0 {
		return
	}
	a.saved.add(1 - float64(frameBytes)/float64(rawBytes))
	a.coding.add(float64(encode+decode) / float64(rawBytes))
}

// Carried is told how long the link took for so many bytes: what is more for more bytes, not the time that none take.
func (a *Auto) Carried(bytes int, took time.Duration) {
	if bytes > 0 && took >= 0 {
		a.link.add(float64(took) / float64(bytes))
	}
}

// Frame says whether the next answer is to be an exact frame.
func (a *Auto) Frame() bool {
	a.answers++
	gain, cost := float64(a.saved)*float64(a.link), float64(a.coding)
	if a.framed {
		cost *= 1 - autoMargin
	} else {
		cost *= 1 + autoMargin
	}
	a.framed = gain > cost
	return a.framed || a.answers%autoSample == 1
}

// mean is an exponential one over about 8 samples; the first one counts in full.
type mean float64

func (m *mean) add(x float64) {
	if *m == 0 {
		*m = mean(x)
		return
	}
	*m += (mean(x) - *m) / 8
}
