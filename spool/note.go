package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// tableNote holds what happened to an envelope between its acceptance and its outcome: <queue-id><n><time><seq>. An
// envelope that is delivered at the first attempt has no note. Notes go with the outcome.
const tableNote = kv.Table("note")

// Note is one step of an envelope's life that left it live: an attempt that deferred it, or an operator's action.
type Note struct {
	At      time.Time
	Event   string // deferred, held, released, retried, moved
	Attempt int    // attempts until then
	Reply   mail.Reply
	Host    string // that gave Reply
	TLS     string
	Reason  string
	Who     string // of an action
	Why     string
}

// noteKey is unlike every other one of this process, and of another one unless both write within a nanosecond.
func (s *Store) noteKey(id mail.EnvelopeID, at time.Time) []byte {
	b := id.AppendKey(make([]byte, 0, mail.EnvelopeKeySize+12))
	b = binary.BigEndian.AppendUint64(b, dueTime(at))
	return binary.BigEndian.AppendUint32(b, s.notes.Add(1))
}

func appendNote(b []byte, n *Note) []byte {
	b = append(b, recordVersion)
	b = putTime(b, n.At)
	b = putString(b, n.Event)
	b = binary.AppendVarint(b, int64(n.Attempt))
	b = putReply(b, n.Reply)
	b = putString(b, n.Host)
	b = putString(b, n.TLS)
	b = putString(b, n.Reason)
	b = putString(b, n.Who)
	return putString(b, n.Why)
}

func decodeNote(record []byte) (Note, error) {
	d := decode("note", record)
	n := Note{At: d.time(), Event: d.string(), Attempt: d.int(), Reply: d.reply()}
	n.Host = d.string()
	n.TLS = d.string()
	n.Reason = d.string()
	n.Who = d.string()
	n.Why = d.string()
	return n, d.end("note")
}

// putNote writes down a step of an envelope.
func (s *Store) putNote(tx kv.Tx, id mail.EnvelopeID, n *Note) error {
	return tx.Put(tableNote, s.noteKey(id, n.At), appendNote(make([]byte, 0, 96), n))
}

// maxNotes bounds what Notes reads of one envelope.
const maxNotes = 10_000

// Notes returns the last steps of an envelope, at most that many, oldest first. They are kept as long as its outcome.
func (s *Store) Notes(ctx context.Context, id mail.EnvelopeID, most int) ([]Note, error) {
	var notes []Note
	prefix := envelopeKey(id)
	err := s.db.View(ctx, func(tx kv.Tx) error {
		seen := 0
		return tx.Scan(tableNote, prefix, kv.PrefixEnd(prefix), func(_, v []byte) (bool, error) {
			n, err := decodeNote(v)
			if err != nil {
				return false, err
			}
			if len(notes) >= 2*max(most, 1) { // only the last ones count
				notes = append(notes[:0], notes[len(notes)-max(most, 1):]...)
			}
			notes = append(notes, n)
			seen++
			return seen < maxNotes, nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read notes of %s: %w", id, err)
	}
	return notes[max(0, len(notes)-most):], nil
}

// removeNotes removes the notes of envelopes that are forgotten.
func removeNotes(tx kv.Tx, envelopes [][]byte) error {
	var keys [][]byte
	for _, e := range envelopes {
		err := tx.Scan(tableNote, e, kv.PrefixEnd(e), func(k, _ []byte) (bool, error) {
			keys = append(keys, bytes.Clone(k))
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	for _, k := range keys {
		if err := tx.Delete(tableNote, k); err != nil {
			return err
		}
	}
	return nil
}

// QueueWait is what the spool knows of why a queue is not attempted now.
type QueueWait struct {
	Paused    time.Time // since when its stream or campaign is paused; zero: it is not
	Taken     bool      // delivery has it
	NotBefore time.Time // it was set aside until then; zero or past: it is not
}

// QueueWait tells what keeps a queue as a whole.
func (s *Store) QueueWait(name Queue) QueueWait {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	w := QueueWait{Paused: t.paused[name.Stream]}
	if q := t.queues[name]; q != nil {
		w.Taken = q.taken
		w.NotBefore = fromNanos(q.notBefore)
	}
	return w
}

// LeasedSince tells since when an envelope is under lease, zero when it is not.
func (s *Store) LeasedSince(id mail.EnvelopeID) time.Time {
	s.queues.mu.Lock()
	defer s.queues.mu.Unlock()
	if l := s.queues.leased[id]; l != nil {
		return l.at
	}
	return time.Time{}
}
