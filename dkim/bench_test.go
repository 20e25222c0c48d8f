package dkim

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

// beside runs fn between the rounds of a benchmark, outside its time, and adds up how long it takes: what is compared
// runs under the same load.
func beside(b *testing.B, sum *time.Duration, fn func()) {
	b.Helper()
	b.StopTimer()
	start := time.Now()
	fn()
	*sum += time.Since(start)
	b.StartTimer()
}

// BenchmarkSign signs the header of a message whose body hash is known, as for a campaign. x_bare is the time beside that
// of the bare signatures in the same run.
func BenchmarkSign(b *testing.B) {
	keys, _ := newKeys(b, "shop.example")
	sum := sha256.Sum256(nil)
	for name, keys := range map[string][]*Key{"rsa": keys[:1], "ed25519": keys[1:], "both": keys} {
		b.Run(name, func(b *testing.B) {
			var bare time.Duration
			for b.Loop() {
				if _, err := Sign(keys, []byte(header), sum, at); err != nil {
					b.Fatal(err)
				}
				beside(b, &bare, func() {
					for _, k := range keys {
						opts := crypto.SHA256
						if k.Algorithm == Ed25519 {
							opts = 0
						}
						if _, err := k.signer.Sign(rand.Reader, sum[:], opts); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			b.ReportMetric(float64(b.Elapsed())/float64(bare), "x_bare")
		})
	}
}

// bodies are 100 KB each.
func bodies() map[string][]byte {
	fill := func(line string) []byte { return bytes.Repeat([]byte(line), 100_000/len(line)) }
	return map[string][]byte{
		"base64":   fill(strings.Repeat("QUJD", 19) + "\r\n"),
		"text":     fill("The quick brown fox jumps over the lazy dog, and then it does so again.\r\n\r\n"),
		"indented": fill("    <td class=\"a\" style=\"color: red\">cell</td>\r\n\t<br>\r\n"),
	}
}

// BenchmarkBodyHash hashes 100 KB. x_sha256 is the time beside SHA-256 alone; x_msgauth is how many times longer go-msgauth
// takes for it (signing the message less signing one without a body), in the same run.
func BenchmarkBodyHash(b *testing.B) {
	keys, _ := newKeys(b, "shop.example")
	theirs := func(message []byte) {
		err := msgauth.Sign(io.Discard, bytes.NewReader(message), &msgauth.SignOptions{
			Domain: "shop.example", Selector: "s", Signer: keys[1].signer,
			HeaderCanonicalization: msgauth.CanonicalizationRelaxed, BodyCanonicalization: msgauth.CanonicalizationRelaxed,
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for name, body := range bodies() {
		b.Run(name, func(b *testing.B) {
			var bare, whole, empty time.Duration
			message := append([]byte(header+"\r\n"), body...)
			b.SetBytes(int64(len(body)))
			h := NewBodyHasher()
			for b.Loop() {
				h.Reset()
				h.Write(body)
				h.Sum()
				beside(b, &bare, func() { sha256.Sum256(body) })
				beside(b, &whole, func() { theirs(message) })
				beside(b, &empty, func() { theirs(message[:len(header)+2]) })
			}
			b.ReportMetric(float64(b.Elapsed())/float64(bare), "x_sha256")
			b.ReportMetric(float64(whole-empty)/float64(b.Elapsed()), "x_msgauth")
		})
	}
}
