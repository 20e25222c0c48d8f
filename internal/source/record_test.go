package source

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/contact"
)

func FuzzDecodeState(f *testing.F) {
	good, err := encode(&state{Epoch: 3, Mark: &mark{U: 5, K: "k"}, NextAt: time.Unix(5, 0)})
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte{2})
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := decodeState(b)
		if err != nil {
			require.ErrorIs(t, err, errBadRecord)
			return
		}
		again, err := encode(st)
		require.NoError(t, err)
		other, err := decodeState(again)
		require.NoError(t, err)
		require.Equal(t, st, other)
	})
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add((&entry{at: -5, print: digest{1}, status: contact.Subscribed, email: "a@b.example"}).encode())
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err != nil {
			require.ErrorIs(t, err, errBadRecord)
			return
		}
		require.Equal(t, b, e.encode())
	})
}

func FuzzParseMoment(f *testing.F) {
	for _, s := range []string{"2026-11-20 09:50:00", "2026-11-20 09:50:00.000001+00", "0000-00-00 00:00:00", "infinity", "0044-03-15 00:00:00 BC"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, ok := parseMoment(s)
		if !ok {
			return
		}
		again, ok := parseMoment(m.sql())
		require.True(t, ok, m.sql())
		require.Equal(t, m, again)
	})
}

func FuzzReferences(f *testing.F) {
	for _, s := range []string{"env:CRM_DSN", "file:/x", "mysql://root:pw@h/db", "root:pw@tcp(h:3306)/db", "postgres://u:p@h/db?sslmode=disable", "host=/x user=y", "file:../x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_ = checkRef(s)
		if c, err := mysqlConfig(s); err == nil {
			require.False(t, c.MultiStatements || c.AllowAllFiles || c.InterpolateParams)
		} else {
			require.ErrorIs(t, err, errDSN)
			if len(s) > 100 {
				require.NotContains(t, err.Error(), s)
			}
		}
	})
}

func TestAnUnknownVersionIsAnError(t *testing.T) {
	t.Parallel()
	_, err := decodeState([]byte("\x02{}"))
	require.ErrorIs(t, err, errBadRecord)
	_, err = decodeEntry(append([]byte{2}, make([]byte, 40)...))
	require.ErrorIs(t, err, errBadRecord)
}

func TestIndexPutsTheRowChangedLastFirst(t *testing.T) {
	t.Parallel()
	s := spaceOf(id{1}, 1)
	order := []struct {
		at  moment
		key string
	}{{5, "9"}, {4, "1"}, {4, "2"}, {0, "0"}, {-3, "7"}, {noTime, "8"}}
	for i := 1; i < len(order); i++ {
		a, b := order[i-1], order[i]
		require.Less(t, string(s.emailKey("a@b", a.at, a.key)), string(s.emailKey("a@b", b.at, b.key)))
	}
}

func TestWallClockOfAutumnComesTwice(t *testing.T) {
	t.Parallel()
	zone, err := parseZone("Europe/Berlin")
	require.NoError(t, err)
	before := time.Date(2026, 10, 25, 0, 55, 0, 0, time.UTC)
	first, second := momentOf(before, zone), momentOf(before.Add(10*time.Minute), zone)
	require.Greater(t, first, second, "the wall clock goes back by 50 minutes")
	r := &run{plan: &plan{lookback: time.Minute, d: mySQL{}}, mark: &mark{U: first}, until: &first, bound: second}
	from, at := r.lower()
	require.Nil(t, at)
	require.Equal(t, second.add(-time.Minute).sql(), from, "reading goes back with it")
	r.until, r.bound = &second, first.add(time.Hour)
	from, _ = r.lower()
	require.Equal(t, second.add(-time.Minute).sql(), from, "and the next run goes on from there, not from the watermark")
}

func TestZones(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"UTC", "+09:00", "-03:30", "Asia/Seoul"} {
		_, err := parseZone(good)
		require.NoError(t, err, good)
	}
	for _, bad := range []string{"Local", "+25:00", "+9", "KST+9", "../etc/passwd", "Asia/Seoul\n"} {
		_, err := parseZone(bad)
		require.Error(t, err, bad)
	}
}

func TestReferencesAreNeverRepeated(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{"root:s3cret@tcp(db)/x", "postgres://u:s3cret@h/db", "env:s3cret=1", "file:relative/s3cret"} {
		detail := checkRef(dsn)
		require.NotEmpty(t, detail, dsn)
		require.NotContains(t, detail, "s3cret")
	}
	for _, dsn := range []string{"s3cret", "root:s3cret@tcp(db", "mysql://root:s3cret@h"} {
		_, err := mysqlConfig(dsn)
		require.ErrorIs(t, err, errDSN)
		require.NotContains(t, err.Error(), "s3cret")
	}
	_, err := postgresConfig("postgres://u:s3cret@h:port/db")
	require.ErrorIs(t, err, errDSN)
	require.NotContains(t, err.Error(), "s3cret")
	c, err := mysqlConfig("mysql://u:p%40ss@db.example/shop?tls=skip-verify")
	require.NoError(t, err)
	require.Equal(t, "p@ss", c.Passwd)
	require.Equal(t, "db.example:3306", c.Addr)
	require.Equal(t, "shop", c.DBName)
}
