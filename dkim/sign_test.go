package dkim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var at = time.Unix(1_790_000_000, 0)

// records is a TXTLookup.
type records map[string]string

func (r records) LookupTXT(_ context.Context, name string) ([]string, error) {
	if v, ok := r[name]; ok {
		return []string{v}, nil
	}
	return nil, errors.New("no such record")
}

type unreachable struct{}

func (unreachable) LookupTXT(ctx context.Context, _ string) ([]string, error) {
	return nil, fmt.Errorf("look up: %w", context.DeadlineExceeded)
}

// newKeys returns an RSA and an Ed25519 key and what they publish.
func newKeys(t testing.TB, domain string) ([]*Key, records) {
	t.Helper()
	published := records{}
	var keys []*Key
	for selector, alg := range map[string]Algorithm{"r20261": RSA2048, "e20261": Ed25519} {
		k, err := generate(domain, selector, alg)
		require.NoError(t, err)
		published[k.RecordName()] = k.RecordValue()
		keys = append(keys, k)
	}
	return inState(keys, Active), published
}

func signAll(t require.TestingT, keys []*Key, header, body string) string {
	h := NewBodyHasher()
	h.Write([]byte(body))
	sig, err := Sign(keys, []byte(header), h.Sum(), at)
	require.NoError(t, err)
	return string(sig) + header + "\r\n" + body
}

func verify(t require.TestingT, message string, txt TXTLookup) []Verification {
	v, err := Verify(context.Background(), strings.NewReader(message), txt)
	require.NoError(t, err)
	return v
}

const header = "Received: from a by b; Thu, 1 Jan 2026 00:00:00 +0000\r\n" +
	"From: =?utf-8?q?=EC=9D=B4?= <news@shop.example>\r\n" +
	"To: a@x.example,\r\n\tb@y.example,\r\n  c@z.example\r\n" +
	"Subject:  two  blanks \t and a tab \r\n" +
	"Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n" +
	"Message-ID: <1@shop.example>\r\n" +
	"List-Unsubscribe: <https://u.shop.example/u/token>,\r\n <mailto:u@shop.example>\r\n" +
	"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"Content-Transfer-Encoding: 8bit\r\n"

func TestSignatureOfEachKeyVerifies(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	signed := signAll(t, keys, header, "Hello \t world  \r\n\r\n한글\r\n\r\n\r\n")
	require.Equal(t, []Verification{
		{"shop.example", "r20261", "rsa-sha256", ResultPass, ""},
		{"shop.example", "e20261", "ed25519-sha256", ResultPass, ""},
	}, verify(t, signed, published))
}

func TestSignatureIsFoldedAndDeterministic(t *testing.T) {
	t.Parallel()
	keys, _ := newKeys(t, "a-rather-long-domain-name-for-a-shop.and-a-subdomain.example")
	one := signAll(t, keys, header, "x\r\n")
	require.Equal(t, one, signAll(t, keys, header, "x\r\n"))
	sig := strings.TrimSuffix(one, header+"\r\nx\r\n")
	require.Equal(t, 2, strings.Count(sig, "DKIM-Signature: v=1; a="))
	for line := range strings.SplitSeq(strings.TrimSuffix(sig, "\r\n"), "\r\n") {
		require.LessOrEqual(t, len(line), 78, line)
		require.NotContains(t, line, "\n")
		require.NotRegexp(t, `\bl=`, line)
	}
	require.Equal(t, 2, strings.Count(sig, " t=1790000000; "))
}

func TestSignatureCoversFields(t *testing.T) {
	t.Parallel()
	names, _, err := coverHeader([]byte(header))
	require.NoError(t, err)
	require.Equal(t, "from:from:to:subject:subject:date:message-id:mime-version:content-type:content-transfer-encoding:"+
		"list-unsubscribe:list-unsubscribe:list-unsubscribe-post:list-unsubscribe-post", strings.Join(names, ":"))
	names, _, err = coverHeader([]byte("From: a@x.example\r\n"))
	require.NoError(t, err)
	require.Equal(t, []string{"from", "from", "subject"}, names, "an absent Subject cannot be added")
}

