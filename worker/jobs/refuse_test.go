package jobs

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
	"headwater.example/worker/internal/workertest"
)

// smallJob is a job of 2 groups of 2 heads with a mask and a bias.
func smallJob(t workertest.Fataler, storage headwaterv1.StorageType) *job {
	t.Helper()
	return newJob(t, rand.New(rand.NewPCG(3, 4)), &headwaterv1.Problem{
		NHeads: 4, NKvHeads: 2, HeadDim: 4, VDim: 3, Tokens: 3, KvLen: 70, Storage: storage,
		Causal: true, Offset: 67, WindowLeft: -1, WindowRight: -1, Scale: 0.5,
	}, 1, 4)
}

func openOf(problems ...*headwaterv1.Problem) *headwaterv1.RunRequest {
	return open(&headwaterv1.Open{JobId: "job", Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT, Problems: problems})
}

func bytesOf(x ...float32) []byte { return workertest.LittleEndian(x) }

var (
	nan = float32(math.NaN())
	inf = float32(math.Inf(1))
)

func TestOpenIsChecked(t *testing.T) {
	type edit = func(o *headwaterv1.Open, p *headwaterv1.Problem)
	for name, c := range map[string]struct {
		edit edit
		rule string
	}{
		"no codec":      {func(o *headwaterv1.Open, _ *headwaterv1.Problem) { o.Codec = 0 }, "codec 0"},
		"unknown codec": {func(o *headwaterv1.Open, _ *headwaterv1.Problem) { o.Codec = 99 }, "codec 99"},
		"long job id":   {func(o *headwaterv1.Open, _ *headwaterv1.Problem) { o.JobId = strings.Repeat("x", 129) }, "at most 128"},
		"no problem":    {func(o *headwaterv1.Open, _ *headwaterv1.Problem) { o.Problems = nil }, "problems"},
		"empty problem": {func(o *headwaterv1.Open, _ *headwaterv1.Problem) { o.Problems[0] = &headwaterv1.Problem{} }, "n_heads"},
		"too many problems": {func(o *headwaterv1.Open, p *headwaterv1.Problem) {
			o.Problems = slices.Repeat([]*headwaterv1.Problem{p}, 65537)
		}, "65536"},
		"no heads":         {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.NHeads = 0 }, "problem 0: n_heads: 0"},
		"too many heads":   {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.NHeads = 4098 }, "n_heads: 4098"},
		"no groups":        {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.NKvHeads = 0 }, "n_kv_heads: 0"},
		"odd groups":       {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.NKvHeads = 3 }, "multiple"},
		"head_dim 0":       {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.HeadDim = 0 }, "head_dim: 0"},
		"head_dim 513":     {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.HeadDim = 513 }, "head_dim: 513"},
		"huge head_dim":    {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.HeadDim = math.MaxUint32 }, "head_dim"},
		"v_dim 0":          {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.VDim = 0 }, "v_dim: 0"},
		"no tokens":        {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Tokens = 0 }, "tokens: 0"},
		"huge tokens":      {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Tokens = math.MaxUint64 }, "tokens"},
		"huge kv_len":      {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.KvLen = math.MaxUint64 }, "kv_len"},
		"huge offset":      {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Offset = math.MinInt64 }, "offset"},
		"no storage":       {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Storage = 0 }, "storage"},
		"NaN scale":        {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Scale = nan }, "scale"},
		"infinite softcap": {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Softcap = inf }, "softcap"},
		"few slopes":       {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.AlibiSlopes = []float32{1} }, "alibi_slopes"},
		"NaN sink":         {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Sinks = []float32{1, 2, nan, 3} }, "sinks"},
		"d_model 0":        {func(_ *headwaterv1.Open, p *headwaterv1.Problem) { p.Projection = &headwaterv1.Projection{} }, "d_model"},
		"huge d_model": {func(_ *headwaterv1.Open, p *headwaterv1.Problem) {
			p.Projection = &headwaterv1.Projection{DModel: math.MaxUint32}
		}, "d_model"},
		"odd rope": {func(_ *headwaterv1.Open, p *headwaterv1.Problem) {
			p.Projection = &headwaterv1.Projection{DModel: 1, RopeDims: 3}
		}, "rope_dims"},
		"wide rope": {func(_ *headwaterv1.Open, p *headwaterv1.Problem) {
			p.Projection = &headwaterv1.Projection{DModel: 1, RopeDims: 6}
		}, "rope_dims"},
	} {
		p := proto.CloneOf(smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32).problem)
		o := openOf(p)
		c.edit(o.GetOpen(), p)
		_, err := play(t, newPlace(t, 1<<20, 1), true, o)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.rule) {
			t.Errorf("%s: got %v, want a rule about %q", name, err, c.rule)
		}
	}
}

