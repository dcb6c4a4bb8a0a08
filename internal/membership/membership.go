// Package membership says who might be in the cluster: the names, boots, roles, addresses, versions and weights of its
// coordinators and workers, either gossiped (memberlist behind the small interface View) or from a list that stands still.
//
// The way of a member: Gossip announces Self with its metadata, a goroutine joins the seeds and keeps at it, and the
// members that memberlist believes alive appear in View.Members, each change being told by View.Changed.
//
// A view is a hint and never the truth: a member of it may be dead, and a living one may be missing for some seconds.
// Whether a worker answers is said by the stream to it. A member is who it says by its name and the UUID of its boot
// together: one that comes back under another address is no stranger, and one that was restarted holds nothing of before.
package membership

import (
	"context"
	"fmt"

	"headwater.example/internal/address"
	"headwater.example/internal/certs"
)

// Role is what a member does.
type Role uint8

// The roles; the numbers are part of the metadata's format.
const (
	RoleCoordinator Role = 1
	RoleWorker      Role = 2
)

// String returns "coordinator" or "worker".
func (r Role) String() string {
	switch r {
	case RoleCoordinator:
		return "coordinator"
	case RoleWorker:
		return "worker"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Member is one process of the cluster.
type Member struct {
	Name    string   // unique among the living: letters, digits, '.', '_' and '-', at most 128 bytes
	Boot    [16]byte // UUID of this process's start; zero in a static list, which can't know it
	Role    Role
	Address string // of its gRPC service, as others dial it; see package address
	Version string // the program's version; "" where it is not known
	Weight  int    // share of the shards that a worker asks for beside the others', 1 to 1,048,576; of no meaning for a coordinator
}

// View is a picture of the cluster that changes under its reader. All methods may be called concurrently.
type View interface {
	// Members returns the members now, itself among them where it gossips, sorted by name. The slice is the caller's.
	// It does not block.
	Members() []Member
	// Changed returns a channel that is closed at the next change of Members. Get it before Members is read, and anew
	// after each close, so that no change is missed. It is not closed by Close.
	Changed() <-chan struct{}
	// Close says leave to the others, until ctx ends, and ends what the view runs. The view's members stay as they were.
	// A second call does nothing.
	Close(ctx context.Context) error
}

// The bounds of a member's fields.
const (
	maxName    = certs.MaxName
	maxVersion = 64
	MaxWeight  = 1 << 20
)

// validate says what is wrong with a member that is to be announced, or was.
func (m Member) validate() error {
	if err := validateName(m.Name); err != nil {
		return err
	}
	if m.Boot == ([16]byte{}) {
		return fmt.Errorf("member %s: its boot UUID is zero", m.Name)
	}
	if m.Role != RoleCoordinator && m.Role != RoleWorker {
		return fmt.Errorf("member %s: %v is unknown", m.Name, m.Role)
	}
	if err := validateAddress(m.Address); err != nil {
		return fmt.Errorf("member %s: %w", m.Name, err)
	}
	if len(m.Version) > maxVersion {
		return fmt.Errorf("member %s: its version has %d bytes, more than %d", m.Name, len(m.Version), maxVersion)
	}
	for i := range len(m.Version) {
		if c := m.Version[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("member %s: its version %q has other than printable ASCII characters", m.Name, m.Version)
		}
	}
	least := 0
	if m.Role == RoleWorker {
		least = 1
	}
	if m.Weight < least || m.Weight > MaxWeight {
		return fmt.Errorf("member %s: weight %d is not in [%d, %d]", m.Name, m.Weight, least, MaxWeight)
	}
	return nil
}

func validateName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a member's name has %d bytes, not 1 to %d", len(name), maxName)
	}
	if !address.HostCharacters(name) {
		return fmt.Errorf("member name %q has other characters than letters, digits, '.', '_' and '-'", name)
	}
	return nil
}

// validateAddress checks that others can dial an address.
func validateAddress(text string) error {
	_, err := address.ParseAdvertised(text, 0)
	return err
}
