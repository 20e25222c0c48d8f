package suppression

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newList(t *testing.T) (*List, *clock) {
	t.Helper()
	db, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	c := &clock{time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)}
	return New(kvtest.Twice(db), c.now), c
}

func TestEverySpellingMeets(t *testing.T) {
	t.Parallel()
	spellings := map[string][]string{
		"ann@example.com":     {"ANN@EXAMPLE.COM", "Ann@Example.Com.", `"ann"@example.com`, `"A\nn"@example.com`},
		"x@bücher.example":    {"x@xn--bcher-kva.example", "X@BÜCHER.example", "x@xn--BCHER-kva.example."},
		"a b@example.com":     nil, // not an address at all
		`"a b"@example.com`:   {`"A\ b"@EXAMPLE.com`},
		"user@[192.0.2.1]":    {"USER@[192.0.2.1]"},
		"user@[IPv6:::1]":     {"user@[ipv6:0:0:0:0:0:0:0:1]"},
		"o'neil+tag@x.exampl": {"O'Neil+TAG@x.exampl."},
	}
	for address, others := range spellings {
		if _, err := mail.ParsePath(address); err != nil {
			continue
		}
		for _, stored := range append([]string{address}, others...) {
			l, _ := newList(t)
			created, err := l.Add(t.Context(), Entry{Account: "default", Address: stored})
			require.NoError(t, err, stored)
			require.True(t, created)
			for _, asked := range append([]string{address}, others...) {
				e, err := l.Check(t.Context(), "default", mail.MustParsePath(asked), false)
				require.NoError(t, err)
				require.NotNil(t, e, "%s stored, %s asked", stored, asked)
				again, err := l.Add(t.Context(), Entry{Account: "default", Address: asked})
				require.NoError(t, err)
				require.False(t, again)
			}
		}
	}
}

func TestScopes(t *testing.T) {
	t.Parallel()
	l, _ := newList(t)
	ctx := t.Context()
	a, b := mail.MustParsePath("a@x.example"), mail.MustParsePath("b@x.example")
	_, err := l.Add(ctx, Entry{Account: "default", Address: "a@x.example", Scope: Broadcast, Reason: Unsubscribe, Source: "cmp_1", Note: "n"})
	require.NoError(t, err)
	_, err = l.Add(ctx, Entry{Account: "default", Address: "b@x.example", Reason: HardBounce})
	require.NoError(t, err)
	for _, tt := range []struct {
		account   string
		to        mail.Path
		broadcast bool
		reason    string
	}{
		{"default", a, true, Unsubscribe},
		{"default", a, false, ""},
		{"default", b, true, HardBounce},
		{"default", b, false, HardBounce},
		{"other", b, true, ""},
		{"defaul", b, true, ""},
	} {
		e, err := l.Check(ctx, tt.account, tt.to, tt.broadcast)
		require.NoError(t, err)
		if tt.reason == "" {
			require.Nil(t, e)
			continue
		}
		require.Equal(t, tt.reason, e.Reason)
	}
	_, err = l.Add(ctx, Entry{Account: "default", Address: "A@x.example", Scope: Global, Reason: Complaint})
	require.NoError(t, err)
	entries, err := l.Get(ctx, "default", a)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, []string{Broadcast, Global}, []string{entries[0].Scope, entries[1].Scope})
	require.Equal(t, "cmp_1", entries[0].Source)
	e, err := l.Check(ctx, "default", a, true)
	require.NoError(t, err)
	require.Equal(t, Complaint, e.Reason, "the wider scope is told")
	n, err := l.Remove(ctx, "default", a, Broadcast)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	n, err = l.Remove(ctx, "default", a, "")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	n, err = l.Remove(ctx, "default", a, "")
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	l, c := newList(t)
	ctx := t.Context()
	to := mail.MustParsePath("a@x.example")
	_, err := l.Add(ctx, Entry{Account: "default", Address: "a@x.example", ExpiresAt: c.t.Add(time.Hour)})
	require.NoError(t, err)
	e, err := l.Check(ctx, "default", to, false)
	require.NoError(t, err)
	require.NotNil(t, e)
	created, err := l.Add(ctx, Entry{Account: "default", Address: "a@x.example", ExpiresAt: c.t.Add(time.Minute)})
	require.NoError(t, err)
	require.False(t, created, "a shorter one changes nothing")
	c.t = c.t.Add(time.Hour)
	e, err = l.Check(ctx, "default", to, false)
	require.NoError(t, err)
	require.Nil(t, e)
	created, err = l.Add(ctx, Entry{Account: "default", Address: "a@x.example"})
	require.NoError(t, err)
	require.True(t, created, "an expired one makes room")
	c.t = c.t.Add(1000 * time.Hour)
	e, err = l.Check(ctx, "default", to, false)
	require.NoError(t, err)
	require.NotNil(t, e)
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	l, c := newList(t)
	for name, e := range map[string]Entry{
		"no_account":  {Address: "a@x.example"},
		"nul_account": {Account: "a\x00b", Address: "a@x.example"},
		"no_address":  {Account: "a"},
		"bad_address": {Account: "a", Address: "nobody"},
		"scope":       {Account: "a", Address: "a@x.example", Scope: "list:1"},
		"reason":      {Account: "a", Address: "a@x.example", Reason: "whim"},
		"expired":     {Account: "a", Address: "a@x.example", ExpiresAt: c.t},
	} {
		_, err := l.Add(t.Context(), e)
		require.ErrorIs(t, err, ErrBadEntry, name)
	}
}

func TestListPagesThroughOneAccount(t *testing.T) {
	t.Parallel()
	l, _ := newList(t)
	ctx := t.Context()
	for i := range 25 {
		for _, account := range []string{"a", "aa"} {
			_, err := l.Add(ctx, Entry{Account: account, Address: fmt.Sprintf("u%02d@x.example", i), Note: account})
			require.NoError(t, err)
		}
	}
	var got []string
	for cursor := ""; ; {
		page, next, err := l.List(ctx, "a", cursor, 10)
		require.NoError(t, err)
		for _, e := range page {
			require.Equal(t, "a", e.Note)
			require.Equal(t, Global, e.Scope)
			got = append(got, e.Address)
		}
		if cursor = next; cursor == "" {
			break
		}
		n, err := l.Remove(ctx, "a", mail.MustParsePath(got[len(got)-1]), "") // what the cursor names may go away
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	require.Len(t, got, 25)
	_, _, err := l.List(ctx, "a", "!", 10)
	require.ErrorIs(t, err, ErrBadCursor)
}

func FuzzRecord(f *testing.F) {
	f.Add(encode(Entry{Address: "a@x.example", Reason: Manual, Source: "s", Note: "n", CreatedAt: time.Unix(1, 2), ExpiresAt: time.Unix(3, 4)}))
	f.Add([]byte{recordVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decode(b)
		if err != nil {
			require.ErrorIs(t, err, errBadRecord)
			return
		}
		again, err := decode(encode(e))
		require.NoError(t, err)
		require.Equal(t, e, again)
	})
}
