package scatter

import (
	"fmt"
	"math"
	"os"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// sum is a gradient of the result that is added up in the end: to what the job's file has of it, or to 0, go those of the
// problems that share the tensor, ascending.
type sum struct {
	info    tensor.Info
	offset  int64 // in the result, in bytes
	earlier bool  // the job's file has one
	addends []*addend
}

// addend is the gradient that one problem has, in the scratch file. Where its groups have shares of it that are added up
// first, ascending, these lie one after the other.
type addend struct {
	at            int64 // in bytes
	shares        int64
	rows          int64 // of the result
	width, stride int64
}

// openScratch makes room on the disk for gradients that are summed, and for those of queries, keys and values from which d_x
// is made. The file has no name.
func (r *run) openScratch() error {
	users := map[string]int{} // problems that have the gradient
	for _, p := range r.problems {
		if p.Differentiates() {
			for _, info := range p.Results() {
				users[info.Name]++
			}
		}
	}
	var bytes int64
	sums := map[string]*sum{}
	for _, p := range r.problems {
		if !p.Differentiates() {
			continue
		}
		if p.projects() {
			p.stackedAt = bytes
			bytes += 4 * int64(p.Tokens) * int64(p.stackedWidth())
		}
		for _, w := range p.places(0) {
			if w.of == "" || users[w.of] < 2 && (w.tensor != headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS || !p.sharesBias()) {
				continue
			}
			s := sums[w.of]
			if s == nil {
				s = r.newSum(p, w.of)
				sums[w.of] = s
			}
			a := s.newAddend(p, w)
			a.at = bytes
			bytes += 4 * a.shares * a.rows * a.width
			p.addends[w.tensor], s.addends = a, append(s.addends, a)
		}
	}
	for _, info := range r.Job.Earlier() {
		if sums[info.Name] == nil {
			offset, _ := r.Layout.Offset(info.Name)
			r.sums = append(r.sums, &sum{info: info, offset: offset, earlier: true})
		}
	}
	if bytes == 0 {
		return nil
	}
	f, err := os.CreateTemp(r.Scratch, ".gradients-*")
	if err != nil {
		return fmt.Errorf("make a file for parts of gradients: %w", err)
	}
	r.scratch = f
	return os.Remove(f.Name())
}

func (r *run) newSum(p *problem, name string) *sum {
	s := &sum{}
	results := p.Results()
	s.info = results[slices.IndexFunc(results, func(i tensor.Info) bool { return i.Name == name })]
	s.offset, _ = r.Layout.Offset(name) // prepare has looked
	s.earlier = slices.ContainsFunc(r.Job.Earlier(), func(i tensor.Info) bool { return i.Name == name })
	r.sums = append(r.sums, s)
	return s
}

// newAddend returns the problem's share of a sum, whose first group has the place w.
func (s *sum) newAddend(p *problem, w place) *addend {
	last := int64(s.info.Shape[len(s.info.Shape)-1])
	a := &addend{shares: 1, rows: s.info.Elements() / last, width: last, stride: last}
	if w.tensor == headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS {
		a.width = w.width
		if p.sharesBias() {
			a.shares = int64(p.Shape.KVHeads)
		}
	}
	return a
}

func (r *run) closeScratch() error {
	if r.scratch == nil {
		return nil
	}
	return r.scratch.Close()
}

// addUp adds up what is summed.
func (r *run) addUp() error {
	for _, s := range r.sums {
		if s.earlier {
			if err := r.addEarlier(s); err != nil {
				return err
			}
		}
		for _, a := range s.addends {
			if err := r.addProblem(s, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// addEarlier adds what the job's file has of a gradient to what is in the result: that of the only problem that has it, or 0.
func (r *run) addEarlier(s *sum) error {
	width := s.info.Elements()
	return r.addTo(s, gradientPart{file: r.Result, offset: s.offset, rows: 1, width: width, stride: width}, func(first, n int64) ([]float32, error) {
		data := make([]byte, 4*n)
		err := r.input.ReadAt(data, s.info.Name, 4*first)
		return floats(data), err
	})
}

// addProblem adds the gradient of one problem, its groups' shares being added up first.
func (r *run) addProblem(s *sum, a *addend) error {
	to := gradientPart{file: r.Result, offset: s.offset, rows: a.rows, width: a.width, stride: a.stride}
	return r.addTo(s, to, func(first, n int64) ([]float32, error) {
		total, data := make([]float32, n), make([]byte, 4*n)
		for share := range a.shares {
			if _, err := r.scratch.ReadAt(data, a.at+4*(share*a.rows*a.width+first)); err != nil {
				return nil, fmt.Errorf("read parts of gradients: %w", err)
			}
			for i, x := range floats(data) {
				total[i] += x
			}
		}
		return total, nil
	})
}

// addTo adds elements to those of a part of the result, piece by piece.
func (r *run) addTo(s *sum, to gradientPart, elements func(first, n int64) ([]float32, error)) error {
	total := int64(to.elements())
	for first := int64(0); first < total; first += rpc.BlockBytes / 4 {
		n := min(rpc.BlockBytes/4, total-first)
		x, err := elements(first, n)
		if err != nil {
			return err
		}
		data := make([]byte, 4*n)
		if err := to.read(uint64(first), data); err != nil {
			return err
		}
		for i, y := range floats(data) {
			if x[i] += y; math.IsInf(float64(x[i]), 0) || x[i] != x[i] {
				at := first + int64(i)
				return status.Errorf(codes.OutOfRange, "%s: %v: is not finite", s.info.Name, index(s.info.Shape, at/to.width*to.stride+at%to.width))
			}
		}
		if err := to.write(uint64(first), littleEndian(x)); err != nil {
			return err
		}
	}
	return nil
}

// index returns the index of an element of a shape.
func index(shape []int, element int64) []int64 {
	at := make([]int64, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		at[i], element = element%int64(shape[i]), element/int64(shape[i])
	}
	return at
}

// checkGradients sees to it that the result has the tensors of a problem's gradients, and returns where d_x begins, if there
// is one.
func (r *run) checkGradients(p *problem) (dX int64, err error) {
	for _, info := range p.Results() {
		offset, ok := r.Layout.Offset(info.Name)
		if !ok {
			return 0, fmt.Errorf("result has no tensor %q", info.Name)
		}
		if info.Name == p.Prefix+"d_x" {
			dX = offset
		}
	}
	return dX, nil
}
