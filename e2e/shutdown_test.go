package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

// TestG11ShutdownFinishesOrGivesBack stops relayd while a message is at its final dot.
func TestG11ShutdownFinishesOrGivesBack(t *testing.T) {
	t.Parallel()
	for name, grace := range map[string]string{"finishes_within_the_grace": "30s", "gives_back_after_it": "100ms"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, "", nil)
			reached, release := make(chan struct{}, 10), make(chan struct{})
			s.onData = func(string, []string, []byte) error {
				reached <- struct{}{}
				<-release
				return nil
			}
			r := newRelay(t, options{mxPort: s.port, deliv: `grace = "` + grace + `"`})
			r.mx("dest.example")
			r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "x"))
			<-reached
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
			if grace == "30s" {
				wait(t, "the stop to begin", 10*time.Second, func() bool { return r.logged("daemon.stopping") })
				close(release)
			}
			select {
			case <-r.end:
			case <-time.After(30 * time.Second):
				t.Fatal("relayd does not stop")
			}
			if grace == "30s" {
				require.Equal(t, 1, s.count())
				r.start()
				require.Equal(t, 1, r.settled(10 * time.Second).Outcomes["delivered"])
				require.Equal(t, 1, s.count(), "no second copy")
				return
			}
			require.True(t, r.logged("delivery.abandoned"))
			r.start()
			<-reached // it is sent again
			st := r.stats()
			require.Equal(t, 1, st.Queued)
			require.Zero(t, st.InDoubt, "its lease was given back")
			close(release)
			require.Equal(t, 1, r.settled(20 * time.Second).Outcomes["delivered"])
		})
	}
}

// TestG11_ReloadDropsNoSession: a client in the middle of its message and a host that has not answered to one yet do not
// notice that the configuration was replaced.
func TestG11_ReloadDropsNoSession(t *testing.T) {
	t.Parallel()
	reached, release := make(chan struct{}, 10), make(chan struct{})
	mx := (&testutil.MX{}).Start(t)
	mx.Rule = func(s testutil.Step) testutil.Act {
		if s.Verb == "DOT" && s.Seen == 0 {
			reached <- struct{}{}
			return testutil.Act{Stall: release}
		}
		return testutil.Act{}
	}
	r := newRelay(t, options{mxPort: mx.PortNumber()})
	r.mx("dest.example")
	l := r.domain("shop.example")
	r.submit(l, "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "on its way"))
	<-reached
	c := r.dial(l)
	require.NoError(t, c.Mail("news@shop.example", nil))
	require.NoError(t, c.Rcpt("bob@dest.example", nil))
	w, err := c.Data()
	require.NoError(t, err)
	_, err = w.Write([]byte(plain("news@shop.example", "bob@dest.example", "half")))
	require.NoError(t, err)
	for range 3 {
		n := len(r.records("configuration.loaded"))
		writeFile(t, r.dir+"/relayd.toml", strings.Replace(r.conf, "[delivery]\n", "[delivery]\nmax_connections = "+itoa(100+n)+"\n", 1))
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
		wait(t, "the configuration", 20*time.Second, func() bool { return len(r.records("configuration.loaded")) == n+1 })
	}
	_, err = w.Write([]byte("The other half.\r\n"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, c.Noop())
	close(release)
	require.Equal(t, 2, r.settled(20 * time.Second).Outcomes["delivered"])
	require.Len(t, mx.Mails(), 2, "each once")
	require.Empty(t, r.events("message.deferred"))
	require.InDelta(t, 0, r.metric("relayd_delivery_in_doubt_total"), 0)
}

// logged tells whether the log holds an event.
func (r *relay) logged(event string) bool { return strings.Contains(r.logText(), `"msg":"`+event+`"`) }
