package contact

import (
	"errors"
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

func newStore(t testing.TB, refused map[string]string) (*Store, *clock) {
	t.Helper()
	db, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	c := &clock{time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)}
	s, err := New(t.Context(), Deps{DB: kvtest.Twice(db), Now: c.now, Suppressions: refusals(refused), TempDir: t.TempDir()})
	require.NoError(t, err)
	return s, c
}

// refusals is a suppression list of complaints and hard bounces.
type refusals map[string]string

func (r refusals) RefusedTx(_ kv.Tx, _ string, to []mail.Path) ([]string, error) {
	reasons := make([]string, len(to))
	for i, p := range to {
		reasons[i] = r[p.Key()]
	}
	return reasons, nil
}

func newList(t testing.TB, s *Store, l List) *List {
	t.Helper()
	if l.Account == "" {
		l.Account = "shop"
	}
	if l.Name == "" {
		l.Name = "customers"
	}
	require.NoError(t, s.CreateList(t.Context(), &l, nil))
	return &l
}

func row(email string, status Status, attributes ...string) Row {
	r := Row{To: mail.MustParsePath(email), Status: status}
	for i := 0; i < len(attributes); i += 2 {
		r.Attributes = append(r.Attributes, Attribute{attributes[i], String, attributes[i+1]})
	}
	SortAttributes(r.Attributes)
	return r
}

func apply(t testing.TB, s *Store, l *List, o ApplyOptions, rows ...Row) Applied {
	t.Helper()
	done, err := s.Apply(t.Context(), l.ID, rows, o)
	require.NoError(t, err)
	require.Len(t, done.Verdicts, len(rows))
	require.EqualValues(t, len(rows), done.Created+done.Updated+done.Unchanged+done.SkippedUnsubscribed+done.SkippedErased+
		done.SkippedExisting+done.Rejected, "every row is counted once")
	return done
}

func counts(t testing.TB, s *Store, l *List) Counts {
	t.Helper()
	_, n, err := s.List(t.Context(), l.Account, l.Name)
	require.NoError(t, err)
	return n
}

func get(t testing.TB, s *Store, email string) *Found {
	t.Helper()
	f, err := s.Get(t.Context(), "shop", "email:"+email)
	require.NoError(t, err)
	return f
}

func audience(t testing.TB, s *Store, a *Audience, most int) []string {
	t.Helper()
	var all []string
	var after ID
	for done := false; !done; {
		var page []Recipient
		var err error
		page, after, done, err = s.Page(t.Context(), a, after, most)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page), most)
		for _, r := range page {
			all = append(all, r.To.String())
		}
	}
	return all
}

func TestOneMailboxIsOneContact(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	done := apply(t, s, l, ApplyOptions{Source: "import:imp_1"}, row("Ann@Example.com", Absent, "Name", "A"), row("bob@x.example", Absent),
		row(`"ann"@EXAMPLE.com.`, Absent, "Name", "B"))
	require.Equal(t, []Verdict{Created, Created, Updated}, done.Verdicts)
	require.EqualValues(t, 1, done.Duplicates)
	done = apply(t, s, l, ApplyOptions{Source: "import:imp_1"}, row("ANN@example.com", Absent, "Name", "C"))
	require.Equal(t, []Verdict{Updated}, done.Verdicts)
	require.EqualValues(t, 1, done.Duplicates, "of an earlier batch of the same import")
	require.Equal(t, Counts{Contacts: 2, Subscribed: 2}, counts(t, s, l))
	f := get(t, s, "ann@example.com")
	require.Equal(t, "ANN@example.com", f.To.String(), "the spelling that came last is kept")
	require.Equal(t, []Attribute{{"Name", String, "C"}}, f.Attributes)
	require.Len(t, audience(t, s, &Audience{List: l.ID}, 10), 2)
	same, err := s.Get(t.Context(), "shop", f.ID.String())
	require.NoError(t, err)
	require.Equal(t, f, same)
	_, err = s.Get(t.Context(), "other", f.ID.String())
	require.ErrorIs(t, err, ErrNotFound, "of another account")
}

