package sessions

import (
	"context"
	"encoding/binary"
	"math"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/quotaproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// This file turns the messages of SessionService into what the store takes and gives.

func invalidSession(format string, args ...any) *session.Error {
	return session.Errorf(problemInvalid, format, args...)
}

func sessionID(field string, b []byte) (id kvcache.SessionID, err error) {
	if len(b) != len(id) {
		return id, invalidSession("%s: an id has %d bytes, not %d", field, len(id), len(b))
	}
	return kvcache.SessionID(b), nil
}

func readEpoch(field string, m *headwaterv1.Epoch) (e kvcache.Epoch, err error) {
	if len(m.GetLane()) != len(e.Lane) {
		return e, invalidSession("%s: the id of a lane has %d bytes, not %d", field, len(e.Lane), len(m.GetLane()))
	}
	return kvcache.Epoch{Counter: m.GetCounter(), Lane: kvcache.LaneID(m.GetLane()), Base: m.GetBase(), At: m.GetAt(), Closed: m.GetClosed(), Holders: m.GetHolders(), Members: strings.Join(m.GetMembers(), " ")}, nil
}

func writeEpoch(e kvcache.Epoch) *headwaterv1.Epoch {
	return &headwaterv1.Epoch{Counter: e.Counter, Lane: e.Lane[:], Base: e.Base, Closed: e.Closed, Holders: e.Holders, Members: strings.Fields(e.Members)}
}

var sessionReasons = map[kvcache.Reason]session.Reason{
	kvcache.Invalid:          problemInvalid,
	kvcache.Unknown:          session.Unknown,
	kvcache.Exists:           session.Exists,
	kvcache.Behind:           session.Behind,
	kvcache.Ahead:            session.Ahead,
	kvcache.Different:        session.Different,
	kvcache.StaleEpoch:       session.StaleEpoch,
	kvcache.OtherTruncations: session.OtherTruncations,
	kvcache.Freed:            session.Freed,
	kvcache.OverBudget:       problemOver,
}

// refusal is an error of the store as it goes out.
func refusal(err error) error {
	e, ok := err.(*kvcache.Error)
	if !ok {
		return err
	}
	out := session.Errorf(sessionReasons[e.Reason], "%s", e.Rule)
	if e.Quota != nil {
		out.Why.Quota = quotaproto.Write(e.Quota)
	}
	out.Why.Layer, out.Why.Group, out.Why.Length, out.Why.Truncations = uint32(e.Layer), uint32(e.Group), e.Length, e.Truncations
	if e.Reason == kvcache.StaleEpoch {
		out.Why.Epoch = writeEpoch(e.Epoch)
	}
	return out
}

// readConfig reads what a session is made with, for whom it may be. The store checks what fits together.
func readConfig(ctx context.Context, m *headwaterv1.SessionConfig) (kvcache.Config, error) {
	tenant, err := rpc.CallerOf(ctx).Claim(m.GetTenant())
	if err != nil {
		return kvcache.Config{}, status.Error(codes.PermissionDenied, err.Error())
	}
	c := kvcache.Config{Tenant: tenant, Model: m.GetModel(), Name: m.GetName(), Unshared: m.GetUnshared(), Replicas: int(min(m.GetReplicas(), shard.MaxReplicas+1))}
	if m.GetTtl() != nil {
		if err := m.GetTtl().CheckValid(); err != nil {
			return c, invalidSession("config: ttl: %v", err)
		}
		c.TTL = m.GetTtl().AsDuration()
	}
	layers, err := layerproto.ReadSessionLayers(m.GetLayers())
	if err != nil {
		return c, invalidSession("config: %v", err)
	}
	c.Layers = layers
	return c, nil
}

func writeConfig(c *kvcache.Config) *headwaterv1.SessionConfig {
	m := &headwaterv1.SessionConfig{Tenant: c.Tenant, Model: c.Model, Name: c.Name, Unshared: c.Unshared}
	if c.Replicas > 0 {
		m.Replicas = proto.Uint32(uint32(c.Replicas))
	}
	if c.TTL > 0 {
		m.Ttl = durationpb.New(c.TTL)
	}
	m.Layers = layerproto.SessionLayers(c.Layers)
	return m
}

// readLayers reads what a caller names of the layers. The store checks it.
func readLayers(layers []*headwaterv1.LayerState) []kvcache.LayerState {
	read := make([]kvcache.LayerState, len(layers))
	for i, l := range layers {
		read[i] = readLayer(l)
		if b := l.GetBefore(); b != nil {
			before := readLayer(b)
			read[i].Before = &before
		}
	}
	return read
}

func readLayer(l *headwaterv1.LayerState) kvcache.LayerState {
	return kvcache.LayerState{Layer: shard.Layer(l.GetLayer()), Length: l.GetLength(), Hashes: l.GetHashes(), Chain: l.GetChain(), AppendID: l.GetAppendId()}
}

// detail says how much of a session's state to report.
type detail int

const (
	listed  detail = iota // for a list of all, which is to fit a message
	holders               // with what it was made with
	whole                 // and with what names its state
)

// state is what the worker has of a session, as it goes out.
func (s *Service) state(st kvcache.State, told detail) *headwaterv1.SessionState {
	m := &headwaterv1.SessionState{
		Session:     st.Session[:],
		Epoch:       writeEpoch(st.Epoch),
		Truncations: st.Truncations, TruncationId: st.TruncationID,
		Pinned:    st.Pinned,
		PageBytes: uint64(st.PageBytes),
		OwnBytes:  uint64(st.OwnBytes),
		Name:      st.Config.Name,
		Tenant:    st.Config.Tenant,
		Created:   timestamppb.New(st.Created),
		Used:      timestamppb.New(st.Used),
	}
	for i := range st.Layers {
		l := &st.Layers[i]
		one := &headwaterv1.LayerState{Layer: uint32(l.Layer), Length: l.Length, First: l.First}
		if told == whole {
			one.Hashes, one.Chain, one.AppendId = l.Hashes, l.Chain, l.AppendID
			if b := l.Before; b != nil {
				one.Before = &headwaterv1.LayerState{Layer: uint32(l.Layer), Length: b.Length, Hashes: b.Hashes, Chain: b.Chain}
			}
		}
		m.Layers = append(m.Layers, one)
	}
	self := &headwaterv1.Holder{Name: s.m.Name, Boot: s.boot[:], PageBytes: uint64(st.PageBytes), OwnBytes: uint64(st.OwnBytes), Layers: writeHeld(st.Config.Layers, st.Held)}
	m.Holders = []*headwaterv1.Holder{self}
	if told != listed {
		m.Config, m.Lineage, m.Served = writeConfig(st.Config), st.Lineage, st.Served
	}
	return m
}

// readHeld reads the held groups of a layer, or shards if it is in stripes. The store checks them.
func readHeld(layers []shard.LayerSpec, m *headwaterv1.HeldLayer) (groups []shard.Group, err error) {
	held, other := m.GetGroups(), m.GetShards()
	if int64(m.GetLayer()) < int64(len(layers)) && layers[m.GetLayer()].Striped() {
		held, other = other, held
	}
	if len(other) > 0 {
		return nil, invalidSession("layer %d: groups are held of a layer that is not in stripes, and shards of one that is", m.GetLayer())
	}
	for _, g := range held {
		groups = append(groups, shard.Group(g))
	}
	return groups, nil
}

// writeHeld is what is held of a session's layers, of which a config has these.
func writeHeld(config []shard.LayerSpec, held []kvcache.HeldLayer) (layers []*headwaterv1.HeldLayer) {
	for _, h := range held {
		layer := &headwaterv1.HeldLayer{Layer: uint32(h.Layer)}
		var numbers []uint32
		for _, g := range h.Groups {
			numbers = append(numbers, uint32(g))
		}
		if layer.Groups = numbers; config[h.Layer].Striped() {
			layer.Groups, layer.Shards = nil, numbers
		}
		layers = append(layers, layer)
	}
	return layers
}

// floatBytes returns values as little-endian bytes.
func floatBytes(values []float32) []byte {
	out := make([]byte, 0, 4*len(values))
	for _, v := range values {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}
