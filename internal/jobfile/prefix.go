package jobfile

import (
	"cmp"
	"strconv"
	"strings"
)

// form says which numbers a prefix carries.
type form uint8

const (
	formBare form = iota
	formLayer
	formSeq
	formSeqLayer
)

// maxNumber bounds N and M of "seqs.N." and "layers.M.".
const maxNumber = 1<<31 - 1

// prefix is what stands before a tensor's own name.
type prefix struct {
	form       form
	seq, layer int
}

func (p prefix) String() string {
	switch p.form {
	case formLayer:
		return "layers." + strconv.Itoa(p.layer) + "."
	case formSeq:
		return "seqs." + strconv.Itoa(p.seq) + "."
	case formSeqLayer:
		return "seqs." + strconv.Itoa(p.seq) + ".layers." + strconv.Itoa(p.layer) + "."
	}
	return ""
}

// compare orders by sequence, then by layer.
func (p prefix) compare(q prefix) int {
	return cmp.Or(cmp.Compare(p.form, q.form), cmp.Compare(p.seq, q.seq), cmp.Compare(p.layer, q.layer))
}

// shared lists the prefixes under which a tensor that several problems use is looked for, the own one first.
func (p prefix) shared(weights bool) []prefix {
	own := []prefix{p}
	if p.form == formSeqLayer {
		if !weights {
			own = append(own, prefix{form: formSeq, seq: p.seq})
		}
		own = append(own, prefix{form: formLayer, layer: p.layer})
	}
	if p.form != formBare {
		own = append(own, prefix{})
	}
	return own
}

// splitName splits a tensor's name into its prefix and its own name, which holds no dot in a job file.
func splitName(name string) (p prefix, own string, ok bool) {
	dot := strings.LastIndexByte(name, '.')
	p, ok = parsePrefix(name[:dot+1])
	return p, name[dot+1:], ok
}

func parsePrefix(s string) (p prefix, ok bool) {
	if s == "" {
		return p, true
	}
	part := strings.Split(s, ".")
	if part[len(part)-1] != "" {
		return p, false
	}
	part = part[:len(part)-1]
	if len(part) >= 2 && part[0] == "seqs" {
		if p.seq, ok = parseIndex(part[1]); !ok {
			return p, false
		}
		p.form = formSeq
		part = part[2:]
	}
	if len(part) >= 2 && part[0] == "layers" {
		if p.layer, ok = parseIndex(part[1]); !ok {
			return p, false
		}
		p.form += formLayer
		part = part[2:]
	}
	return p, len(part) == 0
}

// parseIndex reads a decimal number that is written in one way only, so that two prefixes never mean the same problem.
func parseIndex(s string) (int, bool) {
	if s == "" || len(s) > 10 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n <= maxNumber
}
