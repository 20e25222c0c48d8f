package dkim

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestVerifyResults(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	signed := signAll(t, keys[:1], header, "Hello\r\n")
	result := func(message string, txt TXTLookup) string {
		v := verify(t, message, txt)
		require.Len(t, v, 1)
		require.Equal(t, "shop.example", v[0].Domain)
		require.Equal(t, "r20261", v[0].Selector)
		return v[0].Result
	}
	require.Equal(t, ResultPass, result(signed, published))
	require.Equal(t, ResultPass, result(strings.ReplaceAll(signed, "\r\n", "\n"), published), "a file with bare LF")
	require.Equal(t, ResultFail, result(strings.Replace(signed, "Hello", "hello", 1), published))
	require.Equal(t, ResultPermError, result(signed, records{}), "no record")
	require.Equal(t, ResultPermError, result(signed, records{keys[0].RecordName(): "v=DKIM1; k=rsa; p="}), "revoked")
	require.Equal(t, ResultPermError, result(signed, records{keys[0].RecordName(): keys[1].RecordValue()}), "another algorithm")
	require.Equal(t, ResultTempError, result(signed, unreachable{}))
	require.Equal(t, ResultPermError, result(strings.Replace(signed, "v=1;", "v=2;", 1), published))
	require.Equal(t, ResultFail, result(strings.Replace(signed, "c=relaxed/relaxed;", "c=relaxed/relaxed; l=1;", 1), published), "l= is refused")
}

func TestVerifyWithoutSignatureIsEmpty(t *testing.T) {
	t.Parallel()
	for _, m := range []string{"", "From: a@x.example", "From: a@x.example\r\n\r\nbody", "\r\nbody", "From a@x Mon\r\nFrom: a\r\n\r\n"} {
		v, err := Verify(context.Background(), strings.NewReader(m), records{})
		require.NoError(t, err, m)
		require.Empty(t, v)
		require.NotNil(t, v)
	}
}

func TestVerifyPassesOverLinesThatAreNoFields(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	v := verify(t, "From a@x Mon Jan 1\r\n"+signAll(t, keys, header, ""), published)
	require.Len(t, v, 2)
	require.Equal(t, ResultPass, v[1].Result, v[1].Error)
}

func TestVerifyIsBounded(t *testing.T) {
	t.Parallel()
	keys, published := newKeys(t, "shop.example")
	signed := signAll(t, keys[1:], header, "Hello\r\n")
	sig := signed[:strings.Index(signed, "Received:")]
	require.Len(t, verify(t, strings.Repeat(sig, 50)+signed, published), maxVerifications)
	for name, m := range map[string]string{
		"size":  "X: " + strings.Repeat("x", maxVerifyHeader),
		"lines": "X: x" + strings.Repeat("\r\n ", maxVerifyLines+1),
		"names": "DKIM-Signature: h=" + strings.Repeat("a:", 60000) + "\r\n" + strings.Repeat("A: b\r\n", 100),
	} {
		_, err := Verify(context.Background(), strings.NewReader(m+"\r\n\r\n"), published)
		require.ErrorIs(t, err, ErrHeaderTooLarge, name)
	}
	_, err := Verify(context.Background(), iotest.ErrReader(errors.New("broken")), published)
	require.ErrorContains(t, err, "broken")
}

// TestA15_BlankLinesCostAVerifierLittle: go-msgauth keeps a run of them for each signature, and with simple canonicalization
// looks at all of it again and again.
func TestA15_BlankLinesCostAVerifierLittle(t *testing.T) { // not parallel: it measures memory
	keys, published := newKeys(t, "shop.example")
	run := func(octets int, blank string) string { return strings.Repeat(blank, octets/len(blank)) }
	for _, blank := range []string{"\r\n", " \r\n", "\n"} {
		if blank != "\n" { // what we sign has CRLF
			fits := signAll(t, keys[:1], header, "Hello\r\n"+run(maxBlank-16, blank)+"end\r\n")
			require.Equal(t, ResultPass, verify(t, fits, published)[0].Result, "%q", blank)
		}
		long := "Hello\r\n" + run(1<<20, blank) + "end\r\n"
		for _, c := range []string{"c=simple/simple;", "c=relaxed/relaxed;"} {
			signed := strings.Replace(signAll(t, keys[:1], header, "Hello\r\n"), "c=relaxed/relaxed;", c, 1)
			signature := signed[:strings.Index(signed, "Received:")]
			message := strings.Repeat(signature, maxVerifications-1) + strings.TrimSuffix(signed, "Hello\r\n") + long
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			verdicts := verify(t, message, published)
			runtime.ReadMemStats(&after)
			require.Len(t, verdicts, maxVerifications)
			for _, v := range verdicts { // never of the part that was looked at, though it is what was signed
				require.Equal(t, ResultPermError, v.Result)
				require.Equal(t, "body has more than 32 KiB of blank lines in one place", v.Error)
			}
			made := after.TotalAlloc - before.TotalAlloc
			t.Logf("%q %s: %d octets allocated for %d", blank, c, made, len(message))
			require.Less(t, made, uint64(32<<20))
		}
	}
}

func FuzzVerify(f *testing.F) {
	keys, published := newKeys(f, "shop.example")
	f.Add([]byte(signAll(f, keys, header, "Hello\r\n")))
	f.Add([]byte("DKIM-Signature: v=1; a=rsa-sha256; d=shop.example; s=r20261; h=from; bh=; b=\r\nFrom: a\r\n\r\n"))
	f.Add([]byte("DKIM-Signature:\n\n"))
	f.Fuzz(func(t *testing.T, m []byte) {
		v, err := Verify(t.Context(), strings.NewReader(string(m)), published)
		if err == nil && len(v) > maxVerifications {
			t.Fatal("too many")
		}
		for _, one := range v {
			if (one.Result == ResultPass) != (one.Error == "") {
				t.Fatalf("%+v", one)
			}
		}
	})
}
