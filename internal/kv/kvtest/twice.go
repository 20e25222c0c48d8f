package kvtest

import (
	"context"
	"errors"

	"relayd/internal/kv"
)

// Twice returns db with an Update that runs each function twice: once in a transaction that is rolled back, then in one
// that counts. It is what Update may do to any function, when another of its batch fails after writing, made certain: a
// package whose tests pass on it keeps nothing from the first run.
func Twice(db kv.DB) kv.DB { return &twice{db} }

type twice struct{ kv.DB }

var errRolledBack = errors.New("rolled back")

func (d *twice) Update(ctx context.Context, fn func(kv.Tx) error) error {
	err := d.DB.Update(ctx, func(tx kv.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		return errRolledBack
	})
	if !errors.Is(err, errRolledBack) {
		return err
	}
	return d.DB.Update(ctx, fn)
}