// TestMessagesAreChecked breaks one message of a stream that is well formed, and lets nothing follow it.
func TestMessagesAreChecked(t *testing.T) {
	const (
		bad   = codes.InvalidArgument
		state = codes.FailedPrecondition
	)
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	jq := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_I8)
	l, layered := smallLayer(t)
	all := []uint32{0, 1}
	opened := []*headwaterv1.RunRequest{openOf(j.problem), shardOpen(&headwaterv1.ShardOpen{Group: 0, Epoch: 7}), shardOpen(&headwaterv1.ShardOpen{Group: 1, Epoch: 7})}
	openedI8 := slices.Concat([]*headwaterv1.RunRequest{openOf(jq.problem)}, opened[1:])
	loaded := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, all, 64))
	filled := loaded[:len(loaded)-2]
	asked := slices.Concat(loaded, j.query(0, 0, all, 0, 3, 1<<20)[:1])
	openedLayer := layered[:2]
	i := slices.IndexFunc(layered, func(m *headwaterv1.RunRequest) bool { return m.GetHidden() != nil })
	weighed := layered[:i]

	block := func(edit func(m *headwaterv1.KeyValueBlock)) *headwaterv1.RunRequest {
		m := j.block(0, slices.Clone(all), 0, 64)
		edit(m)
		return keyValues(m)
	}
	query := func(edit func(m *headwaterv1.QueryBlock)) *headwaterv1.RunRequest {
		m := proto.CloneOf(j.query(0, 0, all, 0, 3, 1<<20)[0].GetQuery())
		edit(m)
		return queryBlock(m)
	}
	layerQuery := func(edit func(m *headwaterv1.QueryBlock)) *headwaterv1.RunRequest {
		m := l.query(0, all, 0, 5).GetQuery()
		edit(m)
		return queryBlock(m)
	}
	states := func(edit func(m *headwaterv1.HiddenBlock)) *headwaterv1.RunRequest {
		m := proto.CloneOf(layered[i].GetHidden())
		edit(m)
		return hidden(m)
	}
	weight := func(edit func(m *headwaterv1.WeightBlock)) *headwaterv1.RunRequest {
		m := &headwaterv1.WeightBlock{Weight: headwaterv1.Weight_WEIGHT_KEY, Data: make([]byte, 2*6*4), Bias: make([]byte, 2*4)}
		edit(m)
		return weightBlock(m)
	}
	outRows := weightBlocks(headwaterv1.Weight_WEIGHT_OUTPUT, 0, l.wo, nil, 12, 1, 3, 0, 100)[0]
	output := func(edit func(m *headwaterv1.OutputBlock)) *headwaterv1.RunRequest {
		m := &headwaterv1.OutputBlock{Row: 1, Rows: 3, Count: 5, Context: workertest.LittleEndian(l.gathered())}
		edit(m)
		return outputBlock(m)
	}
	operand := func(kind headwaterv1.Operand, offset uint64, data []byte) *headwaterv1.RunRequest {
		return operandBlock(&headwaterv1.OperandBlock{Operand: kind, Offset: offset, Data: data})
	}
	const mask, bias = headwaterv1.Operand_OPERAND_MASK, headwaterv1.Operand_OPERAND_BIAS
	put := func(p []byte, at int, x float32) { copy(p[4*at:], bytesOf(x)) }

	for name, c := range map[string]struct {
		before []*headwaterv1.RunRequest
		broken *headwaterv1.RunRequest
		code   codes.Code
		rule   string
	}{
		"not open first":        {nil, opened[1], bad, "first message"},
		"nothing":               {opened, &headwaterv1.RunRequest{}, bad, "nothing"},
		"nothing first":         {nil, &headwaterv1.RunRequest{}, bad, "first message"},
		"open twice":            {opened, opened[0], bad, "open already"},
		"open empty":            {nil, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Open{}}, bad, "codec"},
		"shard open empty":      {opened[:1], &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardOpen{}}, bad, "epoch"},
		"shard of no problem":   {opened[:1], shardOpen(&headwaterv1.ShardOpen{Problem: 1, Epoch: 1}), bad, "problem 1: the job has 1"},
		"shard of no group":     {opened[:1], shardOpen(&headwaterv1.ShardOpen{Group: 2, Epoch: 1}), bad, "group 2"},
		"epoch 0":               {opened[:1], shardOpen(&headwaterv1.ShardOpen{}), bad, "epoch 0"},
		"stale epoch":           {opened[:2], shardOpen(&headwaterv1.ShardOpen{Group: 1, Epoch: 6}), state, "stale"},
		"shard open twice":      {opened, shardOpen(&headwaterv1.ShardOpen{Group: 1, Epoch: 8}), state, "open already"},
		"close of no shard":     {opened[:1], shardClose(&headwaterv1.ShardClose{}), state, "does not hold"},
		"block empty":           {opened, keyValues(nil), bad, "0 groups"},
		"block of no problem":   {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Problem = math.MaxUint32 }), bad, "the job has 1"},
		"block of no groups":    {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Groups = nil }), bad, "0 groups"},
		"block of a group 2":    {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Groups[1] = 2 }), bad, "group 2"},
		"block of a group x2":   {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Groups[1] = 0 }), bad, "twice"},
		"block of 3 groups":     {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Groups = []uint32{0, 1, 0} }), bad, "3 groups"},
		"block unopened":        {opened[:2], block(func(*headwaterv1.KeyValueBlock) {}), state, "does not hold"},
		"block of nothing":      {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Count = 0 }), bad, "no position"},
		"block after a gap":     {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Start = 1 }), state, "starts at position 1"},
		"block too long":        {opened, keyValues(&headwaterv1.KeyValueBlock{Groups: all, Count: 71}), bad, "kv_len is 70"},
		"block of 2³² counts":   {opened, block(func(m *headwaterv1.KeyValueBlock) { m.Count = math.MaxUint32 }), bad, "kv_len"},
		"block of few keys":     {opened, block(func(m *headwaterv1.KeyValueBlock) { m.K = m.K[1:] }), bad, "k has"},
		"block of few values":   {opened, block(func(m *headwaterv1.KeyValueBlock) { m.V = nil }), bad, "v has"},
		"block of scales":       {opened, block(func(m *headwaterv1.KeyValueBlock) { m.VScale = make([]byte, 512) }), bad, "v_scale has"},
		"block with a NaN":      {opened, block(func(m *headwaterv1.KeyValueBlock) { put(m.K, 64*4+9, nan) }), bad, "k at position 2: element 265"},
		"block with an Inf":     {opened, block(func(m *headwaterv1.KeyValueBlock) { put(m.V, 3, -inf) }), bad, "v at position 1"},
		"int8 without scales":   {openedI8, keyValues(func() *headwaterv1.KeyValueBlock { m := jq.block(0, all, 0, 64); m.KScale = nil; return m }()), bad, "k_scale has"},
		"int8 with a NaN":       {openedI8, keyValues(func() *headwaterv1.KeyValueBlock { m := jq.block(0, all, 0, 64); put(m.VScale, 65, nan); return m }()), bad, "v_scale at position 1"},
		"block after seal":      {loaded, block(func(m *headwaterv1.KeyValueBlock) { m.Start = 70 }), state, "sealed"},
		"block to a layer":      {layered, keyValues(&headwaterv1.KeyValueBlock{Groups: all, Count: 1}), bad, "projects"},
		"seal without receipt":  {filled, shardSeal(&headwaterv1.ShardSeal{}), bad, "receipt"},
		"seal too early":        {filled[:len(filled)-1], shardSeal(&headwaterv1.ShardSeal{Receipt: j.receipt(t, 0)}), codes.DataLoss, "64 positions, its receipt says 70"},
		"seal incomplete":       {opened, shardSeal(&headwaterv1.ShardSeal{Receipt: &headwaterv1.Receipt{}}), bad, "kv_len"},
		"seal of other bytes":   {filled, shardSeal(&headwaterv1.ShardSeal{Receipt: j.receipt(t, 1)}), codes.DataLoss, "hash"},
		"seal twice":            {loaded, shardSeal(&headwaterv1.ShardSeal{Receipt: j.receipt(t, 0)}), state, "already"},
		"query unsealed":        {filled, query(func(*headwaterv1.QueryBlock) {}), state, "not sealed"},
		"query unheld":          {opened[:2], query(func(*headwaterv1.QueryBlock) {}), state, "does not hold"},
		"query empty":           {loaded, queryBlock(nil), bad, "0 groups"},
		"query of no token":     {loaded, query(func(m *headwaterv1.QueryBlock) { m.Count = 0 }), bad, "tokens"},
		"query of 4 tokens":     {loaded, query(func(m *headwaterv1.QueryBlock) { m.Count = 4 }), bad, "tokens"},
		"query of token 2⁶⁴":    {loaded, query(func(m *headwaterv1.QueryBlock) { m.Start = math.MaxUint64 }), bad, "tokens"},
		"query of few bytes":    {loaded, query(func(m *headwaterv1.QueryBlock) { m.Q = m.Q[4:] }), bad, "q has"},
		"query with a NaN":      {loaded, query(func(m *headwaterv1.QueryBlock) { put(m.Q, 5, nan) }), bad, "q: element 5 is NaN"},
		"query with rotation":   {loaded, query(func(m *headwaterv1.QueryBlock) { m.Cos = make([]byte, 4) }), bad, "cos"},
		"query of short mask":   {loaded, query(func(m *headwaterv1.QueryBlock) { m.MaskBytes-- }), bad, "mask has"},
		"query of huge mask":    {loaded, query(func(m *headwaterv1.QueryBlock) { m.MaskBytes = math.MaxUint64 }), bad, "mask has"},
		"query of 3 masks":      {loaded, query(func(m *headwaterv1.QueryBlock) { m.MaskHeads = 3 }), bad, "3 heads"},
		"query of no bias":      {loaded, query(func(m *headwaterv1.QueryBlock) { m.BiasHeads = 0 }), bad, "0 heads"},
		"query without operand": {asked, shardClose(&headwaterv1.ShardClose{}), bad, "operands"},
		"operand of no query":   {loaded, operand(mask, 0, []byte{1}), bad, "follows no query"},
		"operand unknown":       {asked, operand(0, 0, []byte{1}), bad, "not known"},
		"operand empty":         {asked, operand(mask, 0, nil), bad, "empty"},
		"operand gap":           {asked, operand(mask, 1, []byte{1}), bad, "starts at byte 1"},
		"operand too long":      {asked, operand(mask, 0, make([]byte, 3*70+1)), bad, "ends at byte 211"},
		"bias too long":         {asked, operand(bias, 0, make([]byte, 4*4*3*70+4)), bad, "ends at byte"},
		"bias of 3 bytes":       {asked, operand(bias, 0, []byte{1, 2, 3}), bad, "float32"},
		"bias of +Inf":          {asked, operand(bias, 0, bytesOf(0, inf)), bad, "element 1"},
		"bias of NaN":           {asked, operand(bias, 0, bytesOf(nan)), bad, "NaN"},
		"weights empty":         {openedLayer, weightBlock(nil), bad, "not known"},
		"weights of a job":      {opened, weight(func(*headwaterv1.WeightBlock) {}), bad, "no projection"},
		"weights unheld":        {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Group = 1 }), state, "does not hold"},
		"weights unknown":       {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Weight = 9 }), bad, "weight 9"},
		"weights after a gap":   {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Row = 1 }), state, "starts at row 1"},
		"weights of half rows":  {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Data = m.Data[4:] }), bad, "whole rows"},
		"weights of no row":     {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Data = nil }), bad, "whole rows"},
		"weights of 5 rows":     {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Data = make([]byte, 5*6*4) }), bad, "ends at row 5 of 4"},
		"weights without bias":  {openedLayer, weight(func(m *headwaterv1.WeightBlock) { m.Bias = nil }), bad, "bias"},
		"weights with a NaN":    {openedLayer, weight(func(m *headwaterv1.WeightBlock) { put(m.Data, 7, nan) }), bad, "w_k: element 7"},
		"bias with a NaN":       {openedLayer, weight(func(m *headwaterv1.WeightBlock) { put(m.Bias, 1, nan) }), bad, "w_k: bias: element 1"},
		"w_o of half a row":     {layered, weight(func(m *headwaterv1.WeightBlock) { m.Weight, m.Data = headwaterv1.Weight_WEIGHT_OUTPUT, m.Data[4:] }), bad, "whole rows"},
		"w_o of row 6":          {layered, weight(func(m *headwaterv1.WeightBlock) { m.Weight, m.Row, m.Bias = headwaterv1.Weight_WEIGHT_OUTPUT, 6, nil }), bad, "d_model is 6"},
		"w_o of row 2³²":        {layered, weight(func(m *headwaterv1.WeightBlock) { m.Weight, m.Row = headwaterv1.Weight_WEIGHT_OUTPUT, math.MaxUint32 }), bad, "d_model is 6"},
		"w_o of odd bias":       {layered, weight(func(m *headwaterv1.WeightBlock) { m.Weight, m.Bias = headwaterv1.Weight_WEIGHT_OUTPUT, m.Bias[1:] }), bad, "bias"},
		"w_o with a NaN": {layered, weight(func(m *headwaterv1.WeightBlock) {
			m.Weight, m.Bias = headwaterv1.Weight_WEIGHT_OUTPUT, nil
			put(m.Data, 0, nan)
		}), bad, "element 0"},
		"hidden empty":        {weighed, hidden(nil), bad, "0 groups"},
		"hidden to a job":     {opened, hidden(&headwaterv1.HiddenBlock{Groups: all, X: make([]byte, 24)}), bad, "no projection"},
		"hidden early":        {weighed[:len(weighed)-5], states(func(*headwaterv1.HiddenBlock) {}), state, "w_k"},
		"hidden of half":      {weighed, states(func(m *headwaterv1.HiddenBlock) { m.X = m.X[4:] }), bad, "whole hidden states"},
		"hidden of nothing":   {weighed, states(func(m *headwaterv1.HiddenBlock) { m.X = nil }), bad, "whole hidden states"},
		"hidden gap":          {weighed, states(func(m *headwaterv1.HiddenBlock) { m.Start = 2 }), state, "starts at position 2"},
		"hidden too long":     {weighed, states(func(m *headwaterv1.HiddenBlock) { m.X = make([]byte, 6*24) }), bad, "kv_len is 5"},
		"hidden without cos":  {weighed, states(func(m *headwaterv1.HiddenBlock) { m.Cos = nil }), bad, "cos"},
		"hidden without sin":  {weighed, states(func(m *headwaterv1.HiddenBlock) { m.Sin = m.Sin[4:] }), bad, "sin"},
		"hidden of NaN":       {weighed, states(func(m *headwaterv1.HiddenBlock) { put(m.X, 3, nan) }), bad, "x from position 0: element 3"},
		"hidden of NaN cos":   {weighed, states(func(m *headwaterv1.HiddenBlock) { put(m.Cos, 0, nan) }), bad, "cos: element 0"},
		"layer early":         {slices.Concat(weighed[:len(weighed)-1], layered[i:]), layerQuery(func(*headwaterv1.QueryBlock) {}), state, "w_q"},
		"layer of few bytes":  {layered, layerQuery(func(m *headwaterv1.QueryBlock) { m.Q = m.Q[:24] }), bad, "q has"},
		"layer without sin":   {layered, layerQuery(func(m *headwaterv1.QueryBlock) { m.Sin = nil }), bad, "sin"},
		"output to a job":     {loaded, output(func(*headwaterv1.OutputBlock) {}), bad, "no projection"},
		"output unheld":       {layered, output(func(*headwaterv1.OutputBlock) {}), state, "row 1 of w_o"},
		"output half held":    {slices.Concat(layered, []*headwaterv1.RunRequest{outRows}), output(func(m *headwaterv1.OutputBlock) { m.Rows = 4 }), state, "row 4 of w_o"},
		"output of no rows":   {layered, output(func(m *headwaterv1.OutputBlock) { m.Rows = 0 }), bad, "d_model"},
		"output of 2³² rows":  {layered, output(func(m *headwaterv1.OutputBlock) { m.Rows = math.MaxUint32 }), bad, "d_model"},
		"output of no token":  {layered, output(func(m *headwaterv1.OutputBlock) { m.Count = 0 }), bad, "tokens"},
		"output of 6 tokens":  {layered, output(func(m *headwaterv1.OutputBlock) { m.Count = 6 }), bad, "tokens"},
		"output of few bytes": {layered, output(func(m *headwaterv1.OutputBlock) { m.Context = m.Context[4:] }), bad, "context has"},
		"output of NaN":       {slices.Concat(layered, []*headwaterv1.RunRequest{outRows}), output(func(m *headwaterv1.OutputBlock) { put(m.Context, 0, nan) }), bad, "context: element 0"},
	} {
		w := newPlace(t, 1<<20, 2)
		if _, err := play(t, w, false, c.before...); err != nil && !strings.Contains(err.Error(), "the stream ended before") {
			t.Errorf("%s: what comes before is refused: %v", name, err)
			continue
		}
		_, err := play(t, w, true, append(slices.Clone(c.before), c.broken)...)
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.rule) {
			t.Errorf("%s: got %v, want %s about %q", name, err, c.code, c.rule)
		}
	}
}

