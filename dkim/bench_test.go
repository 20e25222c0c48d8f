package dkim

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

// best returns the shortest time of fn in some rounds: what is compared is then free of what else runs on the machine.
func best(fn func()) float64 {
	shortest := time.Duration(math.MaxInt64)
	for begin, n := time.Now(), 0; n < 20 || time.Since(begin) < 100*time.Millisecond; n++ {
		start := time.Now()
		fn()
		shortest = min(shortest, time.Since(start))
	}
	return float64(shortest)
}

// BenchmarkSign signs the header of a message whose body hash is known, as for a campaign. x_bare is the time beside that
// of the bare signatures in the same run.
func BenchmarkSign(b *testing.B) {
	keys, _ := newKeys(b, "shop.example")
	sum := sha256.Sum256(nil)
	for name, keys := range map[string][]*Key{"rsa": keys[:1], "ed25519": keys[1:], "both": keys} {
		b.Run(name, func(b *testing.B) {
			ours := func() {
				if _, err := Sign(keys, []byte(header), sum, at); err != nil {
					b.Fatal(err)
				}
			}
			bare := func() {
				for _, k := range keys {
					if _, err := k.sign(sum[:]); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				ours()
			}
			b.ReportMetric(best(ours)/best(bare), "x_bare")
		})
	}
}

// bodies are 100 KB each.
func bodies() map[string][]byte {
	fill := func(line string) []byte { return bytes.Repeat([]byte(line), 100_000/len(line)) }
	return map[string][]byte{
		"base64":   fill(strings.Repeat("QUJD", 19) + "\r\n"),
		"text":     fill("The quick brown fox jumps over the lazy dog, and then it does so again.\r\n\r\n"),
		"indented": fill("    <tr>\r\n        <td class=\"a\" style=\"color: #333333; padding: 4px\">cell</td>\r\n\t</tr>\r\n"),
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
			message := append([]byte(header+"\r\n"), body...)
			h := NewBodyHasher()
			ours := func() {
				h.Reset()
				h.Write(body)
				h.Sum()
			}
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				ours()
			}
			mine := best(ours)
			b.ReportMetric(mine/best(func() { sha256.Sum256(body) }), "x_sha256")
			b.ReportMetric((best(func() { theirs(message) })-best(func() { theirs(message[:len(header)+2]) }))/mine, "x_msgauth")
		})
	}
}
