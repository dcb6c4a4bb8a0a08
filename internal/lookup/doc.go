// Package lookup teaches one attention layer on a cluster to look words up, from scratch, and says what its queries, keys and
// values have learned.
//
// The language (language.go) has clauses of three places, a subject, a verb and a relation, where any word can stand in any
// place. A question names a clause, and its three words are the answer. A value can not say both which word it is and in which
// place it stood, so the heads have to ask different questions of the same keys.
//
// The way of a step (model.go): draw a batch; embed its tokens; a job of kind layer attends; read the answers off the outputs
// and compare them; a job of kind layer_grad brings the derivatives back to hidden states and weights; Adam moves all
// parameters. What was learned is read off the parameters (learned.go). The layer's bits do not depend on the cluster, so
// neither does a training.
package lookup
