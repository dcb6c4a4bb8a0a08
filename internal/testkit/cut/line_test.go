package cut

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// packetOf is a packet of IPv4 from a port, with a number as what it carries.
func packetOf(protocol byte, port, number int) []byte {
	p := make([]byte, 28)
	p[0], p[9], p[27] = 0x45, protocol, byte(number)
	binary.BigEndian.PutUint16(p[20:], uint16(port))
	return p
}

// TestPacketsComeLate: each packet comes within its time, none is lost, those of one connection of TCP keep their order, and datagrams
// overtake each other and come twice.
func TestPacketsComeLate(t *testing.T) {
	lag := Lag{Least: 10 * time.Millisecond, More: 20 * time.Millisecond, Twice: 20}
	l := newLine(lag, rand.New(rand.NewPCG(1, 2)))
	began := time.Unix(0, 0)
	const packets, udp, tcp = 100, 17, 6
	came := map[int][]int{} // by port
	for step := range 2 * packets {
		now := began.Add(time.Duration(step) * time.Millisecond)
		if step < packets {
			l.take(packetOf(udp, 1, step), now)
			l.take(packetOf(tcp, 2, step), now)
			l.take(packetOf(tcp, 3, step), now)
		}
		for _, p := range l.due(now) {
			port, number := int(binary.BigEndian.Uint16(p[20:])), int(p[27])
			came[port] = append(came[port], number)
			if held := now.Sub(began.Add(time.Duration(number) * time.Millisecond)); held < lag.Least || held > lag.Least+lag.More+time.Millisecond {
				t.Errorf("packet %d of port %d was held for %v", number, port, held)
			}
		}
	}
	if _, some := l.next(); some || len(l.rest()) > 0 {
		t.Error("some are held for ever")
	}
	for _, port := range []int{2, 3} {
		if !slices.IsSorted(came[port]) || len(came[port]) != packets {
			t.Errorf("of a connection came %v", came[port])
		}
	}
	of := came[1]
	if slices.IsSorted(of) || len(of) < packets+5 || len(of) > packets+40 {
		t.Errorf("%d datagrams came: %v", len(of), of)
	}
	slices.Sort(of)
	if of = slices.Compact(of); len(of) != packets {
		t.Errorf("%d datagrams of %d came", len(of), packets)
	}
}

// TestALineHoldsSoManyPackets: what comes beyond that is lost, as on any way that is full.
func TestALineHoldsSoManyPackets(t *testing.T) {
	l := newLine(Lag{Least: time.Second}, rand.New(rand.NewPCG(1, 2)))
	for i := range maxHeld + 3 {
		l.take(packetOf(17, 1, i), time.Unix(0, 0))
	}
	if n := len(l.due(time.Unix(1, 0))); n != maxHeld {
		t.Errorf("%d are held", n)
	}
}
