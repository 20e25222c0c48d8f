package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	euckr "golang.org/x/text/encoding/korean"

	"relayd/internal/api"
)

// The marketer's way with contacts: a list, the shop's old file in CP949, the rows that were wrong, a segment, one who
// leaves, one who asks to be forgotten, and the same file again.
func TestContactsFromAFile(t *testing.T) {
	t.Parallel()
	r := newRelay(t, options{mxPort: freePort(t)})
	r.json(nil, "list", "create", "customers", "--topic", "promotions", "--topic", "news=unsubscribed",
		"--schema", `{"Gender":{"type":"string","enum":["M","F",null]},"CreateTime":{"type":"datetime"}}`)
	text := "이름,이메일,성별,가입일,수신동의\r\n김민수,Kim@x.example,M,2023-01-05 16:00:00,true\r\n이영희,lee@x.example,F,2026-03-01 09:00:00,Y\r\n" +
		"박,park@x,M,2023-01-01 00:00:00,1\r\n최,choi@x.example,Q,2023-01-01 00:00:00,1\r\n정,jung@x.example,F,2023-01-01 00:00:00,no\r\n"
	old, err := euckr.EUCKR.NewEncoder().String(text)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "customers.csv")
	writeFile(t, file, old)
	load := func(file string, more ...string) api.Import {
		t.Helper()
		var i api.Import
		r.json(&i, append([]string{
			"import", "contacts", file, "--list", "customers", "--column", "가입일=attributes.CreateTime|2006-01-02 15:04:05|Asia/Seoul",
		}, more...)...)
		require.Equal(t, "completed", i.State)
		return i
	}
	dry := load(file, "--dry-run")
	i := load(file)
	require.Equal(t, api.RowCounts{RowsRead: 5, Created: 3, Rejected: 2}, i.RowCounts)
	require.Equal(t, []any{dry.RowCounts, "euc-kr"}, []any{i.RowCounts, i.Encoding})
	var kim api.Contact
	r.json(&kim, "contact", "show", "kim@x.example")
	require.Equal(t, []any{"Kim@x.example", "김민수", "2023-01-05T07:00:00.000Z"}, []any{kim.Email, kim.Attributes["Name"], kim.Attributes["CreateTime"]})

	report, stderr, code := r.ctl("import", "errors", i.ID, "--csv")
	require.Zero(t, code, stderr)
	require.Contains(t, report, "invalid_email,domain has no dot")
	writeFile(t, file+".csv", strings.NewReplacer("park@x,", "park@x.example,", ",Q,", ",F,").Replace(report))
	require.Equal(t, api.RowCounts{RowsRead: 2, Created: 2}, load(file+".csv").RowCounts)

	r.json(nil, "segment", "create", "women", "--list", "customers", "--where", `{"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2026-01-01"}]}`)
	var n api.SegmentCount
	r.json(&n, "segment", "count", "women")
	require.EqualValues(t, 1, n.Count, "choi: lee came later, jung is unsubscribed")

	r.json(nil, "contact", "set", "lee@x.example", "--list", "customers", "--status", "unsubscribed")
	r.json(nil, "contact", "delete", "KIM@x.example", "--erase")
	i = load(file)
	require.Equal(t, api.RowCounts{RowsRead: 5, Unchanged: 1, SkippedUnsubscribed: 1, SkippedErased: 1, Rejected: 2}, i.RowCounts)
	_, _, code = r.ctl("contact", "show", "kim@x.example")
	require.NotZero(t, code)
	var l api.ContactList
	r.json(&l, "list", "show", "customers")
	require.Equal(t, []int64{4, 2, 2}, []int64{l.ContactCount, l.SubscribedCount, l.UnsubscribedCount})
}

// Who asked to be forgotten gets no campaign, though the address is among the uploaded recipients of one: neither where it
// was erased before, nor where that happens while the campaign waits.
func TestErasedAddressGetsNoCampaign(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	r.domain("shop.example")
	r.json(nil, "contact", "delete", "Gone@dest.example", "--erase")
	id := r.campaign(short(false, "gone@dest.example", "late@dest.example", "ann@dest.example"))
	r.json(nil, "contact", "delete", "late@dest.example", "--erase")
	r.json(nil, "campaign", "start", id)
	wait(t, "the campaign to complete", 20*time.Second, func() bool { return r.progress(id).State == "completed" })
	require.Equal(t, []int{1, 2}, []int{r.progress(id).Counts["delivered"], r.progress(id).Counts["suppressed"]})
	require.Len(t, s.all(), 1)
	require.Equal(t, "ann@dest.example", s.all()[0].To)
	out, stderr, code := r.ctl("campaign", "recipients", id, "--state", "suppressed", "-o", "json")
	require.Zero(t, code, stderr)
	require.Equal(t, 2, strings.Count(out, `"erased"`), out)
}

// kill -9 in the middle of a chunk: the same chunk again goes on, and every row counts once.
func TestContactsImportSurvivesKill(t *testing.T) {
	t.Parallel()
	r := newRelay(t, options{mxPort: freePort(t)})
	r.json(nil, "list", "create", "customers")
	const chunks, rows = 3, 40_000
	body := func(n int) []byte {
		var b strings.Builder
		b.WriteString("email,name\n")
		for i := range rows {
			fmt.Fprintf(&b, "u%d@m%d.example,Customer %d\n", n*rows+i, i%17, i)
		}
		b.WriteString("bad\n")
		return []byte(b.String())
	}
	i, err := r.client().CreateImport(t.Context(), api.CreateImport{List: "customers", ExpectedChunks: chunks})
	require.NoError(t, err)
	kills := 0
	for n := 1; n <= chunks; n++ {
		for {
			done := make(chan error, 1)
			before, err := r.client().Import(t.Context(), i.ID)
			require.NoError(t, err)
			go func() {
				_, err := r.client().UploadChunk(t.Context(), i.ID, n, "text/csv", body(n))
				done <- err
			}()
			if kills < n { // once in each chunk, when something of it is stored
				wait(t, "rows to be stored", time.Minute, func() bool {
					now, err := r.client().Import(t.Context(), i.ID)
					return err == nil && now.RowsRead > before.RowsRead
				})
				r.kill()
				kills++
				r.start()
			}
			if err := <-done; err == nil {
				break
			}
		}
	}
	got, err := r.client().CommitImport(t.Context(), i.ID, chunks)
	require.NoError(t, err)
	require.Equal(t, api.RowCounts{RowsRead: chunks * (rows + 1), Created: chunks * rows, Rejected: chunks}, got.RowCounts)
	l, err := r.client().ContactList(t.Context(), "", "customers")
	require.NoError(t, err)
	require.EqualValues(t, chunks*rows, l.ContactCount)
	left, err := filepath.Glob(filepath.Join(r.data, "relayd-import-*"))
	require.NoError(t, err)
	require.Empty(t, left, "no file of an upload stays behind")
	_, err = os.Stat(r.data)
	require.NoError(t, err)
}
