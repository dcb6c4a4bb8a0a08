// Package attention computes the context and log-sum-exp (LSE) of query heads that read one KV head. It is pure: no
// network, no clock, no goroutine beside those of a Pool, and no bit of an answer depends on threads, on how tokens or
// heads are shared out over calls, or on the kernel.
//
// The way of a query: Attend takes blocks of rows (a row is one token of one head) through the pages of K and V, 64
// positions each. For every page it makes the scores, their weights and the weighted sum of the values, and merges that
// into the row's split, 32 pages; splits are merged into the row, and the row is divided by the sum of its weights.
// Project and ApplyRope stand before and after, for jobs that begin with hidden states.
//
// Every option, storage type, head size and group size goes the same way through the kernel in use: where that is one in
// assembly, which x86-64 has (AVX-512, AVX2) and arm64 (NEON), none of them makes it leave its fast path. The portable
// kernel, which is the specification of the others, is an order of magnitude slower than those for x86-64; KernelName says
// which is in use.
//
// Who makes many calls keeps a Pool of threads for them: Acquire one, let it Attend and Project, Release it.
//
// This page is the specification of the options and of the arithmetic. Package reference computes the same in float64
// and shares no code.
//
// # Positions and visibility
//
// Positions are absolute. Key t of KV stands at position t; token i of a Query at Offset + i. A prompt that is attended
// in chunks gives each chunk the Offset of its first token; Offset may be negative, and it may be such that tokens stand
// after the last key. FlashAttention's bottom-right alignment is Offset = KV.Len − Tokens.
//
// A token at position a sees position t if all of these hold, as far as they are asked for:
//
//	t < KV.Len
//	Causal              t ≤ a
//	WindowLeft  w ≥ 0   a − t ≤ w       windows count positions beside the own one: WindowLeft 1 shows the own position
//	WindowRight w ≥ 0   t − a ≤ w       and the one before; both 0 show the own one alone; negative is unbounded
//	Mask                its byte is not 0, or t < MaskFrom
//	Bias                its value is not −Inf
//
// An invisible position takes part in nothing: not in the largest score, not in the sum, not in the values. What a page
// holds beyond KV.Len is not read into a result, even where it is NaN.
//
// A row that sees nothing, fully masked, has context 0 and LSE −Inf. If its head has a sink, the sink is all it sees:
// context 0 and LSE = sink.
//
// # Scores
//
// The score of a visible position goes through these steps in this order:
//
//	q·k
//	· kscale[t]                       int8 only: the scale of the position's key
//	· Scale                           1/√head_dim unless given; any finite value
//	→ Softcap·tanh(s/Softcap)         Softcap > 0
//	− slope[head]·|a − t|             AlibiSlopes; a distance of 2²⁴ or more is refused, for any position that causal,
//	                                  window and length let the row see, be it masked or not
//	+ Bias
//
// Slopes and sinks are indexed by the head's number in its layer, FirstHead + h. Bias is [heads, Tokens, KV.Len]
// and Mask [heads, Tokens, KV.Len − MaskFrom], with 1 head for all or one for each of the query's heads.
//
// # Arithmetic
//
// Everything is IEEE 754 binary32, to nearest with ties to even, subnormals kept, and every operation below rounds once.
// fma(a, b, c) is a·b + c rounded once. F16 and BF16 widen exactly; I8 is its integer.
//
//	score     s = +0; for i ascending over head_dim: s = fma(q[i], k[i], s); then the steps above, each rounded:
//	          s·kscale, s·Scale, Softcap·tanh(s/Softcap), fma(−slope, |a − t|, s), s + bias
//	page      [64p, 64p+64): m = max s; p[t] = exp(s[t] − m), +0 where invisible
//	l         lane j of 16 begins at +0 and adds p[j], p[j+16], p[j+32], p[j+48]; then lanes j+8 are added onto j for
//	          j < 8, j+4 for j < 4, j+2 for j < 2, and lane 1 onto lane 0
//	o         o[i] = +0; for visible t ascending: o[i] = fma(w[t], v[t][i], o[i]); w = p, for int8 p[t]·vscale[t] rounded
//	merge     M = max(mA, mB); a = exp(mA − M); b = exp(mB − M); x = fma(xA, a, xB·b) for l and every o[i], xB·b
//	          rounded, A what came before; a part that sees nothing is passed over, the first other one is copied. Pages
//	          ascending into their split (32 pages, [32s, 32s+32)), splits ascending into the row
//	sink      merged last, as a part of m = sink, l = 1, o = 0
//	finish    context = o/l + 0, so −0 never appears; LSE = m + log(l)
//
// A score that overflows to −Inf weighs 0, like an invisible position. A row with a score of +Inf or NaN, or that sees
// positions and has no finite score (with a sink as well), or whose sum or context is not finite, is a *RowError.
//
//	projection  y[j] = +0; for c ascending: y[j] = fma(x[c], w[j][c], y[j]); then + bias[j]
//	rotation    x0' = fma(x0, cos, −(x1·sin)); x1' = fma(x0, sin, x1·cos), the products in parentheses rounded
//
// # Exponential
//
// For x ≤ 0; the constants are exactly these binary32:
//
//	exp(x) = +0 if x < −0x1.5d589ep+6 (the first binary32 whose exponential is not below 2⁻¹²⁶)
//	t = fma(x, 0x1.715476p+0, 0x1.8p+23); n = t − 0x1.8p+23       n = x·log₂e to the nearest integer, the fma's own ties
//	r = fma(n, −0x1.62e4p-1, x); r = fma(n, −0x1.7f7d1cp-20, r)   to even
//	p = fma(0x1.6ac752p-10, r, 0x1.123de0p-7)
//	p = fma(p, r, 0x1.555858p-5); p = fma(p, r, 0x1.55548cp-3); p = fma(p, r, 0x1.fffffcp-2)
//	p = fma(p, r, 1); p = fma(p, r, 1)
//	exp(x) = p·2ⁿ
//
// exp(0) = 1 exactly. The largest error over every binary32 from −0x1.5d589ep+6 to −0 is 0.892 ULP.
//
// # Hyperbolic tangent
//
// With a = |x|, the sign of x put back at the end:
//
//	a < 0x1.4p-1:  z = a·a
//	               p = fma(−0x1.750ce4p-8, z, 0x1.51f8cep-6); p = fma(p, z, −0x1.b835a4p-5)
//	               p = fma(p, z, 0x1.1106f6p-3); p = fma(p, z, −0x1.555532p-2)
//	               tanh = fma(a·z, p, a), the product a·z rounded
//	else:          e = exp(−2a); tanh = 1 − (e + e)/(1 + e)
//
// The largest error over every positive binary32 is 1.431 ULP.
//
// # Logarithm
//
// For finite x ≥ 2⁻¹²⁶ (the sums of weights are 1 or more):
//
//	x = 2ᵏ·f, f from 0x1.6a09e8p-1 (0x3f3504f4, the binary32 next above √½) to below twice that
//	r = f − 1; z = r·r
//	p = fma(−0x1.38b5dcp-4, r, 0x1.055b78p-3); p = fma(p, r, −0x1.0d8538p-3); p = fma(p, r, 0x1.22da1cp-3)
//	p = fma(p, r, −0x1.547246p-3); p = fma(p, r, 0x1.99a008p-3); p = fma(p, r, −0x1.000226p-2)
//	p = fma(p, r, 0x1.555554p-2)
//	y = (r·z)·p; y = fma(k, 0x1.7f7d1cp-20, y); y = fma(−0.5, z, y)
//	log(x) = fma(k, 0x1.62e4p-1, r + y)
//
// log(1) = +0 exactly. The largest error over every normal binary32 above 0 is 0.861 ULP. (Tests try a sample of each
// range; with HEADWATER_EXHAUSTIVE=1 in the environment, all of it.)
//
// # Error
//
// The unit of error of a row is 2⁻²⁴·(1 + S)·max|v|. S is the largest |Scale|·Σ|q[i]·k[i]| + |slope·(a − t)| + |bias| of
// the positions that the row sees and that can have weight (docs/numerics.md), max|v| the largest value that it sees.
// Contexts are within 8 units of the float64 truth, and most often within 1.
package attention
