package jobfile

import (
	"context"
	"fmt"

	"headwater.example/tensor"
)

// pieceBytes is how much CheckValues reads at once; a multiple of every element's size.
const pieceBytes = 1 << 20

// CheckValues reads every tensor that the job uses once, and refuses the first value that nothing may be computed on:
// NaN and Inf anywhere but −Inf in a bias, and bytes other than 0 and 1 in a mask of type BOOL. progress, unless nil, is
// called with the bytes read and the bytes to read. Errors are of type *Error, or ctx's, or those of reading f.
func (j *Job) CheckValues(ctx context.Context, f *tensor.File, progress func(done, total int64)) error {
	var done, total int64
	for _, c := range j.check {
		total += c.info.Bytes()
	}
	buf := make([]byte, min(pieceBytes, max(total, 1)))
	for _, c := range j.check {
		size := c.info.Bytes()
		for off := int64(0); off < size; {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("checking the values of %s: %w", oneLine(j.File), err)
			}
			piece := buf[:min(int64(len(buf)), size-off)]
			if err := f.ReadAt(piece, c.info.Name, off); err != nil {
				return fmt.Errorf("checking the values of %s: %w", oneLine(j.File), err)
			}
			if err := c.values(piece, off); err != nil {
				err.File = j.File
				return err
			}
			off += int64(len(piece))
			done += int64(len(piece))
			if progress != nil {
				progress(done, total)
			}
		}
	}
	return nil
}

// values checks a piece that begins at byte off of the tensor.
func (c checked) values(piece []byte, off int64) *Error {
	first := off / int64(c.info.DType.Size())
	if c.boolean {
		for i, v := range piece {
			if v > 1 {
				return &Error{Tensor: c.info.Name, Index: first + int64(i), Rule: fmt.Sprintf("is %d, must be 0 or 1", v)}
			}
		}
		return nil
	}
	index, value, ok := tensor.CheckFinite(piece, c.info.DType, c.negInf)
	switch {
	case ok:
		return nil
	case c.negInf:
		return &Error{Tensor: c.info.Name, Index: first + index, Rule: fmt.Sprintf("is %v, must be finite or -Inf", value)}
	}
	return &Error{Tensor: c.info.Name, Index: first + index, Rule: fmt.Sprintf("is %v, must be finite", value)}
}
