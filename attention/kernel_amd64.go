package attention

import (
	"headwater.example/attention/internal/amx"
	"headwater.example/internal/processor"
)

// kernels are what this machine can run, the best first.
var kernels = func() []kernel {
	var all []kernel
	if processor.Has(processor.AVX2, processor.FMA, processor.F16C, processor.BMI1) {
		if processor.Has(processor.AVX512F, processor.AVX512BW, processor.AVX512DQ, processor.AVX512VL) {
			avx512.oneStream = processor.AMD(processor.Zen5)
			if processor.Tiles() == nil {
				all = append(all, withMatrixUnit(&avx512))
			}
			all = append(all, assembled("avx512", &avx512))
		}
		all = append(all, assembled("avx2", &avx2))
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
	streams:       4,
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
	split:         split_avx512,
	splitHalves:   splitHalves_avx512,
	tileScores:    tileScores_avx512,
	tileValues:    tileValues_avx512,
}

var avx2 = vector{
	streams:       4,
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
	split:         split_avx2,
	splitHalves:   splitHalves_avx2,
	tileScores:    tileScores_avx2,
	tileValues:    tileValues_avx2,
}
