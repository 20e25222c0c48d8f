package spool

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

func fullMessage() *Message {
	at := time.Unix(1_770_000_000, 123_456_789).UTC()
	return &Message{
		ID: mail.NewQueueID(at), Account: "acme", Stream: "receipts", Campaign: "cmp_1", Class: Bulk,
		ReversePath: mail.MustParsePath("a@example.com"), Header: []byte("Subject: x\r\n"), Size: 1 << 40, EightBit: true,
		MessageID: "<1@example.com>", Subject: "x", EnvelopeID: "env", RetHeaders: true, AcceptedAt: at,
		ExpiresAt: at.Add(time.Hour), Retry: RetryPolicy{3, time.Second, 1.5, time.Hour}, Credential: "app",
		ClientIP: "192.0.2.1", Tags: []string{"a", "b"}, Keep: true, chunks: 7,
		UTF8: true, RequireTLS: true,
	}
}

func fullEnvelope() *Envelope {
	at := time.Unix(1_770_000_000, 123_456_789).UTC()
	return &Envelope{
		ID: mail.EnvelopeID{Message: mail.NewQueueID(at), N: 1 << 63}, Queue: Queue{"acme", "receipts", "example.net"},
		Class: Transactional, To: mail.MustParsePath("b@other.example"), Notify: "SUCCESS,DELAY", ORCPT: "rfc822;b@example",
		Data: []byte{0, 1, 2}, NextAttempt: at, Attempts: 3, InDoubt: 1, Deferred: true, Held: true,
		LastReply: mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 7, Detail: 1}, Text: "later"},
		LastHost:  "mx.example[192.0.2.1]", LastAt: at,
	}
}

