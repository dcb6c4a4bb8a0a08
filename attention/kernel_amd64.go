package attention

import (
	"headwater.example/attention/internal/amx"
	"headwater.example/internal/processor"
)

// kernels are what this machine can run, the best first.
var kernels = func() []kernel {
	var all []kernel
	narrow := &avx2
	if processor.Has(processor.AVX2, processor.FMA, processor.F16C, processor.BMI1) {
		if processor.Has(processor.AVX512F, processor.AVX512BW, processor.AVX512DQ, processor.AVX512VL) {
			v := &avx512
			switch {
			case processor.AMD(processor.Zen5):
				v = &zen5
			case processor.AMD(0):
				v, narrow = &zen4, &avx2Zen4
			}
			all = append(all, assembled("avx512", v))
		} else if processor.AMD(processor.Zen3) {
			narrow = &avx2Zen3
		}
		all = append(all, assembled("avx2", narrow))
		if processor.Tiles() == nil {
			all = append([]kernel{withMatrixUnit(all[0].vector)}, all...)
		}
	}
	return append(all, portable)
}()

// withMatrixUnit returns the kernel of that vector with AMX for products in tiles.
func withMatrixUnit(v *vector) kernel {
	with := *v
	with.multiply = (*amx.Product).Multiply
	return assembled("amx", &with)
}

var avx512 = vector{
	streams:       [...]int{4, 4, 4, 4},
	tileRows:      [...]int{6, 10, 10, 10},
	scores:        [...]scoresFunc{scores_f32_avx512, scores_f16_avx512, scores_bf16_avx512, scores_i8_avx512},
	accumulate:    [...]accumulateFunc{accumulate_f32_avx512, accumulate_f16_avx512, accumulate_bf16_avx512, accumulate_i8_avx512},
	softmax:       softmax_avx512,
	softmaxScaled: softmaxScaled_avx512,
	adjust:        adjust_avx512,
	coefficients:  coefficients_avx512,
	merge:         merge_avx512,
	divide:        divide_avx512,
	logSums:       logSums_avx512,
	dots:          dots_avx512,
	weigh:         weigh_avx512,
	soften:        soften_avx512,
	transpose:     transpose_avx512,
	columns:       [...]columnsFunc{1: columns1_avx512, 2: columns2_avx512},
	column:        [...]columnFunc{1: column1_avx512, 2: column2_avx512, 4: column4_avx512},
	weave:         weave_avx512,
	unweave:       unweave_avx512,
	split:         split_avx512,
	splitHalves:   splitHalves_avx512,
	tileScores:    tileScores_avx512,
	tileValues:    tileValues_avx512,
}

// zen5 is avx512 as it prefetches best on Zen 5.
var zen5 = func() vector {
	v := avx512
	v.oneStream = true
	return v
}()

// zen4 is avx512 with tiles, and ways to prefetch, that suit Zen 4.
var zen4 = func() vector {
	v := avx512
	v.streams, v.scales, v.tileRows = [...]int{1, 1, 1, 4}, true, [...]int{6, 6, 6, 6}
	v.leadRows, v.leadApart, v.leadValues = [...]int{4, 1, 1, 0}, [...]int{4, 0, 0, 0}, 3
	v.project = scores_f32_avx512
	v.scores = [...]scoresFunc{scores_f32_zen4, scores_f16_zen4, scores_bf16_zen4, scores_i8_zen4}
	v.accumulate = [...]accumulateFunc{accumulate_f32_zen4, accumulate_f16_zen4, accumulate_bf16_zen4, accumulate_i8_zen4}
	v.tileScores, v.tileValues = tileScores_zen4, tileValues_zen4
	return v
}()

var avx2 = vector{
	streams:       [...]int{4, 4, 4, 4},
	scores:        [...]scoresFunc{scores_f32_avx2, scores_f16_avx2, scores_bf16_avx2, scores_i8_avx2},
	accumulate:    [...]accumulateFunc{accumulate_f32_avx2, accumulate_f16_avx2, accumulate_bf16_avx2, accumulate_i8_avx2},
	softmax:       softmax_avx2,
	softmaxScaled: softmaxScaled_avx2,
	adjust:        adjust_avx2,
	coefficients:  coefficients_avx2,
	merge:         merge_avx2,
	divide:        divide_avx2,
	logSums:       logSums_avx2,
	dots:          dots_avx2,
	weigh:         weigh_avx2,
	soften:        soften_avx2,
	transpose:     transpose_avx2,
	columns:       [...]columnsFunc{1: columns1_avx2, 2: columns2_avx2},
	column:        [...]columnFunc{1: column1_avx2, 2: column2_avx2, 4: column4_avx2},
	weave:         weave_avx2,
	unweave:       unweave_avx2,
	split:         split_avx2,
	splitHalves:   splitHalves_avx2,
	tileScores:    tileScores_avx2,
	tileValues:    tileValues_avx2,
}

// avx2Zen3 is avx2 as it prefetches best on Zen 3: tiles of up to three rows have four columns or more, and read faster in several
// streams, as f16 of four rows does where memory is fast.
var avx2Zen3 = func() vector {
	v := avx2
	v.streams, v.fewRows, v.tileStreams = [...]int{4, 1, 1, 1}, [...]int{0, 4, 3, 0}, avx2.streams[0]
	return v
}()

// avx2Zen4 is avx2 as it prefetches best on Zen 4.
var avx2Zen4 = func() vector {
	v := avx2
	v.streams, v.tileStreams = [...]int{1, 1, 1, 1}, avx2.streams[0]
	return v
}()
