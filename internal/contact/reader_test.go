package contact

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding/korean"
	utf16 "golang.org/x/text/encoding/unicode"
)

// The table of subscription states.
func TestStatusTable(t *testing.T) {
	t.Parallel()
	for want, inputs := range map[Status][]any{
		Subscribed:   {true, "true", "TRUE", " true ", json.Number("1"), "1", int64(1), 1.0, "yes", "Y", "t", "on", "subscribed", "OPT_IN", []byte("1"), []byte{1}},
		Unsubscribed: {false, "false", "False", json.Number("0"), "0", int64(0), 0.0, "no", "n", "F", "off", "unsubscribed", "OPT_OUT", []byte{0}},
		Absent:       {nil, "", "  "},
		Invalid:      {"maybe", json.Number("2"), int64(2), 0.5, "truee", []any{}, map[string]any{}, "null", json.Number("1.0"), "pending"},
	} {
		for _, in := range inputs {
			require.Equal(t, want, StatusOf(in), "%v", in)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add("true")
	f.Add("ye\u017f")
	f.Fuzz(func(t *testing.T, s string) {
		got := ParseStatus(s)
		upper := strings.Map(func(r rune) rune {
			if 'a' <= r && r <= 'z' { // of ASCII alone: the upper case of a long s, which is in no word, is S
				return r - 'a' + 'A'
			}
			return r
		}, s)
		require.Equal(t, got, ParseStatus("\t"+upper+" "))
		require.LessOrEqual(t, got, Invalid)
	})
}

// line is what a test expects of one row: a contact, or an error at its place.
type line struct {
	email, name  string
	bad          string
	line, offset int64
}

func readAll(t *testing.T, contentType string, body []byte, o ReadOptions) ([]line, *Reader) {
	t.Helper()
	r, err := NewReader(contentType, iotest.HalfReader(bytes.NewReader(body)), o)
	require.NoError(t, err)
	var all []line
	for {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, r
		}
		var l line
		l.line, l.offset = r.Place()
		if bad, ok := errors.AsType[*RowError](err); ok {
			l.bad = bad.Code
			all = append(all, l)
			continue
		}
		require.NoError(t, err)
		l.email = row.To.String()
		for _, a := range row.Attributes {
			if a.Name == "Name" {
				l.name = a.Text
			}
		}
		all = append(all, l)
	}
}

func encode(t *testing.T, s string, to interface {
	Bytes([]byte) ([]byte, error)
},
) []byte {
	t.Helper()
	b, err := to.Bytes([]byte(s))
	require.NoError(t, err)
	return b
}

func packed(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	require.NoError(t, errors.Join(err, z.Close()))
	return out.Bytes()
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	text := "이메일,이름\r\nkim@x.example,김민수\r\nlee@x.example,\"이\r\n영희\"\r\nbad\r\npark@x.example,똠방각하\r\n"
	// Places are those of the file as its sender has it.
	want := func(width func(string) int) []line {
		lines := []line{
			{"kim@x.example", "김민수", "", 2, 0},
			{"lee@x.example", "이\n영희", "", 3, 0},
			{"", "", "csv_field_count", 5, 0},
			{"park@x.example", "똠방각하", "", 6, 0},
		}
		for i, begin := range []string{"kim@", "lee@", "bad", "park@"} {
			lines[i].offset = int64(width(text[:strings.Index(text, begin)]))
		}
		return lines
	}
	utf8Width := func(s string) int { return len(s) }
	eucWidth := func(s string) int { return len(encode(t, s, korean.EUCKR.NewEncoder())) }
	utf16Width := func(s string) int { return 2 + 2*utf8.RuneCountInString(s) }
	euc := encode(t, text, korean.EUCKR.NewEncoder())
	for name, tt := range map[string]struct {
		contentType string
		body        []byte
		width       func(string) int
		encoding    string
	}{
		"utf8":          {"text/csv", []byte(text), utf8Width, "utf-8"},
		"utf8_bom":      {"text/csv", []byte("\ufeff" + text), func(s string) int { return 3 + len(s) }, "utf-8"},
		"utf16le":       {"text/csv", encode(t, text, utf16.UTF16(utf16.LittleEndian, utf16.UseBOM).NewEncoder()), utf16Width, "utf-16le"},
		"utf16be":       {"text/csv", encode(t, text, utf16.UTF16(utf16.BigEndian, utf16.UseBOM).NewEncoder()), utf16Width, "utf-16be"},
		"euc_kr":        {"text/csv", euc, eucWidth, "euc-kr"},
		"euc_kr_named":  {"text/csv; charset=EUC-KR", euc, eucWidth, "euc-kr"},
		"cp949_named":   {"text/csv; charset=cp949", euc, eucWidth, "euc-kr"},
		"gzip":          {"text/csv", packed(t, []byte(text)), utf8Width, "utf-8"},
		"zstd":          {"text/csv", packedByZstd(t, []byte(text)), utf8Width, "utf-8"},
		"zstd_of_cp949": {"text/csv", packedByZstd(t, euc), eucWidth, "euc-kr"},
		"gzip_of_cp949": {"text/csv", packed(t, euc), eucWidth, "euc-kr"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, r := readAll(t, tt.contentType, tt.body, ReadOptions{})
			require.Equal(t, want(tt.width), got)
			require.Equal(t, tt.encoding, r.Encoding())
			require.EqualValues(t, tt.width(text), r.Read())
		})
	}
}