func TestStreamsThatEndEarlyAreRefused(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	w := newPlace(t, 1<<20, 1)
	if _, err := play(t, w, false); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty stream: got %v", err)
	}
	messages := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{0}, 70), j.query(0, 0, []uint32{0}, 0, 1, 50))
	if _, err := play(t, w, false, messages[:len(messages)-1]...); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "query block 0: the stream ended") {
		t.Errorf("a query without its operands: got %v", err)
	}
}

func TestRowsWithoutAnAnswerAreOutOfRange(t *testing.T) {
	p := &headwaterv1.Problem{
		NHeads: 4, NKvHeads: 2, HeadDim: 4, VDim: 3, Tokens: 3, KvLen: 70, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32,
		WindowLeft: -1, WindowRight: -1, Scale: 1,
	}
	j := newJob(t, rand.New(rand.NewPCG(5, 6)), p, 0, 0)
	// Head 3, the second of group 1, of token 2, which is the second of its block.
	for i := range 4 {
		j.q[1][(2*j.size+1)*4+i] = math.MaxFloat32
	}
	_, err := play(t, newPlace(t, 1<<20, 2), true, slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(t, 0, []uint32{0, 1}, 70), j.query(0, 4, []uint32{0, 1}, 1, 3, 1))...)
	if status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "query block 4: group 1: head 3, token 2") {
		t.Fatalf("got %v", err)
	}
}

