package sevenbit

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"relayd/internal/mail"
)

// convert scans a message and writes it as planned; changed is false where it has no plan.
func convert(t require.TestingT, message string, binaryMIME bool) (out string, changed bool, err error) {
	return convertIn(t, message, binaryMIME, func(r io.Reader) io.Reader { return r })
}

func convertIn(
	t require.TestingT, message string, binaryMIME bool, pieces func(io.Reader) io.Reader,
) (out string, changed bool, err error) {
	section, body, found := strings.Cut(message, "\r\n\r\n")
	require.True(t, found)
	h, err := mail.ParseHeader([]byte(section + "\r\n"))
	require.NoError(t, err)
	s := NewScanner(h, binaryMIME)
	_, err = io.Copy(s, pieces(strings.NewReader(body)))
	require.NoError(t, err)
	plan, err := s.Plan()
	if err != nil || plan == nil {
		return message, false, err
	}
	var b bytes.Buffer
	b.Write(plan.Header().Bytes())
	b.WriteString("\r\n")
	w := plan.NewWriter(&b)
	_, err = io.Copy(onlyWriter{w}, pieces(strings.NewReader(body)))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String(), true, nil
}

type onlyWriter struct{ io.Writer }

const mixed = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n"

func TestConversion(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, message, want string }{
		{
			"text_becomes_quoted_printable",
			"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nX: y\r\n\r\ncafé = 1 \r\n.dot\r\n",
			"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\nX: y\r\n\r\ncaf=C3=A9 =3D 1=20\r\n.dot\r\n",
		},
		{
			"what_is_not_labelled_is_labelled", "Subject: x\r\n\r\n\xe9\r\n",
			"Subject: x\r\nContent-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n\r\n=E9\r\n",
		},
		{
			"what_is_labelled_wrong_too", "mime-version: 1.0\r\ncontent-transfer-encoding: 7BIT\r\n\r\n\xe9\r\n",
			"mime-version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n",
		},
		{
			"others_become_base64", "MIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\x89PNG\r\n",
			"MIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\niVBORw0K\r\n",
		},
		{
			"only_the_parts_that_need_it",
			mixed + "Content-Transfer-Encoding: 8bit\r\n\r\npreamble\r\n--b\r\n\r\nplain\r\n--b\r\nContent-Transfer-Encoding: 8bit\r\n\r\nascii\r\n" +
				"--b  \r\nContent-Type: text/html\r\n\r\n\xe9\r\n\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\niVBORw0K\r\n--b--\r\nepilogue\r\n",
			mixed + "Content-Transfer-Encoding: 7bit\r\n\r\npreamble\r\n--b\r\n\r\nplain\r\n--b\r\nContent-Transfer-Encoding: 7bit\r\n\r\nascii\r\n" +
				"--b  \r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\niVBORw0K\r\n--b--\r\nepilogue\r\n",
		},
		{
			"nested_parts_and_messages",
			mixed + "\r\n--b\r\nContent-Type: multipart/alternative; boundary=\"b2\"\r\n\r\n--b2\r\n\r\n\xe9\r\n--b2--\r\n--b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
				"Subject: inner\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xe8\r\n--b--\r\n",
			mixed + "\r\n--b\r\nContent-Type: multipart/alternative; boundary=\"b2\"\r\n\r\n--b2\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n--b2--\r\n--b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\n" +
				"Subject: inner\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E8\r\n--b--\r\n",
		},
		{
			"parts_of_a_digest_are_messages",
			"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: a\r\n\r\n\xe9\r\n--b--\r\n",
			"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: a\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n--b--\r\n",
		},
		{
			"messages_inside_that_are_7bit_stay",
			mixed + "\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nplain\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
			mixed + "\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nplain\r\n--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n--b--\r\n",
		},
		{
			"what_is_signed_and_7bit_stays",
			mixed + "\r\n--b\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n--s\r\nContent-Transfer-Encoding: 8bit\r\n\r\nplain\r\n--s\r\n\r\nsig\r\n--s--\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
			mixed + "\r\n--b\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n--s\r\nContent-Transfer-Encoding: 8bit\r\n\r\nplain\r\n--s\r\n\r\nsig\r\n--s--\r\n--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n--b--\r\n",
		},
		{
			"lines_that_only_look_like_boundaries", mixed + "\r\n--b\r\n\r\n--bb\r\n-- b\r\n--b-\r\n\xe9\r\n--\r\n--b--\r\n",
			mixed + "\r\n--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n--bb\r\n-- b\r\n--b-\r\n=E9\r\n--\r\n--b--\r\n",
		},
		{
			"a_part_without_its_end", mixed + "\r\n--b\r\nContent-Type: image/png\r\n\r\n\xe9\xe9\r\n",
			mixed + "\r\n--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n6ekNCg==\r\n",
		},
		{
			"an_empty_part", mixed + "\r\n--b\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
			mixed + "\r\n--b\r\n\r\n--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n--b--\r\n",
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, pieces := range []func(io.Reader) io.Reader{iotest.DataErrReader, iotest.OneByteReader, iotest.HalfReader} {
				got, changed, err := convertIn(t, tc.message, false, pieces)
				require.NoError(t, err)
				require.True(t, changed)
				require.Equal(t, tc.want, got)
			}
		})
	}
}

