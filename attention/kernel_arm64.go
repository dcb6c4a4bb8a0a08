package attention

// kernels are what this machine can run, the best first: every arm64 processor has NEON.
var kernels = []kernel{assembled("neon", &neon), portable}

var neon = vector{
	streams:       [...]int{1, 1, 1, 1},
	scores:        [...]scoresFunc{scores_f32_neon, scores_f16_neon, scores_bf16_neon, scores_i8_neon},
	accumulate:    [...]accumulateFunc{accumulate_f32_neon, accumulate_f16_neon, accumulate_bf16_neon, accumulate_i8_neon},
	softmax:       softmax_neon,
	softmaxScaled: softmaxScaled_neon,
	adjust:        adjust_neon,
	coefficients:  coefficients_neon,
	merge:         merge_neon,
	divide:        divide_neon,
	dots:          dots_neon,
	weigh:         weigh_neon,
	soften:        soften_neon,
	transpose:     transpose_neon,
	columns:       [...]columnsFunc{1: columns1_neon, 2: columns2_neon},
	column:        [...]columnFunc{1: column1_neon, 2: column2_neon, 4: column4_neon},
	weave:         weave_neon,
	split:         split_neon,
	tileScores:    tileScores_neon,
	tileValues:    tileValues_neon,
}
