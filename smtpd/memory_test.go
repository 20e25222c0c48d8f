package smtpd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/bounce"
	"relayd/internal/intake"
	"relayd/internal/mail"
)

// TestInboundMessageIsWholeInItsPieces: at every length near an edge of the pieces it is held in, the message is what came,
// behind our header.
func TestInboundMessageIsWholeInItsPieces(t *testing.T) {
	t.Parallel()
	text := make([]byte, maxInboundHeader+3*blockSize)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a text
	for i := range text {
		text[i] = byte(random.Uint32())
	}
	copy(text, "A: b\r\n\r\n")
	for _, edge := range []int{9, leastHeld, maxInboundHeader, maxInboundHeader + blockSize, maxInboundHeader + 2*blockSize} {
		for n := edge - 1; n <= edge+1; n++ {
			m := &memory{holding: &holding{source: map[netip.Prefix]int64{}}, most: 5 << 20}
			_, err := io.Copy(m, struct{ io.Reader }{bytes.NewReader(text[:n])})
			require.NoError(t, err)
			require.GreaterOrEqual(t, m.reserved, int64(n))
			require.LessOrEqual(t, m.reserved, int64(max(2*n, leastHeld)))
			require.NoError(t, iotest.TestReader(m.message(m.head), text[:n]), n)
			fields, body := splitMessage(m.head)
			require.Len(t, fields, 1)
			got, err := io.ReadAll(m.message([]byte("C: d\r\n\r\n"), body))
			require.NoError(t, err)
			require.True(t, bytes.Equal(got, append([]byte("C: d\r\n\r\n"), text[8:n]...)), n)
			m.free()
			require.Zero(t, m.holding.all)
		}
	}
}

// reporter reads what comes in as a report, as the daemon does, and notes how much memory is in use meanwhile.
type reporter struct{ most uint64 }

func (r *reporter) HandleInbound(_ context.Context, in *InboundMail) error {
	message, ok := in.Message.(sized)
	if !ok {
		return errors.New("the message does not tell its size")
	}
	rep, err := bounce.Parse(&probe{message, r}, bounce.NullPath, nil)
	if err == nil && (rep.Kind != bounce.Bounce || in.Auth.DKIM[0].Domain != "mx.example") {
		err = fmt.Errorf("%v %v", rep.Kind, in.Auth.DKIM)
	}
	return err
}

type sized interface {
	io.Reader
	Size() int64
}

// probe measures when the whole message has been read: there are most of it then.
type probe struct {
	sized
	reporter *reporter
}

func (p *probe) Read(b []byte) (int, error) {
	n, err := p.sized.Read(b)
	if errors.Is(err, io.EOF) {
		p.reporter.most = max(p.reporter.most, inUse())
	}
	return n, err
}

// inUse is how much memory is in use, without garbage and without what pools keep for one collection more.
func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestInboundMemoryIsWhatItIsCountedAs: a large report takes, while it is judged and read, no more than its count; and what
// is allocated for it and thrown away is not many times as much.
func TestInboundMemoryIsWhatItIsCountedAs(t *testing.T) { // not parallel: it measures memory
	f, _ := startInbound(t)
	r := &reporter{}
	f.inbound.deps.Handler = r
	message := "DKIM-Signature: v=1; a=rsa-sha256; d=mx.example; s=none; h=from; bh=AAAA; b=AAAA\r\n" +
		"From: mailer-daemon@mx.example\r\nContent-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n" +
		"Reporting-MTA: dns; mx.example\r\n\r\nFinal-Recipient: rfc822; ann@dest.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n" +
		"--b\r\nContent-Type: message/rfc822\r\n\r\n"
	message += strings.Repeat(strings.Repeat("x", 62)+"\r\n", (5<<20-len(message))/64)
	to, err := mail.ParsePath(issuedPath())
	require.NoError(t, err)
	accept := func() {
		_, err := f.inbound.Accept(t.Context(), &intake.Submission{
			Recipients: []intake.Recipient{{To: to}}, Body: struct{ io.Reader }{strings.NewReader(message)},
			Trace: intake.Trace{ClientIP: "127.0.0.1", Helo: "mx.example", At: time.Now()},
		})
		require.NoError(t, err)
	}
	accept() // what is made once
	var before, after runtime.MemStats
	r.most = 0
	idle := inUse()
	runtime.ReadMemStats(&before)
	accept()
	runtime.ReadMemStats(&after)
	took, made := int64(r.most)-int64(idle), after.TotalAlloc-before.TotalAlloc
	t.Logf("a message of %d octets: %d in use, %d allocated", len(message), took, made)
	runtime.KeepAlive(message)
	require.Greater(t, took, int64(len(message)))
	require.LessOrEqual(t, took, copies*int64(len(message))+1<<20)
	require.LessOrEqual(t, made, uint64(2*copies*len(message)))
}
