package house

import (
	"fmt"
	"go/constant"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits compares docs/limits.md with the code: each row names its constants, in the last cell, and their values, in the first,
// in the same order. A constant called max… that no row names is a finding, too.
func (h *House) Limits() []string {
	const page = "docs/limits.md"
	text, err := os.ReadFile(filepath.Join(h.Root, filepath.FromSlash(page)))
	if err != nil {
		return []string{err.Error()}
	}
	constants := h.numbers()
	var found []string
	told := map[string]bool{}
	named := regexp.MustCompile("`([a-z0-9/]+\\.[A-Za-z]+)`")
	for n, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		homes := named.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if !strings.HasPrefix(line, "| ") || len(cells) < 3 || len(homes) == 0 {
			continue
		}
		values := strings.Split(cells[0], "; ")
		if len(values) != len(homes) {
			found = append(found, fmt.Sprintf("%s:%d: %d values for %d constants", page, n+1, len(values), len(homes)))
			continue
		}
		for i, home := range homes {
			told[home[1]] = true
			value, err := quantity(values[i])
			if is, ok := constants[home[1]]; err != nil || !ok || is != value {
				found = append(found, fmt.Sprintf("%s:%d: %s is %d in the code, and %q here", page, n+1, home[1], is, values[i]))
			}
		}
	}
	for name := range constants {
		base := strings.ToLower(name[strings.LastIndex(name, ".")+1:])
		if strings.HasPrefix(base, "max") && !told[name] && !h.excepted("unlisted", name) {
			found = append(found, fmt.Sprintf("%s is a limit that %s does not name", name, page))
		}
	}
	slices.Sort(found)
	return found
}

// numbers are the integer constants of packages, by "folder.name"; those that only measure and test are left out.
func (h *House) numbers() map[string]int64 {
	all := map[string]int64{}
	for _, p := range h.own() {
		if strings.Contains(p.PkgPath, "/testkit/") || strings.Contains(p.PkgPath, "/figures/") || strings.Contains(p.PkgPath, "/k8s/") {
			continue
		}
		for _, name := range p.Types.Scope().Names() {
			c, ok := p.Types.Scope().Lookup(name).(*types.Const)
			if !ok {
				continue
			}
			if n, exact := constant.Int64Val(constant.ToInt(c.Val())); exact && c.Val().Kind() == constant.Int {
				all[h.short(p.PkgPath)+"."+name] = n
			}
		}
	}
	return all
}

var units = map[string]int64{
	"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	"ms": int64(time.Millisecond), "s": int64(time.Second), "min": int64(time.Minute), "h": int64(time.Hour), "days": int64(24 * time.Hour),
}

// quantity reads a number as people write it: 65,536, 32 MiB, 2^40, 10 s.
func quantity(text string) (int64, error) {
	number, unit, _ := strings.Cut(text, " ")
	scale, ok := units[unit]
	if power, found := strings.CutPrefix(number, "2^"); found && ok {
		n, err := strconv.Atoi(power)
		return scale << n, err
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(number, ",", ""), 10, 64)
	if err == nil && !ok {
		err = fmt.Errorf("unit %q", unit)
	}
	return n * scale, err
}
