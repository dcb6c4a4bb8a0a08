package sessions

import (
	"slices"

	"headwater.example/attention"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// A session may leave the arithmetic of its layers to who makes it. What is taken for it stands in the request before a worker sees
// it: no worker has to know of the choice, and none could make another.

// takeArithmetic gives layers that leave it to the coordinator the arithmetic that suits those who were drawn to hold the session. It
// returns the layers, and who may hold them: with a prefix that lies elsewhere, others hold it than were drawn, and what was taken must
// suit them as well.
func takeArithmetic(asked []*headwaterv1.SessionLayer, answering []workers.Description, placed map[string][][]int) ([]shard.LayerSpec, []workers.Description, error) {
	taken := workers.Arithmetic(slices.DeleteFunc(slices.Clone(answering), func(d workers.Description) bool { return placed[d.Name] == nil }))
	if err := layerproto.TakeArithmetic(asked, slices.Repeat([]attention.Arithmetic{taken}, len(asked))); err != nil {
		return nil, nil, session.Errorf(session.Invalid, "%v", err)
	}
	layers, err := layerproto.ReadSessionLayers(asked)
	if err != nil {
		return nil, nil, session.Errorf(session.Invalid, "%v", err)
	}
	if taken == attention.Chain {
		return layers, answering, nil
	}
	return layers, slices.DeleteFunc(slices.Clone(answering), func(d workers.Description) bool {
		return workers.Arithmetic([]workers.Description{d}) != taken
	}), nil
}

// asMade gives layers that leave their arithmetic to the coordinator the one that the session has, which was made before. Where it can
// not have been made of them, they get another, and the workers refuse them as those of another session.
func asMade(asked []*headwaterv1.SessionLayer, made []shard.LayerSpec) error {
	taken := make([]attention.Arithmetic, len(asked))
	for i := range min(len(asked), len(made)) {
		if made[i].Arithmetic() == attention.Tiles {
			taken[i] = attention.Tiles
		}
	}
	if err := layerproto.TakeArithmetic(asked, taken); err != nil {
		return session.Errorf(session.Invalid, "%v", err)
	}
	return nil
}
