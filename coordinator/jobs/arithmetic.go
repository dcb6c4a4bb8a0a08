package jobs

import (
	"slices"

	"headwater.example/attention"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// takeArithmetic takes an arithmetic for the problems that leave it to the coordinator: the one that suits the workers, which is the
// same for all. From then on the submission is one that asks for it. If its key is known, and that job has the same content with one
// that could be taken, it is that one: whoever leaves it to the coordinator is content with what it took before.
func (u *upload) takeArithmetic(parsed *jobfile.Job) (*jobfile.Job, error) {
	if known := u.jobs.keyed(u.begin.GetKey(), u.tenant()); known != nil {
		for _, a := range []attention.Arithmetic{attention.Chain, attention.Tiles} {
			job, overrides, err := u.taken(parsed, a)
			if err != nil {
				return nil, err
			}
			if contentHash(u.begin.GetSha256(), job) == known.GetContentHash() {
				u.begin.Overrides = overrides
				return job, nil
			}
		}
	}
	answering, err := workers.Placeable(u.workers.Describe(u.ctx, u.workers.List()))
	if err != nil {
		return nil, err
	}
	job, overrides, err := u.taken(parsed, workers.Arithmetic(answering))
	if err != nil {
		return nil, err
	}
	u.begin.Overrides = overrides
	return job, nil
}

// taken is a job with an arithmetic taken, and the overrides that make it so.
func (u *upload) taken(parsed *jobfile.Job, a attention.Arithmetic) (*jobfile.Job, []byte, error) {
	overrides, err := parsed.Taken(u.begin.GetOverrides(), a)
	if err != nil {
		return nil, nil, err
	}
	job, err := parseHeader(u.begin, overrides)
	return job, overrides, err
}

// arithmetics are those of a job's problems.
func arithmetics(j *jobfile.Job) (all []headwaterv1.Arithmetic) {
	for _, one := range j.Arithmetics() {
		if a := layerproto.Arithmetic(one); !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	slices.Sort(all)
	return all
}
