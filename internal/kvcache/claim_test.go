package kvcache

import (
	"context"
	"testing"

	"headwater.example/tensor"
)

// TestAnEpochWithABaseIsTheDriversAlone: it is taken only on behalf of who drives the session, who then goes on under the base, and
// may be stepped so again. A driver that was replaced can neither step it nor go on.
func TestAnEpochWithABaseIsTheDriversAlone(t *testing.T) {
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 20)})
	defer st.Close()
	id, a, b := SessionID{1}, LaneID{1}, LaneID{2}
	cfg, held := uniform(t, 1, 1, 4, tensor.F32)
	state, err := st.Create(CreateRequest{Session: id, Epoch: Epoch{Counter: 3, Lane: a}, Config: cfg, Held: held})
	if err != nil {
		t.Fatal(err)
	}
	step := func(e Epoch) error {
		_, _, err := st.Append(context.Background(), &Append{Session: id, Epoch: e, Hashes: state.Layers[0].Hashes, Encoding: tensor.F32}, nil)
		return err
	}
	take := func(e Epoch) error {
		_, err := st.Take(context.Background(), id, e, nil, 0, false)
		return err
	}
	for _, c := range []struct {
		what string
		err  error
		want Reason // 0 is none
	}{
		{"a base that is not below", take(Epoch{Counter: 3, Lane: a, Base: 3}), Invalid},
		{"another lane's", take(Epoch{Counter: 4, Lane: b, Base: 3}), StaleEpoch},
		{"another base", take(Epoch{Counter: 4, Lane: a, Base: 2}), StaleEpoch},
		{"the driver's", take(Epoch{Counter: 4, Lane: a, Base: 3}), 0},
		{"a step under the base", step(Epoch{Counter: 3, Lane: a}), 0},
		{"a step under the counter", step(Epoch{Counter: 4, Lane: a}), 0},
		{"a step under none", step(Epoch{Lane: a}), StaleEpoch},
		{"a step of another lane", step(Epoch{Counter: 3, Lane: b}), StaleEpoch},
		{"a step to the holders of now", step(Epoch{Counter: 3, Lane: a, At: 4}), 0},
		{"a step to the holders of before", step(Epoch{Counter: 3, Lane: a, At: 3}), StaleEpoch},
		{"an epoch after another", take(Epoch{Counter: 5, Lane: a, Base: 3, At: 3}), StaleEpoch},
		{"again", take(Epoch{Counter: 5, Lane: a, Base: 3}), 0},
		{"the base after that", step(Epoch{Counter: 3, Lane: a}), 0},
		{"what is between", step(Epoch{Counter: 4, Lane: a}), StaleEpoch},
		{"another driver", take(Epoch{Counter: 6, Lane: b, At: 5, Holders: 4}), 0},
		{"and once more", take(Epoch{Counter: 6, Lane: b, At: 5, Holders: 2}), 0},
		{"a driver that knows other holders", take(Epoch{Counter: 7, Lane: b, At: 5}), StaleEpoch},
		{"for the driver that was", take(Epoch{Counter: 7, Lane: a, Base: 3}), StaleEpoch},
		{"the driver that was", step(Epoch{Counter: 3, Lane: a}), StaleEpoch},
		{"a closed one", take(Epoch{Counter: 8, Lane: b, Base: 6, Closed: true}), 0},
		{"a driver that knows nothing of it", take(Epoch{Counter: 9, Lane: a}), StaleEpoch},
		{"a driver that does", take(Epoch{Counter: 9, Lane: a, At: 8}), 0},
	} {
		if c.want == 0 && c.err != nil || c.want != 0 && reasonOf(c.err) != c.want {
			t.Errorf("%s: %v", c.what, c.err)
		}
	}
}
