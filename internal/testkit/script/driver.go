package script

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"headwater.example/client"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// goDriver is the Go client.
type goDriver struct {
	client   *client.Client
	direct   bool
	sessions map[string]*client.Session
	receipts map[string]client.Receipt
	others   []*client.Client // of other programs
	failed   error            // the newest
}

// Go starts the Go client's driver.
func Go(t testing.TB, address string, direct bool) Driver {
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	return &goDriver{client: c, direct: direct, sessions: map[string]*client.Session{}, receipts: map[string]client.Receipt{}}
}

// Close implements Driver.
func (d *goDriver) Close() error {
	errs := []error{d.client.Close()}
	for _, c := range d.others {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Do implements Driver.
func (d *goDriver) Do(c Command) (string, error) {
	ctx := context.Background()
	if text := c.Args["deadline"]; text != "" {
		after, err := time.ParseDuration(text)
		if err != nil {
			return "", err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, after)
		defer cancel()
	}
	switch {
	case c.Verb == "open":
		return d.open(ctx, c)
	case c.Verb == "why":
		return why(d.failed), nil
	case c.Verb == "lost":
		return lost(d.failed, c.Args["groups"] != ""), nil
	case c.Verb == "attach" && c.Args["id"] != "":
		id, err := client.ParseSessionID(c.Args["id"])
		if err != nil {
			return d.told(err), nil
		}
		return d.attach(ctx, id, c)
	}
	s := d.sessions[c.Name]
	if s == nil {
		return "", fmt.Errorf("%s: there is no session %q", c.Verb, c.Name)
	}
	switch c.Verb {
	case "step":
		return d.step(ctx, s, c)
	case "fork":
		return d.fork(ctx, s, c)
	case "truncate":
		n, err := c.Int("to", 0)
		if err != nil {
			return "", err
		}
		return d.lengths(s, s.Truncate(ctx, n))
	case "recover":
		return d.recover(ctx, s, c)
	case "receipt":
		d.receipts[c.Args["as"]] = s.Receipt()
		return d.lengths(s, nil)
	case "attach":
		return d.attach(ctx, s.ID(), c)
	case "pin":
		return d.lengths(s, s.Pin(ctx, true))
	case "drop":
		return d.told(s.Drop(ctx)), nil
	}
	return "", fmt.Errorf("%q is no command", c.Verb)
}

// layers reads the geometry: all layers alike but for their windows.
func layers(c Command) ([]client.Layer, error) {
	n, errN := c.Int("layers", 1)
	heads, errH := c.Int("heads", 4)
	kv, errK := c.Int("kv", 2)
	dim, errD := c.Int("dim", 8)
	vdim, errV := c.Int("vdim", dim)
	if err := errors.Join(errN, errH, errK, errD, errV); err != nil {
		return nil, err
	}
	storage := tensor.F32
	if text := c.Args["storage"]; text != "" {
		var err error
		if storage, err = shard.ParseStorage(text); err != nil {
			return nil, err
		}
	}
	all := make([]client.Layer, n)
	for i := range all {
		all[i] = client.Layer{Heads: heads, KVHeads: kv, HeadDim: dim, VDim: vdim, Storage: storage}
	}
	if text := c.Args["window"]; text != "" {
		w, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		for i := range all {
			all[i].WindowLeft = client.Within(w)
		}
	}
	return all, nil
}

func (d *goDriver) open(ctx context.Context, c Command) (string, error) {
	all, err := layers(c)
	if err != nil {
		return "", err
	}
	ids, err := tokens(c)
	if err != nil {
		return "", err
	}
	ttl, err := time.ParseDuration(cmp.Or(c.Args["ttl"], "0s"))
	if err != nil {
		return "", err
	}
	stripes, err := c.Int("stripes", 0)
	if err != nil {
		return "", err
	}
	s, err := d.client.OpenSession(ctx, client.SessionOptions{
		Stripes: stripes, TTL: ttl, Layers: all, Tokens: ids, Tenant: c.Args["tenant"], Name: c.Name, Direct: d.direct, Codec: client.Codec(c.Args["codec"]),
	})
	if err != nil {
		return d.told(err), nil
	}
	d.sessions[c.Name] = s
	return d.lengths(s, nil)
}

// tokens reads "tokens=FIRST+COUNT": ids that ascend by one.
func tokens(c Command) ([]uint32, error) {
	text := c.Args["tokens"]
	if text == "" {
		return nil, nil
	}
	var first, count uint32
	if _, err := fmt.Sscanf(text, "%d+%d", &first, &count); err != nil {
		return nil, fmt.Errorf("tokens=%s: %w", text, err)
	}
	ids := make([]uint32, count)
	for i := range ids {
		ids[i] = first + uint32(i)
	}
	return ids, nil
}

func (d *goDriver) step(ctx context.Context, s *client.Session, c Command) (string, error) {
	layer, errL := c.Int("layer", 0)
	appended, errA := c.Int("append", 0)
	attend, errQ := c.Int("attend", 0)
	seed, errS := c.Int("seed", 1)
	ids, errT := tokens(c)
	if err := errors.Join(errL, errA, errQ, errS, errT); err != nil {
		return "", err
	}
	l := s.Layers()[layer]
	length := s.LayerLen(layer)
	step := client.Step{Session: s, Layer: layer, Tokens: ids}
	if appended > 0 {
		step.K = rows(seed, kindKey, layer, length, appended, l.KVHeads*l.HeadDim)
		step.V = rows(seed, kindValue, layer, length, appended, l.KVHeads*l.VDim)
	}
	if attend > 0 {
		from := length + appended - attend
		if text := c.Args["from"]; text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				return "", err
			}
			from, step.Position = n, &n
		}
		step.Q = rows(seed, kindQuery, layer, from, attend, l.Heads*l.HeadDim)
		step.Context, step.LSE = make([]float32, attend*l.Heads*l.VDim), make([]float32, attend*l.Heads)
	}
	if text := c.Args["fill"]; text != "" {
		x, err := strconv.ParseFloat(text, 32)
		if err != nil {
			return "", err
		}
		for _, rows := range [][]float32{step.Q, step.K, step.V} {
			for i := range rows {
				rows[i] = float32(x)
			}
		}
	}
	if c.Args["misshapen"] != "" {
		step.K = step.K[1:]
	}
	if c.Args["tree"] == "diagonal" { // each query sees itself alone of those that are appended
		step.Mask = make([]bool, attend*appended)
		for i := range attend {
			step.Mask[i*appended+appended-attend+i] = true
		}
	}
	err := s.Do(ctx, &step)
	out, _ := d.lengths(s, err)
	if err == nil && attend > 0 {
		out += fmt.Sprintf("\ncontext %08x, lse %08x", sum(step.Context), sum(step.LSE))
	}
	return out, nil
}

