package main

// The constants of tanh, as elementary.go has them.
var tanhConstants = []uint32{
	f32(-0x1.555532p-2), f32(0x1.1106f6p-3), f32(-0x1.b835a4p-5), f32(0x1.51f8cep-6),
	f32(-0x1.750ce4p-8), f32(0x1.4p-1), f32(-2), 1 << 31,
}

var tanhAddress string

// adjust takes a row of scores through the steps from q·k to what softmax takes, two vectors at a time.
func adjust() {
	tanhAddress = data("tanh", tanhConstants)
	function("adjust",
		"s, kScale *float32, scale, softcap float32, slope *float32, distance int32, bias *float32, mask *byte, visible *uint64", "",
		"makes scores of a row of q·k, and hides what mask and bias hide.")
	const S, ks, slopes, biases, masks, vis, hidden, bits, capBits, left r = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
	load("s", S)
	load("kScale", ks)
	load("slope", slopes)
	load("bias", biases)
	load("mask", masks)
	load("visible", vis)
	// Of each of the two vectors: x, and room for tanh.
	x, a, big, t, p, q, z := vs(0, 2), vs(2, 2), vs(4, 2), vs(6, 2), vs(8, 2), vs(10, 2), vs(12, 2)
	const scale, slope, cap, small, sign v = 14, 15, 16, 17, 18
	// How far the query is from the positions of the two vectors, and how far they go at a time; the bits of their lanes.
	const powers, eight v = 21, 22
	distance := vs(19, 2)
	h := tanhTerms{odd: 23, even: 24, small: small, sign: sign}
	e := constants(26, bits)
	op("MOVD %s, %v", tanhAddress, bits)
	loadPair(bits, 0, h.odd, h.even)
	spread(h.small, h.even, 1)
	spread(h.sign, h.even, 3)
	op("FMOVS %s, %s", param("scale"), scale.f())
	op("FMOVS %s, %s", param("softcap"), cap.f())
	spread(cap, cap, 0)
	op("FMOVS %s, %v", cap.f(), capBits)
	op("LSL $33, %v, %v", capBits, capBits) // without its sign
	op("MOVD $0x8040201008040201, %v", bits)
	op("VDUP %v, %s", bits, powers.d2())
	level := label("level")
	op("CBZ %v, %s", slopes, level)
	op("FMOVS (%v), %s", slopes, slope.f())
	op("MOVW %s, %v", param("distance"), bits)
	for _, d := range distance {
		for j := range lanes {
			op("VMOV %v, V%d.S[%d]", bits, int(d), j)
			op("SUB $1, %v, %v", bits, bits)
		}
	}
	op("MOVD $8, %v", bits)
	op("VDUP %v, %s", bits, eight.s4())
	at(level)
	each := func(f func(i int)) { f(0); f(1) }
	op("MOVD ZR, %v", hidden)
	op("MOVD $%d, %v", pageLen/2/lanes, left)
	loop := label("pair")
	at(loop)
	loadPair(S, 0, x[0], x[1])

	skip := label("unscaled")
	op("CBZ %v, %s", ks, skip)
	op("FLDPQ.P 32(%v), (%s, %s)", ks, t[0].f(), t[1].f())
	each(func(i int) { words(fmul(x[i], x[i], t[i])) })
	at(skip)
	each(func(i int) { words(fmulLane(x[i], x[i], scale, 0)) })

	skip = label("uncapped")
	op("CBZ %v, %s", capBits, skip)
	each(func(i int) { words(fdiv(x[i], x[i], cap)) })
	tanh(e, h, x, a, big, t, p, q, z)
	each(func(i int) { words(fmul(x[i], x[i], cap)) })
	at(skip)

	skip = label("unsloped")
	op("CBZ %v, %s", slopes, skip)
	each(func(i int) {
		words(abs(t[i], distance[i]), scvtf(t[i], t[i]), fmlsLane(x[i], t[i], slope, 0))
		op("VSUB %s, %s, %s", eight.s4(), distance[i].s4(), distance[i].s4())
	})
	at(skip)

	skip = label("unbiased")
	op("CBZ %v, %s", biases, skip)
	op("FLDPQ.P 32(%v), (%s, %s)", biases, t[0].f(), t[1].f())
	each(func(i int) { words(fadd(x[i], x[i], t[i]), fcmeq(t[i], t[i], e.negInf)) })
	op("VUZP1 %s, %s, %s", t[1].h8(), t[0].h8(), t[0].h8())
	op("VUZP1 %s, %s, %s", t[0].b16(), t[0].b16(), t[0].b16())
	op("VAND %s, %s, %s", powers.b16(), t[0].b16(), t[0].b16())
	op("VADDV V%d.B8, V%d", int(t[0]), int(t[0]))
	op("VMOV V%d.B[0], %v", int(t[0]), bits)
	// The bits of the first positions end up lowest.
	op("LSR $8, %v, %v", hidden, hidden)
	op("ORR %v<<56, %v, %v", bits, hidden, hidden)
	at(skip)

	op("FSTPQ.P (%s, %s), 32(%v)", x[0].f(), x[1].f(), S)
	op("SUBS $1, %v, %v", left, left)
	op("BNE %s", loop)

	skip = label("unmasked")
	op("CBZ %v, %s", masks, skip)
	m := vs(0, 4)
	for i := 0; i < 4; i += 2 {
		loadPair(masks, 16*i, m[i], m[i+1])
	}
	for _, m := range m {
		words(cmeq0(m, m))
		op("VAND %s, %s, %s", powers.b16(), m.b16(), m.b16())
	}
	fold(m, bits)
	op("ORR %v, %v, %v", bits, hidden, hidden)
	at(skip)
	op("MOVD (%v), %v", vis, bits)
	op("BIC %v, %v, %v", hidden, bits, bits)
	op("MOVD %v, (%v)", bits, vis)
	op("RET")
}

