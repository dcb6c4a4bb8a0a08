package sessions

import (
	"google.golang.org/grpc"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// ExportSession sends keys and values of one layer, in blocks of rpc.BlockBytes.
func (s *Service) ExportSession(m *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	id, err := s.own(stream.Context(), "session", m.GetSession())
	if err != nil {
		return err
	}
	state, err := s.m.Store.State(stream.Context(), id)
	if err != nil {
		return refusal(err)
	}
	if err := notLeftOut(&state, m.GetEpoch()); err != nil {
		return refusal(err)
	}
	layer, groups, err := s.m.Store.Layer(id, shard.Layer(m.GetLayer()), 0)
	if err != nil {
		return refusal(err)
	}
	var length uint64
	for _, l := range state.Layers {
		if l.Layer == shard.Layer(m.GetLayer()) {
			length = l.Length
		}
	}
	start, count := m.GetStart(), m.GetCount()
	if start > length || count > length-start {
		return invalidSession("session %s: layer %d has %d positions, not %d from %d on", id, m.GetLayer(), length, count, start)
	}
	if count == 0 {
		count = length - start
	}
	if len(m.GetGroups()) > len(groups) {
		return invalidSession("session %s: layer %d: %d groups are asked for, %d are held", id, m.GetLayer(), len(m.GetGroups()), len(groups))
	}
	if len(m.GetGroups()) > 0 {
		groups = make([]shard.Group, len(m.GetGroups()))
		for i, g := range m.GetGroups() {
			groups[i] = shard.Group(g) // the store refuses what it does not hold
		}
	}
	l := layer.Layout
	each := max(rpc.BlockBytes/(l.KRowBytes()+l.VRowBytes()+8), 1)
	for _, g := range groups {
		var err error
		layer.Runs(int(g), int(start), int(count), func(at, count, _ int) bool {
			for end := at + count; at < end && err == nil; {
				n := min(each, end-at)
				err = s.exportBlock(stream, m, layer, g, uint64(at), n)
				at += n
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// exportBlock sends n positions of a group.
func (s *Service) exportBlock(stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse], m *headwaterv1.ExportSessionRequest, layer *shard.LayerSpec, g shard.Group, at uint64, n int) error {
	id, l := kvcache.SessionID(m.GetSession()), layer.Layout
	k, v := n*l.KRowBytes(), n*l.VRowBytes()
	// A block counts from its read until it is written, so a client that does not read holds one block and no more.
	room := int64(k + v + 16*n)
	if err := rpc.ShareOf(stream.Context()).TakeAnswer(stream.Context(), room); err != nil {
		return s.noRoom(err)
	}
	memory := rpc.NewBuffer(k + v)
	memory.Hold(rpc.ShareOf(stream.Context()), room)
	rows := attention.Rows{K: memory.Bytes()[:k], V: memory.Bytes()[k:]}
	if l.DType() == tensor.I8 {
		rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
	}
	block := &headwaterv1.ExportSessionResponse{Group: uint32(g), Start: at, Count: uint32(n), K: rows.K, V: rows.V}
	export := s.m.Store.Export
	if m.GetStoredHashes() {
		export = s.m.Store.ExportKnown
	}
	var err error
	if block.HashBefore, block.HashAfter, err = export(id, shard.Layer(m.GetLayer()), g, int(at), n, rows); err == nil && m.GetTokens() {
		block.Tokens, err = s.m.Store.Tokens(id, int(at), n)
	}
	if err != nil {
		memory.Free()
		return refusal(err)
	}
	block.KScale, block.VScale = floatBytes(rows.KScale), floatBytes(rows.VScale)
	return rpc.SendBulk(stream, block, memory)
}
