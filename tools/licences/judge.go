package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are the licences, by their SPDX names, under which the programs may have modules: those that let a work under Apache-2.0 be
// passed on with them, if their texts go along. MPL-2.0 covers the files of the module alone, which are left as they are.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0"}

// enough is the part of a file's words, in percent, that has to be of known licences: the rest are names of authors.
const enough = 75

// judge returns the licences of a module, or says why it may not be linked.
func judge(m module) ([]string, error) {
	var found []string
	var errs []error
	for _, f := range m.files {
		if !f.grants() {
			continue
		}
		cover := licensecheck.Scan(f.text)
		if cover.Percent < enough {
			errs = append(errs, fmt.Errorf("%s: %.0f %% of %s is of known licences, which is too little to tell: read it", m, cover.Percent, f.name))
			continue
		}
		for _, match := range cover.Match {
			if match.IsURL {
				continue // says where the text is, which is there
			}
			if !slices.Contains(allowed, match.ID) {
				errs = append(errs, fmt.Errorf("%s: %s is %s, and allowed are %s", m, f.name, match.ID, strings.Join(allowed, ", ")))
			}
			found = append(found, match.ID)
		}
	}
	if len(errs) == 0 && len(found) == 0 {
		errs = append(errs, fmt.Errorf("%s: no file says under which licence it is", m))
	}
	slices.Sort(found)
	return slices.Compact(found), errors.Join(errs...)
}

func (m module) String() string { return m.path + " " + m.version }
