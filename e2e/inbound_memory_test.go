package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestInboundMemoryStaysWithinItsBound has strangers of sixteen addresses hand in as many of the largest messages as they
// can at the same time: reports with ten signatures, whose DNS is slow, so that all are judged at once.
func TestInboundMemoryStaysWithinItsBound(t *testing.T) { // not parallel: it measures another process
	s := newSink(t, "", nil)
	r, port := newInbound(t, s)
	require.NoError(t, r.dns.Add("_dmarc.slow.example. TXT \"v=DMARC1; p=reject\""))
	r.dns.SetDelay("_dmarc.slow.example.", 2*time.Second)
	const most = 5 << 20
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintf(&b, "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=slow.example; s=s%d;\r\n h=from; bh=AAAA; b=AAAA\r\n", i)
	}
	b.WriteString("From: fbl@slow.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nVersion: 1\r\nUser-Agent: x/1\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nFrom: a@slow.example\r\n\r\n")
	line := strings.Repeat("x", 74) + "\r\n"
	for b.Len()+len(line)+8 < most {
		b.WriteString(line)
	}
	b.WriteString("--b--\r\n")
	message := b.String()
	r.resetPeak()
	before, _ := r.cost()
	var taken, later atomic.Int64
	for range 2 {
		var ready, done sync.WaitGroup
		all := make(chan struct{})
		for i := range 16 {
			for range 2 {
				ready.Add(1)
				done.Go(func() {
					var once sync.Once
					defer once.Do(ready.Done)
					c := inboundFrom(t, port, fmt.Sprintf("127.0.3.%d", i+1))
					defer c.close()
					c.want("250", "MAIL FROM:<fbl@slow.example>")
					c.want("250", "RCPT TO:<fbl@bounces.relay.example>")
					c.want("354", "DATA")
					c.send(message)
					once.Do(ready.Done)
					<-all
					c.send(".\r\n")
					switch got := c.reply(); {
					case strings.HasPrefix(got, "250"):
						taken.Add(1)
					case strings.HasPrefix(got, "452 4.3.1"):
						later.Add(1)
					default:
						t.Error(got)
					}
				})
			}
		}
		ready.Wait()
		close(all)
		done.Wait()
	}
	peak, _ := r.cost()
	t.Logf("+%.1f MB for messages of %d octets; %d taken, %d to come later", float64(peak-before)/(1<<20), len(message), taken.Load(), later.Load())
	require.LessOrEqual(t, peak-before, int64(2*16*most), "16 times the largest message, which the collector may double")
	require.Positive(t, taken.Load())
}

func inboundFrom(t *testing.T, port int, address string) *talker {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := d.Dial("tcp", "127.0.0.1:"+itoa(port))
	require.NoError(t, err)
	require.NoError(t, conn.SetDeadline(time.Now().Add(2*time.Minute)))
	c := &talker{t: t, Conn: conn}
	require.Contains(t, c.reply(), "220 ")
	c.want("250", "EHLO mx.slow.example")
	return c
}
