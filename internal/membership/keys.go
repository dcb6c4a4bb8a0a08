package membership

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"headwater.example/internal/certs"
	"headwater.example/internal/membership/internal/guard"
)

// keysEvery is how often the file of keys is read again.
const keysEvery = 5 * time.Second

// newSecret reads the keys of gossip; nil for gossip in plain text.
func newSecret(path string) (*guard.Secret, error) {
	if path == "" {
		return nil, nil
	}
	keys, err := certs.ReadGossipKeys(path)
	if err != nil {
		return nil, err
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &guard.Secret{Ring: ring, Label: label}, nil
}

// tendKeys takes keys that are written into the file, and lets go of those that are no more in it, until the view is closed.
func (g *gossip) tendKeys(ticks <-chan time.Time) {
	said := ""
	for {
		select {
		case <-ticks:
		case <-g.running.Done():
			return
		}
		changed, err := g.readKeys()
		switch {
		case err != nil && err.Error() != said: // as when it is being replaced
			said = err.Error()
			g.log.Warn("the keys of gossip can't be read again; those of before stay in use", "error", err)
		case changed:
			said = ""
			g.log.Info("the keys of gossip were read again", "keys", len(g.secret.Ring.GetKeys()))
		}
	}
}

// readKeys makes the ring what the file says, and tells whether that changed it.
func (g *gossip) readKeys() (changed bool, err error) {
	keys, err := certs.ReadGossipKeys(g.keyFile)
	if err != nil {
		return false, err
	}
	ring := g.secret.Ring
	has := func(all [][]byte, key []byte) bool {
		return slices.ContainsFunc(all, func(k []byte) bool { return bytes.Equal(k, key) })
	}
	for _, key := range keys {
		if !has(ring.GetKeys(), key) {
			changed = true
			if err := ring.AddKey(key); err != nil {
				return changed, err
			}
		}
	}
	if !bytes.Equal(ring.GetPrimaryKey(), keys[0]) {
		changed = true
		if err := ring.UseKey(keys[0]); err != nil {
			return changed, err
		}
	}
	for _, key := range ring.GetKeys() {
		if !has(keys, key) {
			changed = true
			if err := ring.RemoveKey(key); err != nil {
				return changed, err
			}
		}
	}
	return changed, nil
}

// reasonOf is why a message is refused, as it is counted.
func reasonOf(err error) certs.Reason {
	switch {
	case errors.Is(err, guard.ErrKey):
		return certs.GossipKey
	case errors.Is(err, guard.ErrPlain), errors.Is(err, guard.ErrEncrypted):
		return certs.GossipPlain
	}
	return certs.GossipMalformed
}
