package source

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Tables. A source is its ID (12 bytes) in all keys. What it has read lies under its epoch (4 bytes), which a change of
// the table raises, so that old entries can go at leisure.
const (
	tableSource kv.Table = "source"       // id → record
	tableState  kv.Table = "source_state" // id → state, with the watermark
	tableName   kv.Table = "source_name"  // account, NUL, name → id
	tableRun    kv.Table = "source_run"   // id, run → run
	tableRow    kv.Table = "source_row"   // id, epoch, key of the row → entry
	tableEmail  kv.Table = "source_email" // id, epoch, mailbox, NUL, updated_at (last first), key of the row → nothing
	tableTodo   kv.Table = "source_todo"  // id, epoch, key of the row → nothing: rows to read again by their key
	tablePurge  kv.Table = "source_purge" // id, epoch → nothing: epochs whose entries go
)

const recordVersion = 1

const (
	sourcePrefix = "src_"
	runPrefix    = "run_"
)

type id = mail.QueueID

func parseID(s, prefix string) (id, error) {
	rest, ok := strings.CutPrefix(s, prefix)
	v, err := mail.ParseQueueID(rest)
	if !ok || err != nil {
		return id{}, ErrNotFound
	}
	return v, nil
}

func formatSource(v id) string { return sourcePrefix + v.String() }
func formatRun(v id) string    { return runPrefix + v.String() }

// record is what is configured.
type record struct {
	ID      id               `json:"-"`
	Account string           `json:"account"`
	Config  api.SourceConfig `json:"config"`
	Created time.Time        `json:"created"`
	Updated time.Time        `json:"updated"`
	Version int64            `json:"version"`
}

func (r *record) etag() string { return fmt.Sprintf(`"%d"`, r.Version) }

// state is what changes as a source is read.
type state struct {
	Epoch    uint32    `json:"epoch"`
	List     id        `json:"list,omitzero"` // that was fed last: another list of the same name is to be filled anew
	Mark     *mark     `json:"mark,omitempty"`
	Until    *moment   `json:"until,omitempty"`  // up to where the last run read; behind the watermark after a clock went back
	FullAt   time.Time `json:"full_at,omitzero"` // start of the last full run, or of the first run
	NextAt   time.Time `json:"next_at,omitzero"` // zero: only when asked
	Failures int       `json:"failures,omitempty"`
	Error    string    `json:"error,omitempty"` // of the last run
	Running  id        `json:"running,omitzero"`
	Queued   id        `json:"queued,omitzero"`
	Last     id        `json:"last,omitzero"` // run that ended last
}

// encode writes a version byte and JSON.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode source record: %w", err)
	}
	return append([]byte{recordVersion}, b...), nil
}

func decodeInto(b []byte, v any) error {
	if len(b) == 0 || b[0] != recordVersion {
		return fmt.Errorf("%w: unknown version", errBadRecord)
	}
	if err := json.Unmarshal(b[1:], v); err != nil {
		return fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return nil
}

func decodeState(b []byte) (*state, error) {
	st := new(state)
	return st, decodeInto(b, st)
}

// entry is what is remembered of one row: enough to know it again, and whose contact it was.
type entry struct {
	at     moment
	print  digest // zero: to be applied again
	status contact.Status
	email  string // mail.Path.Key
}

func (e *entry) encode() []byte {
	b := make([]byte, 0, 2+8+len(e.print)+len(e.email))
	b = append(b, recordVersion, byte(e.status))
	b = binary.BigEndian.AppendUint64(b, uint64(e.at)) //nolint:gosec // the bits of it
	b = append(b, e.print[:]...)
	return append(b, e.email...)
}

func decodeEntry(b []byte) (e entry, err error) {
	const head = 2 + 8 + len(digest{})
	if len(b) <= head || b[0] != recordVersion || contact.Status(b[1]) > contact.Pending {
		return e, fmt.Errorf("%w: entry of a row", errBadRecord)
	}
	e.status, e.at = contact.Status(b[1]), moment(binary.BigEndian.Uint64(b[2:])) //nolint:gosec // the bits of it
	copy(e.print[:], b[10:])
	e.email = string(b[head:])
	return e, nil
}

// space is one source's part of the tables, in its epoch.
type space []byte

func spaceOf(source id, epoch uint32) space {
	return binary.BigEndian.AppendUint32(append(make(space, 0, 16), source[:]...), epoch)
}

func (s space) key(parts ...string) []byte {
	b := append(make([]byte, 0, 128), s...)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// emailKey sorts the rows of one mailbox: the one changed last comes first and has the contact.
func (s space) emailKey(email string, at moment, row string) []byte {
	b := append(s.key(email), 0)
	b = binary.BigEndian.AppendUint64(b, ^(uint64(at) ^ 1<<63)) //nolint:gosec // keeps the order, turned around
	return append(b, row...)
}

func runKey(source, run id) []byte {
	return append(append(make([]byte, 0, 24), source[:]...), run[:]...)
}

func nameKey(account, name string) []byte { return append(append([]byte(account), 0), name...) }

func getRecord(tx kv.Tx, source id) (*record, error) {
	b, err := tx.Get(tableSource, source[:])
	if err != nil {
		return nil, fmt.Errorf("read source: %w", err)
	}
	if b == nil {
		return nil, ErrNotFound
	}
	r := &record{ID: source}
	return r, decodeInto(b, r)
}

func getState(tx kv.Tx, source id) (*state, error) {
	b, err := tx.Get(tableState, source[:])
	if err != nil {
		return nil, fmt.Errorf("read state of source: %w", err)
	}
	if b == nil {
		return nil, ErrNotFound
	}
	return decodeState(b)
}

func getRun(tx kv.Tx, source, run id) (*api.SourceRun, error) {
	b, err := tx.Get(tableRun, runKey(source, run))
	if err != nil {
		return nil, fmt.Errorf("read run of source: %w", err)
	}
	if b == nil {
		return nil, ErrNotFound
	}
	r := new(api.SourceRun)
	return r, decodeInto(b, r)
}

func put(tx kv.Tx, table kv.Table, key []byte, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	if err := tx.Put(table, key, b); err != nil {
		return fmt.Errorf("write source: %w", err)
	}
	return nil
}

func (r *record) put(tx kv.Tx) error { return put(tx, tableSource, r.ID[:], r) }

func (st *state) put(tx kv.Tx, source id) error {
	return put(tx, tableState, append([]byte(nil), source[:]...), st)
}

func putRun(tx kv.Tx, source, run id, r *api.SourceRun) error {
	return put(tx, tableRun, runKey(source, run), r)
}