func TestAlibiDistancesAreChecked(t *testing.T) {
	p := &headwaterv1.Problem{
		NHeads: 1, NKvHeads: 1, HeadDim: 1, VDim: 1, Tokens: 1, KvLen: 1, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32,
		WindowLeft: -1, WindowRight: -1, Scale: 1,
	}
	j := newJob(t, rand.New(rand.NewPCG(5, 6)), p, 0, 0)
	p.Offset, p.AlibiSlopes = 1<<24, []float32{1}
	_, err := play(t, newPlace(t, 1<<20, 1), true, slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(t, 0, []uint32{0}, 1), j.query(0, 0, []uint32{0}, 0, 1, 1))...)
	if status.Code(err) != codes.OutOfRange {
		t.Fatalf("got %v", err)
	}
}

// FuzzRun plays any sequence of messages: the worker says what is wrong, and keeps nothing.
func FuzzRun(f *testing.F) {
	add := func(messages []*headwaterv1.RunRequest) {
		var b bytes.Buffer
		for _, m := range messages {
			if _, err := protodelim.MarshalTo(&b, m); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(b.Bytes())
	}
	for _, dtype := range shard.StorageTypes() {
		storage := layerproto.StorageType(dtype)
		p := &headwaterv1.Problem{NHeads: 2, NKvHeads: 1, HeadDim: 2, VDim: 1, Tokens: 2, KvLen: 3, Storage: storage, WindowLeft: -1, WindowRight: -1, Scale: 1}
		j := newJob(f, rand.New(rand.NewPCG(7, 8)), p, 1, 2)
		add(slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(f, 0, []uint32{0}, 2), j.query(0, 0, []uint32{0}, 0, 2, 8),
			[]*headwaterv1.RunRequest{shardClose(&headwaterv1.ShardClose{}), shardOpen(&headwaterv1.ShardOpen{Epoch: 8})}))
	}
	l, messages := smallLayer(f)
	messages = append(messages, l.query(0, []uint32{0, 1}, 0, 5))
	messages = append(messages, weightBlocks(headwaterv1.Weight_WEIGHT_OUTPUT, 0, l.wo, l.bo, 12, 0, 6, 0, 4)...)
	add(append(messages, outputBlock(&headwaterv1.OutputBlock{Rows: 6, Count: 5, Context: workertest.LittleEndian(l.gathered())})))
	f.Fuzz(func(t *testing.T, data []byte) {
		var messages []*headwaterv1.RunRequest
		for r := bytes.NewReader(data); ; {
			m := &headwaterv1.RunRequest{}
			if protodelim.UnmarshalFrom(r, m) != nil {
				break
			}
			messages = append(messages, m)
		}
		answers, _ := play(t, newPlace(t, 1<<18, 2), false, messages...)
		for _, a := range answers {
			c := a.GetContext()
			if c == nil {
				continue
			}
			h, err := contextframe.ReadHeader(c.Frame)
			if err != nil || h.Group != int(c.Group) {
				t.Fatalf("an answer that is no frame: %v", err)
			}
		}
	})
}