// TestLeftAsItIs: nothing is changed where all is 7-bit, where a change would break something or gains nothing, and
// where readers could differ about the structure.
func TestLeftAsItIs(t *testing.T) {
	t.Parallel()
	deep := func(levels int) string {
		var b strings.Builder
		b.WriteString("Content-Type: multipart/mixed; boundary=b0\r\n\r\n")
		for i := range levels {
			fmt.Fprintf(&b, "--b%dx\r\nContent-Type: multipart/mixed; boundary=b%dx\r\n\r\n", i, i+1)
		}
		return strings.Replace(b.String(), "=b0", "=b0x", 1) + fmt.Sprintf("--b%dx\r\n\r\n\xe9\r\n", levels)
	}
	_, changed, err := convert(t, deep(maxDepth-1), false)
	require.NoError(t, err)
	require.True(t, changed, "just within the bound")
	for name, message := range map[string]string{
		"7bit":                      "Subject: x\r\nContent-Transfer-Encoding: 8bit\r\n\r\nplain\r\n",
		"signed":                    "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xe9\r\n--b\r\n\r\nsig\r\n--b--\r\n",
		"signed_somewhere":          mixed + "\r\n--b\r\n\r\n\xe9\r\n--b\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\n\xe9\r\n--s--\r\n--b--\r\n",
		"inside_what_is_signed":     "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\n\xe9\r\n--b--\r\n",
		"encrypted":                 "Content-Type: multipart/encrypted; boundary=b\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"wrong_base64":              "Content-Transfer-Encoding: base64\r\n\r\n\xe9\r\n",
		"unknown_encoding":          "Content-Transfer-Encoding: x-uuencode\r\n\r\n\xe9\r\n",
		"part_header":               mixed + "\r\n--b\r\nX: \xe9\r\n\r\n\xe9\r\n--b--\r\n",
		"preamble":                  mixed + "\r\n\xe9\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"epilogue":                  mixed + "\r\n--b\r\n\r\n\xe9\r\n--b--\r\n\xe9\r\n",
		"no_boundary":               "Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"boundary_that_is_encoded":  "Content-Type: multipart/mixed; boundary*=us-ascii''b\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"comment_before_boundary":   "Content-Type: multipart/mixed (x); boundary=b\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"multipart_with_encoding":   mixed + "Content-Transfer-Encoding: base64\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"boundary_twice":            mixed + "\r\n--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"header_without_end":        mixed + "\r\n--b\r\nX: y\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
		"header_that_is_none":       mixed + "\r\n--b\r\nno field\r\n\r\n\xe9\r\n--b--\r\n",
		"header_that_ends_the_body": mixed + "\r\n--b\r\n\r\n\xe9\r\n--b\r\nX: y\r\n",
		"two_encodings":             mixed + "\r\n--b\r\nContent-Transfer-Encoding: 8bit\r\nContent-Transfer-Encoding: base64\r\n\r\n\xe9\r\n--b--\r\n",
		"large_header":              mixed + "\r\n--b\r\n" + strings.Repeat("X: y\r\n", 20_000) + "\r\n\xe9\r\n--b--\r\n",
		"blanks_behind_a_boundary":  mixed + "\r\n--b" + strings.Repeat(" ", 500) + "\r\n\r\n\xe9\r\n--b--\r\n",
		"too_many_parts":            mixed + "\r\n\r\n" + strings.Repeat("--b\r\n\r\n\xe9\r\n", maxParts),
		"too_deep":                  deep(maxDepth),
		"partial":                   "Content-Type: message/partial; id=x; number=1\r\n\r\nSubject: x\r\n\r\n\xe9\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, changed, err := convert(t, message, false)
			require.NoError(t, err)
			require.False(t, changed, out)
		})
	}
}

