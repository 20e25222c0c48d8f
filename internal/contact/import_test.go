package contact

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
)

func begin(t testing.TB, s *Store, req api.CreateImport, chunked bool) *ImportInfo {
	t.Helper()
	if req.List == "" {
		req.List = "customers"
	}
	info, fresh, err := s.CreateImport(t.Context(), "shop", &req, chunked, nil, nil)
	require.NoError(t, err)
	require.True(t, fresh)
	return info
}

func upload(t testing.TB, s *Store, req api.CreateImport, body string) *ImportInfo {
	t.Helper()
	info, err := s.Upload(t.Context(), begin(t, s, req, false), Body{ContentType: "text/csv", Reader: strings.NewReader(body)})
	require.NoError(t, err)
	require.Equal(t, ImportCompleted, info.State)
	st := info.Stats
	require.Equal(t, info.Rows, st.Created+st.Updated+st.Unchanged+st.SkippedUnsubscribed+st.SkippedErased+st.SkippedExisting+st.Rejected)
	return info
}

func importErrors(t testing.TB, s *Store, ref string) []RejectedRow {
	t.Helper()
	rows, next, _, _, err := s.ImportErrors(t.Context(), "shop", ref, "", 10_000)
	require.NoError(t, err)
	require.Empty(t, next)
	return rows
}

const mixed = "Email,Name,SubscriptionStatus\nann@x.example,Ann,true\nbob@example,Bob,true\ncleo@x.example,Cleo,maybe\n" +
	"dan@x.example,Dan\neve@x.example,Eve,0\nANN@x.example,Anna,\n"

func TestBadRowsAreData(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	info := upload(t, s, api.CreateImport{}, mixed)
	require.Equal(t, Stats{Created: 2, Updated: 1, Rejected: 3, Duplicates: 1}, info.Stats)
	require.EqualValues(t, len(mixed), info.Bytes)
	require.Equal(t, Counts{Contacts: 2, Subscribed: 1, Unsubscribed: 1}, counts(t, s, l))
	rows := importErrors(t, s, info.Name())
	require.Equal(t, []RejectedRow{
		{0, api.ImportError{Line: 3, ByteOffset: 53, Column: "Email", Value: "bob@example", Code: "invalid_email", Detail: "domain has no dot"}, "bob@example,Bob,true"},
		{0, api.ImportError{Line: 4, ByteOffset: 74, Column: "SubscriptionStatus", Value: "maybe", Code: "invalid_subscription_status", Detail: "not a subscription status"}, "cleo@x.example,Cleo,maybe"},
		{0, api.ImportError{Line: 5, ByteOffset: 100, Code: "csv_field_count", Detail: "expected 3 fields, got 2"}, "dan@x.example,Dan"},
	}, rows)
	page, next, header, delim, err := s.ImportErrors(t.Context(), "shop", info.Name(), "", 2)
	require.NoError(t, err)
	require.Equal(t, rows[:2], page)
	require.Equal(t, []string{"Email", "Name", "SubscriptionStatus"}, header)
	require.Equal(t, byte(','), delim)
	page, next, _, _, err = s.ImportErrors(t.Context(), "shop", info.Name(), next, 2)
	require.NoError(t, err)
	require.Equal(t, rows[2:], page)
	require.Empty(t, next)
	_, _, _, _, err = s.ImportErrors(t.Context(), "other", info.Name(), "", 2)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestSchemaRejectsRows(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{Schema: map[string]api.AttributeSchema{
		"Name": {Type: "string", MaxLength: 3, Required: true}, "Gender": {Type: "string", Enum: []any{"M", "F", nil}},
		"CreateTime": {Type: "datetime"}, "n": {Type: "number"}, "vip": {Type: "bool"},
	}})
	info := upload(t, s, api.CreateImport{}, "email,Name,Gender,CreateTime,n,vip\na@x.example,Ann,F,2026-01-02T03:04:05+09:00,1.50,yes\nb@x.example,Anna,F,,,\n"+
		"c@x.example,Bob,Q,,,\nd@x.example,Bob,,yesterday,,\ne@x.example,Bob,,,one,\nf@x.example,,,,,\ng@x.example,Bob,,,,maybe\n")
	require.Equal(t, Stats{Created: 1, Rejected: 6}, info.Stats)
	require.Equal(t, []Attribute{
		{"CreateTime", String, "2026-01-01T18:04:05.000Z"}, {"Gender", String, "F"}, {"Name", String, "Ann"}, {"n", Number, "1.50"}, {"vip", Bool, "true"},
	}, get(t, s, "a@x.example").Attributes)
	var columns []string
	for _, e := range importErrors(t, s, info.Name()) {
		require.Equal(t, "invalid_attribute", e.Code)
		require.Len(t, SplitRow(e.Raw, ',', 6), 6, "the row as it stood in the upload")
		columns = append(columns, e.Column)
	}
	require.Equal(t, []string{"Name", "Gender", "CreateTime", "n", "Name", "vip"}, columns)
}

