package explore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
)

// Found is what a search has come to.
type Found struct {
	States, Runs, Moves int
	// Whole says that all has been explored.
	Whole bool
	// Err is what a run broke, nil if nothing, and Run the moves of that run.
	Err error
	Run []string

	ends map[uint64]bool
}

// frame is a state on the way of a run.
type frame struct {
	moves, next int
}

// mostMoves bounds a run: one that goes on for longer does not come to an end.
const mostMoves = 1000

// Exhaust explores all runs of a case, up to a number of runs. States that are alike are explored once.
func Exhaust(t *testing.T, c Case, runs int) Found {
	f := Found{ends: map[uint64]bool{}}
	visited := map[uint64]int{}
	var path []frame
	for f.Runs < runs {
		f.Runs++
		var err error
		var world *World
		synctest.Test(t, func(*testing.T) {
			world, err = newWorld(c)
			defer world.close()
			if err != nil {
				return
			}
			for depth := 0; ; depth++ {
				if err = world.settle(); err != nil {
					return
				}
				moves := world.moves()
				if !c.Full {
					moves = world.enough(moves)
				}
				if depth < len(path) {
					if len(moves) != path[depth].moves {
						err = fmt.Errorf("%w: %d moves where there were %d", errUneven, len(moves), path[depth].moves)
						return
					}
				} else {
					h := world.hash()
					if before, ok := visited[h]; ok {
						if before != len(moves) {
							err = fmt.Errorf("%w: states that look alike have %d and %d moves", errUneven, before, len(moves))
						}
						return
					}
					visited[h] = len(moves)
					if len(moves) == 0 {
						f.ends[h] = true
						err = world.finale()
						return
					}
					path = append(path, frame{moves: len(moves)})
				}
				if depth > mostMoves {
					err = errors.New("the run does not end")
					return
				}
				m := moves[path[depth].next]
				f.Moves++
				if err = world.make(m); err != nil {
					return
				}
			}
		})
		if err != nil {
			f.Err, f.Run = err, world.moved
			break
		}
		for len(path) > 0 && path[len(path)-1].next+1 >= path[len(path)-1].moves {
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			f.Whole = true
			break
		}
		path[len(path)-1].next++
	}
	f.States = len(visited)
	return f
}

var errUneven = errors.New("the explorer: two runs of the same moves differ")

// String tells of a search.
func (f Found) String() string {
	s := fmt.Sprintf("%d states, %d runs, %d ends, %d moves, whole %v", f.States, f.Runs, len(f.ends), f.Moves, f.Whole)
	if f.Err != nil {
		s += fmt.Sprintf("\n%v, after\n  %s", f.Err, strings.Join(f.Run, "\n  "))
	}
	return s
}

// Walk makes random runs of random cases. Each follows from the seed and its number.
func Walk(t *testing.T, seed uint64, number int) Found {
	rng := rand.New(rand.NewPCG(seed, uint64(number)))
	return walk(t, rng, drawCase(rng))
}

// walk makes a random run of a case.
func walk(t *testing.T, rng *rand.Rand, c Case) Found {
	f := Found{Runs: 1}
	synctest.Test(t, func(*testing.T) {
		w, err := newWorld(c)
		defer w.close()
		for err == nil {
			if err = w.settle(); err != nil {
				break
			}
			moves := w.moves()
			if len(moves) == 0 {
				err = w.finale()
				break
			}
			if f.Moves++; f.Moves > mostMoves {
				err = errors.New("the run does not end")
				break
			}
			err = w.make(drawMove(rng, moves))
		}
		f.Err, f.Run = err, w.moved
	})
	return f
}

// drawCase draws what is to be done and what may break.
func drawCase(rng *rand.Rand) Case {
	words := []string{"append", "append", "append", "read", "cut-1", "cut-2"}
	script := func(name string, first ...string) Script {
		for range 2 + rng.IntN(5) {
			first = append(first, words[rng.IntN(len(words))])
		}
		return Script{name, first}
	}
	c := Case{Workers: 3 + rng.IntN(2), Faults: map[string]int{}, Looks: true, Eager: rng.IntN(2) == 0, Drivers: []Script{script("A", "open")}}
	if rng.IntN(3) > 0 {
		c.Drivers = append(c.Drivers, script("B", "attach"))
	}
	if rng.IntN(2) > 0 {
		c.Drivers = append(c.Drivers, maker)
		if rng.IntN(2) > 0 {
			c.Drivers = append(c.Drivers, other)
		}
	}
	crashes := rng.IntN(2) == 0 // else connections break
	for range rng.IntN(6) {
		worker := fmt.Sprintf("w%d", 1+rng.IntN(c.Workers))
		link := "A>" + worker // of the others none breaks: two who each reach a part of the workers go on with it
		switch kind := rng.IntN(3); {
		case kind == 0:
			c.Faults["tick"]++
		case !crashes:
			c.Faults["break "+link]++
			c.Faults["late "+link] += rng.IntN(2)
		case kind == 1:
			c.Faults["crash "+worker]++
			c.Faults["start "+worker] += rng.IntN(2)
		default:
			c.Faults["notice "+link]++
		}
	}
	return c
}

// drawMove draws a move. What breaks is drawn less often.
func drawMove(rng *rand.Rand, moves []move) move {
	for {
		m := moves[rng.IntN(len(moves))]
		if m.fault == "" || rng.IntN(4) == 0 {
			return m
		}
	}
}