func TestBinary(t *testing.T) {
	t.Parallel()
	raw := "\x00\r\n\n\r\r\n.\r\n--b \n" + strings.Repeat("x", 100_000) + "\xff"
	head := mixed + "Content-Transfer-Encoding: binary\r\n\r\n"
	part := func(enc, content string) string {
		return "--b\r\nContent-Type: application/x\r\nContent-Transfer-Encoding: " + enc + "\r\n\r\n" + content + "\r\n"
	}
	out, _, err := convert(t, head+part("binary", raw)+part("8bit", "\xe9")+part("binary", "")+part("binary", "plain")+"--b--", true)
	require.NoError(t, err)
	var lines []string
	for line := range strings.SplitSeq(base64.StdEncoding.EncodeToString([]byte(raw)), "") {
		if len(lines) == 0 || len(lines[len(lines)-1]) == 76 {
			lines = append(lines, "")
		}
		lines[len(lines)-1] += line
	}
	require.Equal(t, mixed+"Content-Transfer-Encoding: 7bit\r\n\r\n"+part("base64", strings.Join(lines, "\r\n"))+part("base64", "6Q==")+
		part("7bit", "")+part("7bit", "plain")+"--b--", out)

	for _, tc := range []struct{ name, body, want string }{
		{"NUL_in_another_part", part("binary", raw) + part("8bit", "a\x00"), "554 5.6.0 Part 3 has a NUL, and its Content-Transfer-Encoding is not binary"},
		{"bare_CR", part("7bit", "a\rb"), "554 5.6.0 Part 2 has a bare CR"},
		{"bare_CR_at_the_end", part("7bit", "a\r"), "554 5.6.0 Part 2 has a bare CR"},
		{"bare_LF", part("7bit", "a\nb"), "554 5.6.0 Part 2 has a bare LF"},
		{"long_line", part("8bit", strings.Repeat("x", 999)), "554 5.6.0 Part 2 has a line of more than 998 octets"},
		{"long_line_of_base64", part("base64", strings.Repeat("x", 999)), "554 5.6.0 Part 2"},
		{"signed", "--b\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n--s\r\nContent-Transfer-Encoding: binary\r\n\r\nx\r\n--s--\r\n", "554 5.6.1 Binary message cannot be sent on: part 3 is binary inside something signed or encrypted"},
		{"irregular", "--b\r\nnone\r\n\r\n", "554 5.6.1 Binary message cannot be sent on: its MIME structure cannot be relied on: part 2: its header is none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := convert(t, head+tc.body+"--b--\r\n", true)
			require.Error(t, err)
			require.True(t, strings.HasPrefix(mail.ReplyOf(err).String(), tc.want), mail.ReplyOf(err).String())
		})
	}
	out, _, err = convert(t, "Content-Transfer-Encoding: binary\r\n\r\nline\r\n\r\n\xe9 end", true)
	require.NoError(t, err)
	require.Equal(t, "Content-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n\r\nline\r\n\r\n=E9 end=\r\n", out, "a soft break ends what has no line end")
	out, _, err = convert(t, "Content-Transfer-Encoding: binary\r\nContent-Type: text/plain\r\n\r\none\ntwo\r\n", true)
	require.NoError(t, err)
	require.Equal(t, "Content-Transfer-Encoding: base64\r\nContent-Type: text/plain\r\nMIME-Version: 1.0\r\n\r\nb25lCnR3bw0K\r\n", out, "text with other line ends is none")
}

// tree is a MIME tree with its decoded contents.
type tree struct {
	kind    string // media type
	content string
	parts   []tree
}

func leaves(t *rapid.T, binaryMIME bool) tree {
	n := tree{kind: rapid.SampledFrom([]string{"text/plain", "text/html", "image/png", "application/x"}).Draw(t, "type")}
	pieces := []string{"a", "é", "=", " ", "\r\n", "\r\n", "--", "\r\n--", "\r\n.", "\xff", strings.Repeat("x", 70), "\t", "-", "\r\nFrom "}
	if binaryMIME {
		pieces = append(pieces, "\x00", "\r", "\n", strings.Repeat("y", 1500), "\r\r\n", "x\n--B1\r\n")
	}
	n.content = strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 40).Draw(t, "content"), "")
	return n
}

