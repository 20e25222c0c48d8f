package delivery

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

// TestT06_AfterTheQuotaOneConnectionMoreAtATime has a provider complain while many slow transactions are under way. That they
// end well tells nothing: for ten minutes nothing is begun, and then there is one connection, and slowly more.
func TestT06_AfterTheQuotaOneConnectionMoreAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var complained, again time.Time
		busy, late, after := 0, 0, []int(nil) // transactions at a time; those that ended in the pause; how many there were when the nth came after it
		mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case s.Verb != "RCPT":
			case complained.IsZero() && s.Seen == 80:
				complained = time.Now()
				return testutil.Act{Reply: "421 4.7.28 Gmail has detected an unusual rate of mail", Drop: true}
			case !complained.IsZero() && time.Since(complained) > time.Second && again.IsZero():
				again = time.Now()
			}
			return testutil.Act{}
		}}
		mx.Received = func(*testutil.Mail) {
			mu.Lock()
			busy++
			if !again.IsZero() {
				after = append(after, busy)
			}
			mu.Unlock()
			<-time.After(10 * time.Second)
			mu.Lock()
			busy--
			if !complained.IsZero() && again.IsZero() {
				late++
			}
			mu.Unlock()
		}
		r := googleRig(t, mx)
		r.start()
		for range 200 {
			r.send("a@one.example")
			r.send("a@two.example")
		}
		<-time.After(9 * time.Minute)
		mu.Lock()
		require.Greater(t, late, 5, "many were under way")
		require.True(t, again.IsZero(), "%v", again.Sub(complained))
		mu.Unlock()
		require.Zero(t, r.logs.count("site.resumed"), "those that were under way do not end the pause")
		<-time.After(5 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		require.GreaterOrEqual(t, again.Sub(complained), 10*time.Minute)
		require.Greater(t, len(after), 100)
		most := 0
		for i, n := range after { // N that were taken win one more: 1, then 2 after 1, 3 after 1+2…
			require.LessOrEqual(t, n*(n-1)/2, i, "%v", after)
			most = max(most, n)
		}
		require.Greater(t, most, 2, "and more than one again")
		r.mu.Lock()
		defer r.mu.Unlock()
		require.Len(t, r.final, 400)
		for id, s := range r.final {
			require.Equal(t, 1, s.Envelope.Attempts, id)
		}
	})
}
