package delivery

import (
	"context"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/spool"
)

// wire is a network in memory: a host is down until a time.
type wire struct {
	upAt    time.Time
	accepts chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (w *wire) DialContext(_ context.Context, _, _ string) (net.Conn, error) {
	if time.Now().Before(w.upAt) {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	a, b := net.Pipe()
	select {
	case w.accepts <- b:
		return a, nil
	case <-w.closed:
		return nil, io.ErrClosedPipe
	}
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.accepts:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

func (w *wire) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 25} }

// outageRig runs a scheduler with default waits on a fake clock against a host in memory.
func outageRig(t *testing.T, w *wire, mx *testutil.MX) *rig {
	return outageRigWith(t, w, mx, func(*Config) {})
}

func outageRigWith(t *testing.T, w *wire, mx *testutil.MX, change func(*Config)) *rig {
	r := wireRig(t, w, mx, map[string]string{"dest.example": "mx.dest.example"})
	change(&r.cfg)
	return r.start()
}

func TestD7FourHourOutageDelivers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := &wire{upAt: began.Add(4 * time.Hour)}
		mx := &testutil.MX{}
		r := outageRig(t, w, mx)
		id := r.send("a@dest.example")
		<-time.After(4*time.Hour + 35*time.Minute)
		got := r.outcome(id, 0)
		require.Equal(t, spool.Delivered, got.Result.Outcome)
		require.Equal(t, 1, got.Envelope.Attempts) // the outage cost none
		require.WithinDuration(t, w.upAt, got.Result.At, 34*time.Minute)
		require.Less(t, r.logs.count("site.suspended"), 30)
	})
}

func TestD7OneHourGreylistingDelivers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
			if s.Verb == "RCPT" && time.Since(began) < time.Hour {
				return testutil.Act{Reply: "451 4.7.1 Greylisted"}
			}
			return testutil.Act{}
		}}
		r := outageRig(t, &wire{}, mx)
		id := r.send("a@dest.example")
		<-time.After(6 * time.Hour)
		got := r.outcome(id, 0)
		require.Equal(t, spool.Delivered, got.Result.Outcome)
		require.Equal(t, 3, got.Envelope.Attempts)
	})
}

func TestOutageBeyondTheAgeExpiresAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{upAt: time.Now().Add(100 * time.Hour)}
		r := outageRig(t, w, &testutil.MX{})
		for range 300 { // more than one lease sets aside
			r.submit(submission{to: []string{"a@dest.example"}, from: "<>"})
		}
		<-time.After(26 * time.Hour)
		r.mu.Lock()
		n := len(r.final)
		var last spool.Settled
		for _, s := range r.final {
			last = s
		}
		r.mu.Unlock()
		require.Equal(t, 300, n)
		require.Equal(t, spool.Expired, last.Result.Outcome)
		require.Equal(t, reasonAge, last.Result.Reason)
		require.Equal(t, 451, last.Result.Reply.Code)
	})
}

func TestD4LateFinalReplyIsOneCopy(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{100 * time.Second, 300 * time.Second, 590 * time.Second} {
		t.Run(late.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{}
				mx.Received = func(*testutil.Mail) { <-time.After(late) }
				r := outageRig(t, &wire{}, mx)
				id := r.send("a@dest.example")
				<-time.After(3 * time.Hour)
				require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
				require.Len(t, mx.Mails(), 1)
				require.Zero(t, r.metric("in_doubt_total"))
			})
		})
	}
}

func TestD6ThrottlingHostSeesFallingRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := &testutil.MX{Rule: on("CONNECT", testutil.Act{Reply: "421 4.7.0 too much", Drop: true})}
		r := outageRig(t, &wire{}, mx)
		for range 50 {
			r.send("a@dest.example")
		}
		<-time.After(time.Hour)
		first, most := mx.Sessions()
		require.Equal(t, 1, most)
		require.Less(t, first, 15)
		<-time.After(4 * time.Hour)
		all, _ := mx.Sessions()
		require.LessOrEqual(t, all-first, 10) // two an hour at the cap
	})
}

// TestDowntimeCostsNoTry stops relayd after the first attempt and starts it again long after the mail's time: it gets
// one more try before it expires.
func TestDowntimeCostsNoTry(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"and_is_delivered": true, "and_expires_when_that_fails": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
					if s.Verb == "RCPT" && (!taken || time.Since(began) < time.Hour) {
						return testutil.Act{Reply: "451 4.2.1 not now"}
					}
					return testutil.Act{}
				}}
				r := outageRig(t, &wire{}, mx)
				id := r.submit(submission{to: []string{"a@dest.example"}, from: "<>"})
				require.Equal(t, 1, r.deferred(id, 0).Attempts)
				r.shutdown()
				r.deps.Metrics = nil
				<-time.After(240 * time.Hour)
				r.start()
				got := r.outcome(id, 0)
				require.Equal(t, 2, got.Envelope.Attempts)
				if taken {
					require.Equal(t, spool.Delivered, got.Result.Outcome)
				} else {
					require.Equal(t, spool.Expired, got.Result.Outcome)
					require.Equal(t, reasonAge, got.Result.Reason)
					require.Equal(t, "not now", got.Result.Reply.Text)
				}
			})
		})
	}
}

// TestCodeThatIsLateIsNotSent: a message whose sender has said how long it is of use is not sent after that, were relayd down
// or the site away; in its time it is.
func TestCodeThatIsLateIsNotSent(t *testing.T) {
	t.Parallel()
	code := submission{to: []string{"a@dest.example"}, expires: 5 * time.Minute, class: spool.Urgent, mark: func(m *spool.Message) { m.Deadline = true }}
	for name, tt := range map[string]struct {
		up   time.Duration // when the host answers
		down bool          // relayd is down for ten minutes meanwhile
		want spool.Outcome
	}{
		"in_time":        {0, false, spool.Delivered},
		"host_is_back":   {3 * time.Minute, false, spool.Delivered},
		"host_is_late":   {10 * time.Minute, false, spool.Expired},
		"we_were_down":   {time.Minute, true, spool.Expired},
		"both_were_down": {time.Hour, true, spool.Expired},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &wire{upAt: time.Now().Add(tt.up)}
				mx := &testutil.MX{}
				r := outageRig(t, w, mx)
				id := r.submit(code)
				if tt.down {
					synctest.Wait()
					r.shutdown()
					r.deps.Metrics = nil
					<-time.After(10 * time.Minute)
					r.start()
				}
				<-time.After(30 * time.Minute)
				got := r.outcome(id, 0)
				require.Equal(t, tt.want, got.Result.Outcome)
				if tt.want == spool.Expired {
					require.Equal(t, reasonAge, got.Result.Reason)
					require.NotZero(t, got.Result.Reply.Code)
					require.Empty(t, mx.Mails())
				}
			})
		})
	}
}
