package cut

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"time"
)

// Lag is how packets are delayed.
type Lag struct {
	// Least is for how long each packet is held, and More up to how much longer: packets of UDP overtake each other by that. Those of
	// one connection of TCP keep their order.
	Least, More time.Duration
	// Twice is how many datagrams of UDP in a hundred come twice.
	Twice int
}

// maxHeld is how many packets a line holds: what comes beyond that is lost.
const maxHeld = 1 << 13

// line holds packets of IPv4 until they are due. It is for one goroutine.
type line struct {
	Lag
	random *rand.Rand
	held   []waiting // by due
	last   map[connection]time.Time
}

// waiting is a packet that is held.
type waiting struct {
	packet []byte
	due    time.Time
}

// connection is one direction of a connection of TCP: addresses and ports.
type connection [12]byte

func newLine(lag Lag, random *rand.Rand) *line {
	return &line{Lag: lag, random: random, last: map[connection]time.Time{}}
}

// take takes a packet.
func (l *line) take(packet []byte, now time.Time) {
	times := 1
	of, isTCP := tcp(packet)
	if !isTCP && l.random.IntN(100) < l.Twice {
		times = 2
	}
	for range times {
		due := now.Add(l.Least + time.Duration(l.random.Int64N(int64(l.More)+1)))
		if isTCP {
			if before := l.last[of]; before.After(due) {
				due = before
			}
			l.last[of] = due
		}
		if len(l.held) == maxHeld {
			return
		}
		at, _ := slices.BinarySearchFunc(l.held, due, func(h waiting, due time.Time) int {
			if h.due.After(due) {
				return 1
			}
			return -1 // behind those that are due at the same time
		})
		l.held = slices.Insert(l.held, at, waiting{packet, due})
	}
}

// due returns the packets that are due, which are not held any more.
func (l *line) due(now time.Time) (packets [][]byte) {
	n := 0
	for n < len(l.held) && !l.held[n].due.After(now) {
		packets = append(packets, l.held[n].packet)
		n++
	}
	l.held = slices.Delete(l.held, 0, n)
	return packets
}

// rest returns all that is held.
func (l *line) rest() (packets [][]byte) {
	for _, h := range l.held {
		packets = append(packets, h.packet)
	}
	l.held = nil
	return packets
}

// next says when a packet is due, if there is one.
func (l *line) next() (due time.Time, ok bool) {
	if len(l.held) == 0 {
		return time.Time{}, false
	}
	return l.held[0].due, true
}

// tcp says to which connection of TCP a packet belongs, if to one.
func tcp(packet []byte) (c connection, ok bool) {
	const addresses, ports, protocol = 12, 4, 6
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != protocol || binary.BigEndian.Uint16(packet[6:])&0x1fff != 0 {
		return c, false
	}
	header := int(packet[0]&15) * 4
	if len(packet) < header+ports {
		return c, false
	}
	copy(c[:8], packet[addresses:])
	copy(c[8:], packet[header:][:ports])
	return c, true
}
