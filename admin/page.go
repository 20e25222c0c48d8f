package admin

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// table holds the little that this package stores.
const table = kv.Table("admin")

// cursorSealer binds the cursors of the stores to the list, filter and account that they were made for.
type cursorSealer struct{ secret []byte }

// newCursorSealer reads the secret, or makes it: cursors outlive a restart.
func newCursorSealer(ctx context.Context, db kv.DB) (cursorSealer, error) {
	var c cursorSealer
	fresh := make([]byte, sha256.Size)
	_, _ = rand.Read(fresh) // never fails since Go 1.24
	key := []byte("cursor-secret")
	err := db.Update(ctx, func(tx kv.Tx) error {
		v, err := tx.Get(table, key)
		if err != nil {
			return err
		}
		if len(v) == sha256.Size {
			c.secret = append([]byte(nil), v...)
			return nil
		}
		c.secret = fresh
		return tx.Put(table, key, fresh)
	})
	if err != nil {
		return c, fmt.Errorf("open secret of cursors: %w", err)
	}
	return c, nil
}

const (
	cursorVersion = 1
	cursorMAC     = 12
)

func (c cursorSealer) mac(bound, cursor string) []byte {
	m := hmac.New(sha256.New, c.secret)
	_, _ = fmt.Fprintf(m, "%d:%s%s", len(bound), bound, cursor)
	return m.Sum(nil)[:cursorMAC]
}

func (c cursorSealer) seal(bound, cursor string) string {
	if cursor == "" {
		return ""
	}
	b := append([]byte{cursorVersion}, c.mac(bound, cursor)...)
	return base64.RawURLEncoding.EncodeToString(append(b, cursor...))
}

func (c cursorSealer) open(bound, sealed string) (string, error) {
	if sealed == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err != nil || len(b) < 1+cursorMAC || b[0] != cursorVersion ||
		!hmac.Equal(b[1:1+cursorMAC], c.mac(bound, string(b[1+cursorMAC:]))) {
		return "", &api.Problem{
			Status: http.StatusBadRequest, Code: api.CodeCursorMismatch,
			Detail: "The cursor is not of this list with these parameters.",
		}
	}
	return string(b[1+cursorMAC:]), nil
}

// list is the part of a list that a request asks for.
type list struct {
	limit  int
	cursor string
	bound  string // what a cursor of it is bound to
}

// list reads limit and cursor.
func (s *Server) list(r *request) (list, error) {
	q := r.URL.Query()
	l := list{limit: api.DefaultLimit}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > api.MaxLimit {
			return l, badParameter("limit", fmt.Sprintf("limit must be a number from 1 to %d.", api.MaxLimit))
		}
		l.limit = n
	}
	filter := url.Values{}
	for name, values := range q {
		if name != "limit" && name != "cursor" {
			filter[name] = values
		}
	}
	l.bound = strings.Join([]string{r.URL.Path, filter.Encode(), r.caller.own()}, "\n")
	var err error
	l.cursor, err = s.cursors.open(l.bound, q.Get("cursor"))
	return l, err
}

// pageOf makes the answer of what a store gave.
func pageOf[T any](s *Server, l list, data []T, next string) api.Page[T] {
	if data == nil {
		data = []T{}
	}
	return api.Page[T]{Data: data, HasMore: next != "", NextCursor: s.cursors.seal(l.bound, next)}
}

// pageOfAll cuts a page out of a list that is in memory, sorted by key.
func pageOfAll[T, U any](s *Server, l list, all []T, key func(T) string, show func(T) U) api.Page[U] {
	from := 0
	if l.cursor != "" {
		from, _ = slices.BinarySearchFunc(all, l.cursor, func(t T, last string) int {
			if key(t) <= last {
				return -1
			}
			return 1
		})
	}
	to := min(from+l.limit, len(all))
	data := make([]U, 0, to-from)
	for _, t := range all[from:to] {
		data = append(data, show(t))
	}
	next := ""
	if to < len(all) {
		next = key(all[to-1])
	}
	return pageOf(s, l, data, next)
}

// queryTime reads a time parameter; zero where there is none.
func queryTime(r *request, name string) (time.Time, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, badParameter(name, name+" must be a time with its zone, such as 2026-11-20T09:00:00Z.")
	}
	return t, nil
}
