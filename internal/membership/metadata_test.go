package membership

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func drawMember(t *rapid.T) Member {
	m := Member{
		Name:    rapid.StringMatching(`[A-Za-z0-9._-]{1,128}`).Draw(t, "name"),
		Role:    rapid.SampledFrom([]Role{RoleCoordinator, RoleWorker}).Draw(t, "role"),
		Address: rapid.StringMatching(`([a-z][a-z0-9.-]{0,200}|10\.[0-9]\.0\.1|\[fd00::[1-9a-f]{1,4}\]):[1-9][0-9]{0,3}`).Draw(t, "address"),
		Version: rapid.StringMatching(`[!-~]{0,64}`).Draw(t, "version"),
		Weight:  rapid.IntRange(1, MaxWeight).Draw(t, "weight"),
	}
	copy(m.Boot[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "boot"))
	m.Boot[0] |= 1
	return m
}

func TestMetadataComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, leaving := drawMember(t), rapid.Bool().Draw(t, "leaving")
		b, err := encodeMetadata(m, leaving)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > metadataLimit {
			t.Fatalf("%d bytes", len(b))
		}
		back, left, err := decodeMetadata(m.Name, b)
		if err != nil {
			t.Fatal(err)
		}
		if back != m || left != leaving {
			t.Fatalf("%+v came back as %+v, leaving %t as %t", m, back, leaving, left)
		}
		// The name of a node has the boot behind the name.
		if back, _, err := decodeMetadata(keyOf(m), b); err != nil || back != m {
			t.Fatalf("of node %s: %+v, %v", keyOf(m), back, err)
		}
		// A later program's additions are ignored; nothing of an announcement that was cut off is believed.
		more := append(bytes.Clone(b), rapid.SliceOfN(rapid.Byte(), 0, metadataLimit-len(b)).Draw(t, "more")...)
		if back, _, err := decodeMetadata(m.Name, more); err != nil || back != m {
			t.Fatalf("with additions: %+v, %v", back, err)
		}
		if leaving {
			b = b[:len(b)-1]
		}
		if _, _, err := decodeMetadata(m.Name, b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]); err == nil {
			t.Fatal("metadata that was cut off is accepted")
		}
	})
}

func aMember(name string) Member {
	return Member{Name: name, Boot: [16]byte{15: 1}, Role: RoleWorker, Address: "127.0.0.1:7601", Version: "0.1.0", Weight: 1}
}

func TestMembersThatCannotBeAnnounced(t *testing.T) {
	for rule, change := range map[string]func(*Member){
		"has 0 bytes, not 1 to 128":       func(m *Member) { m.Name = "" },
		"has 129 bytes, not 1 to 128":     func(m *Member) { m.Name = strings.Repeat("n", 129) },
		"other characters than letters":   func(m *Member) { m.Name = "a/b" },
		"boot UUID is zero":               func(m *Member) { m.Boot = [16]byte{} },
		"role 3 is unknown":               func(m *Member) { m.Role = 3 },
		"names no port":                   func(m *Member) { m.Address = "127.0.0.1" },
		"port 0 can't be dialed":          func(m *Member) { m.Address = "127.0.0.1:0" },
		"can't dial 0.0.0.0":              func(m *Member) { m.Address = "0.0.0.0:7601" },
		"can't dial ::":                   func(m *Member) { m.Address = "[::]:7601" },
		"neither an IP address":           func(m *Member) { m.Address = "a b:7601" },
		"than the 512 (and 255)":          func(m *Member) { m.Address = strings.Repeat("h", 251) + ":7601" },
		"version has 65 bytes":            func(m *Member) { m.Version = strings.Repeat("v", 65) },
		"other than printable":            func(m *Member) { m.Version = "1\n" },
		"weight 0 is not in [1, 1048576]": func(m *Member) { m.Weight = 0 },
		"weight 1048577 is not in":        func(m *Member) { m.Weight = MaxWeight + 1 },
		"weight -1 is not in [0":          func(m *Member) { m.Role, m.Weight = RoleCoordinator, -1 },
	} {
		m := aMember("w0")
		change(&m)
		_, err := encodeMetadata(m, false)
		if err == nil || !strings.Contains(err.Error(), rule) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want an error of one line that says %q, got %v", rule, err)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	whole, err := encodeMetadata(aMember("w0"), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("w0", whole)
	f.Add("w0", whole[:metadataFixed])
	f.Add("w0", append(bytes.Clone(whole), 7, 7))
	f.Add("", []byte{metadataFormat})
	f.Add("w0", []byte{2, 0, 0})
	f.Add("w0", bytes.Repeat([]byte{0xff}, metadataLimit+1))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		m, leaving, err := decodeMetadata(name, b)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("an error of several lines: %q", err)
			}
			return
		}
		again, err := encodeMetadata(m, leaving)
		if err != nil {
			t.Fatalf("%+v was read and can't be written: %v", m, err)
		}
		if leaving {
			again = again[:len(again)-1] // others may be set beside this flag
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%x was read as %+v, which is %x", b, m, again)
		}
	})
}