// TestAnyOrderOfMessages plays well-formed messages in any order, with some of them lost, repeated or changed.
func TestAnyOrderOfMessages(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_BF16)
	_, layered := smallLayer(t)
	o := openOf(j.problem, layered[0].GetOpen().Problems[0])
	pool := slices.Concat(j.load(t, 0, []uint32{0, 1}, 40), j.query(0, 0, []uint32{1, 0}, 0, 3, 1<<20), j.query(0, 1, []uint32{0}, 1, 2, 100), layered[1:])
	for _, m := range layered[1:] {
		m.ProtoReflect().Range(func(_ protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			inner := v.Message()
			inner.Set(inner.Descriptor().Fields().ByName("problem"), protoreflect.ValueOfUint32(1))
			return true
		})
	}
	for _, g := range []uint32{0, 1} {
		pool = append(pool, shardClose(&headwaterv1.ShardClose{Group: g}))
	}
	rapid.Check(t, func(t *rapid.T) {
		messages := []*headwaterv1.RunRequest{o}
		for i := 0; i < len(pool); i++ {
			switch rapid.IntRange(0, 12).Draw(t, "fate") {
			case 0: // lost
			case 1:
				messages = append(messages, rapid.SampledFrom(pool).Draw(t, "other"))
			case 2:
				messages = append(messages, pool[i], pool[i])
			default:
				messages = append(messages, pool[i])
			}
		}
		if _, err := play(t, newPlace(t, 1<<20, 2), false, messages...); err != nil {
			t.Logf("%v", err)
		}
	})
}

