package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

// logged tells whether the log holds an event.
func (r *relay) logged(event string) bool { return strings.Contains(r.logText(), `"msg":"`+event+`"`) }
