package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"
)

// check reads data as a snapshot. What is refused is so by a typed error; what is read is what was written.
func check(t *testing.T, data []byte) {
	c, err := read(bytes.NewReader(data))
	if err != nil {
		reason(t, "fuzz", err)
		return
	}
	again, err := read(bytes.NewReader(c.write(t)))
	if err != nil {
		t.Fatal(err)
	}
	// NaN differ from themselves, so bytes are compared.
	if !bytes.Equal(again.write(t), c.write(t)) {
		t.Fatal("what was read is not what was written")
	}
}

func seeds(f *testing.F) [][]byte {
	c := small(f)
	files := [][]byte{c.write(f)}
	for _, path := range []string{"testdata/plain.snapshot", "testdata/zstd.snapshot"} {
		file, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// FuzzRead reads any bytes.
func FuzzRead(f *testing.F) {
	for _, file := range seeds(f) {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, data []byte) { check(t, data) })
}

// FuzzRecords reads records whose checksums are right, whatever is in them: a kind, a coding, 4 bytes of the decoded length,
// 2 of the payload's, and the payload, again and again.
func FuzzRecords(f *testing.F) {
	for _, file := range seeds(f) {
		var records []byte
		for rest := file[len(magic)+4 : len(file)-sha256.Size]; len(rest) > 0; {
			n := int(binary.LittleEndian.Uint32(rest[4:]))
			records = append(records, rest[0], rest[1])
			records = append(records, rest[8:12]...)
			records = binary.LittleEndian.AppendUint16(records, uint16(n))
			records = append(records, rest[recordHead:][:n]...)
			rest = rest[recordHead+n:]
		}
		f.Add(records)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := binary.LittleEndian.AppendUint32([]byte(magic), formatVersion)
		for len(data) >= 8 {
			payload := data[8:]
			payload = payload[:min(len(payload), int(binary.LittleEndian.Uint16(data[6:])))]
			record := make([]byte, recordHead)
			record[0], record[1] = data[0], data[1]
			binary.LittleEndian.PutUint32(record[4:], uint32(len(payload)))
			copy(record[8:], data[2:6])
			record = append(record, payload...)
			binary.LittleEndian.PutUint32(record[12:], crc32.Update(crc32.Checksum(record[:12], castagnoli), castagnoli, payload))
			file = append(file, record...)
			data = data[8+len(payload):]
		}
		sum := sha256.Sum256(file)
		check(t, append(file, sum[:]...))
	})
}
