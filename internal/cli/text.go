package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// clean makes what others chose, as names and errors are, fit for a terminal and one line: what does not print is escaped.
func clean(s string) string {
	if printable(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[size:]
	}
	return b.String()
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// say prints a message to the standard output. Its arguments are cleaned, its format is the program's own. With print.go and
// table.go this is the one place where text goes out.
func (a *app) say(format string, args ...any) error { return write(a.Out, format, args...) }

// note prints a message to the standard error.
func (a *app) note(format string, args ...any) {
	_ = write(a.Err, format, args...) // there is no other place to say so
}

func write(to io.Writer, format string, args ...any) error {
	for i, arg := range args {
		switch x := arg.(type) {
		case string:
			args[i] = clean(x)
		case error:
			args[i] = clean(x.Error())
		case fmt.Stringer:
			args[i] = clean(x.String())
		}
	}
	_, err := fmt.Fprintf(to, format, args...)
	return err
}

// escapeJSON escapes in JSON what does not print: encoding/json leaves the control characters beyond ASCII as they are.
func escapeJSON(text []byte) []byte {
	if printable(strings.ReplaceAll(string(text), "\n", "")) {
		return text
	}
	b := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// shorten keeps a text to a column's width.
func shorten(s string, width int) string {
	s = strings.Join(strings.Fields(clean(s)), " ")
	if runes := []rune(s); len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return s
}

// duration prints a duration for people, everywhere alike: three digits, and whole seconds from a minute on.
func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + duration(-d)
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= 999500*time.Microsecond:
		return digits3(d, time.Second) + "s"
	case d >= 999500*time.Nanosecond:
		return digits3(d, time.Millisecond) + "ms"
	case d >= time.Microsecond:
		return digits3(d, time.Microsecond) + "µs"
	}
	return strconv.FormatInt(int64(d), 10) + "ns"
}

// digits3 prints d in units to three digits.
func digits3(d, unit time.Duration) string {
	x := float64(d) / float64(unit)
	switch {
	case x >= 99.95:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 9.995:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// age prints how long ago a time was, in one unit: 5s, 3m, 7h, 2d.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := max(now.Sub(t), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// when is a time, nil where there is none.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// clock prints a time for people, in local time.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}
