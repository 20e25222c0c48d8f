package event

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
)

func openDB(t testing.TB) kv.DB {
	t.Helper()
	db, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return kvtest.Twice(db)
}

func openLog(t testing.TB, db kv.DB, now func() time.Time) *Log {
	t.Helper()
	l, err := Open(db, now)
	require.NoError(t, err)
	return l
}

func appendAll(t testing.TB, l *Log, events ...Event) {
	t.Helper()
	require.NoError(t, l.db.Update(t.Context(), func(tx kv.Tx) error {
		for _, e := range events {
			if err := l.Append(tx, e); err != nil {
				return err
			}
		}
		return nil
	}))
}

func listAll(t testing.TB, l *Log, f Filter, limit int) []Event {
	t.Helper()
	var all []Event
	cursor := ""
	for {
		page, next, err := l.List(t.Context(), f, cursor, limit)
		require.NoError(t, err)
		all = append(all, page...)
		if cursor = next; cursor == "" {
			return all
		}
	}
}

var start = time.Date(2026, 11, 20, 9, 0, 0, 123_000_000, time.UTC)

func sample() Event {
	return Event{
		Type: "message.bounced", At: start, Account: "default", Envelope: "06f10000000000000000.3", Stream: "transactional",
		Campaign: "cmp_1", From: "a@example.com", To: "민수@예.kr", Attempt: 2,
		Reply: &mail.Reply{Code: 550, Status: mail.Status{Class: 5, Subject: 1, Detail: 1}, Text: `no "such" user \ <x>`},
		Host:  "mx.example.net[192.0.2.1]", TLS: "TLS1.3", Reason: "hard", Data: map[string]any{"size": 12.0},
	}
}

func TestAppendAndListGiveTheSameEvent(t *testing.T) {
	t.Parallel()
	l := openLog(t, openDB(t), func() time.Time { return start })
	appendAll(t, l, sample(), Event{Type: "contact.unsubscribed", To: "b@example.com"})
	got := listAll(t, l, Filter{}, 10)
	require.Len(t, got, 2)
	want := sample()
	want.ID, want.Version = got[0].ID, 1
	require.Equal(t, want, got[0])
	require.True(t, strings.HasPrefix(got[0].ID, "evt_"))
	require.Less(t, got[0].ID, got[1].ID, "IDs sort as the events do")
	require.Equal(t, start, got[1].At)
}

