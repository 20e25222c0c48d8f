package smtpd

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// watched is a file from which a value is made, anew when the file has changed. It may be used from many goroutines.
type watched[T any] struct {
	what  string // in errors
	name  string
	parse func(text []byte) (T, error)

	mu    sync.Mutex
	value T           // of the last good text
	seen  os.FileInfo // of the text that was looked at last
	bad   error       // what is wrong with that
	told  string      // the error that was returned last; "" since all is well
}

const maxWatched = 1 << 20 // octets of the file

// newWatched reads the file.
func newWatched[T any](what, name string, parse func([]byte) (T, error)) (*watched[T], error) {
	w := &watched[T]{what: what, name: name, parse: parse}
	_, err := w.get()
	return w, err
}

// get returns the value. A file that has changed and cannot be read leaves the one of before; that is told with an error
// once, and again when it cannot be read for another reason or after it could: strangers may ask as often as they like.
func (w *watched[T]) get() (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.load()
	text := ""
	if err != nil {
		text = err.Error()
		err = fmt.Errorf("load %s %s: %w", w.what, w.name, err)
	}
	if text == w.told {
		err = nil
	}
	w.told = text
	return w.value, err
}

// load looks at a text once, right or wrong. The caller holds mu.
func (w *watched[T]) load() error {
	info, err := os.Stat(w.name)
	if err != nil {
		return err
	}
	if w.seen != nil && info.ModTime().Equal(w.seen.ModTime()) && info.Size() == w.seen.Size() {
		return w.bad
	}
	if info.Size() > maxWatched {
		return errors.New("larger than 1 MiB")
	}
	text, err := os.ReadFile(w.name)
	if err != nil {
		return err
	}
	value, err := w.parse(text)
	if w.seen, w.bad = info, err; err == nil {
		w.value = value
	}
	return err
}