func TestChangedMessageFails(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	signed := signAll(t, keys, header, "Pay 10 now\r\n")
	for name, change := range map[string][2]string{
		"body":                      {"Pay 10", "Pay 99"},
		"body appended":             {"now\r\n", "now\r\nmore\r\n"},
		"subject":                   {"two  blanks", "three blanks"},
		"second from":               {"Received:", "From: evil@x.example\r\nReceived:"},
		"second subject":            {"Received:", "Subject: evil\r\nReceived:"},
		"second list-unsubscribe":   {"Received:", "List-Unsubscribe: <https://evil.example>\r\nReceived:"},
		"one-click field taken off": {"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n", ""},
		"second one-click field":    {"Received:", "List-Unsubscribe-Post: x\r\nReceived:"},
	} {
		changed := strings.Replace(signed, change[0], change[1], 1)
		require.NotEqual(t, signed, changed, name)
		for _, v := range verify(t, changed, published) {
			require.Equal(t, ResultFail, v.Result, name)
			require.NotEmpty(t, v.Error)
		}
	}
	harmless := strings.Replace(signed, "two  blanks \t and", "two blanks and", 1)
	for _, v := range verify(t, "X-Added: yes\r\n"+harmless, published) {
		require.Equal(t, ResultPass, v.Result)
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	keys, _ := newKeys(t, "shop.example")
	_, err := Sign(nil, []byte(header), [32]byte{}, at)
	require.ErrorIs(t, err, ErrNoKey)
	_, err = Sign(keys, []byte("To: a@x.example\r\n"), [32]byte{}, at)
	require.ErrorContains(t, err, "no From field")
	_, err = Sign(keys, []byte("no field\r\n"), [32]byte{}, at)
	require.Error(t, err)
	_, err = Sign(keys, []byte("From: a@x.example\r\n"+strings.Repeat("To: a\r\n", 501)), [32]byte{}, at)
	require.ErrorContains(t, err, "header fields to sign")
}

// TestOddMessagesVerify signs messages of strange but possible shape, and each signature must verify and each body hash
// be the one of go-msgauth.
func TestOddMessagesVerify(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	value := rapid.StringMatching(`([ \t]{0,3}[!-~\x{a0}-\x{d7ff}]{0,30}){0,4}(\r\n[ \t]+[!-~]{1,20}){0,3}[ \t]{0,2}`)
	line := rapid.StringMatching(`[ \t]{0,3}([!-~\x{80}-\x{d7ff}]{1,20}[ \t]{0,3}){0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		h := "From:" + value.Draw(t, "from") + "\r\n"
		for range rapid.IntRange(0, 12).Draw(t, "fields") {
			name := rapid.SampledFrom([]string{
				"to", "TO", "Cc", "sUBJECT", "Subject ", "Date", "Reply-To", "Sender",
				"List-Unsubscribe", "List-Unsubscribe-Post", "Feedback-ID", "List-Id", "References", "X-Other", "Received",
			}).Draw(t, "name")
			h = rapid.SampledFrom([]string{"", h}).Draw(t, "above") + name + ":" + value.Draw(t, "value") + "\r\n"
			if !strings.Contains(h, "From:") {
				h += "From:" + value.Draw(t, "from again") + "\r\n"
			}
		}
		body := strings.Join(rapid.SliceOfN(line, 0, 12).Draw(t, "lines"), "\r\n") +
			strings.Repeat("\r\n", rapid.IntRange(0, 4).Draw(t, "blank lines"))
		for _, v := range verify(t, signAll(t, keys, h, body), published) {
			require.Equal(t, ResultPass, v.Result, v.Error)
		}
	})
}

// TestSignerEqualsGoMsgauth compares the body hash with the one that go-msgauth writes, for all kinds of bytes.
func TestBodyHashEqualsGoMsgauth(t *testing.T) {
	t.Parallel()
	keys, _ := newKeys(t, "shop.example")
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.OneOf(rapid.SliceOfN(rapid.SampledFrom([]byte(" \t\r\n\r\nab")), 0, 200), rapid.SliceOf(rapid.Byte())).Draw(t, "body")
		h := NewBodyHasher()
		h.Write(body)
		var out bytes.Buffer
		require.NoError(t, msgauth.Sign(&out, bytes.NewReader(append([]byte("From: a@x.example\r\n\r\n"), body...)), &msgauth.SignOptions{
			Domain: "shop.example", Selector: "s", Signer: keys[1].signer,
			HeaderCanonicalization: msgauth.CanonicalizationRelaxed, BodyCanonicalization: msgauth.CanonicalizationRelaxed,
		}))
		_, bh, _ := strings.Cut(out.String(), "bh=")
		bh, _, _ = strings.Cut(bh, ";")
		require.Contains(t, string(signatureMiddle(nil, h.Sum(), at)), "bh="+bh+";")
	})
}

func TestManyMessagesShareABodyHash(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	h := NewBodyHasher()
	h.Write([]byte("Hello\r\n"))
	sum := h.Sum()
	for i := range 20 {
		header := fmt.Sprintf("From: a@shop.example\r\nTo: u%d@x.example\r\n", i)
		sig, err := Sign(keys, []byte(header), sum, at)
		require.NoError(t, err)
		for _, v := range verify(t, string(sig)+header+"\r\nHello\r\n", published) {
			require.Equal(t, ResultPass, v.Result)
		}
	}
}
