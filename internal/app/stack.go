package app

import (
	"errors"
	"fmt"
	"slices"
)

// stack is what must be closed, in the order in which it was opened.
type stack struct{ steps []step }

type step struct {
	name  string
	close func() error
}

func (s *stack) push(name string, fn func() error) { s.steps = append(s.steps, step{name, fn}) }

// run closes everything, last first, and forgets it.
func (s *stack) run() error {
	steps := s.steps
	s.steps = nil
	slices.Reverse(steps)
	var errs []error
	for _, st := range steps {
		if err := st.close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", st.name, err))
		}
	}
	return errors.Join(errs...)
}