func TestRepeatedRowsWriteNothing(t *testing.T) {
	t.Parallel()
	s, c := newStore(t, nil)
	l := newList(t, s, List{})
	r := row("ann@x.example", Subscribed, "Name", "Ann")
	require.Equal(t, []Verdict{Created}, apply(t, s, l, ApplyOptions{}, r).Verdicts)
	before := get(t, s, "ann@x.example")
	c.t = c.t.Add(time.Hour)
	require.Equal(t, []Verdict{Unchanged}, apply(t, s, l, ApplyOptions{Source: "other"}, r).Verdicts)
	require.Equal(t, before, get(t, s, "ann@x.example"))
}

func TestUnsubscribedStaysSo(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, map[string]string{"bad@x.example": "complaint"})
	l := newList(t, s, List{Topics: []Topic{{Name: "news"}}})
	apply(t, s, l, ApplyOptions{}, row("ann@x.example", Unsubscribed), row("bad@x.example", Unsubscribed))
	done := apply(t, s, l, ApplyOptions{}, row("ann@x.example", Subscribed, "Name", "Ann"))
	require.Equal(t, []Verdict{SkippedUnsubscribed}, done.Verdicts)
	f := get(t, s, "ann@x.example")
	require.Equal(t, Unsubscribed, f.Memberships[0].Status)
	require.Equal(t, "Ann", f.Attributes[0].Text, "what else the row says is taken")
	require.Equal(t, []Verdict{Unchanged}, apply(t, s, l, ApplyOptions{}, row("ann@x.example", Absent)).Verdicts)
	require.Empty(t, audience(t, s, &Audience{List: l.ID}, 10))

	done = apply(t, s, l, ApplyOptions{AllowResubscribe: true}, row("ann@x.example", Subscribed), row("bad@x.example", Subscribed))
	require.Equal(t, []Verdict{Updated, SkippedUnsubscribed}, done.Verdicts, "never one who complained")
	require.Equal(t, Counts{Contacts: 2, Subscribed: 1, Unsubscribed: 1}, counts(t, s, l))

	r := row("ann@x.example", Absent)
	r.Topics = []TopicStatus{{"news", Unsubscribed}}
	apply(t, s, l, ApplyOptions{}, r)
	r.Topics = []TopicStatus{{"news", Subscribed}}
	apply(t, s, l, ApplyOptions{}, r)
	require.Empty(t, audience(t, s, &Audience{List: l.ID, Topic: "news"}, 10), "a topic as the list")
	apply(t, s, l, ApplyOptions{AllowResubscribe: true}, r)
	require.Len(t, audience(t, s, &Audience{List: l.ID, Topic: "news"}, 10), 1)
}

func TestDeletedWhileUnsubscribedStaysSo(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	apply(t, s, l, ApplyOptions{}, row("ann@x.example", Unsubscribed), row("bob@x.example", Subscribed))
	for _, who := range []string{"ann", "bob"} {
		_, err := s.Delete(t.Context(), "shop", "email:"+who+"@x.example", false)
		require.NoError(t, err)
	}
	require.Equal(t, Counts{}, counts(t, s, l))
	done := apply(t, s, l, ApplyOptions{}, row("ann@x.example", Subscribed), row("bob@x.example", Subscribed))
	require.Equal(t, []Verdict{SkippedUnsubscribed, Created}, done.Verdicts)
	require.Equal(t, []string{"bob@x.example"}, audience(t, s, &Audience{List: l.ID}, 10))
}