func TestEncodingIsRecognisedLate(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	b.WriteString("email,name\n")
	for i := range 20_000 {
		fmt.Fprintf(&b, "user%d@x.example,plain\n", i)
	}
	b.Write(encode(t, "kim@x.example,김\n", korean.EUCKR.NewEncoder()))
	got, _ := readAll(t, "text/csv", b.Bytes(), ReadOptions{})
	require.Equal(t, "김", got[len(got)-1].name)
	got, _ = readAll(t, "text/csv", []byte("email,name\na@x.example,caf\xe9\nb@x.example,B\n"), ReadOptions{})
	require.Equal(t, []string{"invalid_utf8", ""}, []string{got[0].bad, got[1].bad}, "Latin-1 is not taken for Korean")
	got, _ = readAll(t, "text/csv; charset=iso-8859-1", []byte("email,name\na@x.example,caf\xe9\n"), ReadOptions{})
	require.Equal(t, "café", got[0].name)
	got, _ = readAll(t, "application/x-ndjson", encode(t, "{\"email\":\"kim@x.example\",\"name\":\"김민수\"}\n", korean.EUCKR.NewEncoder()), ReadOptions{})
	require.Equal(t, "김민수", got[0].name)
}

func TestColumnsAreMapped(t *testing.T) {
	t.Parallel()
	body := "Mail,Since,Lang,Zone,News,When,Seen\na@x.example,2023-01-05 16:00:00,ko-KR,Asia/Seoul,yes,2026-01-02T03:04:05Z,1700000000\nb@x.example,5.1.2023,,,,,\n"
	r, err := NewReader("text/csv", strings.NewReader(body), ReadOptions{ColumnMap: map[string]Column{
		"Since": {Field: "attributes.CreateTime", Format: "2006-01-02 15:04:05", Timezone: "Asia/Seoul"}, "Lang": {Field: "locale"},
		"Zone": {Field: "timezone"}, "News": {Field: "topics.news"}, "When": {Field: "consent.at"}, "Seen": {Field: "attributes.Seen", Format: "unix"},
	}})
	require.NoError(t, err)
	row, err := r.Next()
	require.NoError(t, err)
	ko, seoul := "ko-KR", "Asia/Seoul"
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	row.Attributes = append([]Attribute(nil), row.Attributes...)
	want := rowOfTest("a@x.example")
	want.Attributes = []Attribute{{"CreateTime", String, "2023-01-05T07:00:00.000Z"}, {"Seen", String, "2023-11-14T22:13:20.000Z"}}
	want.Locale, want.Timezone, want.Topics, want.Consent = &ko, &seoul, []TopicStatus{{"news", Subscribed}}, Consent{At: at}
	require.Equal(t, want, row)
	_, err = r.Next()
	bad, ok := errors.AsType[*RowError](err)
	require.True(t, ok)
	require.Equal(t, RowError{"Since", "5.1.2023", "invalid_time", "not a time of the form 2006-01-02 15:04:05"}, *bad)
	for name, c := range map[string]Column{
		"local_time_without_zone": {Field: "attributes.T", Format: "2006-01-02 15:04:05"},
		"format_without_a_day":    {Field: "attributes.T", Format: "15:04", Timezone: "UTC"},
		"unknown_zone":            {Field: "attributes.T", Format: "2006-01-02", Timezone: "Mars/Olympus"},
		"server_zone":             {Field: "attributes.T", Format: "2006-01-02", Timezone: "Local"},
		"zone_without_format":     {Field: "attributes.T", Timezone: "UTC"},
		"format_of_an_address":    {Field: "email", Format: "rfc3339"},
	} {
		_, err := NewReader("text/csv", strings.NewReader("Mail,x\n"), ReadOptions{ColumnMap: map[string]Column{"x": c}})
		_, ok := errors.AsType[*InvalidError](err)
		require.True(t, ok, "%s: %v", name, err)
	}
}

