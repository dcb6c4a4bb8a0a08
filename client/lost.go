package client

import (
	"errors"
	"fmt"
	"strings"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// LostShards are groups of a layer that no worker holds that answers, and with them the positions that the layer had.
type LostShards struct {
	Layer     int
	Groups    []int // ascending
	Positions int   // from 0 on, those included that had left the layer's window; 0 if the caller brought no receipt
}

// readLost reads what an error says of lost shards, for layers of so many groups and positions.
func readLost(told *headwaterv1.LostShards, layers int, groups, positions func(layer int) int) []LostShards {
	var all []LostShards
	add := func(l int, lost func(g int) bool) {
		one := LostShards{Layer: l, Positions: positions(l)}
		for g := range groups(l) {
			if lost(g) {
				one.Groups = append(one.Groups, g)
			}
		}
		if len(one.Groups) > 0 {
			all = append(all, one)
		}
	}
	if told.GetAll() {
		for l := range layers {
			add(l, func(int) bool { return true })
		}
		return all
	}
	for i, of := range told.GetLayers() {
		if int64(of.GetLayer()) < int64(layers) && (i == 0 || of.GetLayer() > told.GetLayers()[i-1].GetLayer()) {
			bits := of.GetGroups()
			add(int(of.GetLayer()), func(g int) bool { return g/8 < len(bits) && bits[g/8]>>(g%8)&1 == 1 })
		}
	}
	return all
}

// lost reads what an error says of the session's lost shards.
func (s *Session) lost(told *headwaterv1.LostShards) []LostShards {
	return readLost(told, len(s.layers), func(l int) int { return len(s.layers[l].hashes) }, s.LayerLen)
}

// lost reads what an error says of the lost shards of the receipt's session.
func (r *Receipt) lost(told *headwaterv1.LostShards) []LostShards {
	return readLost(told, len(r.Layers), func(l int) int { return len(r.Layers[l].Hashes) }, func(l int) int { return int(r.Layers[l].Length) })
}

// tellLost has an error say what is lost of a session that was found.
func tellLost(err error, found *headwaterv1.SessionState) {
	var refused *SessionError
	if errors.As(err, &refused) {
		layers := found.GetConfig().GetLayers()
		refused.Lost = readLost(refused.lost, len(layers), func(l int) int { return int(layers[l].GetNKvHeads()) }, func(int) int { return 0 })
	}
}

// notWhole is the refusal of a session if every worker has answered and none holds some of its groups.
func notWhole(found *headwaterv1.SessionState) *session.Error {
	e := session.Errorf(session.Unknown, "it is not whole, since a worker that held a part has restarted or dropped it")
	e.Why.Lost = lostOf(found)
	return e
}

// lostOf returns what is lost of a session that was found, nil if nothing is.
func lostOf(found *headwaterv1.SessionState) *headwaterv1.LostShards {
	layers, err := layerproto.ReadSessionLayers(found.GetConfig().GetLayers())
	if err != nil {
		return nil
	}
	return fanout.Lost(layers, found)
}

// lostNamed is of how many layers an error's text names the groups that are lost.
const lostNamed = 3

// lostText says in some words which shards are lost.
func lostText(lost []LostShards) string {
	shards, most := 0, 0
	for _, one := range lost {
		shards, most = shards+len(one.Groups), max(most, one.Positions)
	}
	var named []string
	for _, one := range lost[:min(len(lost), lostNamed)] {
		named = append(named, fmt.Sprintf("layer %d %s %s", one.Layer, plural("group", len(one.Groups)), runs(one.Groups)))
	}
	if more := len(lost) - lostNamed; more > 0 {
		named = append(named, fmt.Sprintf("%d more %s", more, plural("layer", more)))
	}
	of := ""
	if most > 0 {
		of = fmt.Sprintf(" of %d %s", most, plural("position", most))
	}
	return fmt.Sprintf("%d %s%s (%s)", shards, plural("shard", shards), of, strings.Join(named, ", "))
}

// plural is the word for so many.
func plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// runs writes ascending numbers, runs of them as FIRST-LAST.
func runs(numbers []int) string {
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		part := fmt.Sprint(numbers[i])
		if j > i {
			part = fmt.Sprintf("%d-%d", numbers[i], numbers[j])
		}
		parts, i = append(parts, part), j+1
	}
	return strings.Join(parts, " ")
}