func TestLossyCodecs(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	for codec, dt := range map[headwaterv1.ContextCodec]tensor.DType{
		headwaterv1.ContextCodec_CONTEXT_CODEC_BF16: tensor.BF16, headwaterv1.ContextCodec_CONTEXT_CODEC_F16: tensor.F16,
		headwaterv1.ContextCodec_CONTEXT_CODEC_I8: tensor.I8,
	} {
		messages := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{1}, 70), j.query(0, 0, []uint32{1}, 0, 3, 1<<20))
		messages[0].GetOpen().Codec = codec
		answers, err := play(t, newPlace(t, 1<<20, 1), false, messages...)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]float32, len(j.context[1]))
		if dt == tensor.I8 {
			dim := int(j.problem.GetVDim())
			row := make([]int8, dim)
			for at := 0; at < len(want); at += dim {
				scale := tensor.QuantizeI8(row, j.context[1][at:at+dim])
				for i, q := range row {
					want[at+i] = float32(q) * scale
				}
			}
		} else {
			narrow := make([]byte, 2*len(want))
			if err := errors.Join(tensor.Narrow(narrow, j.context[1], dt), tensor.Widen(want, narrow, dt)); err != nil {
				t.Fatal(err)
			}
		}
		got, lse := make([]float32, len(want)), make([]float32, len(j.lse[1]))
		if _, err := contextframe.Decode(answers[len(answers)-1].GetContext().GetFrame(), got, lse); err != nil {
			t.Fatal(err)
		}
		if i := workertest.Differs(got, want); i >= 0 || workertest.Differs(lse, j.lse[1]) >= 0 {
			t.Fatalf("%s: context[%d] is %v", codec, i, got[i])
		}
	}
}

