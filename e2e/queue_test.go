package e2e

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// trySubmit sends one message over the plain loopback listener.
func (r *relay) trySubmit(l login, to string) error {
	c, err := smtp.Dial("127.0.0.1:" + itoa(r.plain))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Auth(sasl.NewPlainClient("", l.Username, l.Password)); err != nil {
		return err
	}
	return c.SendMail("news@shop.example", []string{to}, strings.NewReader(plain("news@shop.example", to, "load")))
}

func TestQueueCommands(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, retry: "attempts = 5\nfirst_delay = \"1h\"\nmultiplier = 1.0\nmax_age = \"24h\""})
	var busy atomic.Bool
	busy.Store(true)
	s.onRcpt = func(string, string) error {
		if busy.Load() {
			return reply(451, 4, 2, 0, "Busy <script>\x1b[31m")
		}
		return nil
	}
	r.mx("dest.example", "other.example")
	l := r.domain("shop.example")
	for _, to := range []string{"a@dest.example", "b@dest.example", "c@other.example"} {
		require.NoError(t, r.trySubmit(l, to))
	}
	wait(t, "three deferrals", 20*time.Second, func() bool { return r.stats().Deferred == 3 })

	type item struct {
		ID, Envelope, To, State string
	}
	var list struct{ Data []item }
	r.json(&list, "queue", "list", "domain=dest.example")
	require.Len(t, list.Data, 2)
	r.json(&list, "queue", "list")
	require.Len(t, list.Data, 3)

	out, _, code := r.ctl("queue", "list")
	require.Zero(t, code)
	require.NotContains(t, out, "\x1b[31m", "remote text cannot colour the operator's terminal")

	r.json(nil, "queue", "hold", "domain=other.example", "--reason", "test")
	require.Equal(t, 1, r.stats().Held)
	r.json(nil, "queue", "retry", "domain=dest.example", "--dry-run")
	require.Equal(t, 2, r.stats().Deferred, "a dry run changes nothing")

	busy.Store(false)
	r.json(nil, "queue", "retry", "domain=dest.example")
	wait(t, "both retried", 20*time.Second, func() bool { return s.count() == 2 })
	require.Equal(t, 1, r.stats().Held, "what is held stays")
	r.json(nil, "queue", "release", "domain=other.example")
	r.json(nil, "queue", "retry", "domain=other.example")
	wait(t, "the released one", 20*time.Second, func() bool { return s.count() == 3 })
	r.settled(20 * time.Second)

	busy.Store(true)
	require.NoError(t, r.trySubmit(l, "d@dest.example"))
	wait(t, "a deferral", 20*time.Second, func() bool { return r.stats().Deferred == 1 })
	r.json(&list, "queue", "list")
	id := list.Data[0].ID
	if id == "" {
		id = list.Data[0].Envelope
	}
	queueID, _, _ := strings.Cut(id, ".")
	shown, stderr, code := r.ctl("-o", "json", "queue", "show", queueID)
	require.Zero(t, code, stderr)
	require.Contains(t, shown, "d@dest.example")
	require.Contains(t, shown, "451")
	r.json(nil, "queue", "fail", queueID, "--reason", "test")
	st := r.stats()
	require.Zero(t, st.Queued)
	require.Equal(t, 1, st.Outcomes["failed"])
	require.Equal(t, 3, st.Outcomes["delivered"])

	_, stderr, code = r.ctl("queue", "list", "colour=red")
	require.NotZero(t, code)
	require.Contains(t, stderr, "colour")
	_, _, code = r.ctl("queue", "paint")
	require.Equal(t, 2, code)
}
