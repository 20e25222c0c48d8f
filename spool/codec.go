package spool

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"relayd/internal/mail"
)

// recordVersion is the first byte of every record. A change of layout takes the next number, and decoders keep
// reading the old one.
const recordVersion = 1

// messageVersion2 is a message record with a flag that a program that knows only version 1 must not pass over: it would
// send in clear what must not be. Messages without such a flag are written as version 1.
const messageVersion2 = 2

// messageVersion3 is one with RET=FULL.
const messageVersion3 = 3

// messageVersion4 is one with a deadline. The next flag needs a byte of its own.
const messageVersion4 = 4

// Every record is a version byte and its fields in order: integers as varints, strings behind their length, times as
// eight bytes of nanoseconds since 1970. Encoders append; a decoder reads fields until the first error, which it keeps.

func putString[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// nanos is the time in the records: 0 for the zero time, clamped to what 64 bits hold (the year 2262).
func nanos(t time.Time) int64 {
	switch {
	case t.IsZero():
		return 0
	case t.Year() > 2261:
		return math.MaxInt64
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func putTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(nanos(t))) //nolint:gosec // two's complement, read back as such
}

func putPath(b []byte, p mail.Path) []byte { return putString(putString(b, p.Local), p.Domain) }

func putQueue(b []byte, q Queue) []byte {
	return putString(putString(putString(b, q.Account), q.Stream), q.Domain)
}

func putReply(b []byte, r mail.Reply) []byte {
	b = binary.AppendVarint(b, int64(r.Code))
	if r.Code == 0 {
		return b
	}
	b = binary.AppendVarint(b, int64(r.Status.Class))
	b = binary.AppendVarint(b, int64(r.Status.Subject))
	b = binary.AppendVarint(b, int64(r.Status.Detail))
	return putString(b, r.Text)
}

// decoder reads the fields of a record. Its strings share one copy of the record.
type decoder struct {
	s   string
	err error
}

// decode begins a record of version 1: it copies it and checks the version.
func decode(kind string, record []byte) *decoder { return decodeUpTo(kind, record, recordVersion) }

// decodeUpTo begins a record of any version up to newest.
func decodeUpTo(kind string, record []byte, newest byte) *decoder {
	d := &decoder{s: string(record)}
	switch v := d.byte(); {
	case d.err != nil:
	case v < recordVersion || v > newest:
		d.err = fmt.Errorf("%s record: %w: %d", kind, ErrVersion, v)
	}
	return d
}

// end reports the first error, or that bytes are left over.
func (d *decoder) end(kind string) error {
	if d.err == nil && d.s != "" {
		d.err = ErrCorrupt
	}
	if d.err == ErrCorrupt { //nolint:errorlint // set here and below, never wrapped
		return fmt.Errorf("%s record: %w", kind, ErrCorrupt)
	}
	return d.err
}

func (d *decoder) fail() {
	d.s = ""
	if d.err == nil {
		d.err = ErrCorrupt
	}
}

func (d *decoder) take(n uint64) string {
	if d.err != nil || n > uint64(len(d.s)) {
		d.fail()
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

func (d *decoder) byte() byte {
	if s := d.take(1); s != "" {
		return s[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	var v uint64
	for shift := uint(0); shift < 64; shift += 7 {
		c := d.byte()
		if shift == 63 && c > 1 {
			break
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	d.fail()
	return 0
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1) //nolint:gosec // zigzag
}

// int reads a number that no field of ours can exceed.
func (d *decoder) int() int {
	v := d.varint()
	if v > math.MaxInt32 || v < math.MinInt32 {
		d.fail()
		return 0
	}
	return int(v)
}

func (d *decoder) string() string { return d.take(d.uvarint()) }

func (d *decoder) bytes() []byte {
	if s := d.string(); s != "" {
		return []byte(s)
	}
	return nil
}

func (d *decoder) fixed64() uint64 {
	s := d.take(8)
	if len(s) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64([]byte(s))
}

func (d *decoder) time() time.Time {
	return fromNanos(int64(d.fixed64())) //nolint:gosec // two's complement
}

func (d *decoder) path() mail.Path {
	local := d.string()
	return mail.Path{Local: local, Domain: d.string()}
}

func (d *decoder) queue() Queue {
	q := Queue{Account: d.string()}
	q.Stream = d.string()
	q.Domain = d.string()
	return q
}

func (d *decoder) reply() mail.Reply {
	r := mail.Reply{Code: d.int()}
	if r.Code == 0 {
		return r
	}
	r.Status.Class = d.int()
	r.Status.Subject = d.int()
	r.Status.Detail = d.int()
	r.Text = d.string()
	return r
}

// The flags of a message record.
const (
	flagEightBit = 1 << iota
	flagRetHeaders
	flagKeep
	flagTags // tags stand before the header
	flagUTF8 // from here on: version 2
	flagRequireTLS
	flagRetFull  // from here on: version 3
	flagDeadline // from here on: version 4
)

func appendMessage(b []byte, m *Message) []byte {
	var flags byte
	if m.EightBit {
		flags |= flagEightBit
	}
	if m.RetHeaders {
		flags |= flagRetHeaders
	}
	if m.Keep {
		flags |= flagKeep
	}
	if len(m.Tags) > 0 {
		flags |= flagTags
	}
	if m.UTF8 {
		flags |= flagUTF8
	}
	if m.RequireTLS {
		flags |= flagRequireTLS
	}
	if m.RetFull {
		flags |= flagRetFull
	}
	if m.Deadline {
		flags |= flagDeadline
	}
	version := byte(recordVersion)
	switch {
	case flags >= flagDeadline:
		version = messageVersion4
	case flags >= flagRetFull:
		version = messageVersion3
	case flags >= flagUTF8:
		version = messageVersion2
	}
	b = append(b, version, flags, byte(m.Class))
	b = putString(b, m.Account)
	b = putString(b, m.Stream)
	b = putString(b, m.Campaign)
	b = putPath(b, m.ReversePath)
	b = binary.AppendUvarint(b, uint64(m.chunks))
	b = binary.AppendVarint(b, m.Size)
	b = putString(b, m.MessageID)
	b = putString(b, m.Subject)
	b = putString(b, m.EnvelopeID)
	b = putTime(b, m.AcceptedAt)
	b = putTime(b, m.ExpiresAt)
	b = binary.AppendVarint(b, int64(m.Retry.Attempts))
	b = binary.AppendVarint(b, int64(m.Retry.First))
	b = binary.BigEndian.AppendUint64(b, math.Float64bits(m.Retry.Multiplier))
	b = binary.AppendVarint(b, int64(m.Retry.MaxAge))
	b = putString(b, m.Credential)
	b = putString(b, m.ClientIP)
	if len(m.Tags) > 0 {
		b = putString(b, strings.Join(m.Tags, "\n")) // no tag holds one
	}
	return putString(b, m.Header)
}

func decodeMessage(id mail.QueueID, record []byte) (*Message, error) {
	d := decodeUpTo("message", record, messageVersion4)
	flags := d.byte()
	m := &Message{
		ID: id, EightBit: flags&flagEightBit != 0, RetHeaders: flags&flagRetHeaders != 0, Keep: flags&flagKeep != 0,
		UTF8: flags&flagUTF8 != 0, RequireTLS: flags&flagRequireTLS != 0, Deadline: flags&flagDeadline != 0, RetFull: flags&flagRetFull != 0,
		Class: Class(d.byte()),
	}
	m.Account = d.string()
	m.Stream = d.string()
	m.Campaign = d.string()
	m.ReversePath = d.path()
	m.chunks = uint32(d.uvarint()) //nolint:gosec // checked below
	m.Size = d.varint()
	m.MessageID = d.string()
	m.Subject = d.string()
	m.EnvelopeID = d.string()
	m.AcceptedAt = d.time()
	m.ExpiresAt = d.time()
	m.Retry.Attempts = d.int()
	m.Retry.First = time.Duration(d.varint())
	m.Retry.Multiplier = math.Float64frombits(d.fixed64())
	m.Retry.MaxAge = time.Duration(d.varint())
	m.Credential = d.string()
	m.ClientIP = d.string()
	if flags&flagTags != 0 {
		m.Tags = strings.Split(d.string(), "\n")
	}
	m.Header = d.bytes()
	if m.Class >= classes || m.chunks > maxChunks {
		d.fail()
	}
	if err := d.end("message"); err != nil {
		return nil, fmt.Errorf("decode message %s: %w", id, err)
	}
	return m, nil
}

// The flags of an envelope record.
const (
	flagHeld = 1 << iota
	flagDeferred
	flagOtherDomain // the recipient's domain is not the queue's
)

// appendEnvelope begins with the queue, so that a listing can pass over an envelope without decoding it.
func appendEnvelope(b []byte, e *Envelope) []byte {
	b = append(b, recordVersion)
	b = putQueue(b, e.Queue)
	var flags byte
	if e.Held {
		flags |= flagHeld
	}
	if e.Deferred {
		flags |= flagDeferred
	}
	if e.To.Domain != e.Queue.Domain {
		flags |= flagOtherDomain
	}
	b = append(b, flags, byte(e.Class))
	b = putString(b, e.To.Local)
	if flags&flagOtherDomain != 0 {
		b = putString(b, e.To.Domain)
	}
	b = putString(b, e.Notify)
	b = putString(b, e.ORCPT)
	b = putTime(b, e.NextAttempt)
	b = binary.AppendVarint(b, int64(e.Attempts))
	b = binary.AppendVarint(b, int64(e.InDoubt))
	b = putReply(b, e.LastReply)
	if e.LastReply.Code != 0 || e.LastHost != "" || !e.LastAt.IsZero() {
		b = append(b, 1)
		b = putString(b, e.LastHost)
		b = putTime(b, e.LastAt)
	} else {
		b = append(b, 0)
	}
	return putString(b, e.Data)
}

func decodeEnvelope(id mail.EnvelopeID, record []byte) (*Envelope, error) {
	d := decode("envelope", record)
	e := &Envelope{ID: id, Queue: d.queue()}
	flags := d.byte()
	e.Held, e.Deferred = flags&flagHeld != 0, flags&flagDeferred != 0
	e.Class = Class(d.byte())
	e.To = mail.Path{Local: d.string(), Domain: e.Queue.Domain}
	if flags&flagOtherDomain != 0 {
		e.To.Domain = d.string()
	}
	e.Notify = d.string()
	e.ORCPT = d.string()
	e.NextAttempt = d.time()
	e.Attempts = d.int()
	e.InDoubt = d.int()
	e.LastReply = d.reply()
	if d.byte() != 0 {
		e.LastHost = d.string()
		e.LastAt = d.time()
	}
	e.Data = d.bytes()
	if e.Class >= classes {
		d.fail()
	}
	if err := d.end("envelope"); err != nil {
		return nil, fmt.Errorf("decode envelope %s: %w", id, err)
	}
	return e, nil
}

func appendOutcome(b []byte, o *OutcomeRecord) []byte {
	b = append(b, recordVersion, byte(o.Outcome))
	b = putTime(b, o.SettledAt) // first, for Purge
	b = putQueue(b, o.Queue)
	b = putPath(b, o.To)
	b = putString(b, o.Reason)
	b = putReply(b, o.Reply)
	b = putString(b, o.Host)
	b = putString(b, o.TLS)
	b = binary.AppendVarint(b, int64(o.Attempts))
	b = binary.AppendVarint(b, int64(o.InDoubt))
	b = putTime(b, o.AcceptedAt)
	b = putPath(b, o.From)
	b = putString(b, o.MessageID)
	return putString(b, o.Subject)
}

func decodeOutcome(id mail.EnvelopeID, record []byte) (*OutcomeRecord, error) {
	d := decode("outcome", record)
	o := &OutcomeRecord{ID: id, Outcome: Outcome(d.byte()), SettledAt: d.time()}
	o.Queue = d.queue()
	o.To = d.path()
	o.Reason = d.string()
	o.Reply = d.reply()
	o.Host = d.string()
	o.TLS = d.string()
	o.Attempts = d.int()
	o.InDoubt = d.int()
	o.AcceptedAt = d.time()
	o.From = d.path()
	o.MessageID = d.string()
	o.Subject = d.string()
	if int(o.Outcome) >= len(outcomeNames) {
		d.fail()
	}
	if err := d.end("outcome"); err != nil {
		return nil, fmt.Errorf("decode outcome %s: %w", id, err)
	}
	return o, nil
}

// settledAt reads only the time of an outcome record.
func settledAt(record []byte) (time.Time, error) {
	d := decode("outcome", record[:min(len(record), 10)])
	d.byte()
	at := d.time()
	return at, d.end("outcome")
}

// leaseRecord is the durable note of a part of one batch under lease: the version, the number of envelopes in four bytes, one
// bit for each that is not settled yet, and their keys.
type leaseRecord []byte

func newLeaseRecord(ids []mail.EnvelopeID) leaseRecord {
	bits := (len(ids) + 7) / 8
	r := make([]byte, 0, 5+bits+len(ids)*mail.EnvelopeKeySize)
	r = append(r, recordVersion)
	r = binary.BigEndian.AppendUint32(r, uint32(len(ids))) //nolint:gosec // at most maxLease
	r = r[:5+bits]
	for i := range ids {
		r[5+i/8] |= 1 << (i % 8)
	}
	for _, id := range ids {
		r = id.AppendKey(r)
	}
	return r
}

// checkLease checks what a record claims of its own size.
func checkLease(record []byte) (leaseRecord, error) {
	if len(record) > 0 && record[0] != recordVersion {
		return nil, fmt.Errorf("lease record: %w: %d", ErrVersion, record[0])
	}
	if len(record) < 5 {
		return nil, fmt.Errorf("lease record: %w", ErrCorrupt)
	}
	n := uint64(binary.BigEndian.Uint32(record[1:]))
	if uint64(len(record)) != 5+(n+7)/8+n*mail.EnvelopeKeySize {
		return nil, fmt.Errorf("lease record: %w", ErrCorrupt)
	}
	return record, nil
}

func (r leaseRecord) len() int { return int(binary.BigEndian.Uint32(r[1:])) }

// live tells whether envelope i is not settled yet.
func (r leaseRecord) live(i int) bool { return i < r.len() && r[5+i/8]&(1<<(i%8)) != 0 }

func (r leaseRecord) settle(i int) { r[5+i/8] &^= 1 << (i % 8) }

func (r leaseRecord) id(i int) mail.EnvelopeID {
	at := 5 + (r.len()+7)/8 + i*mail.EnvelopeKeySize
	id, _ := mail.EnvelopeIDFromKey(r[at : at+mail.EnvelopeKeySize]) // of the right length
	return id
}

// empty tells that every envelope is settled.
func (r leaseRecord) empty() bool {
	for _, b := range r[5 : 5+(r.len()+7)/8] {
		if b != 0 {
			return false
		}
	}
	return true
}
