package campaign

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	contacts "relayd/internal/contact"
)

type importCase struct {
	contentType string
	opts        api.ImportOptions
	body        string
	want        api.ImportReport
	recipients  map[string]string // address → Name
}

func TestImport(t *testing.T) {
	t.Parallel()
	fail := func(line, offset int64, column, value, code, detail string) api.ImportError {
		return api.ImportError{Line: line, ByteOffset: offset, Column: column, Value: value, Code: code, Detail: detail}
	}
	tests := map[string]importCase{
		"plain": {body: "email,name\nann@x.example,Ann\n", want: api.ImportReport{RowsRead: 1, Created: 1}, recipients: map[string]string{"ann@x.example": "Ann"}},
		"bom_crlf_semicolon": {
			body: "\ufeffE-Mail;Name\r\nann@x.example;Ann\r\nbob@x.example;\"Bob;B\"", want: api.ImportReport{RowsRead: 2, Created: 2},
			recipients: map[string]string{"ann@x.example": "Ann", "bob@x.example": "Bob;B"},
		},
		"tab_and_cr": {body: "NAME\tEmail Address\rAnn\tann@x.example\rBob\tbob@x.example\r", want: api.ImportReport{RowsRead: 2, Created: 2}, recipients: map[string]string{"ann@x.example": "Ann", "bob@x.example": "Bob"}},
		"quoted_line_end_and_quote": {
			body: "email,name,note\nann@x.example,Ann,\"N\n\"\"A\"\"\"\nbob@x.example,\"B\",\n", want: api.ImportReport{RowsRead: 2, Created: 2},
			recipients: map[string]string{"ann@x.example": "Ann", "bob@x.example": "B"},
		},
		"euc_kr":         {body: "\xc0\xcc\xb8\xa7,email\n\xb1\xe8\xb9\xce\xbc\xf6,kim@x.example\n", want: api.ImportReport{RowsRead: 1, Created: 1}, recipients: map[string]string{"kim@x.example": "김민수"}},
		"korean_headers": {body: "이름,이메일,수신동의\n김민수,kim@x.example,true\n", want: api.ImportReport{RowsRead: 1, Created: 1}, recipients: map[string]string{"kim@x.example": "김민수"}},
		"status_column": {
			body: "email,SubscriptionStatus\na@x.example,true\nb@x.example,\"true\"\nc@x.example,0\nd@x.example,OPT_OUT\ne@x.example,maybe\nf@x.example,\n",
			want: api.ImportReport{
				RowsRead: 6, Created: 3, SkippedUnsubscribed: 2, Rejected: 1,
				Errors: []api.ImportError{fail(6, 95, "SubscriptionStatus", "maybe", "invalid_subscription_status", "not a subscription status")},
			},
		},
		"unsubscribed_stays_so": {
			body: "email,status\na@x.example,false\nA@X.example,true\nb@x.example,true\nb@x.example,no\n",
			want: api.ImportReport{RowsRead: 4, Created: 1, SkippedUnsubscribed: 3},
		},
		"last_row_wins":  {body: "email,name\na@x.example,A\nA@x.example,B\n", want: api.ImportReport{RowsRead: 2, Created: 1, Duplicates: 1}, recipients: map[string]string{"A@x.example": "B"}},
		"default_status": {body: "email\na@x.example\n", opts: api.ImportOptions{DefaultStatus: "unsubscribed"}, want: api.ImportReport{RowsRead: 1, SkippedUnsubscribed: 1}},
		"bad_rows_are_data": {
			body: "email,name\nann@x.example,Ann\nbob@example,Bob\n,Nobody\nc@x.example\nd@x.example,D,x\ne@x.example,a\"b\nf@x.example,\xff\n\ng@x.example,Gus\n",
			want: api.ImportReport{
				RowsRead: 8, Created: 2, Rejected: 6,
				Errors: []api.ImportError{
					fail(3, 29, "email", "bob@example", "invalid_email", "domain has no dot"),
					fail(4, 45, "email", "", "invalid_email", "no @"),
					fail(5, 53, "", "", "csv_field_count", "expected 2 fields, got 1"),
					fail(6, 65, "", "", "csv_field_count", "expected 2 fields, got 3"),
					fail(7, 81, "name", "", "csv_quote", "a quote inside a field, or text behind a quoted field"),
					fail(8, 97, "name", "?", "invalid_utf8", "bytes that are not UTF-8"),
				},
			},
			recipients: map[string]string{"ann@x.example": "Ann", "g@x.example": "Gus"},
		},
		"unclosed_quote_ends_the_upload": {
			body: "email,name\nann@x.example,Ann\nb@x.example,\"B\nc@x.example,C\n",
			want: api.ImportReport{RowsRead: 2, Created: 1, Rejected: 1, Errors: []api.ImportError{fail(3, 29, "name", "", "csv_quote", "a quoted field without its end")}},
		},
		"long_row": {
			body: "email,name\na@x.example," + strings.Repeat("x", contacts.MaxRow) + "\nb@x.example,B\n",
			want: api.ImportReport{RowsRead: 2, Created: 1, Rejected: 1, Errors: []api.ImportError{fail(2, 11, "name", "", "row_too_long", "a row of more than 1048576 bytes")}},
		},
		"line_break_that_the_subject_shows": {
			body: "email,name\na@x.example,\"A\nBcc: evil@x.example\"\nb@x.example,B\n",
			want: api.ImportReport{RowsRead: 2, Created: 1, Rejected: 1, Errors: []api.ImportError{fail(2, 11, "Name", "A?Bcc: evil@x.example", "header_line_break", "the subject shows this value, and it holds a line break or control character")}},
		},
		"errors_truncated": {
			body: "email\na\nb\nc\n", opts: api.ImportOptions{MaxErrors: 1},
			want: api.ImportReport{RowsRead: 3, Rejected: 3, ErrorsTruncated: true, Errors: []api.ImportError{fail(2, 6, "email", "a", "invalid_email", "no @")}},
		},
		"column_map": {
			body: "Kunde,Adresse,egal\nAnn,ann@x.example,z\n",
			opts: api.ImportOptions{ColumnMap: map[string]string{"Kunde": "attributes.Name", "Adresse": "email", "egal": ""}},
			want: api.ImportReport{RowsRead: 1, Created: 1}, recipients: map[string]string{"ann@x.example": "Ann"},
		},
		"jsonl": {
			contentType: "application/x-ndjson; charset=utf-8",
			body: "{\"email\":\"ann@x.example\",\"status\":\"true\",\"attributes\":{\"Name\":\"Ann\",\"n\":1,\"o\":{\"a\":[1]}}}\r\n\n" +
				"{\"email\":\"bob@x.example\",\"name\":\"Bob\",\"subscribed\":true,\"attributes\":null}\n{\"email\":\"c@x.example\",\"subscribed\":0}\n" +
				"{\"email\":5}\nnope\n{\"email\":\"d@x.example\",\"status\":[]}\n[]\n{\"email\":\"e@x.example\"} {}\n\"\xff\"\n",
			want: api.ImportReport{
				RowsRead: 9, Created: 2, SkippedUnsubscribed: 1, Rejected: 6,
				Errors: []api.ImportError{
					fail(5, 206, "email", "", "invalid_email", "no @"),
					fail(6, 218, "", "nope", "invalid_json", "invalid character 'o' in literal null (expecting 'u')"),
					fail(7, 223, "status", "[]", "invalid_subscription_status", "not a subscription status"),
					fail(8, 259, "", "[]", "invalid_json", "json: cannot unmarshal array into Go value of type map[string]interface {}"),
					fail(9, 262, "", `{"email":"e@x.example"} {}`, "invalid_json", "more than one value in a line"),
					fail(10, 289, "", `"?"`, "invalid_utf8", "bytes that are not UTF-8"),
				},
			},
			recipients: map[string]string{"ann@x.example": "Ann", "bob@x.example": "Bob"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			c, err := r.Create(t.Context(), "default", request())
			require.NoError(t, err)
			if tt.contentType == "" {
				tt.contentType = "text/csv"
			}
			got, err := r.AddRecipients(t.Context(), "default", c.ID, tt.contentType, iotest.HalfReader(strings.NewReader(tt.body)), tt.opts)
			require.NoError(t, err)
			require.Equal(t, got.RowsRead, got.Created+got.Duplicates+got.SkippedUnsubscribed+got.Rejected)
			require.Equal(t, int64(len(tt.body)), got.BytesRead)
			stored := r.stored(c.ID)
			require.Len(t, stored, int(got.Total))
			got.BytesRead, got.Total = 0, 0
			if tt.want.Errors == nil {
				tt.want.Errors = []api.ImportError{}
			}
			require.Equal(t, tt.want, got)
			for address, want := range tt.recipients {
				require.Equal(t, want, stored[address]["Name"], address)
			}
		})
	}
}