func rowOfTest(email string) Row { return row(email, Absent) }

func packedByZstd(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, o...)
	require.NoError(t, err)
	defer z.Close()
	return z.EncodeAll(b, nil)
}

func TestZstdIsUnpackedWithinBounds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("long, and of one goroutine")
	}
	drain := func(body io.Reader) (rows int, err error) {
		r, err := NewReader("text/csv", body, ReadOptions{})
		for err == nil {
			if _, err = r.Next(); err == nil {
				rows++
			}
		}
		return rows, err
	}
	var text bytes.Buffer
	text.WriteString("email,name\n")
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 200_000 {
		fmt.Fprintf(&text, "u%d@x.example,%x\n", i, random.Uint64())
	}
	good := packedByZstd(t, text.Bytes())
	rows, err := drain(bytes.NewReader(good))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 200_000, rows)
	more := packedByZstd(t, []byte("more@x.example,M\n"))
	rows, err = drain(bytes.NewReader(append(bytes.Clone(good), more...)))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 200_001, rows, "several frames are one upload")

	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0xff
	var wide bytes.Buffer
	z, err := zstd.NewWriter(&wide, zstd.WithWindowSize(16<<20))
	require.NoError(t, err)
	_, err = io.Copy(z, io.MultiReader(bytes.NewReader(text.Bytes()), bytes.NewReader(make([]byte, 20<<20))))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	bomb := append([]byte("email,name\n"), bytes.Repeat([]byte("a@x.example,"+strings.Repeat(" ", 1000)+"\n"), 120_000)...)
	for name, tt := range map[string]struct {
		body io.Reader
		want string
	}{
		"cut_off":         {bytes.NewReader(good[:len(good)-9]), "ends in the middle"},
		"flipped":         {bytes.NewReader(flipped), "damaged"},
		"something_after": {bytes.NewReader(append(bytes.Clone(good), "email\n"...)), "the upload "},
		"wide_window":     {&wide, "window"},
		"bomb":            {bytes.NewReader(packedByZstd(t, bomb)), "more than 250 times"},
		"only_magic":      {strings.NewReader(zstdMagic), "ends in the middle"},
		"broken_pipe":     {io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(io.ErrClosedPipe)), ""},
	} {
		_, err := drain(tt.body)
		bad, ok := errors.AsType[*InvalidError](err)
		require.Equal(t, tt.want != "", ok, "%s: %v", name, err)
		if ok {
			require.Equal(t, "invalid_encoding", bad.Code, name)
			require.Contains(t, bad.Detail, tt.want, name)
			continue
		}
		require.ErrorIs(t, err, io.ErrClosedPipe, name)
	}
}

