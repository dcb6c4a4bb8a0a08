package membership

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// twinCheck is how often the holder of a name is asked whether it lives, while another process has the name as well.
	twinCheck = time.Second
	// longestMeet bounds the pause between two tries to reach a node that has not answered yet.
	longestMeet = 16 * time.Second
	// missedPackets is how many packets in a row a node that answers over TCP may miss before UDP counts as blocked.
	missedPackets = 3
)

// meet makes a node the member of its name once it has answered, and once no living one has the name. What is announced
// of a node that never answers is not believed.
func (g *gossip) meet(n *node) {
	select {
	case <-g.created:
	case <-g.running.Done():
		return
	}
	for pause := time.Second; !g.answers(n); pause = min(2*pause, longestMeet) {
		g.stand(n, fmt.Sprintf("left out: nobody answers gossip at %s: open its TCP and UDP port, or set --gossip-advertise there", n.gossip))
		if !g.pause(n, pause) {
			return
		}
	}
	for {
		holder := g.claim(n)
		if holder == nil {
			return
		}
		if !g.answers(holder) {
			if g.replace(holder, n) {
				return
			}
			continue
		}
		g.conflict(holder, n)
		if !g.pause(n, twinCheck) {
			return
		}
	}
}

// pause waits, and tells whether the node is still there.
func (g *gossip) pause(n *node, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-n.gone:
	case <-g.running.Done():
	}
	return false
}

// claim makes a node the member of its name, and returns nil, or who is.
func (g *gossip) claim(n *node) (holder *node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nodes[n.key] != n {
		return nil // it has gone meanwhile
	}
	for _, other := range g.nodes {
		if other.holds && other.Name == n.Name {
			return other
		}
	}
	n.holds, n.outside = true, ""
	g.changedLocked()
	g.log.Info("member joined", "member", n.Name, "role", n.Role.String(), "address", n.Address, "version", n.Version)
	return nil
}

// replace makes a node the member of its name in the place of one that does not answer. It returns false if that is not the member any
// more: another process may have taken its place while both were waiting for its answer.
func (g *gossip) replace(old, n *node) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.nodes[n.key] != n:
		return true // it has gone as well
	case g.nodes[old.key] != old || !old.holds:
		return false
	}
	old.holds = false
	if !g.ended {
		g.tasks.Go(func() { g.meet(old) }) // should it answer again
	}
	n.holds, n.outside = true, ""
	g.changedLocked()
	g.log.Info("member was restarted", "member", n.Name, "role", n.Role.String(), "address", n.Address, "address_before", old.Address, "version", n.Version)
	return true
}

// conflict says that a node is left out because another has its name. It is logged once.
func (g *gossip) conflict(holder, n *node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	why := fmt.Sprintf("left out: another living %s at %s has the name %s: start one of them with another --name", holder.Role, holder.Address, n.Name)
	if n.outside == why {
		return
	}
	n.outside = why
	text := "two living processes have one name; the first keeps it, the other is not used: start one of them with another --name"
	if holder.key == g.key {
		text = "another living process has the name of this one, and one of them is not used: start one of them with another --name"
	}
	g.log.Error(text, "member", n.Name, "address", holder.Address, "boot", fmt.Sprintf("%x", holder.Boot), "other_address", n.Address, "other_boot", fmt.Sprintf("%x", n.Boot))
}

// stand notes why a node is outside.
func (g *gossip) stand(n *node, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n.outside = why
}

// answers tells whether a node answers now, over UDP or TCP. Another process at its address does not answer for it.
func (g *gossip) answers(n *node) bool {
	if n.key == g.key || g.ping(n) || g.ping(n) {
		return true
	}
	answered, _ := g.pingTCP(n)
	return answered
}

// ping sends a packet and waits for its answer.
func (g *gossip) ping(n *node) bool {
	if g.running.Err() != nil {
		return false
	}
	_, err := g.list.Ping(n.key, net.UDPAddrFromAddrPort(n.gossip))
	return err == nil
}

