package delivery

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/spool"
)

// drr is a site with flows that have work, none of it real.
func drr(t testing.TB, weights ...int) (*site, []*flow) {
	t.Helper()
	st := &site{own: newLimiter(scopeSite, "mx", Limit{}), source: newLimiter(scopeSource, "default", Limit{}), flows: map[flowKey]*flow{}}
	st.own.gov = newGovernor(20, 5)
	var flows []*flow
	for i, w := range weights {
		f := &flow{key: flowKey{fmt.Sprint(i), "s"}, weight: w, batch: minLease}
		f.account, f.campaign = newLimiter(scopeAccount, f.key.account, Limit{}), newLimiter(scopeCampaign, "s", Limit{})
		st.flows[f.key] = f
		flows = append(flows, f)
	}
	return st, flows
}

func work(f *flow, class spool.Class, n, recipients int) []*bundle {
	list := make([]*bundle, n)
	for i := range list {
		list[i] = &bundle{flow: f, class: class, envs: make([]*spool.Envelope, recipients)}
	}
	return list
}

func always(*flow) bool { return true }

func TestFlowsShareByWeight(t *testing.T) {
	t.Parallel()
	for name, recipients := range map[string][3]int{"single": {1, 1, 1}, "mixed": {1, 7, 100}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, flows := drr(t, 1, 2, 5)
			for i, f := range flows {
				st.push(f, work(f, spool.Bulk, 10_000, recipients[i]))
			}
			sent := map[*flow]int{}
			total := 0
			for total < 8000 {
				b := st.pop(true, always)
				sent[b.flow] += len(b.envs)
				total += len(b.envs)
			}
			for i, weight := range []int{1, 2, 5} {
				require.InDelta(t, float64(total)*float64(weight)/8, float64(sent[flows[i]]), float64(total)*0.02+100)
			}
		})
	}
}

func TestFewNeverWaitBehindMany(t *testing.T) {
	t.Parallel()
	st, flows := drr(t, 1, 1)
	st.push(flows[0], work(flows[0], spool.Bulk, 100_000, 1))
	for range 10 {
		require.Same(t, flows[0], st.pop(true, always).flow)
	}
	st.push(flows[1], work(flows[1], spool.Bulk, 1, 1))
	n := 0
	for st.pop(true, always).flow != flows[1] {
		n++
	}
	require.LessOrEqual(t, n, quantum)
}

func TestUrgentComesFirstAndBulkMayBeHeld(t *testing.T) {
	t.Parallel()
	st, flows := drr(t, 1, 1)
	st.push(flows[0], work(flows[0], spool.Bulk, 3, 1))
	st.push(flows[0], work(flows[0], spool.Transactional, 3, 1))
	st.push(flows[1], work(flows[1], spool.Urgent, 3, 1))
	var got []spool.Class
	for b := st.pop(false, always); b != nil; b = st.pop(false, always) {
		got = append(got, b.class)
	}
	require.Equal(t, []spool.Class{
		spool.Urgent, spool.Urgent, spool.Urgent, spool.Transactional, spool.Transactional, spool.Transactional,
	}, got)
	require.Equal(t, 3, st.waiting())
	require.Equal(t, spool.Bulk, st.pop(true, always).class)
}

func TestParkedFlowsCostNothing(t *testing.T) {
	t.Parallel()
	st, flows := drr(t, 1, 1, 1)
	for _, f := range flows {
		st.push(f, work(f, spool.Bulk, 5, 1))
	}
	asked := 0
	may := func(f *flow) bool {
		asked++
		return f != flows[1]
	}
	for range 10 {
		require.NotSame(t, flows[1], st.pop(true, may).flow)
	}
	require.Nil(t, st.pop(true, may))
	require.Less(t, asked, 20, "a parked flow is asked once")
	st.unpark(flows[1])
	require.Same(t, flows[1], st.pop(true, always).flow)
}

// bulkTo submits n messages of an account's campaign.
func (r *rig) bulkTo(account, stream string, n int, domain string) {
	r.t.Helper()
	for i := range n {
		r.submit(submission{from: account + "@sender.example", account: account, stream: stream, class: spool.Bulk, to: []string{fmt.Sprintf("u%d@%s", i, domain)}})
	}
}

func TestSecondAccountIsNotStarvedAcrossLeases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := &testutil.MX{}
		mx.Received = func(*testutil.Mail) { <-time.After(100 * time.Millisecond) }
		r := outageRig(t, &wire{}, mx)
		r.bulkTo("big", "news", 1500, "dest.example") // more than leases hold
		<-time.After(2 * time.Second)
		before := len(mx.Mails())
		require.Greater(t, before, 20)
		r.bulkTo("small", "offers", 20, "dest.example")
		synctest.Wait()
		big, small := 0, 0
		for small < 20 {
			<-time.After(100 * time.Millisecond)
			big, small = 0, 0
			for _, m := range mx.Mails()[before:] {
				if m.From == "small@sender.example" {
					small++
				} else {
					big++
				}
			}
			require.Less(t, big, 120, "%d of the small account's have left", small)
		}
		<-time.After(time.Minute)
		require.Len(t, mx.Mails(), 1520)
	})
}

func TestIdleQueuesCostNothing(t *testing.T) {
	t.Parallel()
	st, _ := drr(t)
	for i := range 100_000 {
		f := &flow{key: flowKey{fmt.Sprint(i), "s"}, weight: 1, batch: minLease}
		f.account = newLimiter(scopeAccount, "a", Limit{})
		f.campaign = f.account
		st.flows[f.key] = f
	}
	one := st.flows[flowKey{"7", "s"}]
	visits := 0
	for range 100 {
		st.push(one, work(one, spool.Bulk, 1, 1))
		require.Same(t, one, st.pop(true, func(*flow) bool { visits++; return true }).flow)
	}
	require.Equal(t, 100, visits, "the idle ones are not visited")
	require.Empty(t, st.rings[laneBulk].flows)
	require.Nil(t, st.nextHungry())
}
