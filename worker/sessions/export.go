package sessions

import (
	"google.golang.org/grpc"

	"headwater.example/attention"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// ExportSession sends keys and values of one layer, in blocks of rpc.BlockBytes.
func (s *Service) ExportSession(m *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	id, err := sessionID("session", m.GetSession())
	if err != nil {
		return err
	}
	state, err := s.m.Store.State(id)
	if err != nil {
		return refusal(err)
	}
	layer, groups, err := s.m.Store.Layer(id, shard.Layer(m.GetLayer()))
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
	l := layer.Layout
	each := max(rpc.BlockBytes/(l.KRowBytes()+l.VRowBytes()+8), 1)
	for _, g := range groups {
		for at := start; at < start+count; {
			n := int(min(uint64(each), start+count-at))
			rows := attention.Rows{K: make([]byte, n*l.KRowBytes()), V: make([]byte, n*l.VRowBytes())}
			if l.DType() == tensor.I8 {
				rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
			}
			before, after, err := s.m.Store.Export(id, shard.Layer(m.GetLayer()), g, int(at), n, rows)
			if err != nil {
				return refusal(err)
			}
			block := &headwaterv1.ExportSessionResponse{
				Group: uint32(g), Start: at, Count: uint32(n), K: rows.K, V: rows.V,
				KScale: floatBytes(rows.KScale), VScale: floatBytes(rows.VScale), HashBefore: before, HashAfter: after,
			}
			if m.GetTokens() {
				if block.Tokens, err = s.m.Store.Tokens(id, int(at), n); err != nil {
					return refusal(err)
				}
			}
			if err := stream.Send(block); err != nil {
				return err
			}
			at += uint64(n)
		}
	}
	return nil
}
