package spool

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	commits   *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	settled   *prometheus.CounterVec
	leaseLost prometheus.Counter
	inDoubt   prometheus.Counter
	corrupt   prometheus.Counter
	refused   *prometheus.CounterVec
}

// newMetrics registers the metrics of the spool; reg may be nil.
func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	queues := s.queues
	m := &metrics{
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_spool_commits_total", Help: "Messages handed to the spool, by result.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "relayd_spool_operation_seconds", Help: "Time until an operation was durable.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"operation"}),
		settled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_spool_settled_total", Help: "Envelopes settled, by outcome; deferred ones went back to their queue.",
		}, []string{"outcome"}),
		leaseLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_spool_leases_lost_total", Help: "Attempts to settle envelopes that were not under the lease.",
		}),
		inDoubt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_spool_in_doubt_total", Help: "Envelopes found under lease at start: each may be delivered twice.",
		}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_spool_unreadable_records_total", Help: "Records that could not be decoded.",
		}),
	}
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "relayd_spool_refused_total", Help: "Messages refused for now, by what there was too little of.",
	}, []string{"reason"})
	for _, r := range Pressures() {
		m.refused.WithLabelValues(r)
	}
	for _, r := range []string{"ok", "error"} {
		m.commits.WithLabelValues(r)
	}
	for _, o := range []string{"commit", "lease", "settle"} {
		m.seconds.WithLabelValues(o)
	}
	for _, o := range outcomeNames {
		m.settled.WithLabelValues(o)
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.commits, m.seconds, m.settled, m.leaseLost, m.inDoubt, m.corrupt, m.refused)
	for at, state := range map[place]State{inReady: StateReady, inLater: StateDeferred, inHeld: StateHeld, inFlight: StateLeased} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "relayd_spool_envelopes_count", Help: "Live envelopes, by state.",
			ConstLabels: prometheus.Labels{"state": state.String()},
		}, func() float64 { return float64(queues.totals()[at]) }))
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "relayd_spool_free_bytes", Help: "Room for the spool: free on its file system and inside its file.",
	}, func() float64 {
		s.Pressure()
		free, _ := s.pressure.room()
		return float64(free)
	}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "relayd_spool_accepting_count", Help: "1 while new messages are taken, 0 while there is too little of something.",
	}, func() float64 {
		if s.Pressure() != "" {
			return 0
		}
		return 1
	}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "relayd_spool_queues_count", Help: "Queues with live envelopes.",
	}, func() float64 { return float64(queues.len()) }))
	return m
}
