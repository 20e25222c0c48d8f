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
	account string // whose it is; "" for every account
	cursor  string // the store's; "" for the beginning
	limit   int
}

// lists is an endpoint that answers with a page of a list: of the account that whose finds, what read has of the part that
// is asked for, and the store's cursor of what is behind.
func lists[T any](s *Server, whose func(*request) (string, error), read func(*request, list) ([]T, string, error)) endpoint {
	return gives(func(r *request) (api.Page[T], error) {
		account, err := whose(r)
		if err != nil {
			return api.Page[T]{}, err
		}
		return pageOf(s, r, account, read)
	})
}

// pageOf is lists for a handler that has more to see to.
func pageOf[T any](s *Server, r *request, account string, read func(*request, list) ([]T, string, error)) (api.Page[T], error) {
	l, bound, err := s.list(r)
	if err != nil {
		return api.Page[T]{}, err
	}
	l.account = account
	data, next, err := read(r, l)
	if err != nil {
		return api.Page[T]{}, err
	}
	if data == nil {
		data = []T{}
	}
	return api.Page[T]{Data: data, HasMore: next != "", NextCursor: s.cursors.seal(bound, next)}, nil
}

// list reads limit and cursor, and tells what a cursor of this list is bound to.
func (s *Server) list(r *request) (l list, bound string, err error) {
	q := r.URL.Query()
	l = list{limit: api.DefaultLimit}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > api.MaxLimit {
			return l, "", badParameter("limit", fmt.Sprintf("limit must be a number from 1 to %d.", api.MaxLimit))
		}
		l.limit = n
	}
	filter := url.Values{}
	for name, values := range q {
		if name != "limit" && name != "cursor" {
			filter[name] = values
		}
	}
	bound = strings.Join([]string{r.URL.Path, filter.Encode(), r.caller.own()}, "\n")
	l.cursor, err = s.cursors.open(bound, q.Get("cursor"))
	return l, bound, err
}

// cut takes the part out of a whole list that is in memory, sorted by key.
func cut[T any](l list, whole []T, key func(T) string) (part []T, next string) {
	from := 0
	if l.cursor != "" {
		from, _ = slices.BinarySearchFunc(whole, l.cursor, func(t T, last string) int {
			if key(t) <= last {
				return -1
			}
			return 1
		})
	}
	part = whole[from:min(from+l.limit, len(whole))]
	if from+len(part) < len(whole) {
		next = key(part[len(part)-1])
	}
	return part, next
}

// each shows items as the API does.
func each[T, U any](items []T, show func(T) U) []U {
	out := make([]U, 0, len(items))
	for _, item := range items {
		out = append(out, show(item))
	}
	return out
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