// pingTCP asks over TCP. Reached tells whether anybody accepted the connection.
func (g *gossip) pingTCP(n *node) (answered, reached bool) {
	if g.running.Err() != nil {
		return false, false
	}
	conn, err := g.transport.DialTimeout(n.gossip.String(), 2*g.pingTimeout)
	if err != nil {
		return false, false
	}
	defer conn.Close()
	defer context.AfterFunc(g.running, func() { _ = conn.Close() })() // which ends the read
	if err := conn.SetDeadline(time.Now().Add(2 * g.pingTimeout)); err != nil {
		return false, true
	}
	if err := memberlist.AddLabelHeaderToStream(conn, label); err != nil {
		return false, true
	}
	// Memberlist's ping: its type, and a map of SeqNo and Node in MessagePack.
	const seqNo = 0x48656164
	ping := []byte("\x00\x82\xa5SeqNo\xce")
	ping = binary.BigEndian.AppendUint32(ping, seqNo)
	ping = append(ping, "\xa4Node\xda"...)
	ping = binary.BigEndian.AppendUint16(ping, uint16(len(n.key)))
	ping = append(ping, n.key...)
	sealed, err := g.secret.SealStream(ping)
	if err != nil {
		return false, true
	}
	if _, err := conn.Write(sealed); err != nil {
		return false, true
	}
	ack, err := io.ReadAll(conn)
	if err == nil {
		ack, err = g.secret.OpenStream(ack)
	}
	const typeAck = 2
	return err == nil && len(ack) > 0 && ack[0] == typeAck && bytes.Contains(ack, binary.BigEndian.AppendUint32([]byte{0xce}, seqNo)), true
}

// patrol asks one node after the other whether it answers. It finds out what memberlist does not tell: that only UDP is
// blocked, and that another process came to the address of a node, which may know nobody.
func (g *gossip) patrol(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	last := ""
	for {
		select {
		case <-ticker.C:
		case <-g.running.Done():
			return
		}
		n := g.after(last)
		if n == nil {
			continue
		}
		last = n.key
		if g.ping(n) {
			g.heard(n, true)
			continue
		}
		answered, reached := g.pingTCP(n)
		switch {
		case answered:
			g.heard(n, false)
		case reached && g.running.Err() == nil:
			// Joining it exchanges all that both know.
			if _, err := g.list.Join([]string{n.gossip.String()}); err != nil {
				g.log.Debug("joining who is at the address of a member", "member", n.Name, "gossip", n.gossip.String(), "error", err)
			}
		}
	}
}

// after returns the node behind a key in the round, or nil if there is none but this process.
func (g *gossip) after(key string) *node {
	g.mu.Lock()
	defer g.mu.Unlock()
	var keys []string
	for k, n := range g.nodes {
		if k != g.key && n.holds {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	i, found := slices.BinarySearch(keys, key)
	if found {
		i++
	}
	return g.nodes[keys[i%len(keys)]]
}

// heard notes whether a node answers over UDP, or over TCP alone, and logs the beginning and the end of that state once.
func (g *gossip) heard(n *node, udp bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n.missed++
	if udp {
		n.missed = 0
	}
	blocked := 0
	for _, other := range g.nodes {
		if other.missed >= missedPackets {
			blocked++
		}
	}
	switch {
	case blocked > 0 && !g.overTCP:
		g.overTCP = true
		_, own, _ := net.SplitHostPort(g.address)
		g.log.Warn(fmt.Sprintf("UDP is blocked, members answer over TCP alone, so changes are noticed late: open UDP port %d there and %s here, in both directions", n.gossip.Port(), own),
			"member", n.Name, "gossip", n.gossip.String())
	case blocked == 0 && g.overTCP:
		g.overTCP = false
		g.log.Info("UDP is open again: all members answer over it", "members", strconv.Itoa(len(g.nodes)))
	}
}