func TestContextsBeyondTheirCodecAreOutOfRange(t *testing.T) {
	p := &headwaterv1.Problem{NHeads: 1, NKvHeads: 1, HeadDim: 1, VDim: 1, Tokens: 1, KvLen: 1, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1, Scale: 1}
	j := newJob(t, rand.New(rand.NewPCG(5, 6)), p, 0, 0)
	j.rows[0].V = bytesOf(70000)
	messages := slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(t, 0, []uint32{0}, 1), j.query(0, 0, []uint32{0}, 0, 1, 1))
	messages[0].GetOpen().Codec = headwaterv1.ContextCodec_CONTEXT_CODEC_F16
	if _, err := play(t, newPlace(t, 1<<20, 1), true, messages...); status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "query block 0: group 0") {
		t.Fatalf("got %v", err)
	}
}

func TestAnswersFitAMessage(t *testing.T) {
	p := &headwaterv1.Problem{NHeads: 1, NKvHeads: 1, HeadDim: 1, VDim: 512, Tokens: 1 << 16, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1, Scale: 1}
	messages := []*headwaterv1.RunRequest{
		openOf(p), shardOpen(&headwaterv1.ShardOpen{Epoch: 1}), shardSeal(&headwaterv1.ShardSeal{Receipt: &headwaterv1.Receipt{}}),
		queryBlock(&headwaterv1.QueryBlock{Groups: []uint32{0}, Count: 1 << 16, Q: make([]byte, 4<<16)}),
	}
	if _, err := play(t, newPlace(t, 1<<30, 1), true, messages...); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "exceeds a message") {
		t.Fatalf("got %v", err)
	}
	_, layered := smallLayer(t)
	pr := layered[0].GetOpen().Problems[0]
	pr.Tokens, pr.Projection.DModel = 1<<12, 1<<12
	wide := outputBlock(&headwaterv1.OutputBlock{Rows: 1 << 12, Count: 1 << 12, Context: make([]byte, 4*12<<12)})
	if _, err := play(t, newPlace(t, 1<<30, 1), true, layered[0], wide); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "exceeds a message") {
		t.Fatalf("got %v", err)
	}
}

