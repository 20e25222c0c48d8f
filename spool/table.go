package spool

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// The tables of the spool. A live envelope has a record in tableEnvelope and stands in exactly one place: tableDue
// when it waits, tableHeld when an operator holds it, a record of tableLease when it is being attempted.
const (
	tableSpool    = kv.Table("spool")    // schema version; owner/<node>: fencing number
	tableMessage  = kv.Table("message")  // <queue-id>
	tableBody     = kv.Table("body")     // <queue-id><chunk>
	tableDraft    = kv.Table("draft")    // <queue-id> of a body that is written ahead of its message
	tableEnvelope = kv.Table("envelope") // <queue-id><n>
	tableDue      = kv.Table("due")      // <partition><queue>0<class><next-attempt><queue-id><n>: 1 where it was deferred
	tableHeld     = kv.Table("held")     // <partition><queue>0<class><queue-id><n>
	tableLease    = kv.Table("lease")    // <node><epoch><seq>
	tableOutcome  = kv.Table("outcome")  // <queue-id><n>
	tableCounter  = kv.Table("counter")  // <node>: accepted, then one count per outcome
)

// partitions of the queues, by recipient domain: the unit that one node owns at a time. One node owns all today.
const partitions = 64

// classes is the number of classes.
const classes = Bulk + 1

func partition(domain string) byte {
	h := fnv.New32a()
	_, _ = h.Write([]byte(domain))
	return byte(h.Sum32() % partitions)
}

// appendQueueKey appends what all keys of one class of a queue begin with.
func appendQueueKey(b []byte, q Queue, class Class) []byte {
	b = append(b, partition(q.Domain))
	b = append(b, q.Account...)
	b = append(b, '/')
	b = append(b, q.Stream...)
	b = append(b, '@')
	b = append(b, q.Domain...)
	return append(b, 0, byte(class))
}

func dueTime(t time.Time) uint64 {
	return uint64(max(0, nanos(t))) //nolint:gosec // not negative
}

func dueKey(q Queue, class Class, next time.Time, id mail.EnvelopeID) []byte {
	b := make([]byte, 0, 96)
	b = appendQueueKey(b, q, class)
	b = binary.BigEndian.AppendUint64(b, dueTime(next))
	return id.AppendKey(b)
}

func dueKeyOf(e *Envelope) []byte { return dueKey(e.Queue, e.Class, e.NextAttempt, e.ID) }

// dueValue marks a deferred envelope, so that Open counts without reading the envelopes.
func dueValue(deferred bool) []byte {
	if deferred {
		return []byte{1}
	}
	return []byte{0}
}

func heldKeyOf(e *Envelope) []byte {
	return e.ID.AppendKey(appendQueueKey(make([]byte, 0, 96), e.Queue, e.Class))
}

// dueTail is the length of a due key behind the class.
const dueTail = 8 + mail.EnvelopeKeySize

// parseQueueKey reads the head of a key whose tail behind the class is tail bytes long.
func parseQueueKey(key []byte, tail int) (text []byte, class Class, err error) {
	head := len(key) - tail - 2
	if head < 1 || key[head] != 0 || key[head+1] >= byte(classes) || bytes.IndexByte(key[1:head], 0) >= 0 {
		return nil, 0, fmt.Errorf("queue key: %w", ErrCorrupt)
	}
	return key[1:head], Class(key[head+1]), nil
}

// parseQueue is the inverse of Queue.String: accounts hold no '/', domains no '@'.
func parseQueue(s string) (Queue, error) {
	account, rest, ok := strings.Cut(s, "/")
	at := strings.LastIndexByte(rest, '@')
	if !ok || at < 0 {
		return Queue{}, fmt.Errorf("queue %q: %w", s, ErrCorrupt)
	}
	return Queue{account, rest[:at], rest[at+1:]}, nil
}

// checkQueue refuses names that would not come back from a key.
func checkQueue(q Queue) error {
	switch {
	case len(q.Account) > 128 || len(q.Stream) > 255 || len(q.Domain) > 2*255+len(fromSender)+len(viaRoute)+len(RouteMX)+2:
	case strings.ContainsAny(q.Account, "/\x00") || strings.Contains(q.Stream, "\x00") || strings.ContainsAny(q.Domain, "@\x00"):
	case q.Domain == "":
	default:
		return nil
	}
	return fmt.Errorf("%w: queue %q", ErrInvalid, q.String())
}

func envelopeKey(id mail.EnvelopeID) []byte {
	return id.AppendKey(make([]byte, 0, mail.EnvelopeKeySize))
}

func bodyKey(id mail.QueueID, chunk uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 16), id[:]...), chunk)
}
