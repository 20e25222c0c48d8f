package campaign

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/api"
	"relayd/internal/mail"
)

// benchComposition is a promotion of about 100 KB.
func benchComposition(b *testing.B, body string) (*composition, *letter) {
	b.Helper()
	req := request(api.Recipient{})
	req.Recipients, req.Start = nil, false
	req.Template.HTML = `<html><body><p>Hi {{Name}}</p>{{Body}}<p>{{Name}}, see you at <a href="https://shop.example/?u={{Name}}">the shop</a></p><p><a href="{{unsubscribe_url}}">Unsubscribe</a></p></body></html>`
	req.Template.Text = "Hi {{Name}}, all is cheap.\nUnsubscribe: {{unsubscribe_url}}\n"
	req.Data["Body"] = body
	c, err := newComposition(mail.NewQueueID(time.Now()), "default", req, "relay.example", "https://u.shop.example")
	require.NoError(b, err)
	return c, &letter{
		id: mail.EnvelopeID{Message: c.id, N: 7}, to: mail.MustParsePath("ann@example.com"), at: time.Now(), token: strings.Repeat("a", 100),
		attributes: []attribute{{"Gender", kindString, "F"}, {"Name", kindString, "Ann Example"}},
	}
}

func bodies() map[string]string {
	return map[string]string{
		"latin":  strings.Repeat("<p>All of our products are <b>half the price</b> today only, dear {{Name}}.</p>\n", 1250),
		"korean": strings.Repeat("<p>오늘 하루 모든 상품을 <b>반값</b>에 드립니다, {{Name}} 고객님.</p>\n", 950),
	}
}

// shortest returns the shortest time of fn in some rounds: what is compared is then free of what else runs on the machine.
func shortest(fn func()) time.Duration {
	best := time.Duration(math.MaxInt64)
	for begin, n := time.Now(), 0; n < 50 || time.Since(begin) < 300*time.Millisecond; n++ {
		start := time.Now()
		fn()
		best = min(best, time.Since(start))
	}
	return best
}

// sharedBody is HTML of about 100 KB that is the same for all recipients.
func sharedBody() string {
	return strings.Repeat("<p>All of our products are <b>half the price</b> today only, dear customer, so come.</p>\n", 1170)
}

// composeFloor is how many personalised messages of 100 KB one core is to make in a second, unsigned.
const composeFloor = 20_000

// BenchmarkCompose renders and assembles personalised messages of 100 KB, unsigned. of-floor is the rate of the shortest
// rounds beside composeFloor, x-copy their time beside that of copying the same bytes, in the same run.
func BenchmarkCompose(b *testing.B) {
	for name, body := range map[string]string{"shared": sharedBody(), "latin_1250_merges": bodies()["latin"], "korean_950_merges": bodies()["korean"]} {
		b.Run(name, func(b *testing.B) {
			c, l := benchComposition(b, body)
			msg, err := c.signed(nil, l, nil)
			room := make([]byte, 0, 2*len(msg))
			require.NoError(b, err)
			compose := func() {
				if _, err := c.signed(room, l, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(msg)))
			b.ReportAllocs()
			for b.Loop() {
				compose()
			}
			took := shortest(compose)
			rate := float64(time.Second) / float64(took)
			b.ReportMetric(rate, "messages/s")
			b.ReportMetric(rate/composeFloor, "of-floor")
			b.ReportMetric(float64(took)/float64(shortest(func() { copied = append(copied[:0], msg...) })), "x-copy")
		})
	}
}

var copied []byte // so that the copy is made

// BenchmarkComposeSigned prints what part of the bare signature's rate is left when the message is made as well, of the
// shortest rounds of each in the same run. The floor with RSA-2048 is 0.8.
func BenchmarkComposeSigned(b *testing.B) {
	ring, err := dkim.Open(b.TempDir())
	require.NoError(b, err)
	rsaKey, err := ring.Generate("shop.example", "r1", dkim.RSA2048)
	require.NoError(b, err)
	edKey, err := ring.Generate("shop.example", "e1", dkim.Ed25519)
	require.NoError(b, err)
	bare, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(b, err)
	for _, keys := range [][]*dkim.Key{{rsaKey}, {edKey}, {rsaKey, edKey}} {
		name := ""
		for _, k := range keys {
			name += fmt.Sprint(k.Algorithm)
		}
		b.Run(name, func(b *testing.B) {
			c, l := benchComposition(b, sharedBody())
			sum := sha256.Sum256([]byte("x"))
			room := make([]byte, 0, 1<<18)
			compose := func() {
				if _, err := c.signed(room, l, keys); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				compose()
			}
			took := shortest(compose)
			b.ReportMetric(float64(time.Second)/float64(took), "messages/s")
			sign := shortest(func() {
				if _, err := rsa.SignPKCS1v15(nil, bare, crypto.SHA256, sum[:]); err != nil {
					b.Fatal(err)
				}
			})
			b.ReportMetric(float64(sign)/float64(took), "of-bare-rsa")
		})
	}
}