func TestRotationsAndOutputsThatOverflowAreOutOfRange(t *testing.T) {
	huge := bytesOf(3e38)
	l, messages := smallLayer(t)
	_, copied := smallLayer(t)
	for _, m := range copied {
		if h := m.GetHidden(); h != nil {
			copy(h.Cos, huge)
		}
	}
	if _, err := play(t, newPlace(t, 1<<20, 1), true, copied...); status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "rotated keys") {
		t.Errorf("got %v", err)
	}
	q := l.query(0, []uint32{1}, 0, 5)
	copy(q.GetQuery().Cos, huge)
	if _, err := play(t, newPlace(t, 1<<20, 1), true, append(slices.Clone(messages), q)...); status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "rotated queries") {
		t.Errorf("got %v", err)
	}
	rows := weightBlocks(headwaterv1.Weight_WEIGHT_OUTPUT, 0, l.wo, l.bo, 12, 0, 6, 0, 6)[0]
	copy(rows.GetWeights().Data, bytesOf(3e38, 3e38, 3e38))
	o := outputBlock(&headwaterv1.OutputBlock{Block: 9, Rows: 6, Count: 1, Context: bytesOf(9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0)})
	if _, err := play(t, newPlace(t, 1<<20, 1), true, append(slices.Clone(messages), rows, o)...); status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "output block 9") {
		t.Errorf("got %v", err)
	}
	// Room for the shards, and none for rows of w_o.
	loaded := int64(2*(5120+4096) + 4095)
	if _, err := play(t, newPlace(t, loaded, 1), true, append(slices.Clone(messages), rows)...); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "w_o") {
		t.Errorf("got %v", err)
	}
}