func trees(t *rapid.T, depth int, binaryMIME bool) tree {
	switch kind := rapid.IntRange(0, 5).Draw(t, "kind"); {
	case kind < 3 || depth == 0:
		return leaves(t, binaryMIME)
	case kind == 3:
		return tree{kind: "message/rfc822", parts: []tree{trees(t, depth-1, binaryMIME)}}
	}
	n := tree{kind: rapid.SampledFrom([]string{"multipart/mixed", "multipart/alternative", "multipart/related"}).Draw(t, "multi")}
	for range rapid.IntRange(1, 4).Draw(t, "parts") {
		n.parts = append(n.parts, trees(t, depth-1, binaryMIME))
	}
	return n
}

// encode writes the tree with labels that allow its contents.
func (n tree) encode(t *rapid.T, b *strings.Builder, binaryMIME bool, count *int) {
	label := rapid.SampledFrom([]string{"8bit", "8bit", "binary", "7bit", "", "base64", "quoted-printable"}).Draw(t, "label")
	switch {
	case binaryMIME && len(n.parts) > 0:
		label = "binary"
	case binaryMIME && label != "base64" && label != "quoted-printable":
		label = "binary"
	case len(n.parts) > 0:
		label = "8bit"
	}
	fmt.Fprintf(b, "Content-Type: %s", n.kind)
	boundary := ""
	if strings.HasPrefix(n.kind, "multipart/") {
		*count++
		boundary = fmt.Sprintf("B%d", *count)
		fmt.Fprintf(b, "; boundary=%s", boundary)
	}
	b.WriteString("\r\n")
	if label != "" {
		fmt.Fprintf(b, "Content-Transfer-Encoding: %s\r\n", label)
	}
	b.WriteString("\r\n")
	switch {
	case boundary != "":
		for _, p := range n.parts {
			b.WriteString("\r\n--" + boundary + "\r\n")
			p.encode(t, b, binaryMIME, count)
		}
		b.WriteString("\r\n--" + boundary + "--\r\n")
	case len(n.parts) == 1:
		n.parts[0].encode(t, b, binaryMIME, count)
	case label == "base64":
		w := base64.NewEncoder(base64.StdEncoding, &liner{w: b})
		_, _ = io.WriteString(w, n.content)
		_ = w.Close()
	case label == "quoted-printable":
		w := quotedprintable.NewWriter(b)
		w.Binary = true
		_, _ = io.WriteString(w, n.content)
		_ = w.Close()
	default:
		b.WriteString(n.content)
	}
}

// decode reads a message with the standard library.
func decode(t require.TestingT, h map[string][]string, body []byte) tree {
	get := func(name string) string { return netmail.Header(h).Get(name) }
	kind, params, err := mime.ParseMediaType(get("Content-Type"))
	require.NoError(t, err)
	n := tree{kind: kind}
	switch {
	case params["boundary"] != "":
		r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err == io.EOF { //nolint:errorlint // not wrapped
				return n
			}
			require.NoError(t, err, "%q", body)
			b, err := io.ReadAll(p)
			require.NoError(t, err)
			n.parts = append(n.parts, decode(t, p.Header, b))
		}
	case kind == "message/rfc822":
		m, err := netmail.ReadMessage(bytes.NewReader(body))
		require.NoError(t, err)
		b, err := io.ReadAll(m.Body)
		require.NoError(t, err)
		n.parts = []tree{decode(t, m.Header, b)}
		return n
	}
	var r io.Reader = bytes.NewReader(body)
	switch strings.ToLower(get("Content-Transfer-Encoding")) {
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	}
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	n.content = string(b)
	return n
}

