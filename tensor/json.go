package tensor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// reader reads JSON strictly: no duplicate keys, no invalid UTF-8, nothing after the value. Errors are phrases for the
// rule of a FormatError.
type reader struct{ d *json.Decoder }

func newReader(text []byte) (reader, error) {
	if !utf8.Valid(text) {
		return reader{}, errors.New("invalid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return reader{d}, nil
}

func (r reader) token() (json.Token, error) {
	t, err := r.d.Token()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("ends early")
	}
	if err != nil {
		return nil, fmt.Errorf("near byte %d: %w", r.d.InputOffset(), err)
	}
	return t, nil
}

// end checks that nothing follows.
func (r reader) end() error {
	if _, err := r.d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("goes on after its end, near byte %d", r.d.InputOffset())
	}
	return nil
}

// object calls field with each key in turn; field reads the value.
func (r reader) object(what string, field func(key string) error) error {
	if err := r.open(what, '{'); err != nil {
		return err
	}
	return r.members(what, field)
}

// members reads what object does after its opening brace.
func (r reader) members(what string, field func(key string) error) error {
	seen := make(map[string]struct{})
	for r.d.More() {
		t, err := r.token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("%s has a key that is not a string", what)
		}
		if _, dup := seen[key]; dup {
			return fmt.Errorf("%s has the key %s twice", what, quote(key))
		}
		seen[key] = struct{}{}
		if err := field(key); err != nil {
			return err
		}
	}
	_, err := r.token()
	return err
}

// objectOrNull is object, and reads null as an object without fields.
func (r reader) objectOrNull(what string, field func(key string) error) error {
	t, err := r.token()
	switch {
	case err != nil || t == nil:
		return err
	case t != json.Delim('{'):
		return fmt.Errorf("%s does not begin with {", what)
	}
	return r.members(what, field)
}

func (r reader) open(what string, delim json.Delim) error {
	t, err := r.token()
	if err != nil {
		return err
	}
	if t != delim {
		return fmt.Errorf("%s does not begin with %s", what, delim)
	}
	return nil
}

func (r reader) str(what string) (string, error) {
	t, err := r.token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%s is not a string", what)
	}
	return s, nil
}

// ints reads an array of at most limit integers, none below zero.
func (r reader) ints(what string, limit int) ([]int, error) {
	if err := r.open(what, '['); err != nil {
		return nil, err
	}
	values := []int{}
	for r.d.More() {
		t, err := r.token()
		if err != nil {
			return nil, err
		}
		number, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s holds something that is not a number", what)
		}
		v, err := strconv.ParseUint(number.String(), 10, strconv.IntSize-1)
		if err != nil {
			return nil, fmt.Errorf("%s holds %s, which is not an integer from 0 to 2^%d-1", what, quote(number.String()), strconv.IntSize-1)
		}
		if len(values) == limit {
			return nil, fmt.Errorf("%s holds more than %d numbers", what, limit)
		}
		values = append(values, int(v))
	}
	_, err := r.token()
	return values, err
}

// strings reads an object of strings, or null as one without any.
func (r reader) strings(what string) (map[string]string, error) {
	m := make(map[string]string)
	err := r.objectOrNull(what, func(key string) error {
		v, err := r.str(what + " " + quote(key))
		m[key] = v
		return err
	})
	return m, err
}

// appendJSON appends s as a JSON string.
func appendJSON(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("%s is not valid UTF-8", quote(s))
	}
	buf := bytes.NewBuffer(b)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
