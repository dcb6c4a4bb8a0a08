package jobfile

import (
	"maps"

	"headwater.example/attention"
)

// Auto says whether problems leave their arithmetic to the coordinator.
func (j *Job) Auto() bool {
	for i := range j.Problems {
		if j.Problems[i].Arithmetic == attention.Auto {
			return true
		}
	}
	return false
}

// Taken returns overrides with which the problems that leave their arithmetic to the coordinator have the one that it has taken, and
// everything else is as with the overrides that the job was read with.
func (j *Job) Taken(overrides []byte, taken attention.Arithmetic) ([]byte, error) {
	o, err := optionsOf(overrides, "overrides: ")
	if err != nil {
		err.File = j.File
		return nil, err
	}
	name, problems := taken.String(), maps.Clone(o.Problems)
	if problems == nil {
		problems = map[string]*Options{}
	}
	for i := range j.Problems {
		if p := &j.Problems[i]; p.Arithmetic == attention.Auto {
			problems[p.Prefix] = (&Options{}).over(problems[p.Prefix]).over(&Options{Arithmetic: &name})
		}
	}
	o.Problems = problems
	return marshal(o), nil
}