func TestRecordIsWhatEncodingJSONWouldWrite(t *testing.T) {
	t.Parallel()
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "\x00\x1f\x7f\"\\", "\u2028\u2029", "a\xffb\xc3", "😀", "</script>"}),
		rapid.Custom(func(t *rapid.T) string { return string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")) }))
	rapid.Check(t, func(t *rapid.T) {
		e := Event{
			Type: text.Draw(t, "type"), At: start, Account: text.Draw(t, "account"), To: text.Draw(t, "to"),
			Attempt: rapid.IntRange(0, 9).Draw(t, "attempt"), Reason: text.Draw(t, "reason"),
			Reply: &mail.Reply{Code: 550, Text: text.Draw(t, "reply")},
		}
		b, err := appendRecord(nil, make([]byte, keySize), &e)
		require.NoError(t, err)
		require.True(t, utf8.Valid(b))
		require.NotContains(t, string(b), "\n")
		var got Event
		require.NoError(t, json.Unmarshal(b, &got))
		viaJSON, err := json.Marshal(e)
		require.NoError(t, err)
		var want Event
		require.NoError(t, json.Unmarshal(viaJSON, &want))
		want.ID, want.Version = got.ID, got.Version
		require.Equal(t, want, got)
	})
}

func TestKeysAreUniqueAndNeverGoBack(t *testing.T) {
	t.Parallel()
	db := openDB(t)
	var mu sync.Mutex
	at := start
	now := func() time.Time { // a clock that stands still, and once goes back
		mu.Lock()
		defer mu.Unlock()
		at = at.Add(-time.Nanosecond)
		return at
	}
	a, b := openLog(t, db, now), openLog(t, db, now)
	var wg sync.WaitGroup
	const each = 200
	for i, l := range []*Log{a, b, a, b} {
		wg.Go(func() {
			for n := range each {
				_ = db.Update(context.Background(), func(tx kv.Tx) error {
					return l.Append(tx, Event{Type: "x", Reason: fmt.Sprint(i, "/", n)})
				})
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	last := map[byte]int{}
	for _, e := range listAll(t, a, Filter{}, 100) {
		require.False(t, seen[e.ID])
		seen[e.ID] = true
		var n int
		_, err := fmt.Sscanf(e.Reason[2:], "%d", &n)
		require.NoError(t, err)
		if prev, ok := last[e.Reason[0]]; ok {
			require.Greater(t, n, prev, "one goroutine's events stay in its order")
		}
		last[e.Reason[0]] = n
	}
	require.Len(t, seen, 4*each)
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	at := start
	l := openLog(t, openDB(t), func() time.Time { return at })
	for i := range 6000 {
		at = start.Add(time.Duration(i) * time.Second)
		e := Event{Type: "message.accepted", Account: "a", Envelope: fmt.Sprintf("id%04d.0", i/2), Campaign: "cmp_1"}
		if i%1000 == 999 {
			e.Type, e.Account, e.Campaign = "message.bounced", "b", "cmp_12"
		}
		appendAll(t, l, e)
	}
	for name, c := range map[string]struct {
		f    Filter
		want int
	}{
		"all":                      {Filter{}, 6000},
		"type_prefix":              {Filter{Type: "message."}, 6000},
		"type_with_star":           {Filter{Type: "message.b*"}, 6},
		"type_is_no_substring":     {Filter{Type: "bounced"}, 0},
		"account":                  {Filter{Account: "b"}, 6},
		"campaign_is_exact":        {Filter{Campaign: "cmp_1"}, 5994},
		"message_and_envelopes":    {Filter{Envelope: "id0001"}, 2},
		"one_envelope":             {Filter{Envelope: "id0001.0"}, 2},
		"envelope_is_no_prefix":    {Filter{Envelope: "id000"}, 0},
		"since":                    {Filter{Since: start.Add(5990 * time.Second)}, 10},
		"until_is_exclusive":       {Filter{Until: start.Add(10 * time.Second)}, 10},
		"quote_in_filter":          {Filter{Account: `b","x":"`}, 0},
		"narrow_filter_short_page": {Filter{Type: "message.bounced", Account: "b", Campaign: "cmp_12"}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Len(t, listAll(t, l, c.f, 1000), c.want)
			if c.want <= 10 {
				require.Len(t, listAll(t, l, c.f, 1), c.want, "pages of one")
			}
		})
	}
}

func TestListRefusesForeignCursors(t *testing.T) {
	t.Parallel()
	l := openLog(t, openDB(t), nil)
	for _, cursor := range []string{"x", "!!", strings.Repeat("A", 400)} {
		_, _, err := l.List(t.Context(), Filter{}, cursor, 10)
		require.ErrorIs(t, err, ErrBadCursor)
	}
}

func TestUnknownVersionIsAnError(t *testing.T) {
	t.Parallel()
	l := openLog(t, openDB(t), nil)
	require.NoError(t, l.db.Update(t.Context(), func(tx kv.Tx) error {
		return tx.Put(table, make([]byte, keySize), []byte(`{"id":"evt_x","type":"x","version":2}`))
	}))
	_, _, err := l.List(t.Context(), Filter{}, "", 10)
	require.ErrorContains(t, err, "unknown version 2")
}

func TestPurgeRemovesTheOldestOnly(t *testing.T) {
	t.Parallel()
	at := start
	l := openLog(t, openDB(t), func() time.Time { return at })
	for i := range 2500 {
		at = start.Add(time.Duration(i) * time.Second)
		appendAll(t, l, Event{Type: "x"})
	}
	before := start.Add(2200 * time.Second)
	n, err := l.Purge(t.Context(), before, 1500)
	require.NoError(t, err)
	require.Equal(t, 1500, n)
	n, err = l.Purge(t.Context(), before, 1500)
	require.NoError(t, err)
	require.Equal(t, 700, n)
	left := listAll(t, l, Filter{}, 1000)
	require.Len(t, left, 300)
	require.Equal(t, before, left[0].At)
}

func FuzzAppendString(f *testing.F) {
	f.Add("a\"b\\c\n\u2028\xff")
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var got string
		require.NoError(t, json.Unmarshal(b, &got), "%q", b)
		require.Equal(t, string([]rune(s)), got)
		for _, c := range b {
			require.True(t, c >= ' ' && c != 0x7f)
		}
	})
}

// nullTx takes writes and forgets them.
type nullTx struct{ kv.Tx }

func (nullTx) Put(kv.Table, []byte, []byte) error { return nil }

func BenchmarkAppend(b *testing.B) {
	l := openLog(b, openDB(b), nil)
	e := sample()
	e.Data = nil
	b.Run("log", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = l.Append(nullTx{}, e)
		}
	})
	b.Run("encoding_json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = json.Marshal(&e)
		}
	})
}

func BenchmarkListNarrow(b *testing.B) {
	l := openLog(b, openDB(b), nil)
	for range 50 {
		events := make([]Event, 1000)
		for i := range events {
			events[i] = sample()
		}
		appendAll(b, l, events...)
	}
	b.ResetTimer()
	for b.Loop() {
		_, _, _ = l.List(b.Context(), Filter{Campaign: "cmp_none"}, "", 100)
	}
}
