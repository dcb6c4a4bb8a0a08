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
// If you make many calls, keep a Pool of threads for them: Acquire one, let it Attend and Project, Release it. AttendAll
// makes several calls of Attend as one, so that its threads start once for all groups of a layer or sequences of a batch.
//
// Thread.Differentiate goes the way back: from a loss's derivatives by the contexts to those by queries, keys, values, bias
// and sinks. For each block of 64 tokens and page it makes the weights again from the LSE, and five products of tiles.
//
// This page is the specification of the options, docs/numerics.md that of the arithmetic. Package reference computes the same
// in float64 and shares no code.
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
// docs/numerics.md is the contract: each operation with its rounding and its place in the order, the polynomials of exp, tanh
// and log with their coefficients, which rows are an error (*RowError), and the unit in which errors are counted.
package attention
