package source

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/contact"
)

func TestColumnTypesBecomeAttributes(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		type column struct {
			typ, value string
			want       any // nil: no attribute
		}
		columns := []column{
			{"int", "-7", "-7 number"},
			{"decimal(8,2)", "12.50", "12.50 number"},
			{"varchar(20)", "'한국어'", "한국어 string"},
			{"text", "NULL", nil},
			{"date", "'2023-01-05'", "2023-01-05 string"},
			{"text", "''", " string"},
			{"char(3)", "'ab'", "ab string"},
		}
		if r.driver == "mysql" {
			columns = append(columns, []column{
				{"bit(1)", "b'1'", "true bool"},
				{"bit(4)", "b'0101'", "5 number"},
				{"tinyint(1)", "0", "false bool"},
				{"tinyint(1)", "2", "2 number"},
				{"double", "1.5e10", "15000000000 number"},
				{"bigint unsigned", "18446744073709551615", "18446744073709551615 number"},
				{"datetime", "'2023-01-05 16:00:00'", "2023-01-05T07:00:00.000Z string"},
				{"datetime", "'0000-00-00 00:00:00'", nil},
				{"date", "'0000-00-00'", nil},
				{"timestamp(6) NULL", "'2023-01-05 16:00:00.123456'", "2023-01-05T16:00:00.123Z string"},
				{"json", "'{\"a\":1}'", "{\"a\":1} string"},
				{"enum('x','y')", "'y'", "y string"},
				{"year", "2023", "2023 number"},
				{"varchar(20) CHARACTER SET euckr", "'한국어'", "한국어 string"},
			}...)
		} else {
			columns = append(columns, []column{
				{"boolean", "true", "true bool"},
				{"double precision", "1.5", "1.5 number"},
				{"timestamp", "'2023-01-05 16:00:00'", "2023-01-05T07:00:00.000Z string"},
				{"timestamptz", "'2023-01-05 16:00:00.123456+09'", "2023-01-05T07:00:00.123Z string"},
				{"jsonb", "'{\"a\": 1}'", "{\"a\": 1} string"},
				{"uuid", "'00000000-0000-0000-0000-000000000001'", "00000000-0000-0000-0000-000000000001 string"},
				{"text[]", "'{a,b}'", "{a,b} string"},
			}...)
		}
		if r.driver == "mysql" {
			r.db.SetMaxOpenConns(1)
			r.exec("SET sql_mode = ''")
		}
		create, insert, read := "CREATE TABLE t (id int NOT NULL PRIMARY KEY, email varchar(99), updated_at @TIME NOT NULL", "INSERT INTO t VALUES (1, 'ann@dest.example', ?", map[string]string{"email": "email"}
		for i, c := range columns {
			create += fmt.Sprintf(", c%d %s", i, c.typ)
			insert += ", " + c.value
			read[fmt.Sprintf("attributes.A%d", i)] = fmt.Sprintf("c%d", i)
		}
		r.exec(create + ")")
		r.exec(insert+")", r.stamp(r.now().Add(-time.Minute)))
		in := ask()
		in.Query = api.SourceQuery{Table: "t", Columns: read, Cursor: in.Query.Cursor}
		in.SourceTimezone = "Asia/Seoul"
		r.create(in)
		run := r.sync(false)
		require.EqualValues(t, 1, run.Created, "%+v", run.Errors)
		got := map[string]contact.Attribute{}
		for _, a := range r.contact("ann@dest.example").Attributes {
			got[a.Name] = a
		}
		kinds := map[contact.Kind]string{contact.String: "string", contact.Number: "number", contact.Bool: "bool"}
		for i, c := range columns {
			a, there := got[fmt.Sprintf("A%d", i)]
			if c.want == nil {
				require.False(t, there, "%s %s: %v", c.typ, c.value, a)
				continue
			}
			require.Equal(t, c.want, a.Text+" "+kinds[a.Kind], "%s %s", c.typ, c.value)
		}
	})
}

func TestAValueThatNoAttributeHoldsIsARowError(t *testing.T) {
	t.Parallel()
	r := newRig(t, "postgres")
	r.exec("CREATE TABLE t (id int NOT NULL PRIMARY KEY, email text, n numeric, at timestamptz, long text, updated_at timestamptz NOT NULL)")
	for i, v := range []string{"'NaN', NULL, ''", "1, 'infinity', ''", "1, NULL, repeat('x', 70000)", "1, NULL, repeat('x', 1000)"} {
		r.exec(fmt.Sprintf("INSERT INTO t VALUES (%d, 'c%d@dest.example', %s, now())", i, i, v))
	}
	in := ask()
	in.Query = api.SourceQuery{Table: "t", Columns: map[string]string{"email": "email", "attributes.N": "n", "attributes.At": "at", "attributes.Long": "long"}, Cursor: in.Query.Cursor}
	r.create(in)
	run := r.sync(false)
	require.EqualValues(t, 3, run.Rejected)
	require.EqualValues(t, 1, run.Created)
	for i, want := range []string{"n", "at", "long"} {
		require.Equal(t, want, run.Errors[i].Column)
		require.LessOrEqual(t, len(run.Errors[i].Value), maxErrorValue)
	}
}

func TestRowsWithoutATimeAreSeenByFullRuns(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec("CREATE TABLE t (id int NOT NULL PRIMARY KEY, email varchar(99), updated_at @TIME NULL)")
		r.exec("INSERT INTO t VALUES (1, 'never@dest.example', NULL)")
		r.exec("INSERT INTO t VALUES (2, 'once@dest.example', ?)", r.stamp(r.now().Add(-time.Minute)))
		in := ask()
		in.Query = api.SourceQuery{Table: "t", Columns: map[string]string{"email": "email"}, Cursor: in.Query.Cursor}
		r.create(in)
		require.EqualValues(t, 1, r.sync(false).Created)
		test, err := r.s.Test(t.Context(), "", r.src.ID)
		require.NoError(t, err)
		codes := []string{}
		for _, w := range test.Warnings {
			codes = append(codes, w.Code)
		}
		require.Contains(t, codes, "updated_at_null")
		require.Contains(t, codes, "index_missing")
		require.EqualValues(t, 1, r.sync(true).Created)
		require.Len(t, r.list(), 2)
	})
}