// stored returns the attributes of the recipients that would be written to.
func (r *rig) stored(id string) map[string]map[string]string {
	found := map[string]map[string]string{}
	qid, err := parseID(id)
	require.NoError(r.t, err)
	require.NoError(r.t, r.db.View(r.t.Context(), func(tx kvTx) error {
		rows, err := scanRecipients(tx, qid, 0, 1<<20)
		for _, row := range rows {
			if row.unsubscribed {
				continue
			}
			m := map[string]string{}
			list, err := readAttributes(nil, row.data)
			if err != nil {
				return err
			}
			for _, a := range list {
				m[a.name] = a.s
			}
			found[row.to.String()] = m
		}
		return err
	}))
	return found
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, err := r.Create(t.Context(), "default", request())
	require.NoError(t, err)
	for name, tt := range map[string]struct {
		contentType, body string
		opts              api.ImportOptions
		code              string
	}{
		"empty":            {"text/csv", "", api.ImportOptions{}, "csv_header_missing"},
		"no_email_column":  {"text/csv", "name,city\n", api.ImportOptions{}, "csv_header_missing"},
		"double_column":    {"text/csv", "email,email\n", api.ImportOptions{}, "csv_header_duplicate"},
		"double_attribute": {"text/csv", "email,name,Name\n", api.ImportOptions{}, "csv_header_duplicate"},
		"bad_header":       {"text/csv", "email,a\"b\n", api.ImportOptions{}, "csv_quote"},
		"gzip":             {"text/csv", "\x1f\x8b\x08", api.ImportOptions{}, "invalid_encoding"},
		"charset":          {"text/csv; charset=klingon", "email\n", api.ImportOptions{}, "invalid_encoding"},
		"default_status":   {"text/csv", "email\n", api.ImportOptions{DefaultStatus: "x"}, "invalid_parameter"},
		"delimiter":        {"text/csv", "email\n", api.ImportOptions{Delimiter: "|"}, "invalid_parameter"},
	} {
		_, err := r.AddRecipients(t.Context(), "default", c.ID, tt.contentType, strings.NewReader(tt.body), tt.opts)
		bad, ok := errors.AsType[*Invalid](err)
		require.True(t, ok, "%s: %v", name, err)
		require.Equal(t, tt.code, bad.Code, name)
	}
	for _, contentType := range []string{"", "application/json", "multipart/form-data; boundary=x", "nonsense;;"} {
		_, err := r.AddRecipients(t.Context(), "default", c.ID, contentType, strings.NewReader("email\n"), api.ImportOptions{})
		require.ErrorIs(t, err, ErrContentType)
	}
	_, err = r.AddRecipients(t.Context(), "default", c.ID, "text/csv", iotest.TimeoutReader(strings.NewReader("email\n"+strings.Repeat("a@x.example\n", 50_000))), api.ImportOptions{})
	require.ErrorIs(t, err, iotest.ErrTimeout)
}