func fullOutcome() *OutcomeRecord {
	e := fullEnvelope()
	return &OutcomeRecord{
		ID: e.ID, Queue: e.Queue, To: e.To, Outcome: Bounced, Reason: "r", Reply: e.LastReply, Host: e.LastHost, TLS: "TLS1.3",
		Attempts: 4, InDoubt: 1, AcceptedAt: e.LastAt, SettledAt: e.NextAttempt, From: mail.MustParsePath("a@example.com"),
		MessageID: "<1@example.com>", Subject: "x",
	}
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	old := fullMessage() // as the program wrote it that knew no version 2
	old.UTF8, old.RequireTLS = false, false
	require.EqualValues(t, recordVersion, appendMessage(nil, old)[0])
	require.EqualValues(t, messageVersion2, appendMessage(nil, fullMessage())[0])
	full := fullMessage()
	full.RetHeaders, full.RetFull = false, true
	require.EqualValues(t, messageVersion3, appendMessage(nil, full)[0])
	late := fullMessage()
	late.Deadline = true
	require.EqualValues(t, messageVersion4, appendMessage(nil, late)[0])
	for _, m := range []*Message{fullMessage(), full, late, old, {ID: mail.NewQueueID(time.Now())}} {
		got, err := decodeMessage(m.ID, appendMessage(nil, m))
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
	for _, e := range []*Envelope{fullEnvelope(), {Queue: Queue{"a", "b", "c"}, To: mail.Path{Local: "x", Domain: "c"}}} {
		got, err := decodeEnvelope(e.ID, appendEnvelope(nil, e))
		require.NoError(t, err)
		require.Equal(t, e, got)
	}
	for _, o := range []*OutcomeRecord{fullOutcome(), {}} {
		record := appendOutcome(nil, o)
		got, err := decodeOutcome(o.ID, record)
		require.NoError(t, err)
		require.Equal(t, o, got)
		at, err := settledAt(record)
		require.NoError(t, err)
		require.Equal(t, o.SettledAt, at)
	}
	ids := make([]mail.EnvelopeID, 17)
	for i := range ids {
		ids[i] = mail.EnvelopeID{Message: mail.NewQueueID(time.Now()), N: uint64(i)}
	}
	rec, err := checkLease(newLeaseRecord(ids))
	require.NoError(t, err)
	for i := range ids {
		require.False(t, rec.empty())
		require.True(t, rec.live(i))
		require.Equal(t, ids[i], rec.id(i))
		rec.settle(i)
		require.False(t, rec.live(i))
	}
	require.True(t, rec.empty())
	require.False(t, rec.live(17))
}

// decoders try every kind of record on the same bytes.
func decoders() map[string]func([]byte) error {
	return map[string]func([]byte) error{
		"message":  func(b []byte) error { _, err := decodeMessage(mail.QueueID{}, b); return err },
		"envelope": func(b []byte) error { _, err := decodeEnvelope(mail.EnvelopeID{}, b); return err },
		"outcome":  func(b []byte) error { _, err := decodeOutcome(mail.EnvelopeID{}, b); return err },
		"settled":  func(b []byte) error { _, err := settledAt(b); return err },
		"lease": func(b []byte) error {
			r, err := checkLease(b)
			for i := 0; err == nil && i < r.len(); i++ {
				r.id(i)
				r.live(i)
			}
			return err
		},
		"note":    func(b []byte) error { _, err := decodeNote(b); return err },
		"index":   func(b []byte) error { _, err := checkSettled(b); return err },
		"counter": func(b []byte) error { _, err := decodeCounts(b); return err },
	}
}

func samples() map[string][]byte {
	return map[string][]byte{
		"message": appendMessage(nil, fullMessage()), "envelope": appendEnvelope(nil, fullEnvelope()),
		"outcome": appendOutcome(nil, fullOutcome()),
		"note":    appendNote(nil, &Note{At: time.Unix(1, 0), Event: "deferred", Attempt: 2, Reply: fullEnvelope().LastReply, Host: "mx", Who: "ann", Why: "x"}),
		"index":   appendSettled([]indexed{{1, 2, envelopeKey(fullEnvelope().ID)}, {3, 0, envelopeKey(mail.EnvelopeID{})}}),
		"lease":   newLeaseRecord([]mail.EnvelopeID{fullEnvelope().ID, {}}),
	}
}

func TestBrokenRecordsAreNamedErrors(t *testing.T) {
	t.Parallel()
	for kind, record := range samples() {
		decode := decoders()[kind]
		require.NoError(t, decode(record), kind)
		for n := range record {
			require.ErrorIs(t, decode(record[:n:n]), ErrCorrupt, "%s cut to %d bytes", kind, n)
		}
		require.ErrorIs(t, decode(append(slices.Clip(record), 0)), ErrCorrupt, "%s with a byte more", kind)
		newer := append([]byte(nil), record...)
		newer[0] = messageVersion4 + 1
		require.ErrorIs(t, decode(newer), ErrVersion, kind)
	}
}

func FuzzRecords(f *testing.F) {
	for _, record := range samples() {
		f.Add(record)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for kind, decode := range decoders() {
			if err := decode(b); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Errorf("%s: unnamed error: %v", kind, err)
			}
		}
		if e, err := decodeEnvelope(mail.EnvelopeID{}, b); err == nil {
			again, err := decodeEnvelope(mail.EnvelopeID{}, appendEnvelope(nil, e))
			require.NoError(t, err)
			require.Equal(t, e, again)
		}
	})
}

func FuzzQueueKey(f *testing.F) {
	f.Add(dueKeyOf(fullEnvelope()), dueTail)
	f.Add(heldKeyOf(fullEnvelope()), mail.EnvelopeKeySize)
	f.Fuzz(func(t *testing.T, key []byte, tail int) {
		if tail < 0 {
			return
		}
		text, class, err := parseQueueKey(key, tail)
		if err != nil {
			return
		}
		q, err := parseQueue(string(text))
		if err != nil || checkQueue(q) != nil {
			return
		}
		head := appendQueueKey(nil, q, class)
		require.Equal(t, string(head[1:]), string(key[1:len(key)-tail]))
	})
}

func TestKeysSortByClassAndTime(t *testing.T) {
	t.Parallel()
	q := Queue{"a", "s", "example.com"}
	id := fullEnvelope().ID
	at := time.Unix(100, 0)
	keys := [][]byte{
		dueKey(q, Urgent, at.Add(time.Hour), id), dueKey(q, Transactional, at, id),
		dueKey(q, Transactional, at.Add(1), mail.EnvelopeID{}), dueKey(q, Bulk, time.Time{}, id),
	}
	for i := 1; i < len(keys); i++ {
		require.Less(t, string(keys[i-1]), string(keys[i]))
	}
	text, class, err := parseQueueKey(keys[1], dueTail)
	require.NoError(t, err)
	require.Equal(t, Transactional, class)
	back, err := parseQueue(string(text))
	require.NoError(t, err)
	require.Equal(t, q, back)
}
