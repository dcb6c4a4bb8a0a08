package shard

import "headwater.example/attention"

// Limits of a model, of a session and of a step. This is their one home: clients, workers, files and the documents take them
// from here. Every product of a geometry's numbers within them fits an int64.
const (
	// MaxLayers bounds the layers of a model, and the problems of a job.
	MaxLayers = 1 << 16
	// MaxHeads bounds the query heads of a layer, and so its groups.
	MaxHeads = 1 << 12
	// MaxDim bounds the elements of one head's query, key or value.
	MaxDim = attention.MaxHeadDim
	// maxShards bounds the memory of a plan.
	maxShards = 1 << 22
	// MaxPositions bounds lengths, positions and offsets.
	MaxPositions = 1 << 40
	// MaxStepTokens bounds the tokens that one step appends, and those that attend in it.
	MaxStepTokens = 1 << 16
	// MaxTreePositions bounds the newest positions that a step's tree mask speaks of.
	MaxTreePositions = 1 << 12
	// MaxTreeElements bounds the elements of a tree mask: query tokens times positions.
	MaxTreeElements = 16 << 20
	// MaxReplicas bounds the copies of a shard beside the owner's.
	MaxReplicas = 8
	// MaxLineage bounds the lines of epochs of which a worker remembers that a session came through them.
	MaxLineage = 32
	// MaxStripes bounds the stripes in which a session holds a group.
	MaxStripes = 64
	// MaxText bounds the bytes of each text that a session or a job is given: name, tenant, model fingerprint, key.
	MaxText = 256
)
