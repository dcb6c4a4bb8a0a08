// Package explain says where the queries of a job look: for chosen heads and positions, the positions that match best
// with their weights and tokens, and whole matrices of weights for heat maps. It also compares what multi-head, grouped
// and multi-query attention cost.
//
// Weights are computed again in float64 from the job file, by the reference of package attention; a cluster has no part
// in it. Only what the chosen heads and positions need is read, one KV group after the other.
package explain
