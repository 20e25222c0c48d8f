package source

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

func TestTestTellsIndexPrecisionAndRows(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		r.put(1, "ann@dest.example", "Ann", r.now().Add(-time.Minute))
		r.put(2, "nonsense", "Bob", r.now().Add(time.Hour))
		r.create(ask())
		test, err := r.s.Test(t.Context(), "", r.src.ID)
		require.NoError(t, err)
		require.True(t, test.OK, "%+v", test.Problems)
		require.Equal(t, "by_change", test.IndexUsed)
		require.Equal(t, "microsecond", test.Precision)
		require.Len(t, test.Sample, 2)
		require.Equal(t, "ann@dest.example", test.Sample[1].Email)
		require.Equal(t, "subscribed", test.Sample[1].Status)
		require.Contains(t, test.Sample[0].Error, "invalid_email")
		codes := map[string]bool{}
		for _, w := range test.Warnings {
			codes[w.Code] = true
		}
		require.True(t, codes["writable"], "root may write")
		require.True(t, codes["updated_at_future"])
		require.False(t, codes["index_missing"])
		require.Nil(t, r.state().Mark, "a test changes nothing")

		r.exec("DROP INDEX by_change" + map[string]string{"mysql": " ON customers", "postgres": ""}[r.driver])
		test, err = r.s.Test(t.Context(), "", r.src.ID)
		require.NoError(t, err)
		require.Empty(t, test.IndexUsed)
		require.True(t, test.OK, "slow is not wrong")
	})
}

func TestNamesCannotInject(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		for _, name := range []string{`customers; DROP TABLE x`, "a`b", `a"b`, "a'b", "a\x00b", "a\\b", "a/*b*/", "", strings.Repeat("x", 64), "a.b.c"} {
			in := ask()
			in.Driver = r.driver
			in.Query.Table = name
			_, err := r.s.Create(t.Context(), "shop", true, in, nil)
			require.Error(t, err, "%q", name)
			in = ask()
			in.Driver = r.driver
			in.Query.Columns["attributes.X"] = name
			if name != "a.b.c" {
				_, err = r.s.Create(t.Context(), "shop", true, in, nil)
				require.Error(t, err, "%q", name)
			}
		}
		require.Equal(t, map[string]string{"mysql": "`a``b`", "postgres": "\"a`b\""}[r.driver], dialectOf(r.driver).quote("a`b"))
		// Odd names that pass work, quoted.
		r.exec(r.quoted("CREATE TABLE @Kunden-liste@ (@Der Schlüssel@ int NOT NULL PRIMARY KEY, @select@ varchar(100), @from@ @TIME NOT NULL)"))
		r.exec(r.quoted("INSERT INTO @Kunden-liste@ VALUES (1, 'ann@dest.example', ?)"), r.stamp(r.now().Add(-time.Minute)))
		in := ask()
		in.Query = api.SourceQuery{
			Table: "Kunden-liste", Columns: map[string]string{"email": "select", "attributes.Name": "Der Schlüssel"},
			Cursor: api.SourceCursor{UpdatedAt: "from", Key: "Der Schlüssel"},
		}
		r.create(in)
		r.sync(false)
		require.Equal(t, "1 subscribed", r.list()["ann@dest.example"])
	})
}

func TestKeysOfEveryType(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		types := map[string][]string{
			"varchar(40)": {"'a'", "'B'", "'c''d'", "'한국'"},
			"bigint":      {"-9223372036854775808", "9007199254740992", "9007199254740993", "9223372036854775807"},
		}
		if r.driver == "mysql" {
			types["bigint unsigned"] = []string{"0", "9223372036854775808", "18446744073709551614", "18446744073709551615"}
			types["binary(16)"] = []string{"x'00'", "x'0011'", "x'ff00ff'", "x'ffff'"}
		} else {
			types["uuid"] = []string{"'00000000-0000-0000-0000-000000000001'", "'7fffffff-0000-0000-0000-000000000001'", "'ffffffff-0000-0000-0000-000000000001'", "'ffffffff-ffff-0000-0000-000000000001'"}
		}
		n := 0
		for typ, keys := range types {
			n++
			table := fmt.Sprintf("t%d", n)
			r.exec("CREATE TABLE " + table + " (id " + typ + " NOT NULL PRIMARY KEY, email varchar(100), updated_at @TIME NOT NULL)")
			at := r.now().Add(-time.Minute)
			for i, k := range keys {
				r.exec(fmt.Sprintf("INSERT INTO %s VALUES (%s, 'k%d-%d@dest.example', ?)", table, k, n, i), r.stamp(at))
			}
			in := ask()
			in.Name, in.PageSize = table, new(1)
			in.Query = api.SourceQuery{Table: table, Columns: map[string]string{"email": "email"}, Cursor: in.Query.Cursor}
			r.create(in)
			require.EqualValues(t, 4, r.sync(false).Created, typ)
			require.EqualValues(t, 0, r.sync(true).Missing, typ)
		}
		require.Len(t, r.list(), 4*n)
	})
}

func (r *rig) quoted(text string) string {
	text = strings.ReplaceAll(text, "@TIME", "\x01")
	text = strings.ReplaceAll(text, "ann@dest", "ann\x02dest")
	text = strings.ReplaceAll(text, "@", map[string]string{"mysql": "`", "postgres": `"`}[r.driver])
	return strings.NewReplacer("\x01", "@TIME", "\x02", "@").Replace(text)
}