func TestGzipBombEnds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("long, and of one goroutine")
	}
	bomb := packed(t, append([]byte("email,name\n"), bytes.Repeat([]byte("a@x.example,"+strings.Repeat(" ", 1000)+"\n"), 120_000)...))
	r, err := NewReader("text/csv", bytes.NewReader(bomb), ReadOptions{})
	require.NoError(t, err)
	for err == nil {
		_, err = r.Next()
	}
	bad, ok := errors.AsType[*InvalidError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "invalid_encoding", bad.Code)
}

func TestUploadsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ contentType, body, code string }{
		"empty":           {"text/csv", "", "csv_header_missing"},
		"only_bom":        {"text/csv", "\ufeff", "csv_header_missing"},
		"no_address":      {"text/csv", "name,city\n", "csv_header_missing"},
		"double_address":  {"text/csv", "email,mail\n", "csv_header_duplicate"},
		"control_in_name": {"text/csv", "email,name\x06\n", "invalid_attribute"},
		"bad_gzip":        {"text/csv", "\x1f\x8b\x08", "invalid_encoding"},
		"unknown":         {"text/csv; charset=klingon", "email\n", "invalid_encoding"},
		"utf16_no_bom":    {"text/csv; charset=utf-16", "email\n", "invalid_encoding"},
	} {
		_, err := NewReader(tt.contentType, strings.NewReader(tt.body), ReadOptions{})
		bad, ok := errors.AsType[*InvalidError](err)
		require.True(t, ok, "%s: %v", name, err)
		require.Equal(t, tt.code, bad.Code, name)
	}
	for _, contentType := range []string{"", "application/json", "nonsense;;"} {
		_, err := NewReader(contentType, strings.NewReader("email\n"), ReadOptions{})
		require.ErrorIs(t, err, ErrContentType)
	}
}

func TestDamagedGzipIsNoFaultOfOurs(t *testing.T) {
	t.Parallel()
	good := packed(t, []byte("email\n"+strings.Repeat("ann@x.example\nbob@y.example\n", 10_000)))
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0xff
	checksum := bytes.Clone(good)
	checksum[len(checksum)-6] ^= 1
	for name, tt := range map[string]struct {
		body io.Reader
		want string
	}{
		"cut_off":         {bytes.NewReader(good[:len(good)-9]), "ends in the middle"},
		"flipped":         {bytes.NewReader(flipped), "the upload "},
		"checksum":        {bytes.NewReader(checksum), "damaged"},
		"something_after": {bytes.NewReader(append(bytes.Clone(good), "email\n"...)), "the upload "},
		"broken_pipe":     {io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(io.ErrClosedPipe)), ""},
	} {
		r, err := NewReader("text/csv", tt.body, ReadOptions{})
		for isRow := false; err == nil || isRow; {
			_, err = r.Next()
			_, isRow = errors.AsType[*RowError](err)
		}
		bad, ok := errors.AsType[*InvalidError](err)
		require.Equal(t, tt.want != "", ok, "%s: %v", name, err)
		if ok {
			require.Contains(t, bad.Detail, tt.want, name)
			continue
		}
		require.ErrorIs(t, err, io.ErrClosedPipe, "what breaks the connection is told as it is")
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"email,name\na@b.c,x\n", "email\r\"b\"\"\"\r\n", "\ufeffemail;b\n\"x\ny\";z", "email\n\"", "email,b\n\xff,\n", "email,\"b\" ,c\n",
		"\xff\xfee\x00m\x00a\x00i\x00l\x00\n\x00a\x00", "email\n\xb0\xa1\n", string(packed(f, []byte("email\na@b.c\n"))), string(packedByZstd(f, []byte("email\na@b.c\n"))),
	} {
		f.Add("text/csv", []byte(s))
	}
	f.Add("application/x-ndjson", []byte("{\"email\":\"a@b.c\",\"topics\":{\"n\":1},\"consent\":{\"at\":\"2026-01-01\"}}\n{}\nx"))
	f.Add("text/csv; charset=shift_jis", []byte("email\n\x83\x5c\n"))
	f.Fuzz(func(t *testing.T, contentType string, b []byte) {
		r, err := NewReader(contentType, bytes.NewReader(b), ReadOptions{})
		if err != nil {
			return
		}
		last := int64(-1)
		for {
			row, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if bad, ok := errors.AsType[*RowError](err); ok {
				require.NotEmpty(t, bad.Code)
				require.True(t, utf8.ValidString(bad.Value))
			} else if err != nil {
				return
			} else {
				require.NotEmpty(t, row.To.Domain)
				require.NoError(t, checkAttributes(row.Attributes))
			}
			_, offset := r.Place()
			require.Greater(t, offset, last)
			last = offset
			require.True(t, utf8.ValidString(r.Raw()))
		}
	})
}