func TestErasedStaysAway(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	apply(t, s, l, ApplyOptions{}, row("ann@x.example", Subscribed, "Name", "Ann-Sophie"))
	_, err := s.Delete(t.Context(), "shop", "email:ANN@x.example", true)
	require.NoError(t, err)
	_, err = s.Get(t.Context(), "shop", "email:ann@x.example")
	require.ErrorIs(t, err, ErrNotFound)
	for _, o := range []ApplyOptions{{}, {AllowResubscribe: true}} {
		require.Equal(t, []Verdict{SkippedErased}, apply(t, s, l, o, row("Ann@x.example", Subscribed)).Verdicts)
	}
	require.Equal(t, Counts{}, counts(t, s, l))
	_, err = s.Delete(t.Context(), "shop", "email:never@x.example", true)
	require.NoError(t, err, "an address that is not here may be kept away too")
	require.Equal(t, []Verdict{SkippedErased}, apply(t, s, l, ApplyOptions{}, row("never@x.example", Subscribed)).Verdicts)
	require.NoError(t, s.DB.View(t.Context(), func(tx kv.Tx) error {
		for _, table := range []kv.Table{tableContact, tableEmail, tableMember, tableGone} {
			if err := tx.Scan(table, nil, nil, func(k, v []byte) (bool, error) {
				require.NotContains(t, string(k)+string(v), "ann", "of one who was erased nothing is left in %s", table)
				require.NotContains(t, string(k)+string(v), "Sophie")
				return true, nil
			}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestDoubleOptInWantsProof(t *testing.T) {
	t.Parallel()
	s, c := newStore(t, nil)
	l := newList(t, s, List{OptIn: Double})
	apply(t, s, l, ApplyOptions{}, row("ann@x.example", Subscribed))
	require.Equal(t, Pending, get(t, s, "ann@x.example").Memberships[0].Status)
	w, err := s.Wanted(t.Context(), l.ID, "", mail.MustParsePath("ann@x.example"))
	require.NoError(t, err)
	require.Equal(t, Wanted{Reason: "pending"}, w)
	r := row("ann@x.example", Subscribed)
	r.Consent = Consent{At: c.t, IP: "192.0.2.1", Source: "https://shop.example/join", Text: "Yes, write to me."}
	apply(t, s, l, ApplyOptions{}, r)
	m := get(t, s, "ann@x.example").Memberships[0]
	require.Equal(t, Subscribed, m.Status)
	require.Equal(t, r.Consent, m.Consent)
	apply(t, s, l, ApplyOptions{}, row("ann@x.example", Subscribed))
	require.Equal(t, r.Consent, get(t, s, "ann@x.example").Memberships[0].Consent, "a row without a proof does not remove it")
}

func TestWantedIsTheLastLook(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{Topics: []Topic{{Name: "news", Default: "unsubscribed"}, {Name: "deals"}}})
	apply(t, s, l, ApplyOptions{}, row("ann@x.example", Subscribed), row("bob@x.example", Unsubscribed), row("gone@x.example", Subscribed))
	_, err := s.Delete(t.Context(), "shop", "email:gone@x.example", false)
	require.NoError(t, err)
	for _, tt := range []struct{ email, topic, reason string }{
		{"ANN@x.example", "", ""},
		{"ann@x.example", "deals", ""},
		{"ann@x.example", "news", "topic_unsubscribed"},
		{"ann@x.example", "unknown", "topic_unsubscribed"},
		{"bob@x.example", "", "unsubscribed"},
		{"gone@x.example", "", "deleted"},
		{"nobody@x.example", "", "deleted"},
	} {
		w, err := s.Wanted(t.Context(), l.ID, tt.topic, mail.MustParsePath(tt.email))
		require.NoError(t, err)
		require.Equal(t, Wanted{OK: tt.reason == "", Reason: tt.reason}, w, "%+v", tt)
	}
	require.NoError(t, s.DeleteList(t.Context(), "shop", "customers", nil))
	w, err := s.Wanted(t.Context(), l.ID, "", mail.MustParsePath("ann@x.example"))
	require.NoError(t, err)
	require.Equal(t, Wanted{Reason: "deleted"}, w)
}

func TestAudiencePagesMeetEveryMemberOnce(t *testing.T) {
	t.Parallel()
	s, c := newStore(t, nil)
	l, vip, big := newList(t, s, List{}), newList(t, s, List{Name: "vip"}), newList(t, s, List{Name: "big"})
	where, err := ParseCondition([]byte(`{"attr":"Gender","eq":"F"}`))
	require.NoError(t, err)
	want := map[string]bool{}
	for b := range 30 {
		c.t = c.t.Add(time.Second)
		var rows, vips, others []Row
		for i := range 20 {
			r := row(fmt.Sprintf("u%d-%d@x.example", b, i), Subscribed, "Gender", []string{"F", "M"}[i%2])
			switch {
			case i%5 == 0:
				r.Status = Unsubscribed
			case i%7 == 0:
				vips = append(vips, r)
			case i%2 == 0:
				want[r.To.String()] = true
			}
			rows = append(rows, r)
			others = append(others, row(fmt.Sprintf("o%d-%d@x.example", b, i), Subscribed))
		}
		apply(t, s, big, ApplyOptions{}, others...)
		apply(t, s, l, ApplyOptions{}, rows...)
		apply(t, s, vip, ApplyOptions{}, vips...)
	}
	// A small list in a big account: its contacts lie far apart.
	apply(t, s, vip, ApplyOptions{}, row("o1-1@x.example", Subscribed), row("o29-1@x.example", Subscribed))
	for _, most := range []int{1, 7, 100, 1000} {
		got := map[string]bool{}
		for _, email := range audience(t, s, &Audience{List: l.ID, Where: where, Exclude: []ListID{vip.ID}}, most) {
			require.False(t, got[email], "%s came twice", email)
			got[email] = true
		}
		require.Equal(t, want, got, "pages of %d", most)
	}
	n, err := s.Count(t.Context(), &Audience{List: l.ID, Where: where, Exclude: []ListID{vip.ID}})
	require.NoError(t, err)
	require.EqualValues(t, len(want), n)
	require.Len(t, audience(t, s, &Audience{List: vip.ID}, 50), 62)
	n, err = s.Count(t.Context(), &Audience{List: vip.ID, Also: []ListID{big.ID}})
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	early := &Audience{List: l.ID, Until: time.Date(2026, 11, 20, 9, 0, 10, 0, time.UTC)}
	require.Len(t, audience(t, s, early, 50), 160, "who joined later is left out")
}

func TestListDeletionIsFinishedAfterACrash(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	var rows []Row
	for i := range removeSlice + 10 {
		rows = append(rows, row(fmt.Sprintf("u%d@x.example", i), Subscribed))
	}
	apply(t, s, l, ApplyOptions{}, rows...)
	ErrStop := errors.New("stop")
	err := s.DeleteList(t.Context(), "shop", "customers", func(*List) error { return ErrStop })
	require.ErrorIs(t, err, ErrStop)
	require.EqualValues(t, len(rows), counts(t, s, l).Contacts)
	require.NoError(t, s.DB.Update(t.Context(), func(tx kv.Tx) error { // what DeleteList has done when the power fails
		l.Deleting = true
		return errors.Join(l.put(tx), tx.Delete(tableListName, emailKey("shop", "customers")))
	}))
	_, _, err = s.List(t.Context(), "shop", l.ID.String())
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, s.finishDeletions(t.Context()))
	require.NoError(t, s.DB.View(t.Context(), func(tx kv.Tx) error {
		for _, table := range []kv.Table{tableMember, tableCount, tableList} {
			require.NoError(t, tx.Scan(table, nil, nil, func(k, _ []byte) (bool, error) {
				require.Fail(t, "left over", "%s %x", table, k)
				return true, nil
			}))
		}
		return nil
	}))
	require.Empty(t, get(t, s, "u1@x.example").Memberships, "the contact stays")
}
