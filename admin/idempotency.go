package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// The rows of idempotency keys, and an index of them by the time at which they are forgotten.
const (
	idempotencyTable  = kv.Table("idempotency")
	idempotencyExpiry = kv.Table("idempotency-expiry")
)

// How long answers are remembered.
const (
	messageKeyLife  = 24 * time.Hour
	campaignKeyLife = 7 * 24 * time.Hour
)

// idempotencyRow is what is stored of one key. A row without a status belongs to a request that is under way, or that a
// crash cut off: nobody knows whether it did its work.
type idempotencyRow struct {
	Print   []byte          `json:"print"` // SHA-256 of the body
	Status  int             `json:"status,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
	Expires time.Time       `json:"expires"`
}

const rowVersion = 1

// idempotencyLocks are the keys whose requests are under way in this process.
type idempotencyLocks struct {
	mu   sync.Mutex
	held map[string]struct{}
}

func (l *idempotencyLocks) take(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.held[key]; taken {
		return false
	}
	if l.held == nil {
		l.held = map[string]struct{}{}
	}
	l.held[key] = struct{}{}
	return true
}

func (l *idempotencyLocks) give(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, key)
}

// once is the idempotency key of one request. A nil once is a request without one: its methods do nothing.
type once struct {
	s        *Server
	key      []byte
	print    [sha256.Size]byte
	life     time.Duration
	status   int // of a good answer
	reserved bool
	recorded bool
}

// errRaced tells that another node did the work meanwhile.
var errRaced = &api.Problem{
	Status: http.StatusConflict, Code: api.CodeIdempotencyKeyInUse, Detail: "Another request used this key; repeat yours.",
}

// recordTx stores the answer in the transaction that does the work, so that a crash cannot part them.
func (o *once) recordTx(tx kv.Tx, status int, answer any) error {
	if o == nil {
		return nil
	}
	if old, err := o.s.rowTx(tx, o.key); err != nil {
		return err
	} else if old != nil && old.Status != 0 {
		return errRaced
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return o.putTx(tx, status, b)
}

// done tells that recordTx was part of the work, which is durable.
func (o *once) done() {
	if o != nil {
		o.recorded = true
	}
}

func (o *once) putTx(tx kv.Tx, status int, body []byte) error {
	expires := o.s.now().Add(o.life)
	b, err := json.Marshal(idempotencyRow{o.print[:], status, body, expires})
	if err != nil {
		return fmt.Errorf("encode idempotency key: %w", err)
	}
	if err := tx.Put(idempotencyTable, o.key, append([]byte{rowVersion}, b...)); err != nil {
		return err
	}
	return tx.Put(idempotencyExpiry, append(expiryKey(expires), o.key...), []byte{rowVersion})
}

func expiryKey(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano())) //nolint:gosec // times before 1970 do not occur
}

// reserve stores the key ahead of work that has a transaction of its own. After a crash in between, a repetition is
// told that the outcome is unknown: it is never done twice.
func (o *once) reserve(ctx context.Context) error {
	if o == nil {
		return nil
	}
	o.reserved = true
	return o.s.deps.DB.Update(ctx, func(tx kv.Tx) error { return o.putTx(tx, 0, nil) })
}

// rowTx returns the live row of a key, nil for none.
func (s *Server) rowTx(tx kv.Tx, key []byte) (*idempotencyRow, error) {
	v, err := tx.Get(idempotencyTable, key)
	if err != nil || v == nil {
		return nil, err
	}
	if v[0] != rowVersion {
		return nil, fmt.Errorf("idempotency key: unknown record version %d", v[0])
	}
	var row idempotencyRow
	if err := json.Unmarshal(v[1:], &row); err != nil {
		return nil, fmt.Errorf("decode idempotency key: %w", err)
	}
	if !row.Expires.After(s.now()) {
		return nil, nil
	}
	return &row, nil
}

// idempotent runs do, or repeats the answer that it gave before under the request's Idempotency-Key
// (draft-ietf-httpapi-idempotency-key-header). An error frees the key, so that a mended request may use it again.
func idempotent[T any](s *Server, r *request, life time.Duration, do func(*once) (T, error)) (any, error) {
	name, err := idempotencyKey(r.Request)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return do(nil)
	}
	scoped := sha256.Sum256([]byte(strings.Join([]string{r.caller.name(), r.Method, r.URL.Path, name}, "\n")))
	o := &once{s: s, key: scoped[:], print: sha256.Sum256(r.body), life: life, status: r.status}
	if !s.inFlight.take(string(o.key)) {
		r.w.Header().Set("Retry-After", "1")
		return nil, &api.Problem{
			Status: http.StatusConflict, Code: api.CodeIdempotencyKeyInUse, Detail: "The first request with this key is still under way.",
		}
	}
	defer s.inFlight.give(string(o.key))
	var row *idempotencyRow
	if err := s.deps.DB.View(r.Context(), func(tx kv.Tx) (err error) {
		row, err = s.rowTx(tx, o.key)
		return err
	}); err != nil {
		return nil, err
	}
	if row != nil {
		return replay(r, o, row)
	}
	// A caller who gives up and repeats the request wants the answer of this one: it goes on without him.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), answerTimeout)
	defer cancel()
	r.Request = r.WithContext(ctx)
	out, err := do(o)
	if err != nil {
		unknown := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
		if o.reserved && !unknown {
			if e := s.deps.DB.Update(ctx, func(tx kv.Tx) error { return tx.Delete(idempotencyTable, o.key) }); e != nil {
				err = errors.Join(err, e)
			}
		}
		return nil, err
	}
	if !o.recorded {
		b, err := json.Marshal(out)
		if err == nil {
			err = s.deps.DB.Update(ctx, func(tx kv.Tx) error { return o.putTx(tx, r.status, b) })
		}
		if err != nil { // the work is done and durable: that is what the caller must hear
			s.log.Error("idempotency.failed", "session", r.id, "err", err)
		}
	}
	return out, nil
}

// replay answers a repetition.
func replay(r *request, o *once, row *idempotencyRow) (any, error) {
	switch {
	case !bytes.Equal(row.Print, o.print[:]):
		return nil, &api.Problem{
			Status: http.StatusUnprocessableEntity, Code: api.CodeIdempotencyKeyReused, Detail: "This key was used with another body.",
		}
	case row.Status == 0:
		return nil, &api.Problem{
			Status: http.StatusConflict, Code: api.CodeIdempotencyKeyInUse,
			Detail: "The first request with this key was cut off. See whether its work was done; to do it again, use another key.",
		}
	}
	r.w.Header().Set("Idempotent-Replayed", "true")
	r.status = row.Status
	return row.Body, nil
}

// idempotencyKey reads the header: a string of RFC 8941, or the same without quotes.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := strings.TrimSpace(values[0])
	if len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"' {
		key = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(key[1 : len(key)-1])
	}
	bad := strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' })
	if len(values) > 1 || key == "" || len(key) > 255 || bad {
		return "", badParameter("Idempotency-Key", "The key must be one string of 1 to 255 printable ASCII characters.")
	}
	return key, nil
}

// forgetKeys removes the rows whose time is over, in slices.
func (s *Server) forgetKeys(ctx context.Context) error {
	const slice = 1000
	for {
		n := 0
		err := s.deps.DB.Update(ctx, func(tx kv.Tx) error {
			var old [][]byte
			err := tx.Scan(idempotencyExpiry, nil, expiryKey(s.now()), func(key, _ []byte) (bool, error) {
				old = append(old, append([]byte(nil), key...))
				return len(old) < slice, nil
			})
			if err != nil {
				return err
			}
			for _, key := range old {
				row, err := s.rowTx(tx, key[8:])
				if err == nil && row == nil {
					err = tx.Delete(idempotencyTable, key[8:])
				}
				if err == nil {
					err = tx.Delete(idempotencyExpiry, key)
				}
				if err != nil {
					return err
				}
			}
			n = len(old)
			return nil
		})
		if err != nil {
			return fmt.Errorf("forget idempotency keys: %w", err)
		}
		if n < slice {
			return nil
		}
	}
}