// TestRoundTrip: decoded, a converted message is what it was, and it is 7-bit with lines within 998 octets.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, binaryMIME := range []bool{false, true} {
		rapid.Check(t, func(t *rapid.T) {
			want := trees(t, 4, binaryMIME)
			var b strings.Builder
			b.WriteString("MIME-Version: 1.0\r\n")
			count := 0
			want.encode(t, &b, binaryMIME, &count)
			message := b.String()
			got, changed, err := convert(t, message, binaryMIME)
			require.NoError(t, err, "%q", message)
			section, body, _ := strings.Cut(got, "\r\n\r\n")
			if changed {
				require.False(t, hasEight([]byte(got)), "%q", got)
				for line := range strings.SplitSeq(body, "\r\n") {
					require.NotContains(t, line, "\r")
					require.NotContains(t, line, "\n")
					require.LessOrEqual(t, len(line), 998)
				}
				for _, label := range []string{"8bit", "binary"} {
					require.NotContains(t, got, "Content-Transfer-Encoding: "+label)
				}
			}
			m, err := netmail.ReadMessage(strings.NewReader(section + "\r\n\r\n"))
			require.NoError(t, err)
			require.Equal(t, want, decode(t, m.Header, []byte(body)), "%q became %q", message, got)
		})
	}
}

// FuzzConvert: nothing panics, what is planned is 7-bit or came as binary, and a second look finds nothing more to do.
func FuzzConvert(f *testing.F) {
	for _, seed := range []string{
		"Subject: x\r\n\r\n\xe9\r\n", mixed + "\r\n--b\r\nContent-Transfer-Encoding: binary\r\n\r\n\x00\xe9\r\n--b--\r\n",
		mixed + "\r\n--b\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\nx\r\n--s--\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nX: y\r\n\r\n\xe9\r\n--b--",
		"Content-Type: multipart/digest; boundary=\"b b\"\r\n\r\n--b b\t\r\n\r\nA: b\r\n\r\n\xff\r\n--b b--\r\n",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, message string, binaryMIME bool) {
		section, _, found := strings.Cut(message, "\r\n\r\n")
		if !found {
			return
		}
		if h, err := mail.ParseHeader([]byte(section + "\r\n")); err != nil || len(h) == 0 || hasEight([]byte(section)) {
			return
		}
		out, changed, err := convert(t, message, binaryMIME)
		halves, _, halvesErr := convertIn(t, message, binaryMIME, iotest.HalfReader)
		require.Equal(t, out, halves, "in any pieces the same")
		require.Equal(t, err, halvesErr)
		if !changed {
			require.Equal(t, message, out)
			return
		}
		if !binaryMIME {
			require.False(t, hasEight([]byte(out)), "%q", out)
		}
		again, _, err := convert(t, out, false)
		require.NoError(t, err)
		require.Equal(t, out, again, "once is enough")
	})
}

// BenchmarkConvert compares scanning and rewriting a message, half of it text with octets above 127 and half of it
// binary, with encoding the same octets by the standard library alone. Limit: twice its time.
func BenchmarkConvert(b *testing.B) {
	text, data := strings.Repeat("안녕하세요, relayd!\r\n", 20_000), strings.Repeat("\xff\x00\x10", 150_000)
	section := mixed + "Content-Transfer-Encoding: binary\r\n"
	body := "\r\n--b\r\nContent-Transfer-Encoding: binary\r\n\r\n" + text + "\r\n--b\r\nContent-Type: application/x\r\nContent-Transfer-Encoding: binary\r\n\r\n" +
		data + "\r\n--b--\r\n"
	h, err := mail.ParseHeader([]byte(section))
	require.NoError(b, err)
	blocks := func(w io.Writer) {
		for rest := body; len(rest) > 0; {
			n := min(len(rest), 256<<10)
			_, err := io.WriteString(w, rest[:n])
			require.NoError(b, err)
			rest = rest[n:]
		}
	}
	var took [2]time.Duration
	for b.Loop() {
		began := time.Now()
		q := quotedprintable.NewWriter(io.Discard)
		_, _ = io.WriteString(q, text)
		require.NoError(b, q.Close())
		e := base64.NewEncoder(base64.StdEncoding, io.Discard)
		_, _ = io.WriteString(e, data)
		require.NoError(b, e.Close())
		took[0] += time.Since(began)

		began = time.Now()
		s := NewScanner(h, true)
		blocks(s)
		plan, err := s.Plan()
		require.NoError(b, err)
		w := plan.NewWriter(io.Discard)
		blocks(w)
		require.NoError(b, w.Close())
		took[1] += time.Since(began)
	}
	b.ReportMetric(float64(len(body)*b.N)/took[1].Seconds()/(1<<20), "MB/s")
	b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
	b.ReportMetric(2, "limit")
}