// tanhTerms are its constants in registers: odd has the coefficients of x³ to x⁹, even that of x¹¹ and −2; small and sign are
// in all lanes.
type tanhTerms struct{ odd, even, small, sign v }

// tanh writes tanh over x, with room a, big, t, p, q and z.
func tanh(e exp, h tanhTerms, x, a, big, t, p, q, z []v) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	each(func(i int) { words(fabs(a[i], x[i])) })
	// By exp(−2a), where a is not small.
	each(func(i int) { words(fmulLane(big[i], a[i], h.even, 2)) })
	e.write(big, t, p, q, z)
	each(func(i int) { words(fadd(big[i], p[i], p[i])) })
	each(func(i int) { words(one(t[i])) })
	each(func(i int) { words(fadd(p[i], p[i], t[i])) })
	each(func(i int) { words(fdiv(big[i], big[i], p[i])) })
	each(func(i int) { words(fsub(big[i], t[i], big[i])) })
	// By a polynomial, where it is.
	square, from, to := z, q, p
	each(func(i int) { words(fmul(square[i], a[i], a[i])) })
	each(func(i int) { spread(from[i], h.odd, 3) })
	each(func(i int) { words(fmlaLane(from[i], square[i], h.even, 0)) })
	for k := 2; k >= 0; k-- {
		each(func(i int) { spread(to[i], h.odd, k) })
		each(func(i int) { multiplyAdd(to[i], from[i], square[i]) })
		from, to = to, from
	}
	each(func(i int) { words(fmul(square[i], a[i], square[i])) })
	each(func(i int) { move(t[i], a[i]) })
	each(func(i int) { multiplyAdd(t[i], square[i], from[i]) })
	each(func(i int) { words(fcmgt(a[i], h.small, a[i])) })
	each(func(i int) { insert(big[i], t[i], a[i]) })
	// The sign of x, and all else of the result.
	each(func(i int) { insertElse(x[i], big[i], h.sign) })
}