func (d *goDriver) fork(ctx context.Context, s *client.Session, c Command) (string, error) {
	var child *client.Session
	var err error
	if _, ok := c.Args["at"]; ok {
		at, wrong := c.Int("at", 0)
		if wrong != nil {
			return "", wrong
		}
		child, err = s.ForkAt(ctx, at)
	} else {
		child, err = s.Fork(ctx)
	}
	if err != nil {
		return d.told(err), nil
	}
	d.sessions[c.Args["as"]] = child
	return d.lengths(child, nil)
}

// recover makes a session of the rows that a seed gives, in the place of one that is lost.
func (d *goDriver) recover(ctx context.Context, s *client.Session, c Command) (string, error) {
	seed, err := c.Int("seed", 1)
	if err != nil {
		return "", err
	}
	all := s.Layers()
	next, failed := s.Recover(ctx, func(layer, start, count int) (k, v []float32, _ error) {
		l := all[layer]
		return rows(seed, kindKey, layer, start, count, l.KVHeads*l.HeadDim), rows(seed, kindValue, layer, start, count, l.KVHeads*l.VDim), nil
	})
	if failed != nil {
		return d.told(failed), nil
	}
	d.sessions[c.Args["as"]] = next
	return d.lengths(next, nil)
}

// attach takes a session up from another program.
func (d *goDriver) attach(ctx context.Context, id client.SessionID, c Command) (string, error) {
	other, err := client.Dial(d.client.Address())
	if err != nil {
		return "", err
	}
	d.others = append(d.others, other)
	opts := client.AttachOptions{Direct: d.direct}
	if name := c.Args["receipt"]; name != "" {
		receipt, ok := d.receipts[name]
		if !ok {
			return "", fmt.Errorf("there is no receipt %q", name)
		}
		opts.Receipt = &receipt
	}
	taken, err := other.Attach(ctx, id, opts)
	if err != nil {
		return d.told(err), nil
	}
	d.sessions[c.Args["as"]] = taken
	return d.lengths(taken, nil)
}

// lengths tells an error, or the length of each layer.
func (d *goDriver) lengths(s *client.Session, err error) (string, error) {
	if err != nil {
		return d.told(err), nil
	}
	var all []string
	for l := range s.Layers() {
		all = append(all, strconv.Itoa(s.LayerLen(l)))
	}
	return "length " + strings.Join(all, " "), nil
}

// told tells an error by what a program can do about it, and nothing by nothing.
func (d *goDriver) told(err error) string {
	var refused *client.SessionError
	if err == nil {
		return "done"
	}
	d.failed = err
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "error: deadline"
	case errors.As(err, &refused):
		return "error: " + strings.ReplaceAll(string(refused.Reason), " ", "_")
	}
	return "error: " + err.Error()
}

// why tells the kind of an error, whether nobody answers, and its text.
func why(err error) string {
	out := "none"
	for _, kind := range []error{client.ErrTryAgain, client.ErrGone, client.ErrRefused} {
		if errors.Is(err, kind) {
			out = kind.Error()
		}
	}
	if errors.Is(err, client.ErrUnreachable) {
		out += ", unreachable"
	}
	return fmt.Sprintf("%s\n%v", out, err)
}

// lost tells which shards an error says are lost: how many groups of each layer, or which.
func lost(err error, which bool) string {
	var refused *client.SessionError
	if !errors.As(err, &refused) || len(refused.Lost) == 0 {
		return "nothing"
	}
	var lines []string
	for _, one := range refused.Lost {
		groups := fmt.Sprint(len(one.Groups))
		if which {
			groups = strings.Trim(fmt.Sprint(one.Groups), "[]")
		}
		lines = append(lines, fmt.Sprintf("layer %d: groups %s, positions %d", one.Layer, groups, one.Positions))
	}
	return strings.Join(lines, "\n")
}