func TestDryRunTellsTheSameAndWritesNothing(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	var b strings.Builder
	b.WriteString(mixed)
	for i := range 2*importBatch + 10 { // the second half repeats mailboxes of the first, some with another name
		fmt.Fprintf(&b, "u%d@x.example,N%d,true\n", i%importBatch, i%importBatch+i/(importBatch+importBatch/2))
	}
	dry := upload(t, s, api.CreateImport{DryRun: true}, b.String())
	require.Equal(t, Counts{}, counts(t, s, l))
	_, err := s.Get(t.Context(), "shop", "email:ann@x.example")
	require.ErrorIs(t, err, ErrNotFound)
	require.Len(t, importErrors(t, s, dry.Name()), 3)
	wet := upload(t, s, api.CreateImport{}, b.String())
	require.Equal(t, wet.Stats, dry.Stats)
	require.Positive(t, wet.Unchanged)
	require.EqualValues(t, importBatch+2, counts(t, s, l).Contacts)
}

func TestOnConflict(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{})
	upload(t, s, api.CreateImport{}, "email,Name,City\na@x.example,Ann,Paris\n")
	second := "email,Name\na@x.example,Anna\nb@x.example,Bob\n"
	require.Equal(t, Stats{Created: 1, SkippedExisting: 1}, upload(t, s, api.CreateImport{OnConflict: "skip"}, second).Stats)
	require.Equal(t, []Attribute{{"City", String, "Paris"}, {"Name", String, "Ann"}}, get(t, s, "a@x.example").Attributes)
	require.Equal(t, Stats{Updated: 1, Unchanged: 1}, upload(t, s, api.CreateImport{OnConflict: "upsert"}, second).Stats)
	require.Equal(t, []Attribute{{"City", String, "Paris"}, {"Name", String, "Anna"}}, get(t, s, "a@x.example").Attributes)
	require.Equal(t, Stats{Updated: 1, Unchanged: 1}, upload(t, s, api.CreateImport{OnConflict: "replace"}, second).Stats)
	require.Equal(t, []Attribute{{"Name", String, "Anna"}}, get(t, s, "a@x.example").Attributes)
}

func TestMaxErrorsEndsAnImport(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{})
	info := begin(t, s, api.CreateImport{MaxErrors: 1}, false)
	_, err := s.Upload(t.Context(), info, Body{ContentType: "text/csv", Reader: strings.NewReader("email\na\nb\nc@x.example\n")})
	bad, ok := errors.AsType[*InvalidError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "import_too_many_errors", bad.Code)
	info, err = s.Import(t.Context(), "shop", info.Name())
	require.NoError(t, err)
	require.Equal(t, []string{ImportFailed, "import_too_many_errors"}, []string{info.State, info.Reason})
	require.EqualValues(t, 2, info.Rejected)
}

func TestOldImportsAreForgotten(t *testing.T) {
	t.Parallel()
	s, c := newStore(t, nil)
	newList(t, s, List{})
	for range 25 {
		upload(t, s, api.CreateImport{}, "email\nbad\n")
	}
	c.t = c.t.Add(importsStored + 1e9)
	upload(t, s, api.CreateImport{}, "email\nbad\n")
	require.NoError(t, s.Purge(t.Context()))
	page, _, err := s.Imports(t.Context(), "shop", "", 100)
	require.NoError(t, err)
	require.Len(t, page, 1)
	require.NoError(t, s.DB.View(t.Context(), func(tx kv.Tx) error {
		n := 0
		err := tx.Scan(tableImportError, nil, nil, func(_, _ []byte) (bool, error) { n++; return true, nil })
		require.Equal(t, 1, n)
		return err
	}))
}

func TestLargeRowIsOneError(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{})
	info := upload(t, s, api.CreateImport{}, "email,name\na@x.example,\""+strings.Repeat("x", MaxRow)+"\"\nb@x.example,B\n")
	require.Equal(t, Stats{Created: 1, Rejected: 1}, info.Stats)
	rows := importErrors(t, s, info.Name())
	require.Equal(t, "row_too_long", rows[0].Code)
	require.LessOrEqual(t, len(rows[0].Raw), maxRaw)
}

func TestReportCanBeSentAgain(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"a", "b;\n\"c\""}, SplitRow("a;\"b;\n\"\"c\"\"\"", ';', 2))
	require.Nil(t, SplitRow("a;b\"", ';', 2))
	require.Nil(t, SplitRow("a;b;c", ';', 2))
	for _, name := range ReportColumns() {
		f, _ := columnOf(name)
		require.Equal(t, fieldDrop, f)
	}
}

func FuzzSplitRow(f *testing.F) {
	f.Add("a,\"b\"\"\"", byte(','), 2)
	f.Fuzz(func(t *testing.T, raw string, delim byte, n int) {
		if fields := SplitRow(raw, delim, n); fields != nil {
			require.Len(t, fields, n)
		}
	})
}