func FuzzCondition(f *testing.F) {
	for _, s := range []string{
		`{"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2026-01-01"}]}`, `{"not":{"field":"domain","in":["a","b"]}}`,
		`{"any":[{"attr":"n","between":[1,2]},{"attr":"x","exists":false}]}`, `{"attr":"CreateTime","within_days":30}`, `{"attr":1}`, `[]`,
	} {
		f.Add([]byte(s))
	}
	c := &Contact{Attributes: []Attribute{{"CreateTime", String, "2025-05-05T00:00:00.000Z"}, {"Gender", String, "F"}, {"n", Number, "1.5"}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		cond, err := ParseCondition(b)
		if err != nil {
			e, ok := errors.AsType[*InvalidError](err)
			require.True(t, ok)
			require.NotEmpty(t, e.Detail)
			return
		}
		yes := cond.Match(c, time.Unix(1e9, 0))
		require.NotEqual(t, yes, (&Condition{op: "not", parts: []*Condition{cond}}).Match(c, time.Unix(1e9, 0)))
	})
}

func FuzzRecord(f *testing.F) {
	at := time.UnixMilli(1_700_000_000_000).UTC()
	c := Contact{Attributes: []Attribute{{"Name", String, "A"}}, Lists: []ListID{{1}}, Created: at, Updated: at, Source: "api"}
	c.To.Local, c.To.Domain = "a", "x.example"
	m := Membership{Status: Subscribed, Topics: Topics{3, 1}, Joined: at, Changed: at, Consent: Consent{At: at, IP: "192.0.2.1"}}
	f.Add(c.encode())
	f.Add(m.encode())
	f.Add((&gone{at: at, erased: true, lists: []ListID{{2}}}).encode())
	f.Add((&Counts{1, 2, 3, 4}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := decodeContact(ID{1}, b); err == nil {
			again, err := decodeContact(ID{1}, got.encode())
			require.NoError(t, err)
			require.Equal(t, got, again)
		} else {
			require.ErrorIs(t, err, errBadRecord)
		}
		if got, err := decodeMembership(ListID{1}, string(b)); err == nil {
			again, err := decodeMembership(ListID{1}, string(got.encode()))
			require.NoError(t, err)
			require.Equal(t, got, again)
		}
		if got, err := decodeGone(string(b)); err == nil {
			again, err := decodeGone(string(got.encode()))
			require.NoError(t, err)
			require.Equal(t, got, again)
		}
		if got, err := decodeCounts(b); err == nil && len(b) > 0 {
			again, err := decodeCounts(got.encode())
			require.NoError(t, err)
			require.Equal(t, got, again)
		}
	})
}
