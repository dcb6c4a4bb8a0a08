package lookup

import (
	"fmt"
	"math/rand/v2"
)

// clauses is how many clauses a text has. Each is asked for once, in a drawn order.
const clauses = 6

// Places are the places of a clause, in their order.
var Places = [...]string{"subject", "verb", "relation"}

const (
	places = len(Places)
	told   = clauses * places // tokens before the questions
	// question stands for a place in a question's hidden state.
	question = places
)

// words are those of the language. Each can stand in any place.
var words = [...]string{"light", "watch", "book", "play", "hand", "cross", "ring", "mark", "drive", "cook", "fish", "plant", "rock", "store", "train", "wave"}

// Chance is the share of answers that are right by guessing.
const Chance = 1.0 / len(words)

// text is a drawn text: the words of its clauses, and the order in which these are asked for.
type text struct {
	words [clauses][places]int
	asked [clauses]int
}

func drawText(rnd *rand.Rand) text {
	var t text
	for c := range t.words {
		for p := range t.words[c] {
			t.words[c][p] = rnd.IntN(len(words))
		}
	}
	copy(t.asked[:], rnd.Perm(clauses))
	return t
}

// token is what a hidden state is the sum of. A question has no word.
type token struct{ word, place, clause int }

// tokens are those of a text in their order: the clauses, then the questions.
func (t *text) tokens() []token {
	var all []token
	for c, clause := range t.words {
		for p, word := range clause {
			all = append(all, token{word, p, c})
		}
	}
	for _, c := range t.asked {
		all = append(all, token{-1, question, c})
	}
	return all
}

// names are the tokens for people: a word with its clause, and a question with the clause that it names.
func (t *text) names() []string {
	var all []string
	for _, k := range t.tokens() {
		if k.place == question {
			all = append(all, fmt.Sprintf("what of %d?", k.clause+1))
		} else {
			all = append(all, fmt.Sprintf("%s %d", words[k.word], k.clause+1))
		}
	}
	return all
}