// An upload that is sent again after it broke off doubles nobody.
func TestImportMayBeRepeated(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, err := r.Create(t.Context(), "default", request())
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString("email,name\n")
	for i := range 3500 {
		fmt.Fprintf(&b, "u%d@x.example,N%d\n", i, i)
	}
	broken := io.MultiReader(strings.NewReader(b.String()[:40_000]), iotest.ErrReader(errors.New("connection lost")))
	_, err = r.AddRecipients(t.Context(), "default", c.ID, "text/csv", broken, api.ImportOptions{})
	require.ErrorContains(t, err, "connection lost")
	report, err := r.AddRecipients(t.Context(), "default", c.ID, "text/csv", strings.NewReader(b.String()), api.ImportOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(3500), report.Total)
	require.Positive(t, report.Duplicates)
}

// Two mailboxes whose hashes collide are two recipients.
func TestCollidingNumbers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := [12]byte{1}
	a, b := recipient{to: mustPath("a@x.example")}, recipient{to: mustPath("b@x.example")}
	require.NoError(t, r.db.Update(t.Context(), func(tx kvTx) error {
		n := number(id, b.to.Key())
		if err := tx.Put(tableRecipient, recipientKey(id, n), a.encode()); err != nil { // in b's place
			return err
		}
		for range 2 {
			if _, err := putRecipients(tx, id, []recipient{b}); err != nil {
				return err
			}
		}
		rows, err := scanRecipients(tx, id, 0, 10)
		require.Len(t, rows, 2)
		require.Equal(t, n, rows[0].n)
		require.Equal(t, n+1, rows[1].n)
		require.Equal(t, b.to, rows[1].to)
		return err
	}))
}

func FuzzRecords(f *testing.F) {
	r := recipient{to: mustPath("a@x.example"), attributes: []attribute{{"Name", kindString, "A"}}}
	f.Add(r.encode())
	t1 := tally{total: 5}
	f.Add(t1.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, data, err := decodeRecipient(string(b)); err == nil {
			if list, err := readAttributes(nil, data); err == nil {
				got.attributes = list
				again, _, err := decodeRecipient(string(got.encode()))
				require.NoError(t, err)
				require.Equal(t, got.to, again.to)
			}
		}
		if got, err := decodeTally(b); err == nil && len(b) > 0 {
			again, err := decodeTally(got.encode())
			require.NoError(t, err)
			require.Equal(t, got, again)
		}
		_, _, _ = readSnapshot(b)
		_, _ = decodeRecord([12]byte{}, b)
		_, _ = decodeContent(b)
	})
}
