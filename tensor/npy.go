package tensor

import (
	"errors"
	"fmt"
	"io"
)

func openNPY(name string, r io.ReaderAt, size int64) (*File, error) {
	return nil, broken(name, "", "npy is not read yet")
}

func openNPZ(name string, r io.ReaderAt, size int64) (*File, error) {
	return nil, broken(name, "", "npz is not read yet")
}

func openIndexFile(path string) (*File, error) {
	return nil, broken(path, "", "an index is not read yet")
}

// WriteNPY writes one tensor as an .npy file. The name is not written.
func WriteNPY(w io.Writer, t Data) error { return errors.New("npy is not written yet") }

// WriteNPZ writes tensors as an .npz archive.
func WriteNPZ(w io.Writer, tensors []Data) error { return errors.New("npz is not written yet") }

// readError is a failure of the medium, not of the format.
type readError struct {
	file string
	err  error
}

func (e *readError) Error() string { return fmt.Sprintf("%s: read: %v", printable(e.file), e.err) }
func (e *readError) Unwrap() error { return e.err }
